"""The table from logical axes to mesh axes, and all functions that make shardings from it.

Layers name the logical axes of a parameter where they create it; only this file knows the mesh
axes: `data` (slices or nodes on a slow network), `fsdp` (parameters and batch) and `tensor` (heads,
MLP and vocabulary).
"""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from janus_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

RULES = {  # logical axis -> mesh axis
    # activations
    "batch": ("data", "fsdp"),
    "slices": "data",
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
    # image nets and code tables: wide convolutions are sharded, the rest is small
    "pixel": None,
    "code_dim": None,
    "codes": "fsdp",
    "conv_in": None,
    "conv_out": "fsdp",
    "window": None,
}
# A parameter with one of these axes is replicated where it does not divide: nets may be narrow.
SHARDED_IF_DIVISIBLE = ("conv_out", "codes")


def mesh_sizes(count, *, data, fsdp, tensor):
    """Sizes (data, fsdp, tensor) of a mesh of `count` devices; one may be -1, for the rest of them.

    Raises:
      UserError: when their product is not the number of devices.
    """
    sizes = [data, fsdp, tensor]
    name = f"Mesh data={data} x fsdp={fsdp} x tensor={tensor}"
    if any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{name}: sizes are 1 or more, or -1 for the remaining devices.")
    if -1 in sizes:
        fixed = math.prod(size for size in sizes if size != -1)
        if sizes.count(-1) > 1 or count % fixed:
            raise UserError(
                f"{name} does not fit {count} devices; the fixed sizes must divide their number, "
                "and at most one size may be -1."
            )
        sizes[sizes.index(-1)] = count // fixed
    if math.prod(sizes) != count:
        raise UserError(f"{name} needs {math.prod(sizes)} devices; there are {count}.")
    return tuple(sizes)


def make_mesh(*, data=1, fsdp=-1, tensor=1, devices=None):
    """Makes the `data x fsdp x tensor` mesh; one size may be -1, for the remaining devices.

    The slices of a pod, which a slow network connects, are laid out along `data`.

    Raises:
      UserError: when the product of the sizes is not the number of devices, or when `fsdp` or
        `tensor` would cross slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor)
    slices = 1  # GPUs are already ordered by node
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"Mesh data={sizes[0]} over {slices} slices: the network between slices is slow, so "
            "data must be a multiple of their number (--config.mesh.data)."
        )
    if slices > 1:
        slice_sizes = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            slice_sizes, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(*sizes):
    """The `data x fsdp x tensor` mesh of these sizes without devices, for planning."""
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_divisor(mesh):
    """Number of devices that the pack groups are sharded over."""
    return math.prod(mesh.shape[name] for name in RULES["batch"])


def _spec(axes, *, ndim, name=""):
    """PartitionSpec of an array whose trailing dimensions are `axes`; others are not sharded."""
    unknown = [axis for axis in axes if axis is not None and axis not in RULES]
    if unknown:
        raise UserError(
            f"{name}: logical axis {unknown[0]!r} is not in the sharding table; "
            f"known: {sorted(RULES)}."
        )
    spec = [None if axis is None else RULES[axis] for axis in axes]
    used = [mesh_axis for part in spec for mesh_axis in _names(part)]
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
      UserError: for an unknown axis name, two axes on one mesh axis, or a size that does not
        divide; it names the path.
    """
    shardings = {}
    for path, leaf in abstract.items():
        spec = _spec(axes[path], ndim=len(leaf.shape), name=path)
        for size, mesh_axis in zip(leaf.shape, spec, strict=True):
            if mesh_axis and size % mesh.shape[mesh_axis]:
                if set(axes[path]) & set(SHARDED_IF_DIVISIBLE):
                    spec = PartitionSpec()
                    break
                raise UserError(
                    f"{path}: size {size} of {leaf.shape} does not divide over "
                    f"{mesh_axis}={mesh.shape[mesh_axis]}; choose another mesh "
                    "(--config.mesh in training)."
                )
        shardings[path] = NamedSharding(mesh, spec)
    return shardings


def replicated(mesh):
    """The sharding of scalars and counters."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """The sharding of a batch: pack groups over data x fsdp, other dimensions not sharded."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def constrain(x, *axes, indivisible="error"):
    """Requests the sharding of an activation by its logical axes; without a mesh it does nothing.

    Args:
      x: an array.
      axes: its logical axes.
      indivisible: for an axis that does not divide over its mesh axes, 'error' lets jax raise and
        'replicate' keeps it whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = _spec(axes, ndim=x.ndim, name="activation")
    if indivisible == "replicate":
        parts = [math.prod(mesh.shape[name] for name in _names(part)) for part in spec]
        sizes = zip(x.shape, spec, parts, strict=True)
        spec = PartitionSpec(*[axis if size % count == 0 else None for size, axis, count in sizes])
    return jax.lax.with_sharding_constraint(x, spec)


def _names(part):
    """Mesh axes of one dimension of a PartitionSpec, as a tuple."""
    return (part,) if isinstance(part, str) else part or ()


def per_device(function, *, inputs, output, over=None):
    """A function that every device runs on its own part of the arrays; without a mesh, `function`.

    Args:
      function: takes and returns arrays; for example a kernel, which XLA cannot partition.
      inputs: logical axes of each argument.
      output: logical axes of the result, or a tuple of them for a tuple of results.
      over: a logical axis; only its mesh axes are split so, and XLA partitions the others. By
        default all mesh axes are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    spec = lambda axes: _spec(axes, ndim=len(axes), name="activation")
    return jax.shard_map(
        function,
        in_specs=tuple(map(spec, inputs)),
        out_specs=spec(output) if isinstance(output[0], str) else tuple(map(spec, output)),
        axis_names=set(mesh.axis_names if over is None else RULES[over]),
        check_vma=False,
    )


def device_kind():
    """Kind of the devices of the program being traced, such as 'TPU v5 lite' or 'cpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind
