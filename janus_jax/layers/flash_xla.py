"""Causal attention inside packed examples in plain XLA, without the blocks that hold other examples only.

FlashAttention (Dao et al., 2022): the softmax is made up block of keys by block of keys, and the backward pass makes
its weights again from what each query's softmax summed up to, so that no array of queries times keys is ever kept.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

BLOCK = 64  # queries, and keys, at once: small ones skip more, and stay in a core's cache
NEVER = -1e30  # a score whose weight is zero beside any real one, and finite where there is no real one


def flash_xla(q, k, v, segment_ids):
    """Every token looks at its own example up to itself; padding at itself alone.

    Args:
      q: float[B, L, N, H] queries.
      k, v: float[B, L, K, H] keys and values; N is a multiple of K.
      segment_ids: int32[B, L], 0 is padding; the tokens of an example stand together.

    Returns:
      float[B, L, N, H].
    """
    length = q.shape[1]
    to_blocks = lambda x: jnp.pad(x, ((0, 0), (0, -length % BLOCK), *((0, 0),) * (x.ndim - 2)))
    q, k, v, segment_ids = map(to_blocks, (q * q.shape[-1] ** -0.5, k, v, segment_ids))
    q = rearrange(q, "b l (k g) h -> b k g l h", k=k.shape[2])
    k, v = (rearrange(x, "b l k h -> b k l h") for x in (k, v))
    return rearrange(_attention(q, k, v, segment_ids), "b k g l h -> b l (k g) h")[:, :length]


@jax.custom_vjp
def _attention(q, k, v, segment_ids):
    """float[B, K, G, L, H] queries and float[B, K, L, H] keys and values -> float[B, K, G, L, H]."""
    return _forward(q, k, v, segment_ids)[0]


def _forward(q, k, v, segment_ids):
    first = _first_blocks(segment_ids)

    def of_queries(_, i):
        queries = _block(q, i)

        def add(j, carry):
            largest, total, out = carry
            scores = jnp.where(_mask(segment_ids, i, j), _scores(queries, _block(k, j)), NEVER)
            new = jnp.maximum(largest, scores.max(axis=-1))
            weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(largest - new)
            values = _product("bkglp,bkph->bkglh", weights.astype(v.dtype), _block(v, j))
            return new, total * shrink + weights.sum(axis=-1), out * shrink[..., None] + values

        shape = queries.shape
        blank = (jnp.full(shape[:-1], NEVER), jnp.zeros(shape[:-1]), jnp.zeros(shape))
        largest, total, out = jax.lax.fori_loop(first[i], i + 1, add, blank)
        return None, ((out / total[..., None]).astype(v.dtype), largest + jnp.log(total))

    _, (out, summed) = jax.lax.scan(of_queries, None, jnp.arange(len(first)))
    out, summed = rearrange(out, "n b k g l h -> b k g (n l) h"), rearrange(summed, "n b k g l -> b k g (n l)")
    return out, (q, k, v, segment_ids, out, summed)


def _backward(kept, wanted):
    q, k, v, segment_ids, out, summed = kept
    first = _first_blocks(segment_ids)
    drift = (wanted.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=-1)  # of all the weights of a query

    def of_queries(carry, i):
        queries, wants = _block(q, i), _block(wanted, i)
        whole, drifts = (_block(x[..., None], i) for x in (summed, drift))

        def add(j, carry):
            of_q, of_k, of_v = carry
            keys, values = _block(k, j), _block(v, j)
            weights = jnp.where(_mask(segment_ids, i, j), jnp.exp(_scores(queries, keys) - whole), 0)
            of_scores = weights * (_product("bkglh,bkph->bkglp", wants, values) - drifts)
            weights, of_scores = weights.astype(v.dtype), of_scores.astype(q.dtype)
            of_q += _product("bkglp,bkph->bkglh", of_scores, keys)
            of_k = _add_block(of_k, j, _product("bkglp,bkglh->bkph", of_scores, queries))
            of_v = _add_block(of_v, j, _product("bkglp,bkglh->bkph", weights, wants))
            return of_q, of_k, of_v

        of_q, *carry = jax.lax.fori_loop(first[i], i + 1, add, (jnp.zeros(queries.shape), *carry))
        return tuple(carry), of_q

    blank = (jnp.zeros(k.shape), jnp.zeros(v.shape))
    (of_k, of_v), of_q = jax.lax.scan(of_queries, blank, jnp.arange(len(first)))
    of_q = rearrange(of_q, "n b k g l h -> b k g (n l) h")
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_attention.defvjp(_forward, _backward)


def _product(equation, *arrays):
    """A product in the arrays' dtype that adds up in fp32."""
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)


def _scores(queries, keys):
    """float[B, K, G, l, H] and float[B, K, p, H] -> float32[B, K, G, l, p]."""
    return _product("bkglh,bkph->bkglp", queries, keys)


def _block(x, i):
    """Block i of the positions, which stand last but one."""
    return jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=x.ndim - 2)


def _add_block(x, i, part):
    """x with a part added to its block i."""
    return jax.lax.dynamic_update_slice_in_dim(x, _block(x, i) + part, i * BLOCK, axis=x.ndim - 2)


def _mask(segment_ids, i, j):
    """bool[B, 1, 1, l, p]: which keys of block j the queries of block i look at."""
    queries, keys = (_block(segment_ids[..., None], n)[..., 0] for n in (i, j))
    place = jnp.arange(BLOCK)
    apart = (i - j) * BLOCK + place[:, None] - place[None]
    same = (queries[:, :, None] == keys[:, None]) & (keys > 0)[:, None]
    return ((same & (apart >= 0)[None]) | (apart == 0)[None])[:, None, None]


def _first_blocks(segment_ids):
    """int32[L / BLOCK]: for each block of queries the first block of keys that any of them looks at, in any row."""
    place = jnp.arange(segment_ids.shape[1])[None]
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
    begins = jnp.where((segment_ids != before) | (segment_ids == 0), place, 0)
    return jax.lax.cummax(begins, axis=1)[:, ::BLOCK].min(axis=0) // BLOCK
