"""Rectified flow, aligned with the understanding encoder."""

import jax.numpy as jnp

from configs import tiny_flow
from janus_jax.inference import decode
from tests.conftest import small_flow


def get_config(data):
    """The tiny recipe, smaller."""
    return small_flow(tiny_flow.get_config(), data)


def draw_after(network, params, *, ids, noise, guidance, reuse):
    """Draws one picture a row of `noise` after its prompt, whose keys are kept or made anew at every step.

    Args:
      ids: int[rows of guidance x pictures, P].
      noise: float[pictures, h, w, C].
      reuse: whether the prompt's cache is used; without it a step runs over prompt and picture together.

    Returns:
      float[pictures, h, w, C].
    """
    model, prompt = network.merge(params), ids.shape[1]
    x = model.embed_text(ids)
    _, cache = decode.prefill(model, x, real=jnp.ones(ids.shape, bool), max_new_tokens=model.path.num_tokens)

    def recompute(tokens, cache):
        rows = jnp.concatenate([x, tokens], axis=1)
        places = jnp.broadcast_to(jnp.arange(rows.shape[1])[None], rows.shape[:2])
        return model.llm(rows, positions=places, segment_ids=jnp.ones_like(places))[0][:, prompt:], cache

    step = decode.make_decode_step(model) if reuse else recompute
    return model.path.integrate(step, cache, noise, rows=ids.shape[0] // noise.shape[0], guidance=guidance)[0]
