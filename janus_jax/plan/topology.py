"""Accelerators that are not attached: their names, and their devices as compilers describe them.

v5e:4x4  v5p:4x4x4  v6e:16x16  tpu7x:4x4x4   a TPU slice by its shape in chips
2xv5p:4x4x4                                  two slices, connected by the data-centre network
h100:8  h100:64  h200:8                      a number of GPUs, eight per node
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

TPUS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}
GPUS = {"h100": "NVIDIA H100", "h200": "NVIDIA H200"}
DEVICES_PER_CHIP = {"tpu7x": 2}  # where it is not 1
GPUS_PER_NODE = 8
COMPILE_ONLY = dict(  # the compilers neither look for devices nor log that there are none
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
INSTALL = (
    "--compile needs the compilers for TPU and GPU: pip install -r requirements-plan.txt. "
    "It needs no device."
)


class Topology(NamedTuple):
    """Accelerators by name.

    Attributes:
      name: such as 'v5p:4x4x4'.
      device_kind: jax's name of the devices.
      count: number of devices.
      slices: number of TPU slices.
      platform: 'tpu' or 'cuda'.
      shape: of one slice, in the compiler's notation.
    """

    name: str
    device_kind: str
    count: int
    slices: int
    platform: str
    shape: str

    @property
    def chip(self):
        """The `hardware.Chip` of its devices."""
        return hardware.find_chip(self.device_kind)


def without_devices():
    """Prepares a process to compile for other devices; call it before jax initialises a backend."""
    jax.config.update("jax_platforms", "cpu")
    for name, value in COMPILE_ONLY.items():
        os.environ.setdefault(name, value)


def parse(name):
    """The Topology of a name.

    Raises:
      UserError: for a name of another form.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)", name)
    if match:
        slices = int(match[1] or 1)
        kind = match[2]
        shape = match[3]
        count = math.prod(map(int, shape.split("x")))
        whole_nodes = count < GPUS_PER_NODE or count % GPUS_PER_NODE == 0
        if kind in TPUS and count and slices:
            num_devices = slices * count * DEVICES_PER_CHIP.get(kind, 1)
            return Topology(name, TPUS[kind], num_devices, slices, "tpu", f"{kind}:{shape}")
        if kind in GPUS and count and slices == 1 and shape.isdigit() and whole_nodes:
            nodes = max(count // GPUS_PER_NODE, 1)
            shape = f"1x{nodes}x{min(count, GPUS_PER_NODE)}"
            return Topology(name, GPUS[kind], count, 1, "cuda", shape)
    raise UserError(
        f"--topology={name} is unknown: TPU slices have names like v5p:4x4x4 or 2xv5p:4x4x4 "
        f"({sorted(TPUS)}), GPUs like h100:64, in whole nodes of {GPUS_PER_NODE} or less than one "
        f"({sorted(GPUS)})."
    )


def devices(topology):
    """The devices of a topology, as its compiler describes them.

    Raises:
      UserError: if the compiler is not installed, or does not know the shape.
    """
    if not has_compiler(topology):
        raise UserError(INSTALL)
    try:
        return _described_devices(topology)
    except Exception as error:  # compilers raise exceptions of many kinds for unknown shapes
        raise UserError(
            f"--topology={topology.name}: the compiler has no such shape ({str(error)[:200]})."
        ) from None


def compiler(topology):
    """Versions of jax and of the compiler, and the flags of the compiler, as a line of text."""
    package, variable = {
        "tpu": ("libtpu", "LIBTPU_INIT_ARGS"),
        "cuda": ("jax[-_]cuda.*", "XLA_FLAGS"),
    }[topology.platform]
    versions = {
        f"{distribution.name} {distribution.version}"
        for distribution in metadata.distributions()
        if re.fullmatch(f"jax|jaxlib|{package}", distribution.name)
    }
    return " ".join([*sorted(versions), *os.environ.get(variable, "").split()])


def has_compiler(topology):
    """Whether the compiler for a topology's devices is installed."""
    module = "libtpu" if topology.platform == "tpu" else "jax_plugins.xla_cuda13"
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(module) is not None
    return False


def _described_devices(topology):
    if topology.platform == "tpu":
        options = {"num_slices": topology.slices} if topology.slices > 1 else {}
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.shape, **options
        ).devices
    target = Path(__file__).parent / "xla_targets" / f"{topology.name.split(':')[0]}.txtpb"
    return topologies.get_topology_desc(
        "gpu", "cuda", target_config=target.read_text(), topology=topology.shape
    ).devices
