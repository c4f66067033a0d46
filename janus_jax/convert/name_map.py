"""What a name table is: one line a tensor, read both ways, strict both ways.

A line says what a tensor is called in a layout and where it lies with us; `{i}` and `{j}` stand for numbers and are the
same on both sides. Our transformer blocks are stacked, `llm/layers/mlp/up/kernel` is float[layers, D, F]; tables speak
of them one by one, `llm/layers/{i}/mlp/up/kernel`. Where a layout fuses tensors that we hold apart (queries, keys and
values), a line names them all in their order along the first axis.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from janus_jax.errors import UserError


class Form(NamedTuple):
    """How one tensor lies in memory on both sides; exact inverses of each other.

    Attributes:
      ours: (their array, our shape) -> our array.
      theirs: our array -> their array.
    """

    ours: Callable
    theirs: Callable


def _linear(inputs):
    """torch (out, in) against our (in ..., out ...), whose first `inputs` axes are the input's."""
    return Form(
        lambda a, shape: a.T.reshape(shape),
        lambda a: a.reshape(math.prod(a.shape[:inputs]), -1).T,
    )


def _square(pixels):
    """Side of square patches, from their number of values in three colours."""
    return math.isqrt(pixels // 3)


SAME = Form(lambda a, shape: a.reshape(shape), lambda a: a)
FLAT = Form(lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1))  # biases of heads
ONE_ROW = Form(lambda a, shape: a.reshape(shape), lambda a: a[None])
ONE_CELL = Form(lambda a, shape: a.reshape(shape), lambda a: a[None, None, None])  # a vector over a feature map
LINEAR, FROM_HEADS = _linear(1), _linear(2)
CONV = Form(lambda a, shape: a.transpose(2, 3, 1, 0).reshape(shape), lambda a: a.transpose(3, 2, 0, 1))  # OIHW, HWIO
POINTWISE = Form(  # a 1x1 convolution of ours that a layout holds as a linear map
    lambda a, shape: a.T.reshape(shape), lambda a: a.reshape(a.shape[2:]).T
)
PATCH = Form(  # a convolution of patches that we hold as a linear map of their pixels
    lambda a, shape: a.transpose(2, 3, 1, 0).reshape(shape),
    lambda a: a.reshape(_square(a.shape[0]), _square(a.shape[0]), 3, -1).transpose(3, 2, 0, 1),
)


class Line(NamedTuple):
    """One line of a name table: their name, our names (several where theirs is fused), and the form of each piece."""

    theirs: str
    ours: tuple
    form: Form


def line(theirs, ours, form=SAME):
    """A line of one tensor, or of several fused ones when `ours` is a tuple."""
    return Line(theirs, ours if isinstance(ours, tuple) else (ours,), form)


def weight_and_bias(theirs, ours, form, *, bias=SAME):
    """The two lines of a linear map or a convolution: `weight` is our `kernel`."""
    each = lambda leaf: tuple(f"{o}/{leaf}" for o in (ours if isinstance(ours, tuple) else (ours,)))
    return [line(f"{theirs}.weight", each("kernel"), form), line(f"{theirs}.bias", each("bias"), bias)]


def norm(theirs, ours):
    """The two lines of a LayerNorm or GroupNorm: `weight` is our `scale`."""
    return [line(f"{theirs}.weight", f"{ours}/scale"), line(f"{theirs}.bias", f"{ours}/bias")]


class Tensor(NamedTuple):
    """A tensor of a layout, and the pieces of ours that make it.

    Attributes:
      shape: theirs.
      pieces: (our path, index into the stacked layers or None) of each piece, in order along the first axis.
      form: of every piece.
    """

    shape: tuple
    pieces: tuple
    form: Form


def spell_out(table, abstract, *, layout):
    """All tensors that a layout has for our parameters.

    Args:
      table: list of Line.
      abstract: {our path: anything with a shape}.
      layout: its name, for errors.

    Returns:
      {their name: Tensor}, in the order of our parameters.

    Raises:
      UserError: when a parameter fits no line of the table, or two, or a fused tensor lacks a piece; with its name.
    """
    patterns = [
        (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(name))), row, part)
        for row in table
        for part, name in enumerate(row.ours)
    ]
    found = {}
    for path, leaf in abstract.items():
        for name, index, shape in _one_by_one(path, leaf.shape):
            hits = [(row, part, m) for p, row, part in patterns if (m := p.fullmatch(name))]
            if len(hits) != 1:
                raise UserError(f"{name} fits {len(hits)} lines of the {layout} name table instead of one.")
            row, part, match = hits[0]
            pieces = found.setdefault(row.theirs.format(**match.groupdict()), (row, {}))[1]
            if part in pieces:
                raise UserError(f"{name} and {pieces[part][0]} have one name in the {layout} name table.")
            pieces[part] = (path, index, shape)
    return {key: _tensor(key, row, pieces, layout) for key, (row, pieces) in found.items()}


