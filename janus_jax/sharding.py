"""The one table from logical axes to mesh axes, and everything that turns it into shardings.

Layers name the logical axes of a parameter where they make it; nothing outside this file knows the mesh axes.
Mesh axes: `data` (slices on a slow network), `fsdp` (parameters and batch), `tensor` (heads, MLP, vocabulary).
"""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES = {  # logical axis -> mesh axis
    # activations
    "batch": ("data", "fsdp"),
    "length": None,
    "act_embed": None,
    # transformer weights
    "vocab": "tensor",
    "embed": "fsdp",
    "embed_out": None,  # the second embed axis of a square kernel
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "norm": None,
    "position": None,
    # picture nets and code tables: small or frozen, replicated
    "pixel": None,
    "code_dim": None,
    "codes": None,
    "conv_in": None,
    "conv_out": None,
    "window": None,
}


def make_mesh(*, data=1, fsdp=-1, tensor=1, devices=None):
    """Makes the `data x fsdp x tensor` mesh; one size may be -1 and takes the devices that are left.

    Raises:
      UserError: when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if -1 in sizes:
        rest = math.prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or len(devices) % rest:
            raise UserError(
                f"Mesh data={data} x fsdp={fsdp} x tensor={tensor} does not fit {len(devices)} devices; "
                "the fixed sizes must divide their number and one size at most may be -1."
            )
        sizes[sizes.index(-1)] = len(devices) // rest
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"Mesh data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} needs {math.prod(sizes)} devices, "
            f"there are {len(devices)}."
        )
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_divisor(mesh):
    """Number of devices that the pack groups are spread over."""
    return math.prod(mesh.shape[a] for a in RULES["batch"])


def _spec(axes, *, ndim, name=""):
    """PartitionSpec of an array whose trailing dims are `axes`; leading (stacked) dims stay whole."""
    unknown = [a for a in axes if a is not None and a not in RULES]
    if unknown:
        raise UserError(f"{name}: logical axis {unknown[0]!r} is not in the sharding table; known: {sorted(RULES)}.")
    spec = [None if a is None else RULES[a] for a in axes]
    used = [m for s in spec if s for m in ((s,) if isinstance(s, str) else s)]
    if len(used) != len(set(used)):
        raise UserError(f"{name}: axes {axes} put two dimensions on one mesh axis.")
    return PartitionSpec(*[None] * (ndim - len(axes)), *spec)


def param_shardings(mesh, abstract, axes):
    """NamedSharding for every parameter.

    Args:
      mesh: the mesh.
      abstract: {path: ShapeDtypeStruct}, flat.
      axes: {path: logical axes}, flat, same keys.

    Raises:
      UserError: for an unknown axis name, two axes on one mesh axis, or a size that does not divide; with the path.
    """
    shardings = {}
    for path, leaf in abstract.items():
        spec = _spec(axes[path], ndim=len(leaf.shape), name=path)
        for size, mesh_axis in zip(leaf.shape, spec, strict=True):
            if mesh_axis and size % mesh.shape[mesh_axis]:
                raise UserError(
                    f"{path}: size {size} of {leaf.shape} does not divide over {mesh_axis}={mesh.shape[mesh_axis]}; "
                    "choose another mesh (--config.mesh in training)."
                )
        shardings[path] = NamedSharding(mesh, spec)
    return shardings


def replicated(mesh):
    """The sharding of scalars and counters."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """Pack groups over data x fsdp, everything behind them whole."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def put_batch(mesh, batch):
    """Puts this process's pack groups of a host batch on the mesh as one global array each."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def spread(tree):
    """Deals arrays out over the mesh along their first axis; where that does not divide they stay as they are."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or any(len(x) % batch_divisor(mesh) for x in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, batch_sharding(mesh))


def constrain(x, *axes):
    """Asks for the sharding of an activation by its logical axes; without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, ndim=x.ndim, name="activation"))
