"""Every way of drawing through the same tests; tests/paths holds a page for each, and one is a toy."""

import importlib
import json
import pkgutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax import checkpoint, sharding, train_step
from janus_jax.data import tokenizer
from janus_jax.generation import GENERATION_PATHS
from janus_jax.inference.sampler import Sampler
from janus_jax.layers import packed_attention
from janus_jax.layers.flash_xla import flash_xla
from janus_jax.models.janus import count_targets
from janus_jax.recipe import assembly, freezing
from tests import paths
from tests.conftest import ROOT, environment, first_batch, params_of, state_for

PAGES = {m.name: importlib.import_module(f"tests.paths.{m.name}") for m in pkgutil.iter_modules(paths.__path__)}


@pytest.fixture(params=PAGES)
def kind(request):
    return request.param


@pytest.fixture
def recipe(kind, data):
    """The small config of a way of drawing."""
    config = PAGES[kind].get_config(data)
    assert config.model.generation.kind == kind
    return config


def test_every_registered_path_has_its_page():
    assert PAGES.keys() == GENERATION_PATHS.keys()


def keys_for(batch):
    return jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)


def test_every_stage_takes_a_finite_step_moves_what_trains_and_leaves_the_rest(recipe):
    for stage in recipe.stages:
        if stage == freezing.TOKENIZER:
            continue
        recipe.stages[stage].warmup = 0
        network, batch = first_batch(recipe, stage)
        for frozen in {recipe.stages[stage].frozen if stage == "stage_1" else freezing.FROZEN[stage], freezing.FROZEN[stage]}:
            recipe.stages[stage].frozen = frozen
            state, tx, rate = state_for(recipe, stage, network)
            before = jax.tree.map(np.array, (state.trainable, state.frozen))
            step = jax.jit(train_step.make(network, tx, learning_rate=rate, microbatches=1, seed=0))
            after, metrics = step(state, batch)
            assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["loss_gen"]) and not metrics["skipped"]
            for path, array in before[1].items():
                np.testing.assert_array_equal(array, after.frozen[path])
            still = [path for path, array in before[0].items() if (array == np.asarray(after.trainable[path])).all()]
            assert not still


def test_gradients_are_where_they_should_be(recipe):
    """Everything outside the tokenizer has a gradient from its own task's loss, the tokenizer from neither."""
    network, batch = first_batch(recipe)
    params = params_of(network)
    counts, unused = count_targets(batch), batch.tokens[0].size
    loss = lambda p, b: network.merge(p).loss(b, counts=counts, keys=keys_for(b))[0]
    gradient = jax.jit(jax.grad(loss))
    drawn = gradient(params, batch._replace(text_weights=np.zeros_like(batch.text_weights)))
    written = gradient(params, batch._replace(gen_start=np.full_like(batch.gen_start, unused)))
    size = lambda grads, start: max(float(jnp.abs(g).max()) for p, g in grads.items() if p.startswith(start))
    assert size(drawn, "generation/tokenizer") == size(written, "generation") == 0
    assert size(drawn, "understanding") == size(drawn, "llm/head") == 0
    for grads, own in ((drawn, ("generation",)), (written, ("understanding", "llm/head"))):
        for path, grad in grads.items():
            if path.startswith((*own, "llm/layers")) and not path.startswith("generation/tokenizer"):
                assert jnp.abs(grad).max() > 0, path


def owned(batch, mine):
    """bool[S, U] and bool[S, G]: which slots hold pictures of the examples marked in `mine`, bool[S, R, L]."""
    flat = np.pad(mine.reshape(len(mine), -1), ((0, 0), (0, 1)))
    return [np.take_along_axis(flat, start, axis=1) for start in (batch.und_start, batch.gen_start)]


def example_loss(network, params, batch, mine, drawn, *, embeds=None):
    """The model's own loss of one example among the others, its text and its picture, as a function of embeddings.

    `mine` bool[S, R, L] marks its tokens, `drawn` bool[S, G] its picture. The text loss is read with every picture in
    its place; the picture loss counts all pictures of a batch, so there the others are taken out.
    """
    model, counts, unused = network.merge(params), count_targets(batch), batch.tokens[0].size
    if embeds is not None:
        model.embed_text = lambda _: embeds
    text = batch._replace(text_weights=batch.text_weights * mine)
    picture = batch._replace(gen_start=jnp.where(drawn, batch.gen_start, unused))
    _, written = model.loss(text, counts=counts, keys=keys_for(batch))
    _, painted = model.loss(picture, counts=counts, keys=keys_for(batch))
    return written["understanding_sum"] + written["text_sum"] + painted["loss_gen"]


@pytest.fixture
def leak_case(recipe):
    """A group, and the marks of every example in its fullest row."""
    network, batch = first_batch(recipe)
    batch = jax.tree.map(lambda x: x[:1], batch)
    row = int(np.argmax(batch.segment_ids[0].max(axis=-1)))
    assert batch.segment_ids[0, row].max() >= 2
    here = np.arange(batch.tokens.shape[1])[None, :, None] == row
    marks = [here & (batch.segment_ids == n) for n in range(1, batch.segment_ids[0, row].max() + 1)]
    return network, params_of(network), batch, marks


def embedding_leaks(network, params, batch, marks):
    """For each example the largest gradient of its loss with respect to other examples' embeddings, and its own."""
    embeds = network.merge(params).embed_text(batch.tokens)
    gradient = jax.jit(jax.grad(lambda e, *m: example_loss(network, params, batch, *m, embeds=e)))
    for mine in marks:
        grads = np.abs(gradient(embeds, mine, owned(batch, mine)[1]))
        yield grads[~mine].max(), grads[mine].max()


