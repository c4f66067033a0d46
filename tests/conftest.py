"""Eight fake CPU devices, strict ranks, a compile cache, and one tiny data set and config for
all tests.
"""

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Official prompts, questions and weights, which the repository does not hold.
OFFICIAL_DATA = Path(os.environ.get("JANUS_DATA", ROOT.parent / "shared/data"))
CACHE = Path(tempfile.gettempdir()) / "janus_jax_test_cache"
# Programs here run for milliseconds and are compiled for minutes.
QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib") < "0.11":  # later ones have no other emitters
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK}")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("JAX_NUM_CPU_DEVICES", None)  # it would win over the 8 devices of XLA_FLAGS
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny
from janus_jax import distributed, sharding, train_step
from janus_jax.data import tokenizer
from janus_jax.inference.sampler import Sampler, Template
from janus_jax.recipe import freezing
from janus_jax.recipe.data import build_pipeline
from janus_jax.recipe.stage import make_stage
from janus_jax.shapes import files
from janus_jax.train.loop import train

jax.config.update("jax_numpy_rank_promotion", "raise")


def environment(*, devices=8, torch=False, **more):
    """Of a command in a process of its own; without PyTorch, which few users have and
    tensorboardX would import.
    """
    folders = [str(ROOT)] if torch else [str(ROOT), str(ROOT / "tests/no_torch")]
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders), "XLA_FLAGS": flags} | more


def small(config, data):
    """Reduces the tiny config to the size of tests."""
    config.model.generation.tokenizer.update(
        base_channels=4, channel_mult=(1, 2, 4, 8), z_channels=16, codebook_size=32, num_groups=2
    )
    config.model.generation.tokenizer_training.codebook_from_data = ()
    # Tests do not depend on how the quickstart is tuned.
    mixtures = {"stage_1": (1, 0, 3), "stage_2": (3, 1, 6), "stage_3": (5, 1, 4)}
    for name, stage in config.stages.items():
        stage.lr = 4e-3 if name == "tokenizer" else 3e-3
        stage.mixture = mixtures.get(name, stage.mixture)
    return _small(config, data)


def small_flow(config, data):
    """The same of the tiny config that draws by flow; 32 px make 4 latent tokens, and 4
    features to align with.
    """
    config.model.generation.tokenizer.update(widths=(4, 4, 8, 8), num_groups=2)
    config.model.generation.unet.dim = 16
    config.model.generation.alignment.update(layer=1, feature_dim=32)
    config = _small(config, data)
    config.model.understanding.encoder.patch_size = 16
    return config


def _small(config, data):
    config.save_every = 4
    config.optimizer.kind = "adamw"  # compiles in a third of the time of Muon
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.samples.prompts = ()
    config.model.llm.update(num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64)
    config.model.understanding.encoder.update(
        image_size=32, patch_size=8, num_layers=2, embed_dim=32, num_heads=2, mlp_dim=64
    )
    config.model.generation.image_size = 32
    config.model.generation.tokenizer_training.crop = 16
    config.data.tokenizer = str(data / "tokenizer.json")
    config.data.window, config.data.shards = 16, 4
    config.held_out.sources = {}
    config.data.sources = {
        name: s for name, s in config.data.sources.items() if name != "questions-heldout"
    }
    for name in config.data.sources:
        config.data.sources[name].path = str(data / f"{name}-train.array_record")
    for name, stage in config.stages.items():
        stage.update(batch=16, rows=2, length=128, und_slots=6, gen_slots=6, steps=8, warmup=2)
        if name == "tokenizer":
            stage.update(und_slots=0, gen_slots=4)
        else:
            questions = {"questions": 4} if name == "stage_3" else {}
            stage.sources = stage.sources.to_dict() | {"understanding": {"captions": 1} | questions}
    return config


def stage_of(config, name="stage_2", *, devices=1):
    """The typed stage of a ConfigDict on some of the fake devices."""
    return make_stage(
        config.to_dict(), name, mesh=sharding.make_mesh(devices=jax.devices()[:devices])
    )


