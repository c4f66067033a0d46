"""Rectified flow beyond the golden numbers: times, guidance, alignment, averages, caches."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from janus_jax import checkpoint, sharding, train_step
from janus_jax.batch import count_targets
from janus_jax.data import images as image_ops
from janus_jax.data import tokenizer
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.generation import convnext
from janus_jax.generation.base import Images
from janus_jax.generation.flow import FlowGuidance
from janus_jax.inference import decode
from janus_jax.layers.linear import Rngs
from janus_jax.prepare import cache
from janus_jax.recipe.load import load_sampler
from janus_jax.recipe.stage import to_json
from tests.conftest import (
    first_batch,
    first_state,
    fresh_params,
    jit_step,
    loss_of,
    sampler_of,
    stage_of,
    two_losses,
)
from tests.paths import flow


@pytest.fixture
def recipe(data):
    return flow.get_config(data)


def compute_loss(stage, params, batch):
    """Loss and metrics of a batch, compiled."""
    return jax.jit(lambda params: loss_of(stage.objective, params, batch))(params)


def check_shapes(config):
    """Traces the loss of a config without running it."""
    stage, batch = first_batch(config)
    jax.eval_shape(lambda params: loss_of(stage.objective, params, batch), stage.network.abstract)


def fresh_generator(stage):
    """The generation path with fresh parameters."""
    return stage.network.merge(fresh_params(stage.network)).generator


def test_times_are_logit_normal_and_noise_is_normal(recipe):
    generator, count = fresh_generator(stage_of(recipe)), 4000
    encode = lambda pixels: jnp.zeros((count, 1, 1))
    images = Images(np.zeros((count, 32, 32, 3), np.uint8), latents=jnp.ones((count, 4, 4, 4)))
    prepare = jax.jit(lambda keys: generator.prepare(images, keys, encode=encode))
    noised = prepare(jax.random.split(jax.random.key(0), count))
    logits = jnp.log(noised.time) - jnp.log1p(-noised.time)
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05
    noise = 1 - noised.velocity
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    t = noised.time[:, None, None, None]
    np.testing.assert_allclose(noised.state, t + (1 - t) * noise, atol=1e-5)
    assert abs(np.corrcoef(noised.time, noise[:, 0, 0, 0])[0, 1]) < 0.05


@pytest.mark.parametrize(("steps", "scale"), [(1, 1.0), (8, 7.5)])
def test_any_number_of_steps_and_guidance(recipe, data, steps, scale):
    sampler = sampler_of(stage_of(recipe, "stage_3"), data)
    guidance = sampler.guidance(scale=scale, steps=steps)
    assert guidance == FlowGuidance(scale, steps)
    (image,) = sampler.draw(["a red star"], seeds=[0], guidance=guidance)
    for other in (guidance._replace(scale=scale + 1), guidance._replace(steps=steps + 1)):
        assert (image != sampler.draw(["a red star"], seeds=[0], guidance=other)[0]).any()
    with pytest.raises(UserError, match=r"top_k.*\['scale', 'steps'\]"):
        sampler.guidance(top_k=3)


def test_without_guidance_an_image_costs_one_row(recipe):
    network = stage_of(recipe, "stage_3").network
    prompts, real = np.ones((3, 8), np.int32), np.ones((3, 8), bool)
    keys = jax.random.split(jax.random.key(0), 3)[:, None]
    rows = []
    for scale in (1.0, 2.0):
        guidance = FlowGuidance(scale, 2)
        draw = functools.partial(decode.draw_batch, network=network, pad_id=2, guidance=guidance)
        jaxpr = jax.make_jaxpr(draw)(network.abstract, prompts, real, keys)
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


def count_multiplications(jaxpr):
    """Multiplications in a program's matrix products; those in a loop count once per iteration."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += equation.params.get("length", 1) * count_multiplications(inner)
    return total


def test_the_prompt_cache_changes_nothing_and_saves_work(recipe):
    """A prompt of 240 tokens before 5 of an image; `make acceptance` measures the seconds."""
    network = stage_of(recipe, "stage_3").network
    params = fresh_params(network)
    ids = jnp.arange(4 * 240).reshape(4, 240) % 100
    noise = jax.random.normal(jax.random.key(1), (4, 4, 4, 4))
    settings = dict(ids=ids, noise=noise, guidance=FlowGuidance(1.0, 30))
    draw = functools.partial(flow.draw_after, network, **settings)
    with_cache = jax.jit(functools.partial(draw, reuse=True))
    without = jax.jit(functools.partial(draw, reuse=False))
    np.testing.assert_allclose(with_cache(params), without(params), atol=1e-5)
    work = lambda run: count_multiplications(run.trace(params).jaxpr)
    assert work(with_cache) < 0.2 * work(without)


