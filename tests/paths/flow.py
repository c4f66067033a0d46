"""Rectified flow, aligned with the understanding encoder."""

import jax.numpy as jnp

from configs import tiny_flow
from janus_jax.inference import decode
from tests.conftest import small_flow


def get_config(data):
    """The tiny recipe, smaller."""
    return small_flow(tiny_flow.get_config(), data)


def draw_after(network, params, *, ids, noise, guidance, reuse):
    """Generates one image per row of `noise` after its prompt, whose keys are cached or computed
    again at every step.

    Args:
      network: ModelSpec.
      params: {path: array}.
      ids: int[guidance branches x images, P].
      noise: float[images, h, w, C].
      guidance: FlowGuidance.
      reuse: whether the prompt's cache is used; without it a step runs over prompt and image
        together.

    Returns:
      float[images, h, w, C].
    """
    model, length = network.merge(params), ids.shape[1]
    x = model.embed_text(ids)
    real = jnp.ones(ids.shape, bool)
    _, cache = decode.prefill(model, x, real=real, max_new_tokens=model.generator.num_tokens)

    def recompute(tokens, cache):
        rows = jnp.concatenate([x, tokens], axis=1)
        positions = jnp.broadcast_to(jnp.arange(rows.shape[1])[None], rows.shape[:2])
        hidden, _ = model.llm(rows, positions=positions, segment_ids=jnp.ones_like(positions))
        return hidden[:, length:], cache

    step = decode.make_decode_step(model) if reuse else recompute
    branches = ids.shape[0] // noise.shape[0]
    return model.generator.integrate(step, cache, noise, branches=branches, guidance=guidance)[0]
