"""Names of accelerators that are not attached."""

import pytest

from janus_jax.errors import UserError
from janus_jax.plan import topology


def test_names_of_topologies():
    for name, count, kind in (
        ("v5e:4x4", 16, "TPU v5 lite"),
        ("2xv5p:4x4x4", 128, "TPU v5"),
        ("tpu7x:4x4x4", 128, "TPU7x"),
        ("h100:64", 64, "NVIDIA H100"),
        ("h200:1", 1, "NVIDIA H200"),
    ):
        target = topology.parse(name)
        assert (target.count, target.device_kind) == (count, kind), name
        assert target.chip.peak > 0 and target.chip.memory > 0


def test_other_names_are_errors():
    for name in ("v5p", "v9:4x4", "h100:12", "2xh100:8", "v5e:", "h100:0", "0xv5p:4x4x4"):
        with pytest.raises(UserError, match=f"--topology={name} "):
            topology.parse(name)
