"""Rectified flow beyond the golden numbers: times, guidance, the prompt's cache, alignment, averages, caches of latents."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import checkpoint, sharding, train_step
from janus_jax.data import images as image_ops
from janus_jax.data import tokenizer
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.generation import convnext
from janus_jax.generation.base import Pictures
from janus_jax.generation.flow import FlowGuidance
from janus_jax.inference import decode
from janus_jax.inference.sampler import Sampler
from janus_jax.layers.linear import Rngs
from janus_jax.models.janus import count_targets
from janus_jax.prepare import cache
from janus_jax.recipe import assembly
from janus_jax.shapes import world
from tests.conftest import first_batch, params_of, state_for, two_losses
from tests.paths import flow


@pytest.fixture
def recipe(data):
    return flow.get_config(data)


def keys_for(batch):
    return jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)


def loss_of(network, params, batch):
    loss = lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys_for(batch))
    return jax.jit(loss)(params)


def test_times_are_logit_normal_and_noise_is_normal(recipe):
    network = assembly.build_network(recipe.to_dict(), "stage_2")
    path, n = network.merge(params_of(network)).path, 4000
    look = lambda images: jnp.zeros((n, 1, 1))
    pictures = Pictures(np.zeros((n, 32, 32, 3), np.uint8), latents=jnp.ones((n, 4, 4, 4)))
    noised = jax.jit(lambda k: path.prepare(pictures, k, look=look))(jax.random.split(jax.random.key(0), n))
    logits = jnp.log(noised.time) - jnp.log1p(-noised.time)
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05
    noise = 1 - noised.velocity
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    t = noised.time[:, None, None, None]
    np.testing.assert_allclose(noised.state, t + (1 - t) * noise, atol=1e-5)
    assert abs(np.corrcoef(noised.time, noise[:, 0, 0, 0])[0, 1]) < 0.05


@pytest.mark.parametrize("steps", [1, 8, 30])
@pytest.mark.parametrize("scale", [1.0, 2.0, 7.5])
def test_every_number_of_steps_and_guidance(recipe, data, steps, scale):
    network = assembly.build_network(recipe.to_dict(), "stage_3")
    sampler = Sampler(network, params_of(network), tokenizer.load(data / "tokenizer.json"), recipe.to_dict(), template="chat")
    guidance = sampler.guidance(scale=scale, steps=steps)
    assert guidance == FlowGuidance(scale, steps)
    (picture,) = sampler.draw(["a red star"], seeds=[0], guidance=guidance)
    for other in (guidance._replace(scale=scale + 1), guidance._replace(steps=steps + 1)):
        assert (picture != sampler.draw(["a red star"], seeds=[0], guidance=other)[0]).any()
    with pytest.raises(UserError, match=r"draws without top_k; its settings are \['scale', 'steps'\]"):
        sampler.guidance(top_k=3)


def test_without_guidance_a_picture_costs_one_row(recipe):
    network = assembly.build_network(recipe.to_dict(), "stage_3")
    rows, prompts = [], np.ones((3, 8), np.int32)
    keys = jax.random.split(jax.random.key(0), 3)[:, None]
    for scale in (1.0, 2.0):
        draw = functools.partial(decode.draw_batch, network=network, pad_id=2, guidance=FlowGuidance(scale, 2))
        jaxpr = jax.make_jaxpr(draw)(network.abstract, prompts, np.ones((3, 8), bool), keys)
        rows.append({a.shape[0] for a in arrays(jaxpr.jaxpr) if a.shape[1:] == (8, 32)})
    assert rows == [{3}, {6}]


def arrays(jaxpr):
    """Every array of a program and of the programs inside it."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in equation.outvars if hasattr(v.aval, "shape"))
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from arrays(inner)


