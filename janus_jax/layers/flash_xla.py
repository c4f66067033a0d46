"""Exact attention over packed rows in plain XLA; blocks of keys without a query are skipped.

FlashAttention (Dao et al., 2022): the softmax is accumulated over one block of keys at a time, and
the backward pass recomputes the probabilities from each query's log-sum-exp, so that no array of
L x L scores is ever stored. Names follow the paper: s scores, p probabilities, m running maximum,
l running sum, o output, lse log-sum-exp, dO gradient of the output, delta = rowsum(dO * o).
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

BLOCK = 64  # positions per block: small blocks skip more, and fit the cache of a CPU core
MASKED = -1e30  # score of a masked pair; finite, so that a fully masked block gives no NaN


def flash_xla(q, k, v, segment_ids, image_ids=None, *, block=BLOCK):
    """Every token attends to its own segment up to itself, and to all tokens of its own image.

    A padding token attends to itself alone.

    Args:
      q: float[B, L, N, H] queries.
      k, v: float[B, L, K, H] keys and values; N is a multiple of K.
      segment_ids: int32[B, L], 1, 2, ... along a row; 0 is padding, also between two tokens of a
        segment.
      image_ids: int32[B, L] or None; a positive number for each generated image of a row, whose
        tokens are contiguous; 0 elsewhere.
      block: positions per block.

    Returns:
      float[B, L, N, H].
    """
    length = q.shape[1]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -length % block), *((0, 0),) * (x.ndim - 2)))
    q = rearrange(pad(q * q.shape[-1] ** -0.5), "b l (k g) h -> b k g l h", k=k.shape[2])
    k, v = (rearrange(pad(x), "b l k h -> b k l h") for x in (k, v))
    ids = (pad(segment_ids), None if image_ids is None else pad(image_ids))
    o = _attention(q, k, v, ids, block)
    return rearrange(o, "b k g l h -> b l (k g) h")[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, ids, block):
    """Queries float[B, K, N/K, L, H], keys and values float[B, K, L, H] -> like the queries."""
    return _forward(q, k, v, ids, block)[0]


def _forward(q, k, v, ids, block):
    first, last = _key_blocks(*ids, block)
    take = functools.partial(_take, block=block)

    def query_block(_, i):
        q_i = take(q, i)

        def add(j, carry):
            m, l, o = carry
            s = jnp.where(_mask(*ids, i, j, block), _scores(q_i, take(k, j)), MASKED)
            m_new = jnp.maximum(m, s.max(axis=-1))
            p = jnp.exp(s - m_new[..., None])
            scale = jnp.exp(m - m_new)
            pv = _product("bkglp,bkph->bkglh", p.astype(v.dtype), take(v, j))
            return m_new, l * scale + p.sum(axis=-1), o * scale[..., None] + pv

        shape = q_i.shape
        start = (jnp.full(shape[:-1], MASKED), jnp.zeros(shape[:-1]), jnp.zeros(shape))
        m, l, o = jax.lax.fori_loop(first[i], last[i] + 1, add, start)
        return None, ((o / l[..., None]).astype(v.dtype), m + jnp.log(l))

    _, (o, lse) = jax.lax.scan(query_block, None, jnp.arange(len(first)))
    o = rearrange(o, "n b k g l h -> b k g (n l) h")
    lse = rearrange(lse, "n b k g l -> b k g (n l)")
    return o, (q, k, v, ids, o, lse)


def _backward(block, residuals, dO):
    q, k, v, ids, o, lse = residuals
    first, last = _key_blocks(*ids, block)
    take = functools.partial(_take, block=block)
    add_to = functools.partial(_add_to, block=block)
    delta = (dO.astype(jnp.float32) * o.astype(jnp.float32)).sum(axis=-1)

    def query_block(carry, i):
        q_i, dO_i = take(q, i), take(dO, i)
        lse_i, delta_i = take(lse[..., None], i), take(delta[..., None], i)

        def add(j, carry):
            dq_i, dk, dv = carry
            k_j, v_j = take(k, j), take(v, j)
            p = jnp.where(_mask(*ids, i, j, block), jnp.exp(_scores(q_i, k_j) - lse_i), 0)
            ds = p * (_product("bkglh,bkph->bkglp", dO_i, v_j) - delta_i)
            p, ds = p.astype(v.dtype), ds.astype(q.dtype)
            dq_i += _product("bkglp,bkph->bkglh", ds, k_j)
            dk = add_to(dk, j, _product("bkglp,bkglh->bkph", ds, q_i))
            dv = add_to(dv, j, _product("bkglp,bkglh->bkph", p, dO_i))
            return dq_i, dk, dv

        start = (jnp.zeros(q_i.shape), *carry)
        dq_i, *carry = jax.lax.fori_loop(first[i], last[i] + 1, add, start)
        return tuple(carry), dq_i

    start = (jnp.zeros(k.shape), jnp.zeros(v.shape))
    (dk, dv), dq = jax.lax.scan(query_block, start, jnp.arange(len(first)))
    dq = rearrange(dq, "n b k g l h -> b k g (n l) h")
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _product(equation, *arrays):
    """A product of arrays in their own dtype, accumulated in fp32."""
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _scores(q_i, k_j):
    """float[B, K, N/K, l, H] and float[B, K, p, H] -> float32[B, K, N/K, l, p]."""
    return _product("bkglh,bkph->bkglp", q_i, k_j)


def _take(x, i, *, block):
    """Block i of the positions, the last axis but one."""
    return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=x.ndim - 2)


def _add_to(x, i, part, *, block):
    """x with `part` added to its block i of the positions."""
    new = _take(x, i, block=block) + part
    return jax.lax.dynamic_update_slice_in_dim(x, new, i * block, axis=x.ndim - 2)


def _mask(segment_ids, image_ids, i, j, block):
    """bool[B, 1, 1, l, p]: which keys of block j the queries of block i attend to."""
    of_pairs = lambda ids: (
        _take(ids[..., None], i, block=block),
        _take(ids[..., None], j, block=block).swapaxes(1, 2),
    )
    same = lambda of_queries, of_keys: (of_queries == of_keys) & (of_keys > 0)
    place = jnp.arange(block)
    distance = ((i - j) * block + place[:, None] - place[None])[None]  # query minus key
    visible = distance >= 0
    if image_ids is not None:
        visible = visible | same(*of_pairs(image_ids))
    return ((same(*of_pairs(segment_ids)) & visible) | (distance == 0))[:, None, None]


def _key_blocks(segment_ids, image_ids, block):
    """First and last block of keys for each block of queries, over all rows: int32[L / block]."""
    place = jnp.arange(segment_ids.shape[1])[None]
    # A maximum along the row numbers the padding inside a segment like the segment itself.
    segment = jax.lax.cummax(segment_ids, axis=1)
    is_first = segment != jnp.pad(segment[:, :-1], ((0, 0), (1, 0)))
    begin = jax.lax.cummax(jnp.where(is_first, place, 0), axis=1)
    begin = jnp.where(segment_ids > 0, begin, place)
    first = rearrange(begin, "b (n l) -> n b l", l=block).min(axis=(1, 2)) // block
    if image_ids is None:
        return first, jnp.arange(len(first))
    is_last = (image_ids == 0) | (image_ids != jnp.pad(image_ids[:, 1:], ((0, 0), (0, 1))))
    end = jax.lax.cummin(jnp.where(is_last, place, place.size), axis=1, reverse=True)
    return first, rearrange(end, "b (n l) -> n b l", l=block).max(axis=(1, 2)) // block
