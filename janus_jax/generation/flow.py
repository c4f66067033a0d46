"""Image generation by rectified flow (JanusFlow): the LLM predicts where a noisy image moves.

With data x (scaled latents of SDXL's autoencoder) and noise z0, an image at time t in [0, 1] is z_t
= t x + (1 - t) z0 and moves at velocity x - z0 (JanusFlow, section 3.1). In a row an image is its
time token and T latent tokens; every latent token's own state, with a skip from the encoder, gives
its patch of the velocity. The prompt does not depend on t, so all steps of the sampler start from
one cache of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx

from janus_jax import flops
from janus_jax.errors import UserError
from janus_jax.generation.base import GenerationNets, GenerationPath, guide
from janus_jax.generation.convnext import FlowDecoder, FlowEncoder
from janus_jax.layers.linear import Linear
from janus_jax.layers.norm import RMSNorm
from janus_jax.tokenizers.sdxl_vae import VAE


class FlowGuidance(NamedTuple):
    """Sampling settings: Euler steps along v = v_u + scale (v_c - v_u)."""

    scale: float = 2.0
    steps: int = 30


class Noised(NamedTuple):
    """Images between noise and data.

    Attributes:
      time: float32[M] in [0, 1].
      state: float32[M, h, w, c] z_t.
      velocity: float32[M, h, w, c] x - z0.
      reference: float[M, T, F] features that the LLM's states are aligned with, or None.
    """

    time: jax.Array
    state: jax.Array
    velocity: jax.Array
    reference: jax.Array | None


class Alignment(nnx.Module):
    """Three-layer MLP from the LLM's states to understanding features (REPA, section 4)."""

    def __init__(self, rngs, embed_dim, feature_dim):
        self.fc_1 = Linear(rngs, embed_dim, embed_dim, axes=("embed", "embed_out"))
        self.fc_2 = Linear(rngs, embed_dim, embed_dim, axes=("embed", "embed_out"))
        self.fc_3 = Linear(rngs, embed_dim, feature_dim, axes=("embed", "embed_out"))

    def __call__(self, x):
        """float[..., D] -> float[..., F]."""
        return self.fc_3(jax.nn.silu(self.fc_2(jax.nn.silu(self.fc_1(x)))))