def products(jaxpr):
    """Multiplications in the matrix products of a program, loops counted as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * products(inner)
    return total


def test_one_cache_of_the_prompt_draws_the_same_with_less(recipe):
    """A prompt of 240 tokens before 5 of a picture; what it saves in seconds is a proof of `make acceptance`."""
    network = assembly.build_network(recipe.to_dict(), "stage_3")
    params, ids = params_of(network), jnp.arange(4 * 240).reshape(4, 240) % 100
    noise, guidance = jax.random.normal(jax.random.key(1), (4, 4, 4, 4)), FlowGuidance(1.0, 30)
    draw = functools.partial(flow.draw_after, network, ids=ids, noise=noise, guidance=guidance)
    runs = [jax.jit(functools.partial(draw, reuse=reuse)) for reuse in (True, False)]
    np.testing.assert_allclose(*(run(params) for run in runs), atol=1e-5)
    with_cache, without = (products(run.trace(params).jaxpr) for run in runs)
    assert with_cache < 0.2 * without


def test_alignment_pulls_the_llm_and_not_the_encoder_it_looks_at(recipe):
    network, batch = first_batch(recipe)
    batch = batch._replace(text_weights=np.zeros_like(batch.text_weights))
    params = params_of(network)
    part = lambda name: lambda p: network.merge(p).loss(batch, counts=count_targets(batch), keys=keys_for(batch))[1][name]
    grads = jax.jit(jax.grad(part("gen_alignment")))(params)
    size = lambda start: max(float(jnp.abs(g).max()) for p, g in grads.items() if p.startswith(start))
    assert size("generation/alignment") > 0 and size("llm/layers") > 0 and size("generation/encoder") > 0
    assert size("understanding") == size("generation/decoder") == size("generation/tokenizer") == 0
    behind = [g for p, g in grads.items() if p.startswith("llm/layers")]
    assert all(jnp.abs(g[0]).max() > 0 and jnp.abs(g[1:]).max() == 0 for g in behind)  # it taps the first block


def test_alignment_can_be_left_out(recipe):
    network, batch = first_batch(recipe)
    whole, metrics = loss_of(network, params_of(network), batch)
    recipe.model.generation.alignment.layer = 0
    without, _ = first_batch(recipe)
    assert not any(p.startswith("generation/alignment") for p in without.abstract)
    loss, left = loss_of(without, {p: a for p, a in params_of(network).items() if p in without.abstract}, batch)
    np.testing.assert_allclose(loss - whole, metrics["gen_alignment"], rtol=1e-4)
    assert "gen_alignment" not in left  # and two programs round the rest
    np.testing.assert_allclose(left["gen_velocity"], metrics["gen_velocity"], rtol=1e-6)


def test_alignment_of_other_sizes_is_told(recipe):
    recipe.model.understanding.encoder.patch_size = 8
    network, batch = first_batch(recipe)
    with pytest.raises(UserError, match="Alignment compares 4 tokens .* with 16 features"):
        loss_of(network, network.abstract, batch)
    recipe.model.generation.alignment.layer = 3
    network, batch = first_batch(recipe)
    with pytest.raises(UserError, match="output of block 3; config.model.llm.num_layers is 2"):
        loss_of(network, network.abstract, batch)
    recipe.model.understanding.encoder.update(image_size=64, patch_size=32)
    network, batch = first_batch(recipe)
    with pytest.raises(UserError, match="draw are 32 px, .* encoder of 64 px"):
        loss_of(network, network.abstract, batch)


def test_losses_are_means_of_their_own_targets_added_up(recipe):
    network, batch = first_batch(recipe)
    params, unused = params_of(network), batch.tokens[0].size
    loss, metrics = loss_of(network, params, batch)
    text = sum(metrics[f"{t}_sum"] for t in ("understanding", "text")) / batch.text_weights.sum()
    np.testing.assert_allclose(loss, text + metrics["gen_velocity"] - metrics["gen_alignment"], rtol=1e-5)
    nothing = batch._replace(text_weights=np.zeros_like(batch.text_weights), gen_start=np.full_like(batch.gen_start, unused))
    assert loss_of(network, params, nothing)[0] == 0


def test_dropped_prompts_are_not_seen(recipe):
    recipe.data.prompt_drop = 1.0
    network, batch = first_batch(recipe)
    starts = np.argwhere(batch.gen_start < batch.tokens[0].size)
    pad, flat = tokenizer.load(recipe.data.tokenizer).pad, lambda a, s: a[s].reshape(-1)
    for s, slot in starts:
        start = batch.gen_start[s, slot]
        place = flat(batch.positions, s)[start]
        words = slice(start - place + 1, start)
        assert (flat(batch.tokens, s)[words] == pad).all() and not flat(batch.segment_ids, s)[words].any()
        assert flat(batch.positions, s)[words].tolist() == list(range(1, place))
        assert flat(batch.segment_ids, s)[start - place] == flat(batch.segment_ids, s)[start] > 0
    params = params_of(network)
    other = batch._replace(tokens=np.where(batch.tokens == pad, 9, batch.tokens))
    assert loss_of(network, params, other)[1]["loss_gen"] == loss_of(network, params, batch)[1]["loss_gen"]


def test_crops_are_random_and_repeat(recipe, tmp_path):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 96, 3), np.uint8))
    squares = {c: image_ops.for_generation(wide, size=32, crop=c) for c in (None, 0.0, 0.4, 0.999, 1.0)}
    np.testing.assert_array_equal(squares[None], np.asarray(wide)[:, 32:64])
    np.testing.assert_array_equal(squares[0.0], np.asarray(wide)[:, :32])
    np.testing.assert_array_equal(squares[1.0], np.asarray(wide)[:, 64:])
    assert len({s.tobytes() for s in squares.values()}) == 4
    recipe.data.sources.scenes.path = str(wide_pictures(recipe, tmp_path))
    _, middle = first_batch(recipe)
    recipe.data.crop = "random"
    (_, first), (_, second) = first_batch(recipe), first_batch(recipe)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    others = (first.gen_images != middle.gen_images).any(axis=(2, 3, 4))
    assert others.sum() > 0.9 * (first.gen_start < first.tokens[0].size).sum()


def wide_pictures(recipe, folder):
    """The scenes that are drawn, each beside the one before it: twice as wide as high."""
    source, path = Source("scenes", **recipe.to_dict()["data"]["sources"]["scenes"]), folder / "wide.array_record"
    pixels = [np.asarray(image_ops.decode(source[i]["image"])) for i in range(len(source))]
    pairs = [world.encode_png(np.concatenate([b, a], axis=1)) for a, b in zip(pixels, pixels[-1:] + pixels, strict=False)]
    write_array_record(path, [source[i] | {"image": pair} for i, pair in enumerate(pairs)])
    return path


def test_the_average_follows_the_parameters(recipe):
    network, batch = first_batch(recipe)
    state, tx, rate = state_for(recipe, "stage_2", network)
    step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=1, seed=0, ema_decay=0.9))
    expected = state.trainable
    for _ in range(3):
        state, _ = step(state, batch)
        expected = {p: 0.9 * e + 0.1 * state.trainable[p] for p, e in expected.items()}
    for path, average in expected.items():
        np.testing.assert_allclose(state.ema[path], average, atol=1e-6)
    bad = state._replace(trainable=state.trainable | {"llm/norm/scale": state.trainable["llm/norm/scale"] * np.nan})
    jax.tree.map(np.testing.assert_array_equal, step(bad, batch)[0].ema, bad.ema)


def test_checkpoints_give_the_average_unless_asked(recipe, data, tmp_path):
    network = assembly.build_network(recipe.to_dict(), "stage_2")
    params = params_of(network)
    ema = {p: a + 1 for p, a in params.items() if p.startswith("llm")}
    writer = checkpoint.Writer(tmp_path, keep=1)
    about = {"config": assembly.cli.plain(recipe.to_dict()), "tokenizer": (data / "tokenizer.json").read_text()}
    writer.save(1, params=params, ema=ema, about=about | {"stage": "stage_2"})
    writer.wait()
    saved, place = checkpoint.open_saved(tmp_path), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for p, a in params.items()}
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(saved, wanted), params)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.load_params(saved, wanted, weights="ema"), params | ema)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    jax.tree.map(np.testing.assert_array_equal, assembly.load_sampler(tmp_path, mesh=mesh).params, params | ema)
    raw = assembly.load_sampler(tmp_path, mesh=mesh, weights="raw")
    jax.tree.map(np.testing.assert_array_equal, raw.params, params)
    assert checkpoint.load_ema(saved, {}) == {}


def test_the_scale_is_one_over_the_deviation_of_the_latents(recipe):
    network, batch = first_batch(recipe, "tokenizer")
    batch.gen_start[:, -1] = batch.tokens[0].size  # an empty slot does not count
    state, _, _ = state_for(recipe, "tokenizer", network)
    after = jax.jit(train_step.make_settle(network))(state, batch)
    used = batch.gen_images[batch.gen_start < batch.tokens[0].size]
    mean, _ = network.merge(state.trainable | state.frozen).generation.tokenizer.encode(used.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(after.frozen["generation/tokenizer/scale"], 1 / np.std(mean), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.trainable, state.trainable)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_cached_latents_are_those_of_the_step(recipe, tmp_path, crop):
    recipe.data.crop, recipe.data.sources.scenes.path = crop, str(wide_pictures(recipe, tmp_path))
    config, network = recipe.to_dict(), assembly.build_network(recipe.to_dict(), "stage_2")
    params = params_of(network) | {"generation/tokenizer/scale": jnp.float32(0.5)}
    writer = checkpoint.Writer(tmp_path / "run", keep=1)
    writer.save(1, params=params, about={"stage": "stage_2", "config": assembly.cli.plain(config)})
    writer.wait()
    make = functools.partial(cache.make, out=tmp_path / "cache", checkpoint_path=tmp_path / "run", source_name="scenes")
    assert make("latents") == json.loads((tmp_path / "cache/about.json").read_text()) | {"records left out": 0}
    about = make("latents")  # finds its file and makes nothing anew
    assert about["crop"] == crop and len(about["fingerprint"]) == 16
    with pytest.raises(UserError, match="keeps of a picture is ..latents.., not codes"):
        make("codes")
    with pytest.raises(UserError, match="made with another seed"):
        make("latents", seed=1)

    cached = Source("scenes", kind="array_record", path=str(tmp_path / "cache"))
    whole = Source("scenes", **config["data"]["sources"]["scenes"])
    assert len(cached) == len(whole)
    square = lambda source, i: image_ops.for_generation(image_ops.decode(source[i]["image"]), size=32)
    moved = [(square(cached, i) != square(whole, i)).any() for i in range(20)]
    assert sum(moved) > 15 if crop == "random" else not any(moved)
    recipe.data.sources.scenes.path = str(tmp_path / "cache")
    _, batch = first_batch(recipe)
    assert batch.gen_latents.shape == (*batch.gen_start.shape, 4, 4, 4) and batch.gen_images.max() > 0
    with_cache, without = (loss_of(network, params, b)[0] for b in (batch, batch._replace(gen_latents=None)))
    np.testing.assert_allclose(with_cache, without, rtol=1e-5)
    wrong = batch._replace(gen_latents=np.zeros((*batch.gen_start.shape, 4, 8, 8), np.float32))
    with pytest.raises(UserError, match="Cached latents are"):
        loss_of(network, params, wrong)


def test_latents_may_be_drawn_from_their_posterior(recipe):
    recipe.model.generation.sample_latents = True
    network = assembly.build_network(recipe.to_dict(), "stage_2")
    path, images = (
        network.merge(params_of(network)).path,
        np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8),
    )
    keys = jax.random.split(jax.random.key(0), 64)
    drawn = path.latents(Pictures(images), keys)
    mean, logvar = path.nets.tokenizer.encode(images.astype(np.float32) / 127.5 - 1)
    deviation = (drawn - mean) / jnp.exp(logvar / 2)
    assert abs(deviation.mean()) < 0.05 and abs(deviation.std() - 1) < 0.05


def test_loss_is_the_same_however_the_batch_is_split(recipe):
    network, batch = first_batch(recipe)
    whole, split = (two_losses(recipe, network, batch, devices=n, microbatches=n) for n in (1, 2))
    np.testing.assert_allclose(split, whole, rtol=1e-6)


def test_both_depthwise_convolutions_are_one():
    """On CPU a product with band matrices, elsewhere XLA's own; maps smaller and larger than the window."""
    rng = np.random.default_rng(0)
    for shape in ((2, 4, 3, 5), (1, 9, 12, 3)):
        x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(7, 7, 1, shape[-1])).astype(np.float32)
        np.testing.assert_allclose(convnext.banded(x, kernel), convnext.grouped(x, kernel), rtol=1e-5, atol=1e-5)


def test_a_silent_channel_has_no_gradient():
    """A map of zeros has the norm 0, whose slope is taken to be 0, as in PyTorch."""
    x = jnp.ones((1, 2, 2, 3)).at[..., 0].set(0)
    grn = convnext.GRN(Rngs(jax.random.key(0)), 3)
    gradient = jax.grad(lambda x: (grn(x) ** 2).sum())(x)
    assert np.isfinite(gradient).all()
    grn.gain[...] = jnp.ones(3)
    gradient = jax.grad(lambda x: (grn(x) ** 2).sum())(x)
    assert np.isfinite(gradient).all() and (gradient[..., 0] == 0).all() and (gradient[..., 1:] != 0).all()


@pytest.mark.parametrize(
    ("field", "size", "unit"),
    [("image_size", 40, 16), ("tokenizer_training.crop", 12, 8), ("tokenizer_training.crop", 48, 8)],
)
def test_sizes_that_do_not_come_out_even_are_told(recipe, field, size, unit):
    recipe.model.generation.update_from_flattened_dict({field: size})
    with pytest.raises(UserError, match=f"generation.{field} is {size}: it must be a multiple of {unit} and at most"):
        assembly.build_network(recipe.to_dict(), "stage_2")
