"""Runs `convert` inside the test's process, and compares folders of weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from janus_jax import checkpoint
from tests.helpers.commands import run


def convert(command, **flags):
    """Runs a command that must succeed."""
    result = _run(command, flags)
    assert result.code == 0, result.err


def error(command, **flags):
    """Runs a command that must fail by a user's mistake; returns its message."""
    result = _run(command, flags)
    assert result.code == 2 and "Traceback" not in result.err, result.err
    return result.err.splitlines()[-1]


def _run(command, flags):
    return run("convert", command, *(f"--{name}={value}" for name, value in flags.items()))


def load_fp32(path):
    """All parameters of a checkpoint, {path: fp32 array}."""
    saved = checkpoint.open_saved(path)
    cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=cpu)
        for path, leaf in checkpoint.param_structs(saved).items()
    }
    return checkpoint.load_params(saved, like)


def tensors_of(path):
    """{name: array} of a folder of safetensors."""
    tensors = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same_bits(a, b):
    """Compares the weights of two folders."""
    a, b = tensors_of(a), tensors_of(b)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name
