"""Drawing by rectified flow: JanusFlow's path. The LLM sees a noisy picture and predicts where it should move.

With data x (scaled latents of SDXL's autoencoder) and noise z0, a picture at time t in [0, 1] is z_t = t x + (1 - t) z0
and moves at velocity x - z0 (JanusFlow, section 3.1). In a row a picture is its time token and T latent tokens; every
latent token's own state, beside a skip from the encoder, gives its patch of the velocity. The prompt does not depend on
t, so that all steps of the sampler go on from one cache of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax import nnx

from janus_jax import flops
from janus_jax.errors import UserError
from janus_jax.generation.base import GenerationPath, busy_crop, guide, to_float
from janus_jax.generation.convnext import FlowDecoder, FlowEncoder
from janus_jax.layers.linear import Linear
from janus_jax.layers.norm import RMSNorm
from janus_jax.tokenizers.chunks import map_in_chunks
from janus_jax.tokenizers.sdxl_vae import VAE


class FlowGuidance(NamedTuple):
    """How to sample: Euler steps along v = v_u + scale (v_c - v_u)."""

    scale: float = 2.0
    steps: int = 30


class Noised(NamedTuple):
    """Pictures on their way.

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


class FlowTokenizerNets(nnx.Module):
    """The autoencoder alone: what a recipe's tokenizer stage trains."""

    def __init__(self, rngs, *, image_size, tokenizer, tokenizer_training=None, **_):
        """Builds the net from its part of the path's settings.

        Args:
          rngs: where fresh parameters come from.
          image_size: pixels a side of the pictures to draw.
          tokenizer: keyword arguments of `VAE`.
          tokenizer_training: weights `squared`, `absolute` (reconstruction), `divergence` (KL), and `crop`, the side
            of the crops that training sees, 0 for whole pictures.
        """
        patch = 2 ** len(tokenizer["widths"])  # pixels a side of a latent token, of 2 x 2 latents
        crop = (tokenizer_training or {}).get("crop") or image_size
        for name, size, unit in (("image_size", image_size, patch), ("tokenizer_training.crop", crop, patch // 2)):
            if size % unit or size > image_size:
                raise UserError(
                    f"config.model.generation.{name} is {size}: it must be a multiple of {unit} and at most {image_size}."
                )
        self.side = 2 * (image_size // patch)  # of the latents
        self.training = tokenizer_training
        self.num_tokens = 1 + (self.side // 2) ** 2
        self.tokenizer = VAE(rngs, **tokenizer)


class Alignment(nnx.Module):
    """Three-layer MLP from the LLM's states to the understanding encoder's features (REPA, section 4)."""

    def __init__(self, rngs, embed_dim, feature_dim):
        self.fc_1 = Linear(rngs, embed_dim, embed_dim, axes=("embed", "embed_out"))
        self.fc_2 = Linear(rngs, embed_dim, embed_dim, axes=("embed", "embed_out"))
        self.fc_3 = Linear(rngs, embed_dim, feature_dim, axes=("embed", "embed_out"))

    def __call__(self, x):
        """float[..., D] -> float[..., F]."""
        return self.fc_3(jax.nn.silu(self.fc_2(jax.nn.silu(self.fc_1(x)))))


class FlowNets(FlowTokenizerNets):
    """Autoencoder, ConvNeXt encoder and decoder with the linear maps between them and the LLM, alignment MLP."""

    def __init__(
        self, rngs, *, embed_dim, image_size, tokenizer, unet, alignment, sample_latents=False, tokenizer_training=None
    ):
        """Builds the nets.

        Args:
          rngs: where fresh parameters come from.
          embed_dim: D of the LLM.
          image_size, tokenizer, tokenizer_training: of `FlowTokenizerNets`.
          unet: `dim`, `num_blocks`, `norm_eps` of `FlowEncoder` and `FlowDecoder`.
          alignment: `layer`, the block whose states are aligned, 0 for no alignment, and `feature_dim` F.
          sample_latents: draws latents from their posterior; otherwise they are its mean.
        """
        super().__init__(rngs, image_size=image_size, tokenizer=tokenizer, tokenizer_training=tokenizer_training)
        self.sample_latents = sample_latents
        net = dict(latent_channels=tokenizer["latent_channels"], time_dim=embed_dim, **unet)
        self.encoder = FlowEncoder(rngs, **net)
        self.encoder_adaptor = Linear(rngs, unet["dim"], embed_dim, axes=("embed_out", "embed"))
        self.decoder_norm = RMSNorm(rngs, embed_dim, eps=unet["norm_eps"])
        self.decoder_adaptor = Linear(rngs, embed_dim, unet["dim"], axes=("embed", "embed_out"))
        self.decoder = FlowDecoder(rngs, **net)
        self.alignment = Alignment(rngs, embed_dim, alignment["feature_dim"]) if alignment["layer"] else None
        self.tap_layer = alignment["layer"] or None


class FlowPath(GenerationPath):
    """Targets are velocities; the loss is their mean squared error, plus the alignment's cosine (section 3.3)."""

    Nets, TokenizerNets, Guidance = FlowNets, FlowTokenizerNets, FlowGuidance
    read_shift, prefix_tokens, attend_to_dropped_prompt = 0, (), False
    training_only = ("alignment",)

    @property
    def tap_layer(self):
        """The block that is aligned, or None."""
        return self.nets.tap_layer

    @staticmethod
    def flops(settings, *, embed_dim, encoder, trains):
        """Autoencoder, ConvNeXt nets, linear maps, alignment; in the tokenizer's own stage the autoencoder alone."""
        size, vae = settings["image_size"], settings["tokenizer"]
        encode, decode = flops.autoencoder(
            size=size, stem=vae["widths"][0], widths=vae["widths"], num_res_blocks=vae["num_res_blocks"], attend=False,
            features=2 * vae["latent_channels"], codes=2 * vae["latent_channels"], decoded=vae["latent_channels"],
        )  # fmt: skip
        if trains("generation/tokenizer/encoder"):
            share = ((settings["tokenizer_training"]["crop"] or size) / size) ** 2
            return {"tokenizer": flops.TRAINED * share * (encode + decode)}
        dim, blocks = settings["unet"]["dim"], settings["unet"]["num_blocks"]
        tokens = (size // 2 ** len(vae["widths"])) ** 2
        block = lambda c: tokens * 2 * c * (49 + 8 * c) + 2 * embed_dim * 2 * c
        heads = blocks * block(2 * dim) + tokens * 2 * dim * (embed_dim + 8 * vae["latent_channels"])
        adaptors = blocks * block(dim) + tokens * 2 * dim * (embed_dim + 4 * vae["latent_channels"])
        adaptors += 2 * embed_dim * (dim + embed_dim)
        parts = {"tokenizer": flops.FORWARD * encode, "adaptors": flops.TRAINED * adaptors, "heads": flops.TRAINED * heads}
        if settings["alignment"]["layer"]:
            features = settings["alignment"]["feature_dim"]
            parts["heads"] += flops.TRAINED * tokens * 2 * embed_dim * (2 * embed_dim + features)
            parts["encoder"] = flops.FORWARD * encoder
        return parts

    def prepare(self, pictures, keys, *, look):
        """Draws a time (logit-normal) and noise for every picture, and moves it there."""
        time_key, noise_key, latent_key = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
        latents = self.latents(pictures, latent_key)
        time = jax.nn.sigmoid(jax.vmap(jax.random.normal)(time_key))
        noise = jax.vmap(lambda k: jax.random.normal(k, latents.shape[1:]))(noise_key)
        reference = None if self.nets.alignment is None else look(pictures.images)
        return noised(latents, noise, time, reference)

    def cache(self, pictures):
        """The posterior's mean, scaled, which stands beside the picture."""
        mean, _ = self.nets.tokenizer.encode(to_float(pictures, jnp.float32))
        return {"latents": rearrange(mean * self.nets.tokenizer.scale[...], "m h w c -> m c h w")}

    def latents(self, pictures, keys):
        """Scaled latents, float32[M, h, w, c], from a cache or from pixels; no gradient flows back."""
        vae, side = self.nets.tokenizer, self.nets.side
        if pictures.latents is not None:
            if pictures.latents.shape[1:] != (shape := (vae.channels, side, side)):
                raise UserError(f"Cached latents are {pictures.latents.shape[1:]}, the model draws {shape}; make them anew.")
            return rearrange(pictures.latents, "m c h w -> m h w c").astype(jnp.float32)
        read = lambda images: vae.encode(to_float(images, jnp.float32))
        latents, logvar = map_in_chunks(read, pictures.images)
        if self.nets.sample_latents:
            noise = jax.vmap(lambda k: jax.random.normal(k, latents.shape[1:]))(keys)
            latents = latents + jnp.exp(logvar / 2) * noise
        return jax.lax.stop_gradient(latents * vae.scale[...])

    def embed(self, noised):
        """The time token and the T latent tokens; the encoder's output and the time's embedding are kept."""
        skip, time = self.nets.encoder(noised.state.astype(self.dtype), noised.time)
        tokens = self.nets.encoder_adaptor(rearrange(skip, "m h w c -> m (h w) c"))
        return jnp.concatenate([time[:, None], tokens], axis=1), (skip, time)

    def velocity(self, hidden, kept):
        """States float[M, 1 + T, D] and what `embed` kept -> float32[M, h, w, c]; the time token's state is not read."""
        skip, time = kept
        x = self.nets.decoder_adaptor(self.nets.decoder_norm(hidden[:, 1:]))
        return self.nets.decoder(rearrange(x, "m (h w) c -> m h w c", h=skip.shape[1]), skip, time).astype(jnp.float32)

    def loss(self, hidden, tapped, noised, kept):
        """Mean squared error of the velocity, and 1:1 with it the negative cosine of the alignment."""
        error = jnp.mean((self.velocity(hidden, kept) - noised.velocity) ** 2, axis=(1, 2, 3))
        if self.nets.alignment is None:
            return error, {"gen_velocity": error}
        ours = self.nets.alignment(tapped[:, 1:]).astype(jnp.float32)
        theirs = noised.reference.astype(jnp.float32)
        if ours.shape != theirs.shape:
            raise UserError(
                f"Alignment compares {ours.shape[1]} tokens of {ours.shape[2]} numbers of a picture to draw with "
                f"{theirs.shape[1]} features of {theirs.shape[2]}; change the sizes of config.model, or leave it out with "
                "--config.model.generation.alignment.layer=0."
            )
        cosine = optax.losses.cosine_similarity(ours, theirs, epsilon=1e-8).mean(axis=-1)
        return error - cosine, {"gen_velocity": error, "gen_alignment": cosine}

    def sample(self, step, hidden, cache, *, keys, guidance):
        """Euler steps from noise; every one goes on from the prompts' cache, which stays as it is."""
        shape = (self.nets.side, self.nets.side, self.nets.tokenizer.channels)
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        latents, _ = self.integrate(step, cache, noise, rows=len(hidden) // len(keys), guidance=guidance)
        return self.nets.tokenizer.decode(latents / self.nets.tokenizer.scale[...]), latents

    def integrate(self, step, cache, noise, *, rows, guidance):
        """z += v / steps at t = 0, 1 / steps, ... from noise float32[B, h, w, c] to the latents; and every v."""

        def euler(state, number):
            time = jnp.broadcast_to(number / guidance.steps, (rows * len(state),)).astype(jnp.float32)
            embedded, kept = self.embed(Noised(time, jnp.repeat(state, rows, axis=0), None, None))
            hidden, _ = step(embedded, cache)
            velocity = guide(self.velocity(hidden, kept), guidance)
            return state + velocity / guidance.steps, velocity

        return jax.lax.scan(euler, noise, jnp.arange(guidance.steps))

    def reconstruct(self, pictures):
        """Through the autoencoder and back: uint8[M, h, w, 3] -> float[M, h, w, 3], the ceiling of every drawing."""
        vae = self.nets.tokenizer
        return vae.decode(vae.encode(to_float(pictures, jnp.float32))[0])

    def tokenizer_loss(self, pictures, keys, used):
        """Reconstruction from a sampled latent, and the posterior's divergence from N(0, 1), a mean over latents."""
        w, vae = self.nets.training, self.nets.tokenizer
        pixels = to_float(pictures, jnp.float32)
        crop_keys, keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        if w["crop"]:
            pixels = jax.vmap(lambda p, k: busy_crop(p, k, side=w["crop"]))(pixels, crop_keys)
        mean, logvar = vae.encode(pixels)
        noise = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
        out = vae.decode(mean + jnp.exp(logvar / 2) * noise)
        average = lambda x: jnp.mean(x, axis=(1, 2, 3))
        squared, absolute = average((out - pixels) ** 2), average(jnp.abs(out - pixels))
        divergence = 0.5 * average(mean**2 + jnp.exp(logvar) - 1 - logvar)
        loss = w["squared"] * squared + w["absolute"] * absolute + w["divergence"] * divergence
        return loss, dict(squared_error=squared, divergence=divergence, latent_size=average(mean**2) ** 0.5)

    def settle(self, pictures, used):
        """`scale` becomes 1 / the standard deviation of the latents of these pictures."""
        mean, _ = self.nets.tokenizer.encode(to_float(pictures, jnp.float32))
        return {"tokenizer/scale": 1 / jnp.std(mean, where=used[:, None, None, None])}


def noised(latents, noise, time, reference=None):
    """Pictures at their times: float32[M, h, w, c] twice and float32[M] -> Noised."""
    t = time[:, None, None, None]
    return Noised(time, t * latents + (1 - t) * noise, latents - noise, reference)
