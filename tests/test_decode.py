"""The KV cache does not change results, and neither does the batch or the number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import tiny
from janus_jax import hardware, sharding
from janus_jax.data import chat
from janus_jax.data.images import for_understanding
from janus_jax.data.tokenizer import TextTokenizer
from janus_jax.errors import UserError
from janus_jax.generation.vq import VQGuidance
from janus_jax.inference import decode
from janus_jax.inference.sampler import Sampler, Template
from janus_jax.objectives.joint import Joint
from janus_jax.plan import estimate
from janus_jax.recipe import load
from janus_jax.recipe.stage import make_stage
from tests.conftest import small


@pytest.fixture(scope="module")
def settings(data):
    """The small config as a plain dict."""
    return small(tiny.get_config(), data).to_dict()


@pytest.fixture(scope="module")
def sampler(settings, data):
    """A model with fresh parameters; one network for all tests, so that programs are shared."""
    network = Joint.build_network(settings["model"], dtype=jnp.dtype("float32"))
    template = Template("chat", tuple(settings["data"]["roles"]), settings["data"]["system_prompt"])
    tokenizer = TextTokenizer((data / "tokenizer.json").read_text())
    return Sampler(network, network.init(jax.random.key(0)), tokenizer, template=template)


@pytest.fixture
def model(sampler):
    return sampler.network.merge(sampler.params)


def on_mesh(sampler, mesh):
    """A sampler with the same parameters on a mesh."""
    shardings = sharding.param_shardings(mesh, sampler.network.abstract, sampler.network.axes)
    params = jax.device_put(sampler.params, shardings)
    return Sampler(sampler.network, params, sampler.tokenizer, template=sampler.template)


def test_cached_steps_equal_the_whole_sequence(model):
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 6, 100)
    real = jnp.array([[True] * 12, [False] * 3 + [True] * 9])
    x = model.embed_text(tokens)
    hidden, cache = decode.prefill(model, x[:, :8], real=real[:, :8], max_new_tokens=4)
    states, step = [hidden], jax.jit(decode.make_decode_step(model))
    for i in range(8, 12):
        hidden, cache = step(x[:, i : i + 1], cache)
        states.append(hidden[:, 0])
    for b, first in ((0, 0), (1, 3)):
        n = 12 - first
        places = jnp.arange(n)[None]
        whole, _ = model.llm(
            x[b : b + 1, first:], positions=places, segment_ids=jnp.ones_like(places)
        )
        for k, state in enumerate(states):
            np.testing.assert_allclose(state[b], whole[0, n - 5 + k], atol=2e-5)


def test_an_image_is_decoded_under_the_mask_it_is_trained_with(model):
    prompt, image = 8, 5
    tokens = jax.random.randint(jax.random.key(1), (2, prompt + image), 6, 100)
    real = jnp.array([[True] * prompt, [False] * 3 + [True] * (prompt - 3)])
    x = model.embed_text(tokens)
    _, cache = decode.prefill(model, x[:, :prompt], real=real, max_new_tokens=image)
    states = {}
    for mask in ("causal", "picture_bidirectional"):
        states[mask], _ = decode.make_decode_step(model, mask=mask)(x[:, prompt:], cache)
        for b, first in ((0, 0), (1, 3)):
            places = jnp.arange(prompt + image - first)[None]
            image_ids = (places >= prompt - first).astype(jnp.int32)
            whole, _ = model.llm(
                x[b : b + 1, first:],
                positions=places,
                segment_ids=jnp.ones_like(places),
                image_ids=None if mask == "causal" else image_ids,
            )
            np.testing.assert_allclose(states[mask][b], whole[0, -image:], atol=2e-5)
    difference = jnp.abs(states["causal"] - states["picture_bidirectional"]).max(axis=(0, 2))
    assert (difference > 1e-3).all()  # also at the last token, through the layers before
    with pytest.raises(UserError, match="'both'"):
        decode.make_decode_step(model, mask="both")


def draw(sampler, prompts, seeds, *, devices, guidance):
    """Images and codes of prompts, sampled on a number of devices."""
    codes, draw_batch = [], decode.draw_batch

    def record(*args, **kwargs):
        images, ids = draw_batch(*args, **kwargs)
        codes.append(np.asarray(ids))
        return images, ids

    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "draw_batch", record)
        images = on_mesh(sampler, mesh).draw(prompts, seeds=seeds, guidance=guidance)
    return images, codes[0]


def test_images_depend_on_prompt_and_seed_only(sampler):
    run = functools.partial(draw, sampler, guidance=VQGuidance(scale=5.0))
    prompts, seeds = ["a red star", "two large blue circles"] * 8, np.arange(16)
    images, codes = run(prompts, seeds, devices=8)
    np.testing.assert_array_equal(run(prompts, seeds, devices=1)[1], codes)
    image, code = run(prompts[:1], seeds[:1], devices=1)
    np.testing.assert_array_equal(code, codes[:1])
    # The last bit of the decoder depends on the batch size, and truncation makes it a level.
    np.testing.assert_allclose(image.astype(int), images[:1].astype(int), atol=1)
    _, shared = run(prompts[:2], seeds.reshape(8, 2).T, devices=8)  # one prompt cache for 8 images
    np.testing.assert_array_equal(shared, np.concatenate([codes[0::2], codes[1::2]]))
    assert len(np.unique(codes, axis=0)) == 16
    greedy = VQGuidance(scale=5.0, temperature=0.0)
    _, codes = draw(sampler, prompts, seeds, devices=8, guidance=greedy)
    assert len(np.unique(codes, axis=0)) == 2


def test_samples_that_share_a_prompt_cache_have_the_states_of_those_that_do_not(model):
    prompts, samples, branches, steps = 2, 3, 2, 3
    tokens = jax.random.randint(jax.random.key(1), (prompts * branches, 8), 6, 100)
    real = jnp.ones((4, 8), bool).at[2:, :3].set(False)
    x = model.embed_text(tokens)
    shape = (prompts, samples, branches, steps, x.shape[-1])
    new = jax.random.normal(jax.random.key(2), shape)
    step = jax.jit(decode.make_decode_step(model))
    prefill = functools.partial(decode.prefill, model, x, real=real, max_new_tokens=steps)
    hidden, cache = prefill(samples_per_prompt=samples, num_branches=branches)
    alone = [prefill()[1]] * samples
    for i in range(steps):
        hidden, cache = step(new[:, :, :, i].reshape(-1, 1, x.shape[-1]), cache)
        for sample in range(samples):
            state, alone[sample] = step(
                new[:, sample, :, i].reshape(-1, 1, x.shape[-1]), alone[sample]
            )
            shared = hidden.reshape(prompts, samples, branches, -1)[:, sample]
            np.testing.assert_allclose(shared.reshape(state[:, 0].shape), state[:, 0], atol=2e-5)


def test_one_program_decodes_every_position_and_the_cache_has_the_planned_size(model, settings):
    tokens = model.generator.num_tokens
    x = model.embed_text(jnp.full((2, 8), 9))
    real = jnp.ones((2, 8), bool)
    _, cache = decode.prefill(model, x, real=real, max_new_tokens=tokens, num_branches=2)
    num_bytes = sum(a.nbytes for a in jax.tree.leaves(cache.suffix))
    assert num_bytes == estimate.image_cache_bytes(make_stage(settings, "stage_2"))
    step = jax.jit(decode.make_decode_step(model))
    last = cache.replace(length=jnp.int32(tokens - 1), position=cache.position + tokens - 1)
    for before in (cache, last):
        _, after = step(x[:, :1], before)
        assert jax.tree.map(jnp.shape, after.suffix) == jax.tree.map(jnp.shape, cache.suffix)
    assert step._cache_size() == 1


def test_weights_are_sharded_only_where_they_would_fill_a_device(sampler, monkeypatch):
    network = sampler.network
    dtypes = dict.fromkeys(network.abstract, jnp.dtype("float32"))
    size = sum(a.nbytes for a in sampler.params.values())
    for memory, tensor in [
        (2.0, 1),
        (0.9, 2),
        (0.3, 4),
        (0, 1),
    ]:  # in units of the weights; 0: unknown
        chip = hardware.UNKNOWN._replace(memory=3 * size * memory)
        monkeypatch.setattr(hardware, "find_chip", lambda kind, chip=chip: chip)
        mesh = load.inference_mesh(network, dtypes)
        assert dict(mesh.shape) == dict(data=8 // tensor, fsdp=1, tensor=tensor), memory


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(count)]


def test_a_conversation_about_two_images_is_answered_as_the_whole_row_would_be(sampler, model):
    images = random_images(2)
    turns = [
        {"role": "user", "content": f"{chat.IMAGE}\nand {chat.IMAGE}\nWhat is on both?"},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": "What color?"},
    ]
    row, starts = sampler._row(turns, None)
    size, t = model.understanding.encoder.image_size, sampler.tokenizer
    pixels = np.stack([for_understanding(image, size=size) for image in images])[None]
    answer = []
    for _ in range(4):
        x = model.embed_text(jnp.asarray([row + answer]))
        x = model.insert_images(x, pixels, start=jnp.asarray([starts]))
        places = jnp.arange(x.shape[1])[None]
        hidden, _ = model.llm(x, positions=places, segment_ids=jnp.ones_like(places))
        answer.append(int(jnp.argmax(model.llm.head(hidden[0, -1]))))
    text = t.decode(answer[: answer.index(t.eos)] if t.eos in answer else answer).strip()
    answers = list(sampler.stream([(turns, images)] * 2, max_tokens=4, every=1))
    assert answers[-1] == [text, text] and 1 <= len(answers) <= 4
    assert sampler.answer([(turns, images)], max_tokens=4) == [text]


def test_images_and_their_places_are_counted(sampler):
    with pytest.raises(UserError, match="1 images and 0 images"):
        sampler.answer([([{"role": "user", "content": f"{chat.IMAGE}\nWhat?"}], [])])


def test_unconditional_rows_keep_bos_boi_and_padding(model):
    ids, real = decode.right_align([[0, 9, 9, 4], [0, 9, 9, 9, 9, 4]], pad_id=2, multiple=8)
    out, mask = model.generator.unconditional(jnp.asarray(ids), real=jnp.asarray(real), pad_id=7)
    np.testing.assert_array_equal(mask, real)
    assert out.tolist() == [[2, 2, 2, 2, 0, 7, 7, 4], [2, 2, 0, 7, 7, 7, 7, 4]]


def test_answers_depend_on_question_and_seed_only(sampler):
    images, questions = random_images(3, seed=1), []
    for i in range(16):  # no, one or two images, and words of several lengths
        content = f"{chat.IMAGE}\n" * (i % 3) + " ".join(["star"] * (1 + i % 5))
        questions.append(([{"role": "user", "content": content}], images[: i % 3]))
    seeds = list(range(16))
    one, eight = (
        sharding.make_mesh(data=n, fsdp=1, tensor=1, devices=jax.devices()[:n]) for n in (1, 8)
    )
    for temperature in (0.0, 1.0):
        options = dict(max_tokens=5, temperature=temperature)
        with jax.set_mesh(one):
            on_one = on_mesh(sampler, one)
            run = functools.partial(on_one.answer, **options)
            answers = run(questions, seeds=seeds)
            alone = [run([q], seeds=[s])[0] for q, s in zip(questions[:6], seeds, strict=False)]
            if temperature == 0:
                assert on_one.ask(images[:1], ["star star"], max_tokens=5) == answers[1:2]
        assert answers[:6] == alone
        with jax.set_mesh(eight):
            run = functools.partial(on_mesh(sampler, eight).answer, **options)
            assert run(questions, seeds=seeds) == answers
            for count in (2, 6):  # not multiples of the devices
                assert run(questions[:count], seeds=seeds[:count]) == answers[:count]
            if temperature:
                assert run(questions, seeds=[s + 1 for s in seeds]) != answers
