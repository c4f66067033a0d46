"""What saves memory and must change nothing, or as little as it says: rematerialisation, bf16 moments, pictures in turn."""

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
from tests.conftest import params_of

LLM = dict(vocab_size=32, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64)


def llm(remat):
    return ModelSpec(lambda rngs: Llama(rngs, remat=remat, **LLM))


def gradients(network, params):
    ids = jnp.ones((1, 64), jnp.int32)
    x = jax.random.normal(jax.random.key(0), (1, 64, 32))
    loss = lambda params: (network.merge(params)(x, positions=ids, segment_ids=ids)[0] ** 2).mean()
    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_kept_changes_no_gradient(policy):
    params = params_of(llm("none"))
    kept = gradients(llm("none"), params)
    for path, gradient in gradients(llm(policy), params).items():
        np.testing.assert_allclose(gradient, kept[path], atol=1e-6, err_msg=path)


def test_policies_keep_what_they_say():
    params, x = params_of(llm("none")), jnp.ones((1, 64, 32))
    ids = jnp.ones((1, 64), jnp.int32)

    def kept(policy):
        network = llm(policy)
        run = lambda params: network.merge(params)(x, positions=ids, segment_ids=ids)[0].sum()
        return sum(a.size for a in jax.tree.leaves(jax.vjp(run, params)[1]))

    assert kept("none") > kept("dots") > kept("block")


def test_an_unknown_policy_is_told():
    with pytest.raises(UserError, match="`remat` is 'half'; known: .*offload"):
        llm("half")


def optimizers(**changes):
    network = llm("none")
    settings = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip=1e9, moments="float32")
    return optimizer.make(lambda _: 0.01, abstract=network.abstract, axes=network.axes, **settings | changes)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_bf16_moments_take_half_the_room_and_move_nearly_alike(kind):
    params = params_of(llm("none"))
    moved = {}
    for moments in ("float32", "bfloat16"):
        tx, here = optimizers(kind=kind, moments=moments), params
        state = tx.init(here)
        step = jax.jit(tx.update)
        for number in range(3):
            grads = {p: jax.random.normal(jax.random.key(number), a.shape) for p, a in here.items()}
            updates, state = step(grads, state, here)
            here = {p: a + updates[p] for p, a in here.items()}
        sizes = {a.dtype for a in jax.tree.leaves(state) if a.ndim}
        assert sizes == {jnp.dtype(moments)}
        moved[moments] = here
    for path, exact in moved["float32"].items():
        step = np.abs(exact - params[path]).max()
        assert np.abs(moved["bfloat16"][path] - exact).max() < 0.05 * step, path


def test_unknown_moments_are_told():
    with pytest.raises(UserError, match="moments is 'float16'"):
        optimizers(moments="float16")


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("count", [1, 4, 12, 20])
def test_pictures_in_turn_come_out_as_at_once(devices, count):
    pictures = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    run = lambda x: (x.astype(jnp.float32).mean(axis=(1, 2)), x[:, 0, 0, 0])
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:devices])):
        out = jax.jit(lambda x: map_in_chunks(run, x, pixels=2 * 64))(pictures)
    for mine, whole in zip(out, run(pictures), strict=True):
        np.testing.assert_allclose(mine, whole)
