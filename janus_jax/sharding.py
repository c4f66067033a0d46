"""The one table from logical axes to mesh axes, and everything that turns it into shardings.

Layers name the logical axes of a parameter where they make it; nothing outside this file knows the mesh axes.
Mesh axes: `data` (slices or nodes on a slow network), `fsdp` (parameters and batch), `tensor` (heads, MLP, vocabulary).
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
    # picture nets and code tables: the wide convolutions are cut, the rest is small
    "pixel": None,
    "code_dim": None,
    "codes": "fsdp",
    "conv_in": None,
    "conv_out": "fsdp",
    "window": None,
}
WHERE_IT_DIVIDES = ("conv_out", "codes")  # narrow nets stay whole on large meshes


def mesh_sizes(count, *, data, fsdp, tensor):
    """Sizes (data, fsdp, tensor) of a mesh of so many devices; one may be -1 and takes what is left.

    Raises:
      UserError: when they do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    if any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"Mesh data={data} x fsdp={fsdp} x tensor={tensor}: sizes are 1 or more, or -1 for what is left.")
    if -1 in sizes:
        rest = math.prod(s for s in sizes if s != -1)
        if sizes.count(-1) > 1 or count % rest:
            raise UserError(
                f"Mesh data={data} x fsdp={fsdp} x tensor={tensor} does not fit {count} devices; "
                "the fixed sizes must divide their number and one size at most may be -1."
            )
        sizes[sizes.index(-1)] = count // rest
    if math.prod(sizes) != count:
        raise UserError(
            f"Mesh data={sizes[0]} x fsdp={sizes[1]} x tensor={sizes[2]} needs {math.prod(sizes)} devices, "
            f"there are {count}."
        )
    return tuple(sizes)


def make_mesh(*, data=1, fsdp=-1, tensor=1, devices=None):
    """Makes the `data x fsdp x tensor` mesh; one size may be -1 and takes the devices that are left.

    Slices of a pod, which a slow network joins, lie along `data`.

    Raises:
      UserError: when the sizes do not multiply to the number of devices, or slices would cut `fsdp` or `tensor`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor)
    slices = 1  # nodes of GPUs lie in order
    if devices[0].platform == "tpu":
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"Mesh data={sizes[0]} over {slices} slices: the network between slices is slow, so data must be a multiple of "
            "their number (--config.mesh.data)."
        )
    if slices > 1:
        inside = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(*sizes):
    """The `data x fsdp x tensor` mesh of these sizes without any devices, to plan on."""
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
                if set(axes[path]) & set(WHERE_IT_DIVIDES):
                    spec = PartitionSpec()
                    break
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


def constrain(x, *axes):
    """Asks for the sharding of an activation by its logical axes; without a mesh it does nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _spec(axes, ndim=x.ndim, name="activation"))


def place(x, *axes):
    """As `constrain`, but an axis that does not divide over its part of the mesh stays whole, as few rows do."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    parts = _spec(axes, ndim=x.ndim, name="activation")
    count = lambda names: math.prod(mesh.shape[n] for n in ((names,) if isinstance(names, str) else names or ()))
    fits = [names if size % count(names) == 0 else None for size, names in zip(x.shape, parts, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))


def per_device(function, *, inputs, output, over=None):
    """A function that every device runs on its own part of the arrays; without a mesh, the function itself.

    Args:
      function: what takes and returns arrays, kernels say, that XLA cannot cut by itself.
      inputs: logical axes of each argument.
      output: logical axes of what it returns, or a tuple of them.
      over: a logical axis whose mesh axes alone are cut so, the others staying XLA's; all of them without it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    spec = lambda axes: _spec(axes, ndim=len(axes), name="activation")
    outputs = spec(output) if isinstance(output[0], str) else tuple(map(spec, output))
    names = set(mesh.axis_names if over is None else RULES[over])
    specs = dict(in_specs=tuple(map(spec, inputs)), out_specs=outputs, axis_names=names)
    return jax.shard_map(function, **specs, check_vma=False)


def device_kind():
    """What the program that is being traced will run on, in jax's words: 'TPU v5 lite', 'NVIDIA H100 80GB HBM3', 'cpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind
