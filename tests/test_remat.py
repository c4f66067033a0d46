"""Options that save memory change nothing, or as little as they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import sharding
from janus_jax.errors import UserError
from janus_jax.layers.remat import POLICIES
from janus_jax.models.functional import ModelSpec
from janus_jax.models.llama import Llama
from janus_jax.recipe import optimizer
from janus_jax.tokenizers.chunks import map_in_chunks
from tests.conftest import fresh_params

LLM = dict(vocab_size=32, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64)


@functools.cache
def llm(remat):
    return ModelSpec(lambda rngs: Llama(rngs, remat=remat, **LLM))


def hidden(remat, params, x):
    ids = jnp.ones(x.shape[:2], jnp.int32)
    return llm(remat).merge(params)(x, positions=ids, segment_ids=ids)[0]


def test_rematerialisation_changes_no_gradient():
    params = fresh_params(llm("none"))
    x = jax.random.normal(jax.random.key(0), (1, 64, 32))
    gradients = lambda policy: jax.jit(jax.grad(lambda p: (hidden(policy, p, x) ** 2).mean()))(
        params
    )
    expected = gradients("none")
    for policy in POLICIES:
        for path, gradient in gradients(policy).items():
            np.testing.assert_allclose(
                gradient, expected[path], atol=1e-6, err_msg=f"{policy} {path}"
            )


def test_policies_store_less_and_less():
    params = fresh_params(llm("none"))
    x = jnp.ones((1, 64, 32))

    def num_stored(policy):
        residuals = jax.vjp(lambda params: hidden(policy, params, x).sum(), params)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert num_stored("none") > num_stored("dots") > num_stored("block")


def test_an_unknown_policy_is_an_error():
    with pytest.raises(UserError, match="'half'.*offload"):
        llm("half")


def make_optimizer(**changes):
    network = llm("none")
    settings = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1e9)
    settings |= dict(kind="adamw", moments="float32") | changes
    rates = dict.fromkeys(network.abstract, 0.01)
    constant = lambda peak: lambda step: peak
    return optimizer.make(network, optimizer.scale_by_rates(rates, constant), **settings)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_bf16_moments_take_half_the_memory_and_give_nearly_the_same_updates(kind):
    start = fresh_params(llm("none"))
    trained = {}
    for moments in ("float32", "bfloat16"):
        tx = make_optimizer(kind=kind, moments=moments)
        params, state, update = start, tx.init(start), jax.jit(tx.update)
        for number in range(3):
            key = jax.random.key(number)
            gradients = {p: jax.random.normal(key, a.shape) for p, a in params.items()}
            updates, state = update(gradients, state, params)
            params = {p: a + updates[p] for p, a in params.items()}
        assert {a.dtype for a in jax.tree.leaves(state) if a.ndim} == {jnp.dtype(moments)}
        trained[moments] = params
    for path, exact in trained["float32"].items():
        change = np.abs(exact - start[path]).max()
        assert np.abs(trained["bfloat16"][path] - exact).max() < 0.05 * change, path


def test_unknown_moments_are_an_error():
    with pytest.raises(UserError, match="'float16'"):
        make_optimizer(moments="float16")


@pytest.mark.parametrize("devices", [1, 4])
def test_images_in_chunks_give_what_all_at_once_give(devices):
    run = lambda x: (x.astype(jnp.float32).mean(axis=(1, 2)), x[:, 0, 0, 0])
    chunked = jax.jit(lambda x: map_in_chunks(run, x, pixels=2 * 64))
    for count in (1, 4, 12, 20):
        images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:devices])):
            out = chunked(images)
        for one, expected in zip(out, run(images), strict=True):
            np.testing.assert_allclose(one, expected)
