"""Maps between the names of released tensors and the paths of our parameters, in both directions.

A name table is a list of `Line`. A line says what a tensor is called in a layout and which of our
parameters it is; `{i}` and `{j}` stand for numbers that are the same on both sides. Our transformer
blocks are stacked, `llm/layers/mlp/up/kernel` is float[layers, D, mlp]; tables name them one by
one, `llm/layers/{i}/mlp/up/kernel`. Where a layout fuses several of our parameters into one tensor
(query, key and value), a line names them all in their order along the first axis.

Every parameter must match exactly one line, and every tensor of a file must be matched.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from janus_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


class Form(NamedTuple):
    """How one tensor is converted between the two sides; the functions are exact inverses.

    Attributes:
      to_param: (tensor, shape of the parameter) -> parameter.
      to_tensor: parameter -> tensor.
    """

    to_param: Callable
    to_tensor: Callable


def _linear(num_input_axes):
    """Form of a linear map: torch's (out, in) and our (in ..., out ...)."""

    def to_tensor(a):
        return a.reshape(math.prod(a.shape[:num_input_axes]), -1).T

    return Form(lambda a, shape: a.T.reshape(shape), to_tensor)


def _patch_to_tensor(a):
    """float[patch * patch * 3, D] -> float[D, 3, patch, patch]."""
    side = math.isqrt(a.shape[0] // 3)
    return a.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _reshape(a, shape):
    return a.reshape(shape)


def _oihw_to_hwio(a, shape):
    return a.transpose(2, 3, 1, 0).reshape(shape)


SAME = Form(_reshape, lambda a: a)
FLAT = Form(_reshape, lambda a: a.reshape(-1))  # biases of attention heads
ONE_ROW = Form(_reshape, lambda a: a[None])
ONE_CELL = Form(_reshape, lambda a: a[None, None, None])  # a vector that scales a feature map
LINEAR = _linear(1)
FROM_HEADS = _linear(2)  # attention's output map, whose input is (heads, head dim)
CONV = Form(_oihw_to_hwio, lambda a: a.transpose(3, 2, 0, 1))
POINTWISE = Form(  # a linear map in the layout, a 1x1 convolution here
    lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(a.shape[2:]).T
)
PATCH = Form(_oihw_to_hwio, _patch_to_tensor)  # a convolution in the layout, a linear map here


class Line(NamedTuple):
    """One line of a name table.

    Attributes:
      tensor: name of the tensor.
      params: paths of our parameters; several where the tensor is fused.
      form: how each of them is converted.
    """

    tensor: str
    params: tuple
    form: Form


def line(tensor, params, form=SAME):
    """A line of one parameter, or of several fused ones when `params` is a tuple."""
    return Line(tensor, params if isinstance(params, tuple) else (params,), form)


def weight_and_bias(tensor, params, form, *, bias=SAME):
    """The two lines of a linear map or a convolution: `weight` is our `kernel`."""
    params = params if isinstance(params, tuple) else (params,)
    return [
        line(f"{tensor}.weight", tuple(f"{path}/kernel" for path in params), form),
        line(f"{tensor}.bias", tuple(f"{path}/bias" for path in params), bias),
    ]


def norm(tensor, param):
    """The two lines of a LayerNorm or GroupNorm: `weight` is our `scale`."""
    return [line(f"{tensor}.weight", f"{param}/scale"), line(f"{tensor}.bias", f"{param}/bias")]


class Tensor(NamedTuple):
    """A tensor of a layout, and the parameters that it is made of.

    Attributes:
      shape: of the tensor.
      pieces: (parameter path, index into its stacked layers or None), along the first axis.
      form: of every piece.
    """

    shape: tuple
    pieces: tuple
    form: Form


def expand(table, abstract, *, layout):
    """All tensors that a layout has for a set of parameters.

    Args:
      table: list of Line.
      abstract: {parameter path: anything with a shape}.
      layout: its name, for errors.

    Returns:
      {tensor name: Tensor}, in the order of the parameters.

    Raises:
      UserError: for a parameter that matches no line of the table or two, and for a fused tensor of
        which a parameter is missing.
    """
    patterns = [
        (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(name))), row, part)
        for row in table
        for part, name in enumerate(row.params)
    ]
    by_tensor = {}  # tensor name -> its line and {part: (path, index, shape)}
    for path, leaf in abstract.items():
        for name, index, shape in _unstacked(path, leaf.shape):
            matches = [(row, part, m) for p, row, part in patterns if (m := p.fullmatch(name))]
            if len(matches) != 1:
                raise UserError(
                    f"Parameter {name} matches {len(matches)} lines of the {layout} name table; "
                    "it must match one."
                )
            row, part, match = matches[0]
            _, pieces = by_tensor.setdefault(row.tensor.format(**match.groupdict()), (row, {}))
            if part in pieces:
                raise UserError(
                    f"Parameters {name} and {pieces[part][0]} have the same name in the {layout} "
                    "name table."
                )
            pieces[part] = (path, index, shape)
    return {
        name: _make_tensor(name, row, pieces, layout) for name, (row, pieces) in by_tensor.items()
    }