def _one_by_one(path, shape):
    """(name, index, shape) of a parameter's layers, or of itself where it is not stacked."""
    stacked = re.search(r"(^|/)layers/(?!\d)", path)
    if not stacked:
        return [(path, None, shape)]
    at = stacked.end()
    return [(f"{path[:at]}{i}/{path[at:]}", i, shape[1:]) for i in range(shape[0])]


def _tensor(key, row, pieces, layout):
    lacking = [name for part, name in enumerate(row.ours) if part not in pieces]
    if lacking:
        raise UserError(f"{key} of the {layout} name table lacks {lacking[0]}.")
    pieces = [pieces[part] for part in range(len(row.ours))]
    sizes = [jax.eval_shape(row.form.theirs, jax.ShapeDtypeStruct(shape, np.float32)).shape for *_, shape in pieces]
    shape = (sum(s[0] for s in sizes), *sizes[0][1:]) if sizes[0] else ()
    return Tensor(shape, tuple((path, index) for path, index, _ in pieces), row.form)


def check(tensors, held, *, unused, layout, where):
    """Compares what a layout asks for with what files hold.

    Args:
      tensors: of `spell_out`.
      held: {their name: (shape, dtype)} of the files.
      unused: {name: shape, or None for any} of what may be there and is not asked for.
      layout, where: for errors.

    Raises:
      UserError: for missing and extra tensors, other shapes and other dtypes, with the first names of each kind.
    """
    several = lambda keys: f"{len(keys)} tensor{'s' * (len(keys) > 1)} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})"
    missing, extra = [k for k in tensors if k not in held], [k for k in held if k not in tensors and k not in unused]
    shapes = {k: t.shape for k, t in tensors.items()} | {k: shape for k, shape in unused.items() if shape}
    wrong = [k for k, shape in shapes.items() if k in held and held[k][0] != shape]
    odd = [k for k in tensors if k in held and held[k][1] not in DTYPES]
    told = [f"misses {several(missing)}"] * bool(missing) + [f"holds {several(extra)} too many"] * bool(extra)
    told += [f"{k} is {held[k][0]} and should be {shapes[k]}" for k in wrong[:3]]
    told += [f"{k} is {held[k][1]} and should be one of {DTYPES}" for k in odd[:3]]
    if told:
        raise UserError(f"{where} is not the {layout} layout of this config: it {'; it '.join(told)}.")


DTYPES = ("float32", "bfloat16", "float16")


def gather(read, tensors, abstract):
    """Our parameters one after the other, each assembled from the files and then forgotten.

    Args:
      read: their name -> numpy array.
      tensors: of `spell_out`.
      abstract: {our path: anything with a shape}.

    Yields:
      (our path, numpy array of the files' dtype).

    Raises:
      UserError: when the layers of a stacked parameter differ in dtype.
    """
    places = {}
    for key, tensor in tensors.items():
        for part, (path, index) in enumerate(tensor.pieces):
            places.setdefault(path, []).append((index, key, part))
    for path, where in places.items():
        shape, whole = abstract[path].shape, None
        for index, key, part in where:
            tensor, theirs = tensors[key], read(key)
            piece = np.split(theirs, len(tensor.pieces))[part] if len(tensor.pieces) > 1 else theirs
            whole = np.empty(shape, piece.dtype) if whole is None else whole
            if whole.dtype != piece.dtype:
                raise UserError(f"{key} is {piece.dtype}, its fellows in {path} are {whole.dtype}.")
            whole[... if index is None else index] = tensor.form.ours(piece, shape if index is None else shape[1:])
        yield path, whole


def scatter(load, tensors, *, at_once=2**29):
    """Their tensors, our parameters read some at a time.

    Args:
      load: list of our paths -> {path: numpy array}.
      tensors: of `spell_out`.
      at_once: numbers that are read together, but for a parameter that is larger alone.

    Yields:
      (their name, numpy array).
    """
    groups = {}  # a fused tensor needs all its parameters at the same time
    for key, tensor in tensors.items():
        groups.setdefault(tuple(path for path, _ in tensor.pieces), []).append(key)
    waiting, size = [], 0
    for paths, keys in groups.items():
        numbers = sum(math.prod(tensors[key].shape) for key in keys)
        if waiting and size + numbers > at_once:
            yield from _take_apart(load, waiting, tensors)
            waiting, size = [], 0
        waiting.append((paths, keys))
        size += numbers
    yield from _take_apart(load, waiting, tensors)


def _take_apart(load, groups, tensors):
    ours = load([path for paths, _ in groups for path in dict.fromkeys(paths)])
    for _, keys in groups:
        for key in keys:
            tensor = tensors[key]
            whole = [tensor.form.theirs(ours[p] if i is None else ours[p][i]) for p, i in tensor.pieces]
            yield key, np.ascontiguousarray(np.concatenate(whole) if len(whole) > 1 else whole[0])
