"""Parameters with named axes, linear maps, and the multi-layer perceptrons of the papers."""

import jax
import jax.numpy as jnp
from flax import nnx

lecun_normal = nnx.initializers.lecun_normal
zeros = nnx.initializers.zeros_init()
ones = nnx.initializers.ones_init()


class Rngs:
    """A source of keys for fresh parameters: a new key at every call.

    It counts in Python; flax's own counts in the trace, and building a module takes five times as
    long.
    """

    def __init__(self, key):
        self._key, self._count = key, 0

    def __call__(self):
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


def param(rngs, shape, axes, init):
    """One fp32 parameter; `axes` names its dimensions for the sharding table and the reader."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length.")
    return nnx.Param(init(rngs(), shape, jnp.float32), axes=axes)


def trailing(vector, like):
    """A parameter of the last axes of `like` in its dtype and rank: no broadcast is implicit."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - vector.ndim) + vector.shape)


class Linear(nnx.Module):
    """x @ kernel (+ bias). Fresh kernels are LeCun normal by default, biases zero."""

    def __init__(self, rngs, in_dim, out_dim, *, axes, bias=True, init=None):
        self.kernel = param(rngs, (in_dim, out_dim), axes, init or lecun_normal())
        self.bias = param(rngs, (out_dim,), axes[1:], zeros) if bias else None

    def __call__(self, x):
        """float[..., in] -> float[..., out]."""
        y = x @ self.kernel.astype(x.dtype)
        return y if self.bias is None else y + trailing(self.bias, y)


def silu(x):
    """x sigmoid(x): float[...] -> float[...].

    In fp32 the sigmoid is written as tanh. XLA on CPU vectorises that everywhere, and the gradient
    of a feed-forward block takes half of the time; in bf16 it would cost digits.
    """
    if x.dtype != jnp.float32:
        return jax.nn.silu(x)
    return x * (0.5 + 0.5 * jnp.tanh(0.5 * x))


class SwiGLU(nnx.Module):
    """The LLaMA feed-forward block: down(silu(gate x) * up x), no biases."""

    def __init__(self, rngs, embed_dim, mlp_dim):
        self.gate = Linear(rngs, embed_dim, mlp_dim, axes=("embed", "mlp"), bias=False)
        self.up = Linear(rngs, embed_dim, mlp_dim, axes=("embed", "mlp"), bias=False)
        self.down = Linear(rngs, mlp_dim, embed_dim, axes=("mlp", "embed"), bias=False)

    def __call__(self, x):
        """float[..., D] -> float[..., D]."""
        return self.down(silu(self.gate(x)) * self.up(x))


class Mlp(nnx.Module):
    """Linear, exact GELU, linear: SigLIP's feed-forward block, both adaptors and the image head.

    The papers' adaptors and image head are this net (Janus, section 3.1); the initialisation is
    that of `Linear`.
    """

    def __init__(self, rngs, in_dim, hidden_dim, out_dim, *, axes, unit_inputs=False):
        """`axes` names (in, hidden, out); `unit_inputs`: inputs have the length 1, not sqrt(in)."""
        first = nnx.initializers.normal(1.0) if unit_inputs else lecun_normal()
        self.fc_1 = Linear(rngs, in_dim, hidden_dim, axes=axes[:2], init=first)
        self.fc_2 = Linear(rngs, hidden_dim, out_dim, axes=axes[1:])

    def __call__(self, x):
        """float[..., in] -> float[..., out]."""
        return self.fc_2(jax.nn.gelu(self.fc_1(x), approximate=False))
