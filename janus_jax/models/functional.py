"""Between a module and its arrays, a flat dict {path: array} (`llm/layers/mlp/gate/kernel`).

A `ModelSpec` describes a module without holding arrays. Whatever runs under a JAX transform takes
the dict and merges it back into the module inside.
"""

import functools

import jax
from flax import nnx, traverse_util

from janus_jax.layers.linear import Rngs


class ModelSpec:
    """A module's structure.

    Attributes:
      abstract: {path: ShapeDtypeStruct}, fp32.
      axes: {path: logical axes of the trailing dimensions}.
    """

    def __init__(self, build):
        """`build` makes the module from `Rngs`."""
        self.build = build
        module = jax.eval_shape(lambda key: build(Rngs(key)), jax.random.key(0))
        self.graphdef, self.state = nnx.split(module)
        self.abstract = _flat(nnx.to_pure_dict(self.state))
        axes = nnx.to_pure_dict(
            nnx.map_state(lambda _, v: _Axes(v.get_metadata("axes")), self.state)
        )
        self.axes = {path: a.names for path, a in _flat(axes).items()}

    @functools.cached_property
    def module(self):
        """The module with shapes in place of arrays, to ask for its sizes."""
        return self.merge(self.abstract)

    def init(self, key):
        """Freshly initialised parameters, {path: array}; jit it with the shardings you want."""
        return _flat(nnx.to_pure_dict(nnx.split(self.build(Rngs(key)))[1]))

    def merge(self, params):
        """The module with these parameters."""
        state = jax.tree.map(lambda leaf: leaf, self.state)
        nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(params, sep="/"))
        return nnx.merge(self.graphdef, state)


class _Axes:
    """Keeps a tuple of axis names one leaf."""

    def __init__(self, names):
        self.names = names


def _flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")
