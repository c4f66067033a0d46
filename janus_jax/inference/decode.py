"""Drawing and answering with a KV cache: prefill, one compiled loop, and what the commands call.

Prompts of different lengths stand right-aligned, padded on the left; the padding is never attended. A cache has two
parts: what the prompts hold, which the several pictures of a prompt share, and what each row adds to it, room that is
there from the start and written in place. Both are lists with one entry a layer, and so are the weights of a step: a
scan over layers would copy both at every step.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from janus_jax import sharding
from janus_jax.layers.attention import attention, cached_attention

ROWS = ("batch", "kv_heads", "length", "head_dim")  # of a part of a cache: what a head looks at lies together


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer.

    Rows stand prompt by prompt, in each picture by picture, in each the `ways` that guidance compares.

    Attributes:
      prompt: [(keys, values)] of the prompts, each float[M, K, P, H].
      seen: bool[M, P], which of them may be attended.
      own: [(keys, values)] of what each row adds, each float[B, K, T, H]; B is a multiple of M.
      length: int32 scalar, positions of T filled.
      position: int32[B] of what comes next.
      ways: rows of a picture.
    """

    prompt: list
    seen: jax.Array
    own: list
    length: jax.Array
    position: jax.Array
    ways: int = flax.struct.field(pytree_node=False, default=1)


