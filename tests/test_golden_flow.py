"""JanusFlow's forward pass, gradients and sampling against the release's own numbers.

The fixtures are in JANUS_GOLDEN, by default tests/golden; every size comes from its dims.json.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.convert import name_map
from janus_jax.generation.flow import FlowGuidance, noised
from janus_jax.inference import decode
from janus_jax.models.interleave import insert
from tests.helpers.golden_model import (
    GOLDEN,
    close,
    flow_model,
    inputs,
    load_janus,
    nhwc,
    sizes,
    tensors_of,
)

FOLDER = GOLDEN / "janusflow_tiny"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no golden fixture")


@pytest.fixture(scope="module")
def golden():
    """ModelSpec, parameters, inputs and outputs."""
    return *load_janus(flow_model(sizes(FOLDER)), FOLDER / "model.safetensors"), inputs(FOLDER)


def run_llm(model, x, *, tap=None):
    """The LLM over rows of one example each."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    return model.llm(x, positions=positions, segment_ids=jnp.ones(x.shape[:2], jnp.int32), tap=tap)


def noised_images(io):
    """The fixture's images at their times."""
    return noised(nhwc(io["flow/latents"]), nhwc(io["flow/noise"]), jnp.asarray(io["flow/time"]))


def generate(model, io):
    """Hidden states of the images, those after the first block of all positions, and the skip."""
    tokens, skip = model.generator.embed(noised_images(io))
    prompt = model.embed_text(jnp.asarray(io["flow/prompt_ids"]))
    hidden, tapped = run_llm(model, jnp.concatenate([prompt, tokens], axis=1), tap=1)
    return hidden[:, prompt.shape[1] + model.generator.read_shift :], tapped, skip


def flow_loss(model, io):
    hidden, _, skip = generate(model, io)
    losses, metrics = model.generator.loss(hidden, None, noised_images(io), skip)
    assert set(metrics) == {"gen_velocity"}
    return losses.mean()


def test_noised_images_equal_the_reference(golden):
    *_, io = golden
    close(noised_images(io).state, nhwc(io["flow/z_t"]))


def test_image_generation(golden):
    network, params, io = golden

    def outputs(params):
        model = network.merge(params)
        hidden, tapped, skip = generate(model, io)
        return *skip, tapped, model.generator.velocity(hidden, skip)

    features, time, tapped, velocity = jax.jit(outputs)(params)
    close(features, nhwc(io["flow/encoder_out"]))
    close(time, io["flow/time_embed"])
    close(tapped, io["flow/hidden_after_block_1"])
    close(velocity, nhwc(io["flow/velocity"]))
    close(jax.jit(lambda p: flow_loss(network.merge(p), io))(params), io["flow/loss"])


def test_gradients_of_every_parameter(golden):
    network, params, io = golden
    gradients = jax.jit(jax.grad(lambda p: flow_loss(network.merge(p), io)))(params)
    expected = {k.removeprefix("flow/"): g for k, g in inputs(FOLDER, "grads").items()}
    tensors = tensors_of(network, "flow")
    ours = dict(
        name_map.to_tensors(lambda paths: {p: np.asarray(gradients[p]) for p in paths}, tensors)
    )
    assert len(expected) >= 50
    for key, gradient in expected.items():
        close(ours[key], gradient, tolerance=1e-4)
    for key in ours.keys() - expected.keys():
        assert not ours[key].any(), f"{key} has a gradient that the reference does not have"


def integrate(model, io, *, make_step=None):
    """The fixture's guided Euler steps: latents and velocities."""
    prompts, pad = jnp.asarray(io["sample/prompt_ids"]), int(io["sample/pad_id"])
    real, generator = jnp.ones(prompts.shape, bool), model.generator
    without, mask_without = generator.unconditional(prompts, real=real, pad_id=pad)
    pair = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, a.shape[-1])
    x = model.embed_text(pair(prompts, without))
    mask = pair(real, mask_without)
    _, cache = decode.prefill(
        model, x, real=pair(real, real), prompt_mask=mask, max_new_tokens=generator.num_tokens
    )
    guidance = FlowGuidance(scale=float(io["sample/guidance"]), steps=int(io["sample/steps"]))
    step = make_step(x, mask) if make_step else decode.make_decode_step(model)
    return generator.integrate(step, cache, nhwc(io["sample/z0"]), branches=2, guidance=guidance)


def test_guided_euler_steps(golden):
    network, params, io = golden
    latents, velocities = jax.jit(lambda p: integrate(network.merge(p), io))(params)
    close(velocities, nhwc(io["sample/velocities"]))
    close(latents, nhwc(io["sample/z1"]))


def test_one_cache_of_the_prompt_equals_computing_it_at_every_step(golden):
    network, params, io = golden

    def both(params):
        model = network.merge(params)

        def recompute(x, prompt_mask):
            def step(tokens, cache):
                rows = jnp.concatenate([x, tokens], axis=1)
                mask = jnp.pad(
                    prompt_mask, ((0, 0), (0, tokens.shape[1])), constant_values=True
                ).astype(jnp.int32)
                places = jnp.broadcast_to(jnp.arange(rows.shape[1])[None], rows.shape[:2])
                return model.llm(rows, positions=places, segment_ids=mask)[0][
                    :, x.shape[1] :
                ], cache

            return step

        return integrate(model, io)[0], integrate(model, io, make_step=recompute)[0]

    close(*jax.jit(both)(params), tolerance=1e-5)


def understand(model, io):
    """Text logits of the fixture's images to understand."""
    features = model.understanding.adaptor(
        model.understanding.encoder(nhwc(io["und/pixel_values"][:, 0]))
    )
    begin = jnp.broadcast_to(model.understanding.begin[...][None, None], features[:, :1].shape)
    slots = jnp.concatenate([begin, features], axis=1)
    start = jnp.asarray(io["und/image_mask"]).argmax(axis=1)[:, None]
    x = insert(model.embed_text(jnp.asarray(io["und/input_ids"])), slots[:, None], start=start)
    return model.llm.head(run_llm(model, x)[0])


def test_understanding(golden):
    network, params, io = golden
    close(jax.jit(lambda p: understand(network.merge(p), io))(params), io["und/logits"])


def test_images_are_inserted_with_begin_which_has_a_gradient(golden):
    network, params, io = golden
    model = network.merge(params)
    pixels = nhwc(io["und/pixel_values"])
    images = jnp.round((pixels * 0.5 + 0.5) * 255).astype(jnp.uint8)
    start = jnp.asarray(io["und/image_mask"]).argmax(axis=1)[:, None] + 1  # of the first feature
    x = model.embed_text(jnp.asarray(io["und/input_ids"]))
    put = lambda p: network.merge(p).insert_images(x, images, start=start)
    out = jax.jit(put)(params)
    np.testing.assert_array_equal(
        out[:, start[0, 0] - 1], jnp.stack([params["understanding/begin"]] * 2)
    )
    np.testing.assert_array_equal(out[:, : start[0, 0] - 1], x[:, : start[0, 0] - 1])
    assert (
        jnp.abs(jax.jit(jax.grad(lambda p: (put(p) ** 2).sum()))(params)["understanding/begin"]) > 0
    ).all()
