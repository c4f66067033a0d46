"""Forward, gradients, codes, sampling and preprocessing against the release's own numbers.

The fixtures are in JANUS_GOLDEN, by default tests/golden; every size comes from its dims.json.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from janus_jax.convert import name_map
from janus_jax.data import images
from janus_jax.generation.vq import VQGuidance
from janus_jax.inference import decode
from janus_jax.models.interleave import insert
from tests.helpers.golden_model import (
    GOLDEN,
    close,
    inputs,
    janus_model,
    load_janus,
    nhwc,
    sizes,
    tensors_of,
)

FOLDER = GOLDEN / "janus_tiny"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no golden fixture")


@pytest.fixture(scope="module")
def golden():
    """ModelSpec, parameters, inputs and outputs."""
    return *load_janus(janus_model(sizes(FOLDER)), FOLDER / "model.safetensors"), inputs(FOLDER)


def run_llm(model, x):
    """The LLM over rows of one example each."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    return model.llm(x, positions=positions, segment_ids=jnp.ones(x.shape[:2], jnp.int32))[0]


def understand(model, io):
    """Features, adaptor output, hidden states and text logits."""
    pixels = nhwc(io["und/pixel_values"][:, 0])
    features = model.understanding.encoder(pixels)
    adapted = model.understanding.adaptor(features)
    start = jnp.asarray(io["und/image_mask"]).argmax(axis=1)[:, None]
    x = insert(model.embed_text(jnp.asarray(io["und/input_ids"])), adapted[:, None], start=start)
    hidden = run_llm(model, x)
    return features, adapted, hidden, model.llm.head(hidden)


def text_loss(model, io):
    logits, labels = understand(model, io)[-1][:, :-1], jnp.asarray(io["und/labels"])[:, 1:]
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return losses.mean(where=labels >= 0)


def generate(model, io):
    """Code embeddings, and the states from which teacher forcing predicts the codes."""
    generator = model.generator
    embeds, _ = generator.embed(jnp.asarray(io["vq/ids"]))
    prompt = model.embed_text(jnp.asarray(io["gen/prompt_ids"]))
    hidden = run_llm(model, jnp.concatenate([prompt, embeds], axis=1))
    first = prompt.shape[1] + generator.read_shift
    return embeds, hidden[:, first : first + generator.num_tokens]


def image_loss(model, io):
    _, hidden = generate(model, io)
    losses, _ = model.generator.loss(hidden, None, jnp.asarray(io["vq/ids"]), None)
    return losses.mean() / model.generator.num_tokens


def test_understanding(golden):
    network, params, io = golden
    results = jax.jit(lambda p: understand(network.merge(p), io))(params)
    for ours, name in zip(
        results, ("siglip_features", "adaptor_out", "last_hidden", "logits"), strict=True
    ):
        close(ours, io[f"und/{name}"])
    close(jax.jit(lambda p: text_loss(network.merge(p), io))(params), io["und/loss"])


def test_codes_and_tokenizer_losses(golden):
    network, params, io = golden
    tokenizer = network.merge(params).generation.tokenizer
    pixels = nhwc(io["gen/pixels"])
    vectors = jax.jit(tokenizer.encode)(pixels)
    close(vectors, nhwc(io["vq/pre_quant"]))
    codes = tokenizer.nearest(vectors)
    np.testing.assert_array_equal(codes, io["vq/ids"])
    close(jax.jit(tokenizer.decode)(codes), nhwc(io["vq/decoded"]))
    _, codebook, commitment, _ = jax.jit(tokenizer.quantize_through)(pixels)
    close(codebook.mean(), io["vq/loss_codebook"])
    close(0.25 * commitment.mean(), io["vq/loss_commit"])


def test_image_generation(golden):
    network, params, io = golden
    embeds, hidden = jax.jit(lambda p: generate(network.merge(p), io))(params)
    close(embeds, io["gen/code_embeds"])
    close(network.merge(params).generation.head(hidden), io["gen/logits"])
    close(jax.jit(lambda p: image_loss(network.merge(p), io))(params), io["gen/loss"])


@pytest.mark.parametrize(("task", "loss"), [("und", text_loss), ("gen", image_loss)])
def test_gradients_of_every_parameter(golden, task, loss):
    network, params, io = golden
    gradients = jax.jit(jax.grad(lambda p: loss(network.merge(p), io)))(params)
    expected = {
        k.removeprefix(f"{task}/"): g
        for k, g in inputs(FOLDER, "grads").items()
        if k.startswith(f"{task}/")
    }
    tensors = tensors_of(network, "vq")
    ours = dict(
        name_map.to_tensors(lambda paths: {p: np.asarray(gradients[p]) for p in paths}, tensors)
    )
    assert len(expected) >= 20
    for key, gradient in expected.items():
        close(ours[key], gradient, tolerance=1e-4)
    for key in ours.keys() - expected.keys():
        assert not ours[key].any(), f"{key} has a gradient that the reference does not have"


def test_guided_greedy_sampling(golden):
    network, params, io = golden
    prompts = np.asarray(io["ar/prompt_ids"], np.int32)
    guidance = VQGuidance(scale=float(io["ar/guidance"]), temperature=0)
    keys = jax.random.split(jax.random.key(0), len(prompts))[:, None]
    pad = int(io["ar/pad_id"])
    real = np.ones(prompts.shape, bool)
    _, codes = decode.draw_batch(
        params, prompts, real, keys, network=network, pad_id=pad, guidance=guidance
    )
    np.testing.assert_array_equal(codes, io["ar/ids"])

    def logits(params):
        model = network.merge(params)
        without, _ = model.generator.unconditional(
            jnp.asarray(prompts), real=jnp.asarray(real), pad_id=pad
        )
        teacher_forced = lambda rows: generate(
            model, {"vq/ids": io["ar/ids"], "gen/prompt_ids": rows}
        )[1]
        conditional = model.generation.head(teacher_forced(jnp.asarray(prompts)))
        unconditional = model.generation.head(teacher_forced(without))
        return unconditional + guidance.scale * (conditional - unconditional)

    close(jax.jit(logits)(params), io["ar/guided_logits"])


@pytest.mark.skipif(not (FOLDER / "preprocess").is_dir(), reason="a fixture without images")
def test_preprocessing_is_exact():
    expected = load_file(FOLDER / "preprocess/expected_uint8_chw.safetensors")
    for name, levels in expected.items():
        image = images.decode((FOLDER / f"preprocess/{name}.png").read_bytes())
        ours = images.for_understanding(image, size=levels.shape[-1])
        np.testing.assert_array_equal(ours, np.moveaxis(levels, 0, -1))