def test_no_gradient_between_packed_examples(leak_case):
    for other, own in embedding_leaks(*leak_case):
        assert other == 0 and own > 0


def test_a_broken_mask_would_be_noticed(leak_case, monkeypatch):
    causal = lambda q, k, v, segment_ids: flash_xla(q, k, v, jnp.ones_like(segment_ids))
    monkeypatch.setattr(packed_attention, "flash_xla", causal)
    assert max(other for other, _ in embedding_leaks(*leak_case)) > 0


def test_replacing_the_neighbours_changes_nothing(leak_case):
    network, params, batch, marks = leak_case
    run, rng = jax.jit(lambda b, *m: example_loss(network, params, b, *m)), np.random.default_rng(0)
    for mine in marks:
        und, gen = (slots[..., None, None, None] for slots in owned(batch, mine))
        noise = lambda pictures: rng.integers(0, 256, pictures.shape, np.uint8)
        other = batch._replace(
            tokens=np.where(mine, batch.tokens, 7),
            und_images=np.where(und, batch.und_images, noise(batch.und_images)),
            gen_images=np.where(gen, batch.gen_images, noise(batch.gen_images)),
        )
        drawn = owned(batch, mine)[1]
        assert run(batch, mine, drawn) == run(other, mine, drawn) != 0


def test_pixels_of_other_examples_get_no_gradient(leak_case):
    network, params, batch, marks = leak_case
    loss = lambda pixels, *m: example_loss(network, params, batch._replace(und_images=pixels), *m)
    gradient, seen = jax.jit(jax.grad(loss)), 0
    for mine in marks:
        und, gen = owned(batch, mine)
        grads = np.abs(gradient(jnp.asarray(batch.und_images, jnp.float32), mine, gen)).max(axis=(2, 3, 4))
        assert (grads[~und] == 0).all() and (grads[und] > 0).all()
        seen += und.sum()
    assert seen


def test_drawings_depend_on_prompt_and_seed_alone(recipe, data):
    network = assembly.build_network(recipe.to_dict(), "stage_3")
    params, known = params_of(network), (tokenizer.load(data / "tokenizer.json"), recipe.to_dict())
    sampler = Sampler(network, params, *known, template="chat")
    prompts, guidance = ["a red star", "two large blue circles", "a red star"], sampler.guidance(scale=3.0)
    together = sampler.draw(prompts, seeds=[1, 2, 3], guidance=guidance)
    alone = np.concatenate([sampler.draw([p], seeds=[s], guidance=guidance) for p, s in zip(prompts, (1, 2, 3), strict=True)])
    shared = sampler.draw(["a red star"], seeds=[[1, 3]], guidance=guidance)[0]
    mesh = sharding.make_mesh()
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(mesh, network.abstract, network.axes))
        eight = Sampler(network, placed, *known, template="chat").draw(prompts, seeds=[1, 2, 3], guidance=guidance)
    # The decoder's last bit depends on the size of the batch, and truncation may make it a level.
    for other in (alone, np.stack([shared[0], together[1], shared[1]]), eight):
        assert np.abs(together.astype(int) - other).max() <= 1
    assert together.shape[1:] == (32, 32, 3)


RUN = """
from pathlib import Path
from tests.paths import {kind}
def get_config(stage="{stage}"):
    c = {kind}.get_config(Path({data!r}))
    c.init_fresh = (".*",)
    c.stages = {{stage: c.stages[stage]}}
    return c
"""


def run(recipe, workdir, *flags):
    """Trains in a process of its own: the rows of its metrics."""
    workdir.with_suffix(".py").write_text(recipe)
    command = [sys.executable, "-m", "janus_jax.train", f"--config={workdir}.py", f"--workdir={workdir}", *flags]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_second", "mfu")} for r in rows]


def arrays(saved, names=None, **kwargs):
    """Parameters of a checkpoint."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    held = checkpoint.param_structs(saved)
    wanted = {p: jax.ShapeDtypeStruct(held[p].shape, held[p].dtype, sharding=place) for p in names or held}
    return checkpoint.load_params(saved, wanted, **kwargs)


def test_every_checkpoint_of_an_autoencoder_holds_its_scale(data, tmp_path):
    recipe = RUN.format(kind="flow", data=str(data), stage="tokenizer")
    flags = ["--config.save_every=1", "--config.stages.tokenizer.steps=3", "--config.keep_checkpoints=3"]
    run(recipe, tmp_path / "run", *flags)
    saved = [checkpoint.open_saved(tmp_path / "run/checkpoints" / str(step)) for step in (1, 2, 3)]
    scales = [arrays(s, ["generation/tokenizer/scale"])["generation/tokenizer/scale"].item() for s in saved]
    assert len({1.0, *scales}) == 4


def test_a_run_that_stops_goes_on_as_if_it_had_not(kind, data, tmp_path):
    recipe = RUN.format(kind=kind, data=str(data), stage="stage_2")
    run(recipe, tmp_path / "cut", "--config.stages.stage_2.stop_at=3")
    cut = run(recipe, tmp_path / "cut")
    assert len(cut) == 8 and cut == run(recipe, tmp_path / "whole")
    one, other = (checkpoint.open_saved(tmp_path / name) for name in ("cut", "whole"))
    for weights in ("raw", "ema"):  # averages too, which no metric shows
        jax.tree.map(np.testing.assert_array_equal, arrays(one, weights=weights), arrays(other, weights=weights))