def test_alignment_trains_the_llm_and_not_its_reference_encoder(recipe):
    stage, batch = first_batch(recipe)
    batch = batch._replace(text_weights=np.zeros_like(batch.text_weights))
    alignment = lambda params: loss_of(stage.objective, params, batch)[1]["gen_alignment"]
    grads = jax.jit(jax.grad(alignment))(fresh_params(stage.network))

    def size(prefix):
        return max(float(jnp.abs(g).max()) for p, g in grads.items() if p.startswith(prefix))

    assert size("generation/alignment") > 0 and size("llm/layers") > 0
    assert size("generation/encoder") > 0
    assert size("understanding") == size("generation/decoder") == size("generation/tokenizer") == 0
    layers = [grad for path, grad in grads.items() if path.startswith("llm/layers")]
    for grad in layers:  # the states after the first block are aligned
        assert jnp.abs(grad[0]).max() > 0 and jnp.abs(grad[1:]).max() == 0


def test_alignment_can_be_left_out(recipe):
    stage, batch = first_batch(recipe)
    params = fresh_params(stage.network)
    loss, metrics = compute_loss(stage, params, batch)
    recipe.model.generation.alignment.layer = 0
    without, _ = first_batch(recipe)
    assert not any(path.startswith("generation/alignment") for path in without.network.abstract)
    params = {path: a for path, a in params.items() if path in without.network.abstract}
    other_loss, other_metrics = compute_loss(without, params, batch)
    np.testing.assert_allclose(other_loss - loss, metrics["gen_alignment"], rtol=1e-4)
    assert "gen_alignment" not in other_metrics
    velocity = metrics["gen_velocity"]  # two programs round differently
    np.testing.assert_allclose(other_metrics["gen_velocity"], velocity, rtol=1e-6)


def test_sizes_that_cannot_be_aligned_are_errors(recipe):
    recipe.model.understanding.encoder.patch_size = 8
    with pytest.raises(UserError, match="4 tokens.*16 features"):
        check_shapes(recipe)
    recipe.model.generation.alignment.layer = 3
    with pytest.raises(UserError, match="block 3.*num_layers.* 2"):
        check_shapes(recipe)
    recipe.model.understanding.encoder.update(image_size=64, patch_size=32)
    with pytest.raises(UserError, match="32 px.* 64 px"):
        check_shapes(recipe)


def test_the_loss_is_the_sum_of_the_means_over_text_and_over_images(recipe):
    stage, batch = first_batch(recipe)
    params, no_image = fresh_params(stage.network), batch.tokens[0].size
    loss, metrics = compute_loss(stage, params, batch)
    counts = count_targets(batch)
    text_sum = metrics["loss_und"] * counts.und_text + metrics["loss_text"] * counts.pure_text
    image = metrics["gen_velocity"] - metrics["gen_alignment"]
    np.testing.assert_allclose(loss, text_sum / counts.text + image, rtol=1e-5)
    nothing = batch._replace(
        text_weights=np.zeros_like(batch.text_weights),
        gen_start=np.full_like(batch.gen_start, no_image),
    )
    assert compute_loss(stage, params, nothing)[0] == 0


def test_dropped_prompts_are_not_attended_to(recipe):
    recipe.data.prompt_drop = 1.0
    stage, batch = first_batch(recipe)
    pad = tokenizer.load(recipe.data.tokenizer).pad
    for group, slot in np.argwhere(batch.gen_start < batch.tokens[0].size):
        tokens, positions, segment_ids = (
            field[group].reshape(-1) for field in (batch.tokens, batch.positions, batch.segment_ids)
        )
        start = batch.gen_start[group, slot]
        length = positions[start]  # of BOS and the prompt
        words = slice(start - length + 1, start)
        assert (tokens[words] == pad).all() and not segment_ids[words].any()
        assert positions[words].tolist() == list(range(1, length))
        assert segment_ids[start - length] == segment_ids[start] > 0
    params = fresh_params(stage.network)
    other = batch._replace(tokens=np.where(batch.tokens == pad, 9, batch.tokens))
    image_loss = lambda batch: compute_loss(stage, params, batch)[1]["loss_gen"]
    assert image_loss(other) == image_loss(batch)


