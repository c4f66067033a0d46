"""Accelerators that are not here: what a name like `v5p:4x4x4` stands for, and their devices as compilers describe them.

v5e:4x4  v5e:16x16  v5p:4x4x4  v6e:16x16  tpu7x:4x4x4     a TPU slice by its shape in chips
2xv5p:4x4x4                                               two such slices, joined by the data-centre network
h100:8  h100:64  h200:8                                   GPUs by their number, eight to a node
"""

import contextlib
import importlib.util
import math
import os
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from janus_jax import hardware
from janus_jax.errors import UserError

TPUS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite", "tpu7x": "TPU7x"}
GPUS = {"h100": "NVIDIA H100", "h200": "NVIDIA H200"}
CORES = {"v4": 1, "tpu7x": 2}  # devices a chip, where it is not one
NODE = 8  # GPUs
QUIET = dict(  # keeps the compilers from looking for devices, and from talking about it
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1",
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_STDERR_LOG_LEVEL="3",
    TPU_MIN_LOG_LEVEL="3",
    TF_CPP_MIN_LOG_LEVEL="3",
)
INSTALL = "--compile needs the compilers of TPU and GPU (no device): pip install -r requirements-plan.txt."


class Topology(NamedTuple):
    """Accelerators by name.

    Attributes:
      name: as it was given.
      device_kind: in jax's words.
      count: devices.
      slices: TPU slices.
      platform: 'tpu' or 'cuda'.
      shape: of one slice as the compiler wants it.
    """

    name: str
    device_kind: str
    count: int
    slices: int
    platform: str
    shape: str

    @property
    def chip(self):
        """The row of `chips` that its devices are of."""
        return hardware.find_chip(self.device_kind)


def without_devices():
    """Prepares a process to compile for devices that are not there; called before jax looks for any."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def parse(name):
    """What a name stands for.

    Raises:
      UserError: for a name of another form.
    """
    found = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", name)
    slices, kind, shape = (int(found[1] or 1), found[2], found[3]) if found else (0, None, "")
    count = math.prod(map(int, shape.split("x"))) if found else 0
    if kind in TPUS and count and slices:
        return Topology(name, TPUS[kind], slices * count * CORES.get(kind, 1), slices, "tpu", f"{kind}:{shape}")
    if kind in GPUS and slices == 1 and shape.isdigit() and (count < NODE or count % NODE == 0) and count:
        return Topology(name, GPUS[kind], count, 1, "cuda", f"1x{max(count // NODE, 1)}x{min(count, NODE)}")
    raise UserError(
        f"--topology={name} is no topology: TPU slices are named like v5p:4x4x4 or 2xv5p:4x4x4 ({sorted(TPUS)}), GPUs like "
        f"h100:64, whole nodes of {NODE} or less than one ({sorted(GPUS)})."
    )


def devices(topology):
    """Its devices, described by the compiler.

    Raises:
      UserError: where the compiler is not installed, or knows no such shape.
    """
    if not has_compiler(topology):
        raise UserError(INSTALL)
    return _described(topology)


def compiler(topology):
    """What programs for it are compiled by: versions, and the flags that the compiler is given."""
    of, flags = {"tpu": ("libtpu", "LIBTPU_INIT_ARGS"), "cuda": ("jax[-_]cuda.*", "XLA_FLAGS")}[topology.platform]
    found = {f"{d.name} {d.version}" for d in metadata.distributions() if re.fullmatch(f"jax|jaxlib|{of}", d.name)}
    return " ".join([*sorted(found), *os.environ.get(flags, "").split()])


def has_compiler(topology):
    """Whether the compiler of its devices is installed."""
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec("libtpu" if topology.platform == "tpu" else "jax_plugins.xla_cuda13") is not None
    return False


def _described(topology):
    try:
        if topology.platform == "tpu":
            more = {"num_slices": topology.slices} if topology.slices > 1 else {}
            return topologies.get_topology_desc(platform="tpu", topology_name=topology.shape, **more).devices
        target = Path(__file__).parent / "xla_targets" / f"{topology.name.split(':')[0]}.txtpb"
        more = dict(target_config=target.read_text(), topology=topology.shape)
        return topologies.get_topology_desc("gpu", "cuda", **more).devices
    except Exception as error:  # whatever a compiler says of a shape that it does not have
        raise UserError(f"--topology={topology.name}: the compiler has no such shape ({str(error)[:200]}).") from None