def _unstacked(path, shape):
    """(name, index, shape) of each layer of a stacked parameter, or of one with index None."""
    stacked = re.search(r"(^|/)layers/(?!\d)", path)
    if not stacked:
        return [(path, None, shape)]
    end = stacked.end()
    return [(f"{path[:end]}{i}/{path[end:]}", i, shape[1:]) for i in range(shape[0])]


def _make_tensor(name, row, pieces, layout):
    missing = [path for part, path in enumerate(row.params) if part not in pieces]
    if missing:
        raise UserError(f"{name} of the {layout} name table needs {missing[0]}, which is missing.")
    pieces = [pieces[part] for part in range(len(row.params))]
    shapes = [
        jax.eval_shape(row.form.to_tensor, jax.ShapeDtypeStruct(shape, np.float32)).shape
        for _, _, shape in pieces
    ]
    shape = (sum(s[0] for s in shapes), *shapes[0][1:]) if shapes[0] else ()
    return Tensor(shape, tuple((path, index) for path, index, _ in pieces), row.form)


def check(tensors, stored, *, optional, layout, source):
    """Compares the tensors that a layout has with those that files contain.

    Args:
      tensors: {tensor name: Tensor}, from `expand`.
      stored: {tensor name: (shape, dtype)} of the files.
      optional: {tensor name: shape, or None for any} of other tensors that files may contain.
      layout: its name, for errors.
      source: the files, for errors.

    Raises:
      UserError: for missing and extra tensors, wrong shapes and wrong dtypes, with the first names
        of each kind.
    """
    missing = [name for name in tensors if name not in stored]
    extra = [name for name in stored if name not in tensors and name not in optional]
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    shapes |= {name: shape for name, shape in optional.items() if shape}
    problems = []
    if missing:
        problems.append(f"misses {_count_and_name(missing)}")
    if extra:
        problems.append(f"has {_count_and_name(extra)} more than it should")
    wrong = [name for name, shape in shapes.items() if name in stored and stored[name][0] != shape]
    for name in wrong[:3]:
        problems.append(f"has {name} of shape {stored[name][0]} instead of {shapes[name]}")
    wrong = [name for name in tensors if name in stored and stored[name][1] not in DTYPES]
    for name in wrong[:3]:
        problems.append(f"has {name} of dtype {stored[name][1]} instead of one of {DTYPES}")
    if problems:
        raise UserError(
            f"{source} does not match the {layout} layout at these sizes: "
            f"it {'; it '.join(problems)}."
        )


def _count_and_name(names):
    """'5 tensors (a, b, c, ...)'."""
    dots = ", ..." if len(names) > 3 else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{dots})"


def to_params(read, tensors, abstract):
    """Assembles parameters one at a time from the tensors of files.

    Args:
      read: tensor name -> numpy array.
      tensors: {tensor name: Tensor}, from `expand`.
      abstract: {parameter path: anything with a shape}.

    Yields:
      (parameter path, numpy array of the files' dtype).

    Raises:
      UserError: when the layers of a stacked parameter have several dtypes.
    """
    by_path = {}
    for name, tensor in tensors.items():
        for part, (path, index) in enumerate(tensor.pieces):
            by_path.setdefault(path, []).append((name, part, index))
    for path, sources in by_path.items():
        shape = abstract[path].shape
        param = None
        for name, part, index in sources:
            tensor = tensors[name]
            array = read(name)
            if len(tensor.pieces) > 1:
                array = np.split(array, len(tensor.pieces))[part]
            if param is None:
                param = np.empty(shape, array.dtype)
            if param.dtype != array.dtype:
                raise UserError(
                    f"{name} is {array.dtype}, but the other layers of {path} are {param.dtype}."
                )
            if index is None:
                param[...] = tensor.form.to_param(array, shape)
            else:
                param[index] = tensor.form.to_param(array, shape[1:])
        yield path, param


def to_tensors(load, tensors, *, max_numbers=2**29):
    """Makes tensors from parameters, of which a limited number is in memory at a time.

    Args:
      load: list of parameter paths -> {path: numpy array}.
      tensors: {tensor name: Tensor}, from `expand`.
      max_numbers: how many numbers are loaded together; a larger parameter is loaded alone.

    Yields:
      (tensor name, numpy array).
    """
    groups = {}  # the tensors that need the same parameters
    for name, tensor in tensors.items():
        groups.setdefault(tuple(path for path, _ in tensor.pieces), []).append(name)
    batch = []
    size = 0
    for paths, names in groups.items():
        numbers = sum(math.prod(tensors[name].shape) for name in names)
        if batch and size + numbers > max_numbers:
            yield from _load_and_convert(load, batch, tensors)
            batch = []
            size = 0
        batch.append((paths, names))
        size += numbers
    yield from _load_and_convert(load, batch, tensors)


def _load_and_convert(load, groups, tensors):
    params = load([path for paths, _ in groups for path in dict.fromkeys(paths)])
    for _, names in groups:
        for name in names:
            tensor = tensors[name]
            arrays = [
                tensor.form.to_tensor(params[path] if index is None else params[path][index])
                for path, index in tensor.pieces
            ]
            array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
            yield name, np.ascontiguousarray(array)
