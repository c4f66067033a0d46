"""The cache changes nothing, and a batch draws what its prompts would draw alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import hardware, sharding
from janus_jax.data import chat, tokenizer
from janus_jax.data import images as image_ops
from janus_jax.errors import UserError
from janus_jax.generation.vq import VQGuidance
from janus_jax.inference import decode
from janus_jax.inference.sampler import Sampler
from janus_jax.plan import estimate
from janus_jax.recipe import assembly
from janus_jax.shapes import world


@pytest.fixture
def sampler(config, data):
    network = assembly.build_network(config.to_dict(), "stage_3")
    params = network.fresh(jax.random.key(0))
    return Sampler(network, params, tokenizer.load(data / "tokenizer.json"), config.to_dict(), template="chat")


def test_cached_steps_equal_the_whole_sequence(sampler):
    model = sampler.network.merge(sampler.params)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 6, 100)
    real = jnp.array([[True] * 12, [False] * 3 + [True] * 9])
    x = model.embed_text(tokens)
    hidden, cache = decode.prefill(model, x[:, :8], real=real[:, :8], room=4)
    stepwise = [hidden]
    for i in range(8, 12):
        hidden, cache = decode.stepper(model)(x[:, i : i + 1], cache)
        stepwise.append(hidden[:, 0])
    for b, first in ((0, 0), (1, 3)):
        n = 12 - first
        whole, _ = model.llm(x[b : b + 1, first:], positions=jnp.arange(n)[None], segment_ids=jnp.ones((1, n), jnp.int32))
        for k, h in enumerate(stepwise):
            np.testing.assert_allclose(h[b], whole[0, n - 5 + k], atol=2e-5)


def test_guidance_on_three_prompts_is_three_times_one(sampler, monkeypatch):
    codes, draw_batch = [], decode.draw_batch

    def kept(*args, **kwargs):
        pictures, ids = draw_batch(*args, **kwargs)
        codes.append(np.asarray(ids))
        return pictures, ids

    monkeypatch.setattr(decode, "draw_batch", kept)
    prompts, guidance = ["a red star", "two large blue circles", "a cross"], VQGuidance(scale=5.0)
    together = sampler.draw(prompts, seeds=[1, 2, 3], guidance=guidance)
    alone = [sampler.draw([p], seeds=[s], guidance=guidance)[0] for p, s in zip(prompts, (1, 2, 3), strict=True)]
    chex.assert_trees_all_equal(codes[0], np.concatenate(codes[1:]))
    # The decoder's last bit depends on the size of the batch, and truncation may make it a level.
    chex.assert_trees_all_close(together.astype(int), np.stack(alone).astype(int), atol=1, rtol=0)
    assert len({p.tobytes() for p in together}) == 3


def drawn(sampler, prompts, seeds, *, devices, guidance):
    """Codes of pictures, drawn on so many devices."""
    mesh, kept = sharding.make_mesh(devices=jax.devices()[:devices]), []
    places = sharding.param_shardings(mesh, sampler.network.abstract, sampler.network.axes)
    params = jax.device_put(sampler.params, places)
    with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
        draw_batch = decode.draw_batch
        patch.setattr(decode, "draw_batch", lambda *a, **k: kept.append(draw_batch(*a, **k)) or kept[-1])
        Sampler(sampler.network, params, sampler.tokenizer, sampler.config, template="chat").draw(
            prompts, seeds=seeds, guidance=guidance
        )
    return np.asarray(kept[0][1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_codes_depend_on_prompt_and_seed_alone(sampler, temperature):
    guidance = VQGuidance(scale=5.0, temperature=temperature)
    draw = functools.partial(drawn, sampler, guidance=guidance)
    prompts, seeds = ["a red star", "two large blue circles"] * 8, np.arange(16)
    many = draw(prompts, seeds, devices=8)
    np.testing.assert_array_equal(draw(prompts, seeds, devices=1), many)  # so many devices, or one
    np.testing.assert_array_equal(draw(prompts[:1], seeds[:1], devices=1), many[:1])  # so many pictures, or one
    shared = draw(prompts[:2], seeds.reshape(8, 2).T, devices=8)  # one cache a prompt, or one a picture
    np.testing.assert_array_equal(shared, np.concatenate([many[0::2], many[1::2]]))
    assert len(np.unique(many, axis=0)) == (2 if temperature == 0 else 16)


def test_pictures_that_share_a_cache_have_the_states_of_those_that_do_not(sampler):
    model = sampler.network.merge(sampler.params)
    tokens = jax.random.randint(jax.random.key(1), (4, 8), 6, 100)  # two prompts, with and without words
    real = jnp.ones((4, 8), bool).at[2:, :3].set(False)
    new = jax.random.normal(jax.random.key(2), (2, 3, 2, 5, model.llm.embed.shape[1]))  # prompts, copies, ways, steps
    hidden, cache = decode.prefill(model, model.embed_text(tokens), real=real, room=5, copies=3, ways=2)
    alone = [decode.prefill(model, model.embed_text(tokens), real=real, room=5) for _ in range(3)]
    for i in range(5):
        hidden, cache = decode.stepper(model)(new[:, :, :, i].reshape(12, 1, -1), cache)
        for copy in range(3):
            apart, held = decode.stepper(model)(new[:, copy, :, i].reshape(4, 1, -1), alone[copy][1])
            alone[copy] = apart, held
            together = hidden.reshape(2, 3, 2, -1)[:, copy].reshape(4, -1)
            np.testing.assert_allclose(together, apart[:, 0], atol=2e-5)


def test_every_position_costs_the_same_and_the_cache_is_what_plan_says(sampler, config):
    model = sampler.network.merge(sampler.params)
    tokens = model.path.num_tokens
    x = model.embed_text(jnp.full((2, 8), 9))
    _, cache = decode.prefill(model, x, real=jnp.ones((2, 8), bool), room=tokens, ways=2)
    held = sum(a.nbytes for a in jax.tree.leaves(cache.own))
    assert held == estimate.picture_cache(config.to_dict(), gen_tokens=tokens)
    step = jax.jit(decode.stepper(model))
    first, last = cache, cache.replace(length=jnp.int32(tokens - 1), position=cache.position + tokens - 1)
    for held in (first, last):
        _, after = step(x[:, :1], held)
        assert jax.tree.map(jnp.shape, after.own) == jax.tree.map(jnp.shape, cache.own)
    assert step._cache_size() == 1  # one program for all positions


@pytest.mark.parametrize(("devices_that_hold_it", "tensor"), [(2.0, 1), (0.9, 2), (0.3, 4), (None, 1)])
def test_weights_are_cut_only_where_they_would_fill_a_device(sampler, monkeypatch, devices_that_hold_it, tensor):
    size = sum(a.nbytes for a in sampler.params.values())
    chip = hardware.UNKNOWN._replace(memory=3 * size * (devices_that_hold_it or 0))
    monkeypatch.setattr(hardware, "of", lambda kind: chip)
    mesh = assembly.inference_mesh(sampler.network, sampler.config)
    assert dict(mesh.shape) == dict(data=8 // tensor, fsdp=1, tensor=tensor)


def test_a_conversation_about_two_pictures_goes_on_as_the_whole_row_would(sampler):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(2)]
    turns = [
        {"role": "user", "content": f"{chat.IMAGE}\nand {chat.IMAGE}\nWhat is on both?"},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": "What color?"},
    ]
    row, starts = sampler._row(turns, None)
    model, size = sampler.network.merge(sampler.params), sampler.config["model"]["understanding"]["encoder"]["image_size"]
    seen = np.stack([image_ops.for_understanding(image, size=size) for image in images])[None]
    wanted = []
    for _ in range(4):
        x = model.embed_text(jnp.asarray([row + wanted]))
        x = model.insert_pictures(x, seen, start=jnp.asarray([starts]))
        n = x.shape[1]
        hidden, _ = model.llm(x, positions=jnp.arange(n)[None], segment_ids=jnp.ones((1, n), jnp.int32))
        wanted.append(int(jnp.argmax(model.llm.head(hidden[0, -1]))))
    t = sampler.tokenizer
    text = t.decode(wanted[: wanted.index(t.eos)] if t.eos in wanted else wanted).strip()
    answers = list(sampler.stream([(turns, images)] * 2, max_tokens=4, every=1))
    assert answers[-1] == [text, text] and 1 <= len(answers) <= 4
    assert sampler.answer([(turns, images)], max_tokens=4) == [text]


def test_pictures_and_their_places_are_counted(sampler):
    with pytest.raises(UserError, match="1 places for pictures and 0 pictures"):
        sampler.answer([([{"role": "user", "content": f"{chat.IMAGE}\nWhat?"}], [])])


def test_unconditional_rows_keep_bos_boi_and_padding(sampler):
    ids, real = decode.right_align([[0, 9, 9, 4], [0, 9, 9, 9, 9, 4]], pad_id=2, multiple=8)
    out, seen = sampler.network.merge(sampler.params).path.unconditional(jnp.asarray(ids), real=jnp.asarray(real), pad_id=7)
    np.testing.assert_array_equal(seen, real)
    assert out[0].tolist() == [2, 2, 2, 2, 0, 7, 7, 4] and out[1].tolist() == [2, 2, 0, 7, 7, 7, 7, 4]


def test_answers_do_not_depend_on_the_batch(sampler):
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng, category="colors", split="train") for _ in range(3)]
    images = [Image.fromarray(world.render(rng, s)) for s in scenes]
    questions = ["What color is the star?", "How many?", "What shape is the red object?"]
    together = sampler.ask(images, questions, max_tokens=5)
    assert together == [sampler.ask([i], [q], max_tokens=5)[0] for i, q in zip(images, questions, strict=True)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_depend_on_question_and_seed_alone(sampler, temperature):
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(3)]
    asked = []
    for i in range(16):  # none, one or two pictures, and words of several lengths
        content = f"{chat.IMAGE}\n" * (i % 3) + " ".join(["star"] * (1 + i % 5))
        asked.append(([{"role": "user", "content": content}], images[: i % 3]))
    settings, seeds = dict(max_tokens=5, temperature=temperature), list(range(16))
    found = []
    for count in (1, 8):
        mesh = sharding.make_mesh(data=count, fsdp=1, tensor=1, devices=jax.devices()[:count])
        with jax.set_mesh(mesh):
            places = sharding.param_shardings(mesh, sampler.network.abstract, sampler.network.axes)
            sampler.params = jax.device_put(sampler.params, places)
            found.append(sampler.answer(asked, seeds=seeds, **settings))
            if count == 1:
                found.append([sampler.answer([a], seeds=[s], **settings)[0] for a, s in zip(asked[:6], seeds, strict=False)])
            else:  # batches that share a factor with the devices, and do not divide over them
                found.append([sampler.answer(asked[:b], seeds=seeds[:b], **settings) for b in (2, 6)])
    together, alone, spread, few = found
    assert together == spread and together[:6] == alone and few == [together[:2], together[:6]]
    if temperature:
        with jax.set_mesh(mesh):
            assert sampler.answer(asked, seeds=[s + 1 for s in seeds], **settings) != together


def test_codes_do_not_change_when_codebook_rows_are_rescaled(sampler):
    pixels = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
    book = sampler.params["generation/tokenizer/codebook"]
    scale = jnp.linspace(0.3, 3.0, len(book))[:, None]
    codes = []
    for table in (book, book * jnp.broadcast_to(scale, book.shape)):
        net = sampler.network.merge(sampler.params | {"generation/tokenizer/codebook": table}).generation.tokenizer
        codes.append(jax.jit(lambda p, net=net: net.nearest(net.encode(p)))(pixels))
    np.testing.assert_array_equal(*codes)


def test_top_k_and_top_p_keep_only_the_likeliest():
    from janus_jax.generation.vq import choose

    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 200))
    keys = jax.random.split(jax.random.key(0), 200)
    pick = functools.partial(choose, logits, keys)
    assert set(np.asarray(pick(VQGuidance(top_k=2))).tolist()) == {0, 1}
    assert set(np.asarray(pick(VQGuidance(top_p=0.9))).tolist()) == {0, 1, 2}
    assert set(np.asarray(pick(VQGuidance())).tolist()) == {0, 1, 2, 3}
    assert set(np.asarray(pick(VQGuidance(temperature=0))).tolist()) == {0}
    level = functools.partial(choose, jnp.zeros((200, 4)), keys)  # none of them is likelier
    assert set(np.asarray(level(VQGuidance(top_k=1))).tolist()) == {0, 1, 2, 3}


def test_a_k_above_the_vocabulary_and_a_p_of_one_cut_nothing(monkeypatch):
    from janus_jax.generation import vq

    logits = 3 * jax.random.normal(jax.random.key(0), (8, 16_384))
    keys = jax.random.split(jax.random.key(1), 8)
    monkeypatch.setattr(jax.random, "categorical", lambda key, kept: jnp.isfinite(kept).sum())
    for guidance in (VQGuidance(), VQGuidance(top_k=20_000), VQGuidance(top_p=1.0)):
        assert set(np.asarray(vq.choose(logits, keys, guidance)).tolist()) == {16_384}