class FlowNets(GenerationNets):
    """Autoencoder, ConvNeXt encoder and decoder, linear maps to and from the LLM, alignment MLP."""

    training_only = ("alignment",)

    def __init__(
        self,
        rngs,
        *,
        embed_dim,
        image_size,
        tokenizer,
        unet,
        alignment,
        sample_latents=False,
        tokenizer_training=None,
    ):
        """Builds the nets.

        Args:
          rngs: source of fresh parameters.
          embed_dim: D of the LLM.
          image_size: pixels per side of the images to generate.
          tokenizer: keyword arguments of `VAE`.
          unet: `dim`, `num_blocks`, `norm_eps` of `FlowEncoder` and `FlowDecoder`.
          alignment: `layer`, the block whose states are aligned, 0 for no alignment, and
            `feature_dim` F.
          sample_latents: samples latents from their posterior; by default they are its mean.
          tokenizer_training: read by the tokenizer's own stage only.

        Raises:
          UserError: for an image size that latent tokens do not tile.
        """
        self.num_tokens = self.count_tokens(image_size=image_size, tokenizer=tokenizer)
        self.tokenizer = VAE(rngs, **tokenizer)
        self.side = image_size // self.tokenizer.downsample  # of the latents
        self.sample_latents = sample_latents
        net = dict(latent_channels=tokenizer["latent_channels"], time_dim=embed_dim, **unet)
        self.encoder = FlowEncoder(rngs, **net)
        self.encoder_adaptor = Linear(rngs, unet["dim"], embed_dim, axes=("embed_out", "embed"))
        self.decoder_norm = RMSNorm(rngs, embed_dim, eps=unet["norm_eps"])
        self.decoder_adaptor = Linear(rngs, embed_dim, unet["dim"], axes=("embed", "embed_out"))
        self.decoder = FlowDecoder(rngs, **net)
        self.alignment = (
            Alignment(rngs, embed_dim, alignment["feature_dim"]) if alignment["layer"] else None
        )
        self.tap_layer = alignment["layer"] or None

    @staticmethod
    def count_tokens(*, image_size, tokenizer, **settings):
        """The time token, and one token per 2 x 2 latents."""
        pixels = 2 ** len(tokenizer["widths"])  # per side of a token
        if image_size % pixels:
            raise UserError(
                f"config.model.generation.image_size is {image_size}: it must be a "
                f"multiple of {pixels}."
            )
        return 1 + (image_size // pixels) ** 2


class FlowPath(GenerationPath):
    """Targets are velocities; the loss is their squared error plus the alignment (section 3.3)."""

    Nets, Tokenizer, Guidance = FlowNets, VAE, FlowGuidance
    read_shift = 0
    prefix_tokens = ()
    attend_to_dropped_prompt = False

    @property
    def tap_layer(self):
        """The block that is aligned, or None."""
        return self.nets.tap_layer

    @staticmethod
    def flops(settings, *, embed_dim, encoder):
        """The autoencoder's encoder, ConvNeXt nets, linear maps, alignment."""
        vae = settings["tokenizer"]
        encode, _ = VAE.flops(size=settings["image_size"], **vae)
        dim, blocks = settings["unet"]["dim"], settings["unet"]["num_blocks"]
        tokens = FlowNets.count_tokens(**settings) - 1
        block = lambda c: tokens * 2 * c * (49 + 8 * c) + 2 * embed_dim * 2 * c
        heads = blocks * block(2 * dim) + tokens * 2 * dim * (
            embed_dim + 8 * vae["latent_channels"]
        )
        adaptors = blocks * block(dim) + tokens * 2 * dim * (embed_dim + 4 * vae["latent_channels"])
        adaptors += 2 * embed_dim * (dim + embed_dim)
        parts = {
            "tokenizer": flops.FORWARD * encode,
            "adaptors": flops.TRAINED * adaptors,
            "heads": flops.TRAINED * heads,
        }
        if settings["alignment"]["layer"]:
            features = settings["alignment"]["feature_dim"]
            parts["heads"] += flops.TRAINED * tokens * 2 * embed_dim * (2 * embed_dim + features)
            parts["encoder"] = flops.FORWARD * encoder
        return parts

    def prepare(self, images, keys, *, encode):
        """Samples a time (logit-normal) and noise per image and interpolates."""
        time_key, noise_key, latent_key = jnp.moveaxis(
            jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0
        )
        latents = self.latents(images, latent_key)
        time = jax.nn.sigmoid(jax.vmap(jax.random.normal)(time_key))
        noise = jax.vmap(lambda k: jax.random.normal(k, latents.shape[1:]))(noise_key)
        reference = None if self.nets.alignment is None else encode(images.pixels)
        return noised(latents, noise, time, reference)

    def latents(self, images, keys):
        """Scaled latents float32[M, h, w, c], cached or from pixels; no gradient flows back."""
        vae, side = self.nets.tokenizer, self.nets.side
        if images.latents is not None:
            if images.latents.shape[1:] != (shape := (vae.channels, side, side)):
                raise UserError(
                    f"Cached latents are {images.latents.shape[1:]}, the model "
                    f"generates {shape}; cache them again."
                )
            return rearrange(images.latents, "m c h w -> m h w c").astype(jnp.float32)
        latents, logvar = vae.posterior(images.pixels)
        if self.nets.sample_latents:
            noise = jax.vmap(lambda k: jax.random.normal(k, latents.shape[1:]))(keys)
            latents = latents + jnp.exp(logvar / 2) * noise
        return jax.lax.stop_gradient(latents * vae.scale[...])

    def embed(self, noised):
        """The time token and T latent tokens; skip: the encoder's output and the time embedding."""
        features, time = self.nets.encoder(noised.state.astype(self.dtype), noised.time)
        tokens = self.nets.encoder_adaptor(rearrange(features, "m h w c -> m (h w) c"))
        return jnp.concatenate([time[:, None], tokens], axis=1), (features, time)

    def velocity(self, hidden, skip):
        """States float[M, 1 + T, D], whose first is not read, and skip -> float32[M, h, w, c]."""
        features, time = skip
        x = self.nets.decoder_adaptor(self.nets.decoder_norm(hidden[:, 1:]))
        return self.nets.decoder(
            rearrange(x, "m (h w) c -> m h w c", h=features.shape[1]), features, time
        ).astype(jnp.float32)

    def loss(self, hidden, tapped, noised, skip):
        """Mean squared error of the velocity minus the cosine of the alignment, weighted 1:1."""
        error = jnp.mean((self.velocity(hidden, skip) - noised.velocity) ** 2, axis=(1, 2, 3))
        if self.nets.alignment is None:
            return error, {"gen_velocity": error}
        ours = self.nets.alignment(tapped[:, 1:]).astype(jnp.float32)
        theirs = noised.reference.astype(jnp.float32)
        if ours.shape != theirs.shape:
            raise UserError(
                f"Alignment compares {ours.shape[1]} tokens of width {ours.shape[2]} of an image "
                f"to generate with {theirs.shape[1]} features of width {theirs.shape[2]}; change "
                "the sizes of config.model, or switch alignment off with "
                "--config.model.generation.alignment.layer=0."
            )
        cosine = optax.losses.cosine_similarity(ours, theirs, epsilon=1e-8).mean(axis=-1)
        return error - cosine, {"gen_velocity": error, "gen_alignment": cosine}

    def sample(self, step, hidden, cache, *, keys, guidance):
        """Euler steps from noise; each starts from the prompts' cache, which does not change."""
        shape = (self.nets.side, self.nets.side, self.nets.tokenizer.channels)
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        latents, _ = self.integrate(
            step, cache, noise, branches=len(hidden) // len(keys), guidance=guidance
        )
        return self.nets.tokenizer.decode(latents / self.nets.tokenizer.scale[...]), latents

    def integrate(self, step, cache, noise, *, branches, guidance):
        """Euler steps z += v / steps from noise float32[B, h, w, c] to the latents; and every v."""

        def euler(state, number):
            time = jnp.broadcast_to(number / guidance.steps, (branches * len(state),)).astype(
                jnp.float32
            )
            embedded, skip = self.embed(
                Noised(time, jnp.repeat(state, branches, axis=0), None, None)
            )
            hidden, _ = step(embedded, cache)
            velocity = guide(self.velocity(hidden, skip), guidance)
            return state + velocity / guidance.steps, velocity

        return jax.lax.scan(euler, noise, jnp.arange(guidance.steps))


def noised(latents, noise, time, reference=None):
    """Images at their times: float32[M, h, w, c] twice and float32[M] -> Noised."""
    t = time[:, None, None, None]
    return Noised(time, t * latents + (1 - t) * noise, latents - noise, reference)
