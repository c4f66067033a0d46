"""Generation with a KV cache: prefill, the decoding step, and the programs of the commands.

Prompts of different lengths are right-aligned; the padding at their left is never attended to. A
cache has two parts: the keys and values of the prompts, which all samples of a prompt share, and a
suffix of fixed size, which each row fills as it decodes. Both are lists with one entry per layer,
and so are the weights of a step: a scan over layers would copy both at every step.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from janus_jax import sharding
from janus_jax.layers.attention import attention, cached_attention
from janus_jax.layers.packed_attention import check_mask
from janus_jax.layers.pixels import to_uint8

# Axes of a part of the cache: the keys that a head reads are contiguous.
CACHE_AXES = ("batch", "kv_heads", "length", "head_dim")
constrain = functools.partial(sharding.constrain, indivisible="replicate")  # batches may be small


@flax.struct.dataclass
class Cache:
    """Keys and values of every layer.

    Rows are ordered by prompt, then sample, then guidance branch.

    Attributes:
      prompt: [(keys, values)] of the prompts, each float[M, K, P, H].
      prompt_mask: bool[M, P], which positions of the prompts may be attended to.
      suffix: [(keys, values)] of each row's new tokens, each float[B, K, J, H]; B is a multiple of
        M.
      length: int32 scalar, number of the J positions that are filled.
      position: int32[B] of the next token.
      num_branches: rows per sample that guidance compares.
    """

    prompt: list
    prompt_mask: jax.Array
    suffix: list
    length: jax.Array
    position: jax.Array
    num_branches: int = flax.struct.field(pytree_node=False, default=1)


def prefill(
    model, x, *, real, max_new_tokens, prompt_mask=None, samples_per_prompt=1, num_branches=1
):
    """Runs the prompts.

    Args:
      model: Janus.
      x: float[M, P, D] embeddings, right-aligned; M is a multiple of `num_branches`.
      real: bool[M, P], False on the padding at the left.
      max_new_tokens: J, positions of the suffix.
      prompt_mask: bool[M, P], which positions may be attended to, `real` by default. Positions are
        counted over `real`, whether attended to or not.
      samples_per_prompt: images or answers for each prompt; B = samples_per_prompt * M.
      num_branches: guidance branches of a prompt, which are adjacent rows.

    Returns:
      hidden float[B, D] at the end of the prompts, Cache.
    """
    prompt_mask = real if prompt_mask is None else prompt_mask
    length = x.shape[1]
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    causal = jnp.tril(jnp.ones((1, length, length), bool)) & prompt_mask[:, None, :]
    mask = (causal | jnp.eye(length, dtype=bool)[None])[:, None]  # a masked row attends to itself

    def attend(q, k, v):
        return attention(q, k, v, mask=mask), (k.swapaxes(1, 2), v.swapaxes(1, 2))

    body = lambda x, layer: layer(x, positions=positions, attend=attend)
    x, (keys, values) = jax.lax.scan(body, x, model.llm.layers)

    to_rows = lambda x: repeat(x, "(m c) ... -> (m n c) ...", n=samples_per_prompt, c=num_branches)
    kv_heads, head_dim = keys.shape[2], keys.shape[4]
    shape = (len(x) * samples_per_prompt, kv_heads, max_new_tokens, head_dim)
    empty = constrain(jnp.zeros(shape, keys.dtype), *CACHE_AXES)
    cache = Cache(
        prompt=[
            (constrain(k, *CACHE_AXES), constrain(v, *CACHE_AXES))
            for k, v in zip(keys, values, strict=True)
        ],
        prompt_mask=prompt_mask,
        suffix=[(empty, empty)] * len(keys),
        length=jnp.int32(0),
        position=to_rows(real.sum(axis=1)),
        num_branches=num_branches,
    )
    return to_rows(model.llm.norm(x[:, -1])), cache


def make_decode_step(model, *, mask="causal"):
    """Makes the step that decodes k tokens of every row.

    Make it once, outside the loop that calls it: it holds a second copy of the layers while the
    program runs, because a slice of their stack would be copied at every step.

    Args:
      model: Janus.
      mask: the generator's. 'causal': a token attends to the suffix up to itself;
        'picture_bidirectional': a call gets all tokens of an image, which attend to each other.

    Returns:
      step: (float[B, k, D], Cache) -> hidden float[B, k, D], Cache.
    """
    check_mask(mask)
    layers = [
        jax.tree.map(lambda leaf, i=i: leaf[i], model.llm.layers)
        for i in range(model.llm.num_layers)
    ]

    def step(x, cache):
        k = x.shape[1]
        x = constrain(x, "batch", "length", "act_embed")
        offsets = jnp.arange(k)
        last_key = cache.length + (offsets if mask == "causal" else jnp.full_like(offsets, k - 1))
        places = jnp.arange(cache.suffix[0][0].shape[2])
        suffix_mask = places[None] <= last_key[:, None]

        def append(cached, new):
            new = new.swapaxes(1, 2)
            return jax.lax.dynamic_update_slice_in_dim(cached, new, cache.length, axis=2)

        def attend(q, k, v, prompt, suffix):
            suffix = append(suffix[0], k), append(suffix[1], v)
            heads = cached_attention(
                q,
                prompt,
                suffix,
                prompt_mask=cache.prompt_mask,
                suffix_mask=suffix_mask,
                num_branches=cache.num_branches,
            )
            return heads, suffix

        positions = cache.position[:, None] + offsets[None]
        suffixes = []
        for layer, prompt, suffix in zip(layers, cache.prompt, cache.suffix, strict=True):
            attend_layer = functools.partial(attend, prompt=prompt, suffix=suffix)
            x, suffix = layer(x, positions=positions, attend=attend_layer)
            suffixes.append(suffix)
        cache = cache.replace(suffix=suffixes, length=cache.length + k, position=cache.position + k)
        return model.llm.norm(x), cache

    return step


@functools.partial(jax.jit, static_argnames=("network", "guidance"))
def draw_batch(params, prompts, real, keys, *, network, pad_id, guidance):
    """Generates n images for each prompt.

    Args:
      params: {path: array}.
      prompts: int32[M, P] ids up to the image, right-aligned.
      real: bool[M, P], False on the padding.
      keys: key[M, n], one per image.
      network: ModelSpec of Janus.
      pad_id: id that replaces the words in unconditional rows.
      guidance: the generation path's Guidance.

    Returns:
      uint8[M n, h, w, 3] images, truncated as in the release, and their targets.
    """
    model = network.merge(params)
    generator = model.generator
    prompt_mask, num_branches = real, 1
    if guidance.scale != 1:  # rows alternate conditional, unconditional
        num_branches = 2
        no_words, no_words_mask = generator.unconditional(prompts, real=real, pad_id=pad_id)
        alternate = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, a.shape[-1])
        prompts = alternate(prompts, no_words)
        prompt_mask = alternate(real, no_words_mask)
        real = alternate(real, real)
    hidden, cache = prefill(
        model,
        model.embed_text(prompts),
        real=real,
        prompt_mask=prompt_mask,
        max_new_tokens=generator.num_tokens,
        samples_per_prompt=keys.shape[1],
        num_branches=num_branches,
    )
    step = make_decode_step(model, mask=generator.mask)
    images, targets = generator.sample(
        step, hidden, cache, keys=keys.reshape(-1), guidance=guidance
    )
    return to_uint8(images), targets


@functools.partial(jax.jit, static_argnames="network")
def reconstruct_batch(params, images, *, network):
    """Images through the generation tokenizer and back: uint8[B, h, w, 3] -> uint8[B, h, w, 3]."""
    return to_uint8(network.merge(params).generation.tokenizer.reconstruct(images))


class Questions(NamedTuple):
    """A batch of questions about images.

    Attributes:
      ids: int32[B, P] with image slots, right-aligned.
      real: bool[B, P], False on the padding.
      images: uint8[B, U, h, w, 3].
      starts: int32[B, U] position of each image's first feature; P marks an unused slot.
    """

    ids: jax.Array
    real: jax.Array
    images: jax.Array
    starts: jax.Array


@flax.struct.dataclass
class Answers:
    """A batch of answers while they are decoded.

    Attributes:
      num_ids: int32 scalar, ids decoded so far.
      hidden: float[B, D] states that predict the next ids.
      cache: Cache.
      ended: bool[B], which answers have reached EOS.
      ids: int32[B, max_tokens], EOS after the end.
    """

    num_ids: jax.Array
    hidden: jax.Array
    cache: Cache
    ended: jax.Array
    ids: jax.Array


@functools.partial(jax.jit, static_argnames=("network", "max_tokens"))
def begin_answers(params, questions, *, network, eos_id, max_tokens):
    """Runs the questions.

    Args:
      params: {path: array}.
      questions: Questions.
      network: ModelSpec of Janus.
      eos_id: id that ends an answer.
      max_tokens: longest answer.

    Returns:
      Answers without any id.
    """
    model = network.merge(params)
    x = model.embed_text(questions.ids)
    if questions.images.shape[1]:
        x = model.insert_images(x, questions.images, start=questions.starts)
    hidden, cache = prefill(model, x, real=questions.real, max_new_tokens=max_tokens)
    rows = len(questions.ids)
    return Answers(
        num_ids=jnp.int32(0),
        hidden=hidden,
        cache=cache,
        ended=jnp.zeros(rows, bool),
        ids=jnp.full((rows, max_tokens), eos_id, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="network", donate_argnames="answers")
def continue_answers(params, answers, keys, *, network, eos_id, temperature, until):
    """Decodes answers up to `until` ids, or until all have ended.

    Args:
      params: {path: array}.
      answers: Answers.
      keys: key[B].
      network: ModelSpec of Janus.
      eos_id: id that ends an answer.
      temperature: 0 is greedy.
      until: int32 scalar, at most the width of `answers.ids`.

    Returns:
      Answers.
    """
    model = network.merge(params)
    step = make_decode_step(model)

    def choose(hidden, number):
        logits = model.llm.head(hidden).astype(jnp.float32)
        scaled = logits / jnp.maximum(temperature, 1e-6)

        def sample():
            row_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            return jax.vmap(jax.random.categorical)(row_keys, scaled)

        greedy = lambda: jnp.argmax(logits, axis=-1)
        return jax.lax.cond(temperature > 0, sample, greedy).astype(jnp.int32)

    def unfinished(answers):
        return (answers.num_ids < until) & ~answers.ended.all()

    def decode_one(answers):
        ids = jnp.where(answers.ended, eos_id, choose(answers.hidden, answers.num_ids))
        hidden, cache = step(model.embed_text(ids)[:, None], answers.cache)
        return Answers(
            num_ids=answers.num_ids + 1,
            hidden=hidden[:, 0],
            cache=cache,
            ended=answers.ended | (ids == eos_id),
            ids=answers.ids.at[:, answers.num_ids].set(ids),
        )

    return jax.lax.while_loop(unfinished, decode_one, answers)


@functools.partial(jax.jit, static_argnames=("network", "max_tokens"))
def answer_batch(params, questions, keys, *, network, eos_id, temperature, max_tokens):
    """Answers one question per row in one program: `begin_answers`, then `continue_answers`.

    Returns:
      int32[B, max_tokens] ids, EOS after the end.
    """
    common = dict(network=network, eos_id=eos_id)
    answers = begin_answers(params, questions, max_tokens=max_tokens, **common)
    return continue_answers(
        params, answers, keys, temperature=temperature, until=max_tokens, **common
    ).ids


def right_align(rows, *, pad_id, multiple=32):
    """Right-aligns lists of ids.

    Args:
      rows: lists of ids.
      pad_id: id of the padding at the left.
      multiple: P is rounded up to a multiple of this, so that few lengths are compiled.

    Returns:
      ids int32[B, P], and bool[B, P], False on the padding.
    """
    width = -(-max(map(len, rows)) // multiple) * multiple
    ids = np.full((len(rows), width), pad_id, np.int32)
    real = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        real[i, width - len(row) :] = True
    return ids, real
