"""The optimizers, their schedules, and learning rates by part of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.recipe import optimizer
from tests.conftest import fresh_params, stage_of


def make(network, *, rate, **changes):
    """An optimizer of a whole network with a constant rate; by default AdamW without decay."""
    settings = dict(kind="adamw", b1=0.9, b2=0.95, eps=1e-8, clip=1e9, moments="float32")
    settings |= dict(weight_decay=0.0) | changes
    rates = dict.fromkeys(network.abstract, rate)
    scale = optimizer.scale_by_rates(rates, lambda peak: lambda step: peak)
    return optimizer.make(network, scale, **settings)


def first_update(tx, grads, params):
    """What the optimizer adds to the parameters in its first step."""
    return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(
        grads, params
    )


def random_grads(params):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=a.shape).astype(np.float32) for path, a in params.items()}


def test_weight_decay_spares_norms_and_biases(config):
    network = stage_of(config).network
    params = {path: jnp.ones(a.shape) for path, a in network.abstract.items()}
    for kind in ("adamw", "muon"):
        tx = make(network, rate=0.1, kind=kind, weight_decay=0.5)
        updates = first_update(tx, jax.tree.map(jnp.zeros_like, params), params)
        decayed = {path for path, update in updates.items() if np.abs(update).max() > 0}
        assert {"llm/layers/mlp/gate/kernel", "llm/embed"} <= decayed, kind
        assert not any(path.endswith(("scale", "bias")) for path in decayed), kind


def test_muon_orthogonalises_the_matrices_between_hidden_spaces(config):
    network = stage_of(config).network
    params = fresh_params(network)
    grads = random_grads(params)
    gate = "llm/layers/mlp/gate/kernel"
    u, _, v = np.linalg.svd(grads[gate], full_matrices=False)
    spectrum = np.resize(np.geomspace(1, 30, 16), u.shape[-1])
    grads[gate] = ((u * spectrum) @ v).astype(np.float32)
    updates = first_update(make(network, rate=1.0, kind="muon"), grads, params)
    values = np.linalg.svd(np.asarray(updates[gate]), compute_uv=False)
    assert values.max() / values.min() < 3  # of 30
    size = np.sqrt(np.mean(np.square(updates["llm/layers/attention/query/kernel"])))
    assert 0.1 < size < 0.3  # the size of an Adam step
    np.testing.assert_allclose(np.abs(updates["llm/embed"]), 1.0, atol=0.5)  # Adam's first step


def test_an_unknown_optimizer_is_named(config):
    config.optimizer.kind = "sgd"
    with pytest.raises(UserError, match="optimizer.kind.*'sgd'"):
        stage_of(config, "stage_1").tx  # noqa: B018


def test_schedules():
    constant = optimizer.schedule(0.5, steps=10, warmup=4, decay="constant")
    np.testing.assert_allclose([constant(n) for n in (0, 2, 4, 10)], [0, 0.25, 0.5, 0.5])
    cosine = optimizer.schedule(0.5, steps=10, warmup=4, decay="cosine")
    np.testing.assert_allclose(
        [cosine(n) for n in (0, 2, 4, 7, 10)], [0, 0.25, 0.5, 0.25, 0], atol=1e-7
    )
    for decay in ("constant", "cosine"):
        assert optimizer.schedule(0.5, steps=10, warmup=0, decay=decay)(0) == 0.5
    with pytest.raises(UserError, match="10 steps.* 10"):
        optimizer.schedule(0.5, steps=10, warmup=10, decay="cosine")
    with pytest.raises(UserError, match="'linear'"):
        optimizer.schedule(0.5, steps=10, warmup=0, decay="linear")


ROWS = (("understanding/encoder", 2e-4), ("llm/layers/mlp", 3e-3), ("llm/layers", 5e-4))


def with_rates(config, lr):
    """Stage 2 with a learning rate of 1e-3, or rates by part, from the first step on."""
    settings = config.stages.stage_2
    settings.update(warmup=0, weight_decay=0.0)
    config.optimizer.clip = 1e9
    settings.lr = lr
    return stage_of(config)


def expected_rate(path):
    if path.startswith("understanding/encoder/"):
        return 2e-4
    if path.startswith("llm/layers/mlp/"):  # the first row that matches
        return 3e-3
    return 5e-4 if path.startswith("llm/layers/") else 1e-3


def test_parts_have_their_own_learning_rates(config):
    plain = with_rates(config, 1e-3)
    by_part = with_rates(config, dict(default=1e-3, rows=ROWS))
    params = {path: jnp.zeros(a.shape) for path, a in plain.trainable.items()}
    grads = random_grads(params)
    reference = first_update(plain.tx, grads, params)
    updates = first_update(by_part.tx, grads, params)
    for path, update in updates.items():
        expected = reference[path] * (expected_rate(path) / 1e-3)
        np.testing.assert_allclose(update, expected, rtol=1e-5, err_msg=path)
    assert {expected_rate(path) for path in params} == {1e-3, 2e-4, 3e-3, 5e-4}
    assert by_part.learning_rate(0) == plain.learning_rate(0)  # the log has the default
    # A run may switch between a number and a table.
    describe = lambda stage: jax.tree.map(lambda x: (x.shape, x.dtype), stage.tx.init(params))
    assert describe(plain) == describe(by_part)


def test_a_part_without_trainable_parameters_is_named(config):
    for pattern in ("llm/layer", "generation/tokenizer", "understanding/encoder/.*/nothing"):
        stage = with_rates(config, dict(default=1e-3, rows=(ROWS[0], (pattern, 1e-4))))
        with pytest.raises(UserError) as error:
            stage.tx  # noqa: B018
        assert repr(pattern) in str(error.value)
    for lr in (dict(rows=ROWS), dict(default=1e-3, row=ROWS), "1e-3", (1e-3, ROWS)):
        with pytest.raises(UserError, match="lr"):
            with_rates(config, lr).tx  # noqa: B018
