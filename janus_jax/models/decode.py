"""Drawing and answering with a KV cache: prefill, one compiled loop, and what the commands call.

Prompts of different lengths stand right-aligned, padded on the left; the padding is never attended. The caches are a
list with one entry a layer, carried through the loop and updated in place.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.layers.attention import attention


class Cache(NamedTuple):
    """Keys and values of every layer.

    Attributes:
      keys, values: lists of float[B, P, K, H], P positions in all.
      seen: bool[B, P], which of the filled positions may be attended.
      length: int32 scalar, positions filled.
      position: int32[B] of what comes next.
    """

    keys: list
    values: list
    seen: jax.Array
    length: jax.Array
    position: jax.Array


def prefill(model, x, *, real, room, seen=None):
    """Runs the prompts.

    Args:
      model: Janus.
      x: float[B, P, D] embeddings, right-aligned.
      real: bool[B, P], False on the padding at the left.
      room: positions to keep free for what follows.
      seen: bool[B, P], which positions may be attended; `real` without it. Positions count on where nothing is seen.

    Returns:
      hidden float[B, D] at the end of the prompts, Cache.
    """
    p, seen = x.shape[1], real if seen is None else seen
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    causal = jnp.tril(jnp.ones((1, p, p), bool)) & seen[:, None, :]
    mask = (causal | jnp.eye(p, dtype=bool)[None])[:, None]

    def body(x, layer):
        kept = []

        def attend(q, k, v):
            kept.extend((k, v))
            return attention(q, k, v, mask=mask)

        return layer(x, positions=positions, attend=attend), tuple(kept)

    x, (keys, values) = jax.lax.scan(body, x, model.llm.layers)
    widen = lambda kv: [jnp.pad(a, ((0, 0), (0, room), (0, 0), (0, 0))) for a in kv]
    cache = Cache(widen(keys), widen(values), jnp.pad(seen, ((0, 0), (0, room))), jnp.int32(p), real.sum(axis=1))
    return model.llm.norm(x)[:, -1], cache


def step(model, x, cache):
    """Some positions on: float[B, k, D] -> hidden float[B, k, D], Cache."""
    k = x.shape[1]
    seen = jax.lax.dynamic_update_slice_in_dim(cache.seen, jnp.ones((len(x), k), bool), cache.length, axis=1)
    positions = cache.position[:, None] + jnp.arange(k)[None]
    past = jnp.arange(seen.shape[1])[None, None] <= (cache.length + jnp.arange(k))[None, :, None]
    mask = (seen[:, None] & past)[:, None]
    keys, values = list(cache.keys), list(cache.values)
    for i in range(model.llm.num_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], model.llm.layers)

        def attend(q, k, v, i=i):
            keys[i] = jax.lax.dynamic_update_slice_in_dim(keys[i], k, cache.length, axis=1)
            values[i] = jax.lax.dynamic_update_slice_in_dim(values[i], v, cache.length, axis=1)
            return attention(q, keys[i], values[i], mask=mask)

        x = layer(x, positions=positions, attend=attend)
    return model.llm.norm(x), Cache(keys, values, seen, cache.length + k, cache.position + k)


@functools.partial(jax.jit, static_argnames=("network", "guidance"))
def draw_batch(params, prompts, real, keys, *, network, pad_id, guidance):
    """Draws one picture a prompt.

    Args:
      params: {path: array}.
      prompts: int32[B, P] ids up to the picture, right-aligned.
      real: bool[B, P].
      keys: key[B], one per picture.
      network: Network of Janus.
      pad_id: what the unconditional rows hold instead of words.
      guidance: the path's Guidance.

    Returns:
      uint8[B, h, w, 3] pictures, truncated as the release does, and their targets.
    """
    model = network.merge(params)
    path, seen = model.path, real
    if guidance.scale != 1:  # rows alternate conditional, unconditional
        without, seen_without = path.unconditional(prompts, real=real, pad_id=pad_id)
        pair = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, a.shape[-1])
        prompts, real, seen = pair(prompts, without), pair(real, real), pair(real, seen_without)
    hidden, cache = prefill(model, model.embed_text(prompts), real=real, seen=seen, room=path.num_tokens)
    pictures, targets = path.sample(functools.partial(step, model), hidden, cache, keys=keys, guidance=guidance)
    return to_uint8(pictures), targets


def to_uint8(pictures):
    """[-1, 1] -> levels, clipped and truncated (the release's post-processing)."""
    return jnp.clip((pictures.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="network")
def reconstruct_batch(params, pictures, *, network):
    """Pictures through the generation tokenizer and back: uint8[B, h, w, 3] -> uint8[B, h, w, 3]."""
    return to_uint8(network.merge(params).path.reconstruct(pictures))


@functools.partial(jax.jit, static_argnames=("network", "max_tokens"))
def answer_batch(params, prompts, real, pictures, starts, keys, *, network, eos_id, temperature, max_tokens):
    """Answers one question a row.

    Args:
      params: {path: array}.
      prompts: int32[B, P] ids with their picture slots, right-aligned.
      real: bool[B, P].
      pictures: uint8[B, U, h, w, 3].
      starts: int32[B, U] position of each picture's first feature; P marks an unused slot.
      keys: key[B].
      network: Network of Janus.
      eos_id: ends an answer.
      temperature: 0 is greedy.
      max_tokens: longest answer.

    Returns:
      int32[B, max_tokens] ids, EOS from the end on.
    """
    model = network.merge(params)
    b = len(prompts)
    x = model.insert_pictures(model.embed_text(prompts), pictures, start=starts)
    hidden, cache = prefill(model, x, real=real, room=max_tokens)

    def pick(hidden, place):
        logits = model.llm.head(hidden).astype(jnp.float32)
        drawn = lambda: jax.vmap(lambda k, l: jax.random.categorical(jax.random.fold_in(k, place), l))(
            keys, logits / jnp.maximum(temperature, 1e-6)
        )
        return jax.lax.cond(temperature > 0, drawn, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def unfinished(carry):
        place, _, _, ended, _ = carry
        return (place < max_tokens) & ~ended.all()

    def body(carry):
        place, hidden, cache, ended, out = carry
        ids = jnp.where(ended, eos_id, pick(hidden, place))
        hidden, cache = step(model, model.embed_text(ids)[:, None], cache)
        return place + 1, hidden[:, 0], cache, ended | (ids == eos_id), out.at[:, place].set(ids)

    blank = jnp.full((b, max_tokens), eos_id, jnp.int32)
    start = (jnp.int32(0), hidden, cache, jnp.zeros(b, bool), blank)
    return jax.lax.while_loop(unfinished, body, start)[-1]


def right_align(rows, *, pad_id, multiple=8):
    """Lists of ids -> int32[B, P] and bool[B, P]; P is rounded up so that few lengths are compiled."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    ids, real = np.full((len(rows), width), pad_id, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], real[i, width - len(row) :] = row, True
    return ids, real