def prefill(model, x, *, real, room, seen=None, copies=1, ways=1):
    """Runs the prompts.

    Args:
      model: Janus.
      x: float[M, P, D] embeddings, right-aligned; M is a multiple of `ways`.
      real: bool[M, P], False on the padding at the left.
      room: T, positions to keep free for what follows.
      seen: bool[M, P], which positions may be attended; `real` without it. Positions count on where nothing is seen.
      copies: pictures of each prompt, or answers; B = copies M.
      ways: rows of a prompt, which stand together.

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
            kept.extend((k.swapaxes(1, 2), v.swapaxes(1, 2)))
            return attention(q, k, v, mask=mask)

        return layer(x, positions=positions, attend=attend), tuple(kept)

    x, (keys, values) = jax.lax.scan(body, x, model.llm.layers)
    rows = lambda x: repeat(x, "(m c) ... -> (m n c) ...", n=copies, c=ways)
    kv_heads, head_dim = keys.shape[2], keys.shape[4]
    blank = sharding.place(jnp.zeros((len(x) * copies, kv_heads, room, head_dim), keys.dtype), *ROWS)
    prompt = [(sharding.place(k, *ROWS), sharding.place(v, *ROWS)) for k, v in zip(keys, values, strict=True)]
    cache = Cache(prompt, seen, [(blank, blank)] * len(prompt), jnp.int32(0), rows(real.sum(axis=1)), ways)
    return rows(model.llm.norm(x[:, -1])), cache


def stepper(model):
    """What takes rows some positions on: (float[B, k, D], Cache) -> hidden float[B, k, D], Cache.

    Made once, outside the loop that calls it, at the price of a second copy of the layers while the program runs: a slice
    of their stack would be copied at every step.
    """
    layers = [jax.tree.map(lambda a, i=i: a[i], model.llm.layers) for i in range(model.llm.num_layers)]

    def step(x, cache):
        k = x.shape[1]
        x = sharding.place(x, "batch", "length", "act_embed")
        positions = cache.position[:, None] + jnp.arange(k)[None]
        place = jnp.arange(cache.own[0][0].shape[2])
        before = place[None] <= cache.length + jnp.arange(k)[:, None]
        own = []
        for layer, prompt, held in zip(layers, cache.prompt, cache.own, strict=True):

            def attend(q, k, v, prompt=prompt, held=held):
                add = lambda held, new: jax.lax.dynamic_update_slice_in_dim(held, new.swapaxes(1, 2), cache.length, axis=2)
                own.append((add(held[0], k), add(held[1], v)))
                return cached_attention(q, prompt, own[-1], seen=cache.seen, before=before, ways=cache.ways)

            x = layer(x, positions=positions, attend=attend)
        return model.llm.norm(x), cache.replace(own=own, length=cache.length + k, position=cache.position + k)

    return step


@functools.partial(jax.jit, static_argnames=("network", "guidance"))
def draw_batch(params, prompts, real, keys, *, network, pad_id, guidance):
    """Draws n pictures a prompt.

    Args:
      params: {path: array}.
      prompts: int32[M, P] ids up to the picture, right-aligned.
      real: bool[M, P].
      keys: key[M, n], one per picture.
      network: ModelSpec of Janus.
      pad_id: what the unconditional rows hold instead of words.
      guidance: the path's Guidance.

    Returns:
      uint8[M n, h, w, 3] pictures, truncated as the release does, and their targets.
    """
    model = network.merge(params)
    path, seen, ways = model.path, real, 1 if guidance.scale == 1 else 2
    if ways == 2:  # rows alternate conditional, unconditional
        without, seen_without = path.unconditional(prompts, real=real, pad_id=pad_id)
        pair = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, a.shape[-1])
        prompts, real, seen = pair(prompts, without), pair(real, real), pair(real, seen_without)
    x = model.embed_text(prompts)
    hidden, cache = prefill(model, x, real=real, seen=seen, room=path.num_tokens, copies=keys.shape[1], ways=ways)
    pictures, targets = path.sample(stepper(model), hidden, cache, keys=keys.reshape(-1), guidance=guidance)
    return to_uint8(pictures), targets


def to_uint8(pictures):
    """[-1, 1] -> levels, clipped and truncated (the release's post-processing)."""
    return jnp.clip((pictures.astype(jnp.float32) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="network")
def reconstruct_batch(params, pictures, *, network):
    """Pictures through the generation tokenizer and back: uint8[B, h, w, 3] -> uint8[B, h, w, 3]."""
    return to_uint8(network.merge(params).path.reconstruct(pictures))


@flax.struct.dataclass
class Answers:
    """Answers as far as they have come.

    Attributes:
      place: int32 scalar, how many ids there are.
      hidden: float[B, D] states that the next ids are read from.
      cache: Cache.
      ended: bool[B], which have met EOS.
      ids: int32[B, max_tokens], EOS from the end on.
    """

    place: jax.Array
    hidden: jax.Array
    cache: Cache
    ended: jax.Array
    ids: jax.Array


@functools.partial(jax.jit, static_argnames=("network", "max_tokens"))
def begin_answers(params, prompts, real, pictures, starts, *, network, eos_id, max_tokens):
    """Reads the questions.

    Args:
      params: {path: array}.
      prompts: int32[B, P] ids with their picture slots, right-aligned.
      real: bool[B, P].
      pictures: uint8[B, U, h, w, 3].
      starts: int32[B, U] position of each picture's first feature; P marks an unused slot.
      network: ModelSpec of Janus.
      eos_id: ends an answer.
      max_tokens: longest answer.

    Returns:
      Answers without an id.
    """
    model, b = network.merge(params), len(prompts)
    x = model.embed_text(prompts)
    if pictures.shape[1]:
        x = model.insert_pictures(x, pictures, start=starts)
    hidden, cache = prefill(model, x, real=real, room=max_tokens)
    ids = jnp.full((b, max_tokens), eos_id, jnp.int32)
    return Answers(jnp.int32(0), hidden, cache, jnp.zeros(b, bool), ids)


@functools.partial(jax.jit, static_argnames="network", donate_argnames="answers")
def continue_answers(params, answers, keys, *, network, eos_id, temperature, until):
    """Answers up to `until` ids, or until all have ended.

    Args:
      params: {path: array}.
      answers: Answers.
      keys: key[B].
      network: ModelSpec of Janus.
      eos_id: ends an answer.
      temperature: 0 is greedy.
      until: int32 scalar, at most the answers' room.

    Returns:
      Answers.
    """
    model = network.merge(params)
    step = stepper(model)

    def pick(hidden, place):
        logits = model.llm.head(hidden).astype(jnp.float32)
        drawn = lambda: jax.vmap(lambda k, l: jax.random.categorical(jax.random.fold_in(k, place), l))(
            keys, logits / jnp.maximum(temperature, 1e-6)
        )
        return jax.lax.cond(temperature > 0, drawn, lambda: jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def body(a):
        ids = jnp.where(a.ended, eos_id, pick(a.hidden, a.place))
        hidden, cache = step(model.embed_text(ids)[:, None], a.cache)
        return Answers(a.place + 1, hidden[:, 0], cache, a.ended | (ids == eos_id), a.ids.at[:, a.place].set(ids))

    return jax.lax.while_loop(lambda a: (a.place < until) & ~a.ended.all(), body, answers)


@functools.partial(jax.jit, static_argnames=("network", "max_tokens"))
def answer_batch(params, prompts, real, pictures, starts, keys, *, network, eos_id, temperature, max_tokens):
    """Answers one question a row, in one program: `begin_answers`, then `continue_answers` to their end.

    Returns:
      int32[B, max_tokens] ids, EOS from the end on.
    """
    known = dict(network=network, eos_id=eos_id)
    answers = begin_answers(params, prompts, real, pictures, starts, max_tokens=max_tokens, **known)
    return continue_answers(params, answers, keys, temperature=temperature, until=max_tokens, **known).ids


def right_align(rows, *, pad_id, multiple=32):
    """Lists of ids -> int32[B, P] and bool[B, P]; P is rounded up so that few lengths are compiled."""
    width = -(-max(map(len, rows)) // multiple) * multiple
    ids, real = np.full((len(rows), width), pad_id, np.int32), np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], real[i, width - len(row) :] = row, True
    return ids, real
