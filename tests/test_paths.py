"""Every generation path through the same tests; tests/paths has a page for each, and two are
toys.
"""

import functools
import importlib
import json
import pkgutil
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import checkpoint, sharding, train_step
from janus_jax.batch import count_targets
from janus_jax.generation import GENERATION_PATHS
from janus_jax.generation.base import GenerationPath
from janus_jax.layers import packed_attention
from janus_jax.layers.flash_xla import flash_xla
from janus_jax.recipe import freezing
from janus_jax.train.at_checkpoint import AtCheckpoint
from janus_jax.train.loop import train
from tests import paths
from tests.conftest import (
    first_batch,
    first_state,
    fresh_params,
    jit_step,
    loss_of,
    sampler_of,
    stage_of,
)

PAGES = {
    m.name: importlib.import_module(f"tests.paths.{m.name}")
    for m in pkgutil.iter_modules(paths.__path__)
}
BIDIRECTIONAL = "toy_bidirectional"


# Its bidirectional version is the third path of the slow tests.
WITHOUT_TOY = pytest.mark.parametrize("kind", [k for k in PAGES if k != "toy"], indirect=True)


@pytest.fixture(params=PAGES)
def kind(request):
    return request.param


@pytest.fixture
def recipe(kind, data):
    """The small config of a generation path."""
    config = PAGES[kind].get_config(data)
    assert config.model.generation.kind == kind
    return config


def test_every_registered_path_has_its_page():
    assert PAGES.keys() == GENERATION_PATHS.keys()


def test_a_path_must_state_its_flops():
    partial = type("Partial", (GENERATION_PATHS["toy"],), {"flops": GenerationPath.flops})
    with pytest.raises(TypeError, match="flops"):
        partial(None, dtype=None)


@WITHOUT_TOY
def test_every_stage_takes_a_finite_step_that_moves_what_trains_and_nothing_else(recipe):
    for name in recipe.stages:
        if name == freezing.TOKENIZER:
            continue
        recipe.stages[name].warmup = 0
        for frozen in {
            recipe.stages[name].frozen if name == "stage_1" else None,
            freezing.FROZEN[name],
        } - {None}:
            recipe.stages[name].frozen = frozen
            stage, batch = first_batch(recipe, name)
            state = first_state(stage)
            before = jax.tree.map(np.array, (state.trainable, state.frozen))
            after, metrics = jit_step(stage)(state, batch)
            assert (
                np.isfinite(metrics["loss"])
                and np.isfinite(metrics["loss_gen"])
                and not metrics["skipped"]
            )
            for path, array in before[1].items():
                np.testing.assert_array_equal(array, after.frozen[path])
            assert not [
                path
                for path, a in before[0].items()
                if (a == np.asarray(after.trainable[path])).all()
            ]


def test_gradients_come_from_a_parameters_own_task(recipe):
    """Everything outside the tokenizer has a gradient from its own task's loss, the tokenizer
    from neither.
    """
    stage, batch = first_batch(recipe)
    params = fresh_params(stage.network)
    counts, unused = count_targets(batch), batch.tokens[0].size
    gradient = jax.jit(jax.grad(lambda p, b: loss_of(stage.objective, p, b, counts=counts)[0]))
    of_images = gradient(params, batch._replace(text_weights=np.zeros_like(batch.text_weights)))
    of_text = gradient(params, batch._replace(gen_start=np.full_like(batch.gen_start, unused)))
    size = lambda grads, start: max(
        float(jnp.abs(g).max()) for p, g in grads.items() if p.startswith(start)
    )
    assert size(of_images, "generation/tokenizer") == size(of_text, "generation") == 0
    assert size(of_images, "understanding") == size(of_images, "llm/head") == 0
    for grads, own in ((of_images, ("generation",)), (of_text, ("understanding", "llm/head"))):
        for path, grad in grads.items():
            if path.startswith((*own, "llm/layers")) and not path.startswith(
                "generation/tokenizer"
            ):
                assert jnp.abs(grad).max() > 0, path


def slots_of(batch, mine):
    """bool[S, U] and bool[S, G]: which slots hold images of the examples marked in `mine`,
    bool[S, R, L].
    """
    flat = np.pad(mine.reshape(len(mine), -1), ((0, 0), (0, 1)))
    return [np.take_along_axis(flat, start, axis=1) for start in (batch.und_start, batch.gen_start)]


def example_loss(stage, params, batch, mine, own_images, *, embeds=None):
    """The loss of one example among the others, its text and its image, as a function of token
    embeddings.

    `mine` bool[S, R, L] marks its tokens, `own_images` bool[S, G] its image. The text loss is read
    with every image in its place; the image loss counts all images of a batch, so there the others
    are taken out.
    """
    counts, unused = count_targets(batch), batch.tokens[0].size
    objective = stage.objective
    if embeds is not None:
        objective = _WithEmbeddings(objective, embeds)
    text = batch._replace(text_weights=batch.text_weights * mine)
    image = batch._replace(gen_start=jnp.where(own_images, batch.gen_start, unused))
    _, of_text = loss_of(objective, params, text, counts=counts)
    _, of_image = loss_of(objective, params, image, counts=counts)
    return of_text["loss_und"] + of_text["loss_text"] + of_image["loss_gen"]