def test_crops_are_random_and_repeat(recipe, tmp_path):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 96, 3), np.uint8))
    squares = {
        c: image_ops.for_generation(wide, size=32, crop=c) for c in (None, 0.0, 0.4, 0.999, 1.0)
    }
    np.testing.assert_array_equal(squares[None], np.asarray(wide)[:, 32:64])
    np.testing.assert_array_equal(squares[0.0], np.asarray(wide)[:, :32])
    np.testing.assert_array_equal(squares[1.0], np.asarray(wide)[:, 64:])
    assert len({s.tobytes() for s in squares.values()}) == 4
    recipe.data.sources.scenes.path = str(write_wide_images(recipe, tmp_path))
    _, middle = first_batch(recipe)
    recipe.data.crop = "random"
    (_, first), (_, second) = first_batch(recipe), first_batch(recipe)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    others = (first.gen_images != middle.gen_images).any(axis=(2, 3, 4))
    assert others.sum() > 0.9 * (first.gen_start < first.tokens[0].size).sum()


def write_wide_images(config, folder):
    """The scenes, each next to the one before it: twice as wide as high. Returns the file."""
    path = folder / "wide.array_record"
    source = Source("scenes", **config.to_dict()["data"]["sources"]["scenes"])
    records = [source[i] for i in range(len(source))]
    pixels = [np.asarray(image_ops.decode(record["image"])) for record in records]
    pairs = [np.concatenate([pixels[i], pixels[i - 1]], axis=1) for i in range(len(pixels))]
    images = [image_ops.encode_png(pair) for pair in pairs]
    write_array_record(path, [r | {"image": image} for r, image in zip(records, images)])
    return path


def test_the_average_follows_the_parameters(recipe):
    stage, batch = first_batch(recipe)
    state, step = first_state(stage), jit_step(stage, ema_decay=0.9)
    expected = state.trainable
    for _ in range(3):
        state, _ = step(state, batch)
        expected = {p: 0.9 * e + 0.1 * state.trainable[p] for p, e in expected.items()}
    for path, average in expected.items():
        np.testing.assert_allclose(state.ema[path], average, atol=1e-6)
    scale = state.trainable["llm/norm/scale"] * np.nan
    bad = state._replace(trainable=state.trainable | {"llm/norm/scale": scale})
    jax.tree.map(np.testing.assert_array_equal, step(bad, batch)[0].ema, bad.ema)


@pytest.mark.usefixtures("one_device")
def test_checkpoints_give_the_average_unless_asked(recipe, data, tmp_path):
    params = fresh_params(stage_of(recipe).network)
    ema = {path: a + 1 for path, a in params.items() if path.startswith("llm")}
    about = {"stage": "stage_2", "config": to_json(recipe.to_dict())}
    about["tokenizer"] = (data / "tokenizer.json").read_text()
    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.save(1, params=params, ema=ema, about=about)
    writer.wait()
    saved = checkpoint.open_saved(tmp_path)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        p: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device) for p, a in params.items()
    }
    assert_equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal(checkpoint.load_params(saved, abstract), params)
    assert_equal(checkpoint.load_params(saved, abstract, weights="ema"), params | ema)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert_equal(load_sampler(tmp_path, mesh=mesh).params, params | ema)
    assert_equal(load_sampler(tmp_path, mesh=mesh, weights="raw").params, params)
    assert checkpoint.load_ema(saved, {}) == {}


def test_the_scale_is_one_over_the_deviation_of_the_latents(recipe):
    stage, batch = first_batch(recipe, "tokenizer")
    batch.gen_start[:, -1] = batch.tokens[0].size  # an empty slot does not count
    state = first_state(stage)
    after = train_step.jit_calibrate(stage, state)(state, batch)
    images = batch.gen_images[batch.gen_start < batch.tokens[0].size]
    vae = stage.network.merge(state.params).tokenizer
    mean, _ = vae.encode(images.astype(np.float32) / 127.5 - 1)
    scale = after.frozen["generation/tokenizer/scale"]
    np.testing.assert_allclose(scale, 1 / np.std(mean), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.trainable, state.trainable)


