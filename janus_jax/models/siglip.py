"""The SigLIP understanding encoder: a ViT whose every patch is a feature (ViT-L/16 at 384 px).

As in Janus: no class token, exact (erf) GELU, LayerNorm eps 1e-6, final norm over all tokens, no
pooling head.
"""

import functools

import chex
import jax
from einops import rearrange
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from janus_jax import sharding
from janus_jax.layers.attention import Attention, attention
from janus_jax.layers.linear import Linear, Mlp, Rngs, param, trailing
from janus_jax.layers.norm import LayerNorm
from janus_jax.layers.remat import BLOCK_INPUT, check_policy, rematerialise


class EncoderBlock(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x), all with biases."""

    def __init__(self, rngs, *, embed_dim, num_heads, mlp_dim, norm_eps):
        heads = dict(num_heads=num_heads, num_kv_heads=num_heads, head_dim=embed_dim // num_heads)
        self.attention_norm = LayerNorm(rngs, embed_dim, eps=norm_eps)
        self.attention = Attention(rngs, embed_dim, **heads, bias=True)
        self.mlp_norm = LayerNorm(rngs, embed_dim, eps=norm_eps)
        self.mlp = Mlp(rngs, embed_dim, mlp_dim, embed_dim, axes=("embed", "mlp", "embed"))

    def __call__(self, x):
        """float[M, T, F] -> float[M, T, F]."""
        x = x + self.attention.merge(attention(*self.attention.qkv(self.attention_norm(x))))
        return x + self.mlp(self.mlp_norm(x))


class Siglip(nnx.Module):
    """Images to features. Fresh kernels are LeCun normal, position embeddings N(0, 0.7^2).

    It shows the contract of an understanding encoder, which consists of

      image_size: pixels per side of the images it reads;
      num_tokens(h, w): features of an image of h x w pixels; it reads no parameter, so that
        `ModelSpec.module`, the module without arrays, answers too;
      __call__(pixels): float[M, h, w, 3] in [-1, 1] -> float[M, num_tokens(h, w), F].
    """

    def __init__(
        self,
        rngs,
        *,
        image_size,
        patch_size,
        num_layers,
        embed_dim,
        norm_eps=1e-6,
        remat="block",
        **block,
    ):
        """`remat` is a policy of `layers.remat`; `block` are further sizes of `EncoderBlock`."""
        self.image_size = image_size
        self.patch_size = patch_size
        self.remat = check_policy(remat)
        make_block = functools.partial(
            EncoderBlock, embed_dim=embed_dim, norm_eps=norm_eps, **block
        )
        self.patch = Linear(rngs, 3 * patch_size**2, embed_dim, axes=("pixel", "embed"))
        positions = (self.num_tokens(image_size, image_size), embed_dim)
        # As large as the patches, or the features say what is in a patch, but not where it is.
        normal = nnx.initializers.normal(0.7)
        self.position = param(rngs, positions, ("position", "embed"), normal)
        keys = jax.random.split(rngs(), num_layers)
        self.layers = jax.vmap(lambda key: make_block(Rngs(key)))(keys)
        self.norm = LayerNorm(rngs, embed_dim, eps=norm_eps)

    def num_tokens(self, h, w):
        """Features of an image of h x w pixels, T."""
        return (h // self.patch_size) * (w // self.patch_size)

    def __call__(self, pixels):
        """float[M, h, w, 3] in [-1, 1] -> float[M, T, F] features, row-major."""
        chex.assert_shape(pixels, (None, self.image_size, self.image_size, 3))
        p = self.patch_size
        patches = rearrange(pixels, "m (h p) (w q) c -> m (h w) (p q c)", p=p, q=p)
        x = self.patch(patches)
        constrain = lambda x: sharding.constrain(x, "batch", "length", "act_embed")
        body = lambda x, layer: (constrain(layer(checkpoint_name(x, BLOCK_INPUT))), None)
        x = constrain(x + trailing(self.position, x))
        x, _ = jax.lax.scan(rematerialise(body, self.remat), x, self.layers)
        return self.norm(x)