class _WithEmbeddings:
    """An objective whose model embeds tokens by a given array."""

    def __init__(self, objective, embeds):
        self._objective, self._embeds = objective, embeds

    def loss(self, params, batch, counts, keys):
        network = self._objective.network
        model = network.merge(params)
        model.embed_text = lambda _: self._embeds
        fixed = type(self._objective)(_Merged(model))
        return fixed.loss(params, batch, counts, keys)


class _Merged:
    def __init__(self, model):
        self.merge = lambda params: model


@pytest.fixture
def leak_case(recipe):
    """A group, and the marks of every example in its fullest row."""
    stage, batch = first_batch(recipe)
    batch = jax.tree.map(lambda x: x[:1], batch)
    row = int(np.argmax(batch.segment_ids[0].max(axis=-1)))
    assert batch.segment_ids[0, row].max() >= 2
    here = np.arange(batch.tokens.shape[1])[None, :, None] == row
    marks = [here & (batch.segment_ids == n) for n in range(1, batch.segment_ids[0, row].max() + 1)]
    return stage, fresh_params(stage.network), batch, marks


def embedding_leaks(stage, params, batch, marks):
    """For each example the largest gradient of its loss with respect to other examples'
    embeddings, and its own.
    """
    embeds = stage.network.merge(params).embed_text(batch.tokens)
    gradient = jax.jit(jax.grad(lambda e, *m: example_loss(stage, params, batch, *m, embeds=e)))
    for mine in marks:
        grads = np.abs(gradient(embeds, mine, slots_of(batch, mine)[1]))
        yield grads[~mine].max(), grads[mine].max()


@WITHOUT_TOY
def test_no_gradient_between_packed_examples(leak_case):
    for other, own in embedding_leaks(*leak_case):
        assert other == 0 and own > 0


@WITHOUT_TOY
def test_a_broken_mask_would_be_noticed(leak_case, monkeypatch):
    one_segment = lambda q, k, v, segment_ids, *ids, **kw: flash_xla(
        q, k, v, jnp.ones_like(segment_ids), *ids, **kw
    )
    monkeypatch.setattr(packed_attention, "flash_xla", one_segment)
    assert max(other for other, _ in embedding_leaks(*leak_case)) > 0


def on_device(monkeypatch, device_kind):
    """Chooses the attention kernel of an accelerator, which runs in its interpreter."""
    monkeypatch.setattr(sharding, "device_kind", lambda: device_kind)
    interpreted = {
        key: functools.partial(k, interpret=True) for key, k in packed_attention.KERNELS.items()
    }
    monkeypatch.setattr(packed_attention, "KERNELS", interpreted)


@pytest.mark.parametrize("device_kind", ["TPU v5 lite", "NVIDIA H100 80GB HBM3"])
def test_bidirectional_images_on_every_kernel(data, monkeypatch, device_kind):
    stage, batch = first_batch(PAGES[BIDIRECTIONAL].get_config(data))
    batch = jax.tree.map(lambda x: x[:1], batch)
    params, counts = fresh_params(stage.network), count_targets(batch)
    # A new function each time: jit would reuse the trace of the other kernel.
    gradient = lambda: jax.jit(
        jax.value_and_grad(lambda p: loss_of(stage.objective, p, batch, counts=counts)[0])
    )(params)
    value, grads = gradient()
    on_device(monkeypatch, device_kind)
    other_value, other_grads = gradient()
    np.testing.assert_allclose(other_value, value, rtol=1e-5)
    for path, grad in grads.items():
        np.testing.assert_allclose(
            other_grads[path], grad, atol=1e-4 * max(1e-3, float(jnp.abs(grad).max())), err_msg=path
        )


@pytest.mark.parametrize(("kind", "sees_right"), [(BIDIRECTIONAL, True), ("toy", False)])
def test_an_image_token_depends_on_its_right_under_one_mask_only(data, kind, sees_right):
    stage, batch = first_batch(PAGES[kind].get_config(data))
    model = stage.network.merge(fresh_params(stage.network))
    shape = (*batch.gen_start.shape, stage.gen_tokens, stage.model["llm"]["embed_dim"])
    group, slot = np.argwhere(batch.gen_start < batch.tokens[0].size)[0]
    first = batch.gen_start[group, slot]
    state = lambda embedded: model(batch, embedded)[0][group, first].sum()
    grad = jax.jit(jax.grad(state))(jnp.ones(shape))[group, slot]
    assert (jnp.abs(grad[-1]).max() > 0) == sees_right and jnp.abs(grad[0]).max() > 0