@pytest.mark.parametrize("crop", ["center", "random"])
def test_cached_latents_are_those_of_the_step(recipe, tmp_path, crop):
    recipe.data.crop = crop
    recipe.data.sources.scenes.path = str(write_wide_images(recipe, tmp_path))
    config, stage = recipe.to_dict(), stage_of(recipe)
    params = fresh_params(stage.network) | {"generation/tokenizer/scale": jnp.float32(0.5)}
    writer = checkpoint.Writer(tmp_path / "run", keep=1)
    writer.save(1, params=params, about={"stage": "stage_2", "config": to_json(config)})
    writer.wait()
    folder = tmp_path / "cache"
    settings = dict(out=folder, checkpoint_path=tmp_path / "run", source_name="scenes")
    make = functools.partial(cache.make, **settings)
    about = make("latents")
    assert about == json.loads((folder / "about.json").read_text()) | {"records left out": 0}
    assert make("latents") == about  # finds its file and computes nothing
    assert about["crop"] == crop and len(about["fingerprint"]) == 16
    with pytest.raises(UserError, match="latents.*codes"):
        make("codes")
    with pytest.raises(UserError, match="seed"):
        make("latents", seed=1)

    cached = Source("scenes", kind="array_record", path=str(folder))
    whole = Source("scenes", **config["data"]["sources"]["scenes"])
    assert len(cached) == len(whole)

    def square(source, i):
        return image_ops.for_generation(image_ops.decode(source[i]["image"]), size=32)

    differ = [(square(cached, i) != square(whole, i)).any() for i in range(20)]
    assert sum(differ) > 15 if crop == "random" else not any(differ)
    recipe.data.sources.scenes.path = str(folder)
    stage, batch = first_batch(recipe)
    assert batch.gen_latents.shape == (*batch.gen_start.shape, 4, 4, 4)
    assert batch.gen_images.max() > 0
    from_cache, _ = compute_loss(stage, params, batch)
    from_pixels, _ = compute_loss(stage, params, batch._replace(gen_latents=None))
    np.testing.assert_allclose(from_cache, from_pixels, rtol=1e-5)
    wrong = np.zeros((*batch.gen_start.shape, 4, 8, 8), np.float32)
    with pytest.raises(UserError, match=r"\(4, 8, 8\).*\(4, 4, 4\)"):
        compute_loss(stage, params, batch._replace(gen_latents=wrong))


def test_latents_may_be_sampled_from_their_posterior(recipe):
    recipe.model.generation.sample_latents = True
    generator = fresh_generator(stage_of(recipe))
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    keys = jax.random.split(jax.random.key(0), 64)
    latents = generator.latents(Images(images), keys)
    mean, logvar = generator.nets.tokenizer.encode(images.astype(np.float32) / 127.5 - 1)
    deviation = (latents - mean) / jnp.exp(logvar / 2)
    assert abs(deviation.mean()) < 0.05 and abs(deviation.std() - 1) < 0.05


def test_loss_is_the_same_however_the_batch_is_split(recipe):
    recipe.stages.stage_2.warmup = 0
    _, batch = first_batch(recipe)
    whole = two_losses(recipe, batch, devices=1, microbatches=1)
    split = two_losses(recipe, batch, devices=2, microbatches=2)
    np.testing.assert_allclose(split, whole, rtol=1e-6)


def test_both_depthwise_convolutions_are_one():
    """On CPU a product with band matrices, elsewhere XLA's own; small and large maps."""
    rng = np.random.default_rng(0)
    for shape in ((2, 4, 3, 5), (1, 9, 12, 3)):
        x = rng.normal(size=shape).astype(np.float32)
        kernel = rng.normal(size=(7, 7, 1, shape[-1])).astype(np.float32)
        np.testing.assert_allclose(
            convnext.banded(x, kernel), convnext.grouped(x, kernel), rtol=1e-5, atol=1e-5
        )


def test_a_channel_of_zeros_has_no_gradient():
    """A map of zeros has the norm 0, whose slope is taken to be 0, as in PyTorch."""
    x = jnp.ones((1, 2, 2, 3)).at[..., 0].set(0)
    grn = convnext.GRN(Rngs(jax.random.key(0)), 3)
    gradient = jax.grad(lambda x: (grn(x) ** 2).sum())(x)
    assert np.isfinite(gradient).all()
    grn.gain[...] = jnp.ones(3)
    gradient = jax.grad(lambda x: (grn(x) ** 2).sum())(x)
    assert np.isfinite(gradient).all()
    assert (gradient[..., 0] == 0).all() and (gradient[..., 1:] != 0).all()


def test_sizes_that_do_not_divide_are_errors(recipe):
    cases = (
        ("stage_2", "image_size", 40, 16),
        ("tokenizer", "tokenizer_training.crop", 12, 8),
        ("tokenizer", "tokenizer_training.crop", 48, 8),
    )
    for name, field, size, unit in cases:
        config = recipe.copy_and_resolve_references()
        config.model.generation.update_from_flattened_dict({field: size})
        with pytest.raises(UserError, match=f"generation.{field} is {size}:.* {unit}"):
            stage_of(config, name)
