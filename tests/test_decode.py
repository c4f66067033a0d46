"""The cache changes nothing, and a batch draws what its prompts would draw alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import assembly
from janus_jax.data import shapes, tokenizer
from janus_jax.generation.vq_path import VQGuidance
from janus_jax.models import decode
from janus_jax.models.artist import Artist


@pytest.fixture
def artist(config, data):
    network = assembly.build_network(config.to_dict(), "stage_3")
    params = network.fresh(jax.random.key(0))
    return Artist(network, params, tokenizer.load(data / "tokenizer.json"), config.to_dict(), template="chat")


def test_cached_steps_equal_the_whole_sequence(artist):
    model = artist.network.merge(artist.params)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 6, 100)
    real = jnp.array([[True] * 12, [False] * 3 + [True] * 9])
    x = model.embed_text(tokens)
    hidden, cache = decode.prefill(model, x[:, :8], real=real[:, :8], room=4)
    stepwise = [hidden]
    for i in range(8, 12):
        hidden, cache = decode.step(model, x[:, i : i + 1], cache)
        stepwise.append(hidden[:, 0])
    for b, first in ((0, 0), (1, 3)):
        n = 12 - first
        whole, _ = model.llm(x[b : b + 1, first:], positions=jnp.arange(n)[None], segment_ids=jnp.ones((1, n), jnp.int32))
        for k, h in enumerate(stepwise):
            np.testing.assert_allclose(h[b], whole[0, n - 5 + k], atol=2e-5)


def test_guidance_on_three_prompts_is_three_times_one(artist, monkeypatch):
    codes, draw_batch = [], decode.draw_batch

    def kept(*args, **kwargs):
        pictures, ids = draw_batch(*args, **kwargs)
        codes.append(np.asarray(ids))
        return pictures, ids

    monkeypatch.setattr(decode, "draw_batch", kept)
    prompts, guidance = ["a red star", "two large blue circles", "a cross"], VQGuidance(scale=5.0)
    together = artist.draw(prompts, seeds=[1, 2, 3], guidance=guidance)
    alone = [artist.draw([p], seeds=[s], guidance=guidance)[0] for p, s in zip(prompts, (1, 2, 3), strict=True)]
    chex.assert_trees_all_equal(codes[0], np.concatenate(codes[1:]))
    # The decoder's last bit depends on the size of the batch, and truncation may make it a level.
    chex.assert_trees_all_close(together.astype(int), np.stack(alone).astype(int), atol=1, rtol=0)
    assert len({p.tobytes() for p in together}) == 3


def test_unconditional_rows_keep_bos_boi_and_padding(artist):
    ids, real = decode.right_align([[0, 9, 9, 4], [0, 9, 9, 9, 9, 4]], pad_id=2, multiple=8)
    out, seen = artist.network.merge(artist.params).path.unconditional(jnp.asarray(ids), real=jnp.asarray(real), pad_id=7)
    np.testing.assert_array_equal(seen, real)
    assert out[0].tolist() == [2, 2, 2, 2, 0, 7, 7, 4] and out[1].tolist() == [2, 2, 0, 7, 7, 7, 7, 4]


def test_answers_do_not_depend_on_the_batch(artist):
    from PIL import Image

    rng = np.random.default_rng(0)
    scenes = [shapes.sample_scene(rng, category="colors", split="train") for _ in range(3)]
    images = [Image.fromarray(shapes.render(rng, s)) for s in scenes]
    questions = ["What color is the star?", "How many?", "What shape is the red object?"]
    together = artist.ask(images, questions, max_tokens=5)
    assert together == [artist.ask([i], [q], max_tokens=5)[0] for i, q in zip(images, questions, strict=True)]


def test_codes_do_not_change_when_codebook_rows_are_rescaled(artist):
    pixels = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    book = artist.params["generation/tokenizer/codebook"]
    scale = jnp.linspace(0.3, 3.0, len(book))[:, None]
    codes = []
    for table in (book, book * jnp.broadcast_to(scale, book.shape)):
        net = artist.network.merge(artist.params | {"generation/tokenizer/codebook": table}).generation.tokenizer
        codes.append(jax.jit(lambda p, net=net: net.nearest(net.encode(p)))(pixels))
    np.testing.assert_array_equal(*codes)


def test_top_k_and_top_p_keep_only_the_likeliest():
    from janus_jax.generation.vq_path import choose

    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 200))
    keys = jax.random.split(jax.random.key(0), 200)
    pick = functools.partial(choose, logits, keys)
    assert set(np.asarray(pick(VQGuidance(top_k=2))).tolist()) == {0, 1}
    assert set(np.asarray(pick(VQGuidance(top_p=0.9))).tolist()) == {0, 1, 2}
    assert set(np.asarray(pick(VQGuidance())).tolist()) == {0, 1, 2, 3}
    assert set(np.asarray(pick(VQGuidance(temperature=0))).tolist()) == {0}