@WITHOUT_TOY
def test_replacing_the_neighbours_changes_nothing(leak_case):
    stage, params, batch, marks = leak_case
    run, rng = jax.jit(lambda b, *m: example_loss(stage, params, b, *m)), np.random.default_rng(0)
    for mine in marks:
        und, gen = (slots[..., None, None, None] for slots in slots_of(batch, mine))
        noise = lambda images: rng.integers(0, 256, images.shape, np.uint8)
        other = batch._replace(
            tokens=np.where(mine, batch.tokens, 7),
            und_images=np.where(und, batch.und_images, noise(batch.und_images)),
            gen_images=np.where(gen, batch.gen_images, noise(batch.gen_images)),
        )
        own_images = slots_of(batch, mine)[1]
        assert run(batch, mine, own_images) == run(other, mine, own_images) != 0


@WITHOUT_TOY
def test_pixels_of_other_examples_get_no_gradient(leak_case):
    stage, params, batch, marks = leak_case
    loss = lambda pixels, *m: example_loss(stage, params, batch._replace(und_images=pixels), *m)
    gradient, count = jax.jit(jax.grad(loss)), 0
    for mine in marks:
        und, gen = slots_of(batch, mine)
        grads = np.abs(gradient(jnp.asarray(batch.und_images, jnp.float32), mine, gen)).max(
            axis=(2, 3, 4)
        )
        assert (grads[~und] == 0).all() and (grads[und] > 0).all()
        count += und.sum()
    assert count


def test_images_depend_on_prompt_and_seed_only(recipe, data):
    stage = stage_of(recipe, "stage_3")
    params = fresh_params(stage.network)
    sampler = sampler_of(stage, data, params)
    prompts, guidance = (
        ["a red star", "two large blue circles", "a red star"],
        sampler.guidance(scale=3.0),
    )
    together = sampler.draw(prompts, seeds=[1, 2, 3], guidance=guidance)
    draw_one = lambda prompt, seed: sampler.draw([prompt], seeds=[seed], guidance=guidance)
    alone = np.concatenate([draw_one(p, s) for p, s in zip(prompts, (1, 2, 3), strict=True)])
    shared = sampler.draw(["a red star"], seeds=[[1, 3]], guidance=guidance)[0]
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        shardings = sharding.param_shardings(mesh, stage.network.abstract, stage.network.axes)
        eight = sampler_of(stage, data, jax.device_put(params, shardings)).draw(
            prompts, seeds=[1, 2, 3], guidance=guidance
        )
    # The decoder's last bit depends on the size of the batch, and truncation may make it a level.
    for other in (alone, np.stack([shared[0], together[1], shared[1]]), eight):
        assert np.abs(together.astype(int) - other).max() <= 1
    assert together.shape[1:] == (32, 32, 3)


def run(config, workdir):
    """Trains in this process: the rows of its metrics."""
    assert not train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second", "mfu")}
        for r in rows
    ]


def arrays(saved, names=None, **kwargs):
    """Parameters of a checkpoint."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    stored = checkpoint.param_structs(saved)
    abstract = {
        p: jax.ShapeDtypeStruct(stored[p].shape, stored[p].dtype, sharding=place)
        for p in names or stored
    }
    return checkpoint.load_params(saved, abstract, **kwargs)


def test_every_checkpoint_of_an_autoencoder_holds_the_scale_of_its_latents(data, tmp_path):
    stage, batch = first_batch(PAGES["flow"].get_config(data), "tokenizer")
    with jax.set_mesh(stage.mesh):
        state = train_step.first_state(stage, jax.device_put(fresh_params(stage.network)))
        about = {"stage": stage.name, "stage_start": 0}
        at_checkpoint = AtCheckpoint(stage, about, None, tmp_path, None)
        calibrate = train_step.jit_calibrate(stage, state)
        for step in (1, 2):
            moved = jax.tree.map(lambda a: 1.1 * a, state.trainable)
            state = state._replace(step=jnp.int32(step), trainable=moved)
            assert stage.objective.calibrates(step, saving=True)
            state = calibrate(state, batch)
            at_checkpoint(state, batch, position={}, stopping=True)
        at_checkpoint.close()
    scale, scales = "generation/tokenizer/scale", []
    for step in (1, 2):
        saved = checkpoint.open_saved(tmp_path / "checkpoints" / str(step))
        scales.append(arrays(saved, [scale])[scale].item())
    assert len({1.0, *scales}) == 3


@WITHOUT_TOY
@pytest.mark.usefixtures("one_device")
def test_a_run_resumes_as_if_it_had_not_stopped(recipe, tmp_path):
    recipe.init_fresh, recipe.save_every, recipe.keep_checkpoints = (".*",), 3, 10
    recipe.stages = {"stage_2": recipe.stages.stage_2}
    whole = run(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "cut/checkpoints" / str(step))
    assert len(whole) == 8 and run(recipe, tmp_path / "cut") == whole
    one, other = (checkpoint.open_saved(tmp_path / name) for name in ("cut", "whole"))
    assert one.step == other.step == 8
    for weights in ("raw", "ema"):  # averages too, which no metric shows
        jax.tree.map(
            np.testing.assert_array_equal,
            arrays(one, weights=weights),
            arrays(other, weights=weights),
        )
