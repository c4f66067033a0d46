"""Eight fake CPU devices, strict ranks, a compile cache, and one tiny data set and config for all tests."""

import os
import tempfile
from pathlib import Path

CACHE = Path(tempfile.gettempdir()) / "janus_jax_test_cache"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax
import pytest

from configs import tiny
from janus_jax.data import shapes_files

jax.config.update("jax_numpy_rank_promotion", "raise")


def small(config, data):
    """Cuts the tiny config down to the size of tests."""
    config.save_every = 4
    config.mesh = dict(data=1, fsdp=-1, tensor=1)
    config.samples.prompts = ()
    config.model.llm.update(num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, mlp_dim=64)
    config.model.understanding.encoder.update(
        image_size=32, patch_size=8, num_layers=2, embed_dim=32, num_heads=2, mlp_dim=64
    )
    config.model.generation.image_size = 32
    config.model.generation.tokenizer.update(base_channels=4, z_channels=16, codebook_size=32, num_groups=2)
    config.model.generation.tokenizer_training.crop = 16
    config.data.tokenizer = str(data / "tokenizer.json")
    config.data.window, config.data.shards = 16, 4
    for name in config.data.sources:
        config.data.sources[name].path = str(data / f"{name}-train.array_record")
    for name, stage in config.stages.items():
        stage.update(batch=16, rows=2, length=128, und_slots=6, gen_slots=6, steps=8, warmup=2)
        if name == "tokenizer":
            stage.update(und_slots=0, gen_slots=4)
    return config


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A little `shapes` set on disk."""
    folder = tmp_path_factory.mktemp("shapes")
    shapes_files.write(folder, scale=0.02, workers=1)
    return folder


@pytest.fixture
def config(data):
    """The small config, a fresh one each time."""
    return small(tiny.get_config(), data)