def first_batch(config, name="stage_2"):
    """A stage on one device, and its first batch."""
    stage = stage_of(config, name)
    pipeline, _ = build_pipeline(stage, host=(0, 1))
    return stage, jax.tree.map(np.array, next(pipeline).batch)


def fresh_params(network):
    """Fresh parameters, op by op: programs of one op are compiled once for all models."""
    return network.init(jax.random.key(0))


def first_state(stage):
    """A stage's first state with fresh parameters, not placed on any mesh."""
    trainable, frozen = freezing.split(fresh_params(stage.network), stage.frozen)
    zero = jnp.zeros((), jnp.int32)
    ema = dict(trainable) if stage.ema else {}
    return train_step.TrainState(zero, trainable, frozen, stage.tx.init(trainable), ema, zero)


def jit_step(stage, *, microbatches=1, ema_decay=0.0):
    """A stage's train step without shardings; the state that it is given stays valid."""
    step = train_step.make(
        stage.objective,
        stage.tx,
        group_of=stage.group_of,
        learning_rate=stage.learning_rate,
        microbatches=microbatches,
        seed=0,
        ema_decay=ema_decay,
    )
    return jax.jit(step)


def image_keys(batch):
    """key[S, G], one per generation slot."""
    return jax.vmap(jax.random.key)(jnp.arange(batch.gen_start.size)).reshape(batch.gen_start.shape)


def loss_of(objective, params, batch, *, counts=None):
    """Loss and metrics of a batch, or of a part of a batch with these counts."""
    keys = image_keys(batch)
    counts = objective.batch_statistics(params, batch, keys, step=0) if counts is None else counts
    losses, metrics = objective.loss(params, batch, counts, keys)
    return sum(losses.values()), metrics


def two_losses(config, batch, *, name="stage_2", devices, microbatches):
    """The first two losses of a stage on some devices."""
    config.stages[name].microbatches = microbatches
    stage = stage_of(config, name, devices=devices)
    with jax.set_mesh(stage.mesh):
        params = {
            p: jax.device_put(a, stage.abstract_params[p].sharding)
            for p, a in fresh_params(stage.network).items()
        }
        state = train_step.first_state(stage, params)
        step = train_step.jit(stage, state)
        losses = []
        for _ in range(2):
            state, metrics = step(state, distributed.put_batch(stage.mesh, batch))
            losses.append(metrics["loss"].item())
    return losses


def sampler_of(stage, data, params=None):
    """A Sampler of a stage's network, with fresh parameters by default."""
    template = Template("chat", ("<|User|>", "<|Assistant|>"), "")
    params = fresh_params(stage.network) if params is None else params
    return Sampler(
        stage.network, params, tokenizer.load(data / "tokenizer.json"), template=template
    )


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Gives compiled programs up where a process holds many: each kernel is a map, and Linux
    allows 65 530 of them.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A little `shapes` set on disk."""
    folder = tmp_path_factory.mktemp("shapes")
    files.write(folder, scale=0.02, workers=1)
    return folder


@pytest.fixture
def config(data):
    """The small config, a fresh one each time."""
    return small(tiny.get_config(), data)


@pytest.fixture
def one_device(monkeypatch):
    """Runs train on one of the fake devices, in two thirds of the time that eight take."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda **sizes: mesh)


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it is installed."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def folder(torch, data, tmp_path_factory):
    """Writes a random transformers model with its tokenizer: (shape, dtype) -> model, folder."""
    from tests.helpers.hf_janus import random_janus

    def make(shape, dtype="float32"):
        path = tmp_path_factory.mktemp("peer")
        model = random_janus(shape, dtype=dtype)
        model.save_pretrained(path)
        shutil.copy(data / "tokenizer.json", path)
        return model, path

    return make


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """The workdir of a run with one step of stage 1; nothing has trained its image generation."""
    config = small(tiny.get_config("1"), data)
    config.init_fresh = (".*",)
    config.stages.stage_1.steps = 1
    workdir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", lambda **sizes: mesh)
        train(config, workdir)
    return workdir
