"""Attention over the row layout: prompts are causal, responses see their prompt and themselves.

    queries | keys   prompt 1   1a       1b       prompt 2   2a
    prompt 1         causal     -        -        -          -
    1a               all        causal   -        -          -
    1b               all        -        causal   -          -
    prompt 2         -          -        -        causal     -
    2a               -          -        -        all        causal

So every response's reward is what it would be if prompt + response were run alone, and a prompt's
keys are computed once for all its responses. Axes: see the legend in `model.py`. The functions here
see one device's rows and heads, and where a mesh's `sequence` axis splits rows, its Q queries of a
row's S tokens (`model.py` calls them inside `jax.shard_map`).

This is attention in plain JAX, for CPUs; `flash_attention.py` has the same function for TPUs and
GPUs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from toolrm_jax.bits import as_bits, from_bits, kept
from toolrm_jax.matmul import multiply, row_major

Array = jax.Array

# Queries are taken in blocks of one row, and a block looks only at its first query's prompt and at
# the keys from that query's branch on: in rows that hold several prompts, or many responses, most
# of the square is never computed. Smaller blocks skip more and multiply less efficiently.
QUERY_BLOCK = 128

_MASKED = -1e30  # not -inf: a query that may see no key at all (padding) must not turn into NaN


def windows(S: int) -> list[int]:
    """The numbers of keys that a block may look at: 1, 1.5, 2, 3, 4, 6, ... blocks, and S.

    The program holds each, and a block runs the smallest that is enough for it. Blocks run one
    after the other: at any time a device holds two arrays as large as a block's float32 logits, 4 *
    N * QUERY_BLOCK * S bytes each, and four in the backward pass, for which none of them is kept.
    """
    sizes = [QUERY_BLOCK]
    while sizes[-1] < S:
        sizes.append(sizes[-1] * 3 // 2 if len(sizes) % 2 else sizes[-2] * 2)
    return sorted({min(size, S) for size in sizes})


def row_attention(
    q_BQNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BS: Array,
    branches_BS: Array,
    offset: Array | int = 0,
) -> Array:
    """Attention within each prompt and branch -> [B, Q, N, H], in q's type; softmax in float32.

    Queries are those of the row's tokens offset .. offset + Q - 1. Segments are as `batch.place`
    writes them: each in one piece, padding (0) at the row's end.
    """
    B, Q, N, H = q_BQNH.shape
    K = k_BSKH.shape[2]
    # Whole blocks: what is added is padding, and taken off again.
    q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS = (
        padded(x, -Q % min(QUERY_BLOCK, Q))
        for x in (q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS)
    )
    # The G query heads that share a key head lie side by side.
    q_BKGQH = q_BQNH.reshape(B, -1, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    offsets_B = jnp.full(B, offset, jnp.int32)
    out_BKGQH = _attention(q_BKGQH, k_BKSH, v_BKSH, segments_BS, branches_BS, offsets_B)
    return out_BKGQH.transpose(0, 3, 1, 2, 4)[:, :Q].reshape(B, Q, N, H)


def padded(x_BSX: Array, end: int) -> Array:
    """The array with `end` zeros (of segments: padding) more along its second axis."""
    if not end:
        return x_BSX
    return jnp.pad(x_BSX, [(0, 0), (0, end)] + [(0, 0)] * (x_BSX.ndim - 2))


class Tokens(NamedTuple):
    """What decides which tokens see which: int32 [X] each."""

    place: Array  # in the row
    segment: Array
    branch: Array


def tokens_of(segments_S: Array, branches_S: Array) -> Tokens:
    """All tokens of a row."""
    return Tokens(jnp.arange(len(segments_S)), segments_S, branches_S)


def visible(queries: Tokens, keys: Tokens) -> Array:
    """Which of W keys Q queries see, bool [Q, W]."""
    causal = queries.place[:, None] >= keys.place[None, :]
    same_prompt = queries.segment[:, None] == keys.segment[None, :]
    own_branch = (keys.branch == 0)[None, :] | (keys.branch[None, :] == queries.branch[:, None])
    return causal & same_prompt & own_branch


class _Window(NamedTuple):
    """The W keys that a block of queries looks at: the prompt of its first query, and those from
    that query's branch on.

    Two pieces of W keys are cut out of the row, one that holds the prompt and one that ends with
    the block; the window is the second, with the prompt in the place of keys that no query sees.
    What is neither of the two has no segment.
    """

    prompt_first: Array  # where the pieces begin
    last_first: Array
    is_prompt_W: Array

    @classmethod
    def of(cls, begin: Array, prompt: Array, end: Array, W: int, S: int) -> "_Window":
        """For a prompt at begin .. begin + prompt - 1, and a block whose last query is end - 1."""
        prompt_first = jnp.minimum(begin, S - W)
        column = jnp.arange(W) - (begin - prompt_first)
        return cls(prompt_first, jnp.maximum(end - W, 0), (column >= 0) & (column < prompt))

    def keys(self, row: Tokens, own: Array) -> Tokens:
        """What there is to see: the prompt, and from `own` on."""
        place, segment, branch = (self.cut(x_S, 0) for x_S in row)
        segment = jnp.where(self.is_prompt_W | (place >= own), segment, -1)
        return Tokens(place, segment, branch)

    def cut(self, x: Array, axis: int) -> Array:
        """The window's part of an array over the row's tokens."""
        W, others = len(self.is_prompt_W), [a for a in range(x.ndim) if a != axis]
        prompt, last = (
            jax.lax.dynamic_slice_in_dim(as_bits(x), first, W, axis)
            for first in (self.prompt_first, self.last_first)
        )
        return from_bits(jnp.where(jnp.expand_dims(self.is_prompt_W, others), prompt, last))

    def added(self, sum_KHS: Array, part_KHW: Array) -> Array:
        """The sum over the row's tokens with the window's part added in its places."""
        prompt = jnp.where(self.is_prompt_W, part_KHW, 0)
        sum_KHS = _added(sum_KHS, prompt, self.prompt_first)
        return _added(sum_KHS, part_KHW - prompt, self.last_first)


@jax.custom_vjp
def _attention(q_BKGQH, k_BKSH, v_BKSH, segments_BS, branches_BS, offsets_B) -> Array:
    return _forward(q_BKGQH, k_BKSH, v_BKSH, segments_BS, branches_BS, offsets_B)[0]


@jax.named_scope("attention")  # for profiles
def _forward(q_BKGQH, k_BKSH, v_BKSH, segments_BS, branches_BS, offsets_B):
    """The output, and what the backward pass needs: it computes the probabilities again, block by
    block, from the logarithm of each query's normaliser (FlashAttention, arXiv:2205.14135)."""
    arrays = (q_BKGQH, k_BKSH, v_BKSH, segments_BS, branches_BS, offsets_B)
    # The barrier ties the masks to the queries. Otherwise differentiating the scan over layers
    # takes them out of it, and stores one for every block, window and head: over half a gigabyte
    # for two rows of 2,048 tokens.
    tied = jax.lax.optimization_barrier(arrays)
    out_BKGQH, normaliser_BKGQ1 = _map(lambda row: _row_forward(*row), tied)
    # Named, so that rematerialisation may keep them: then the forward pass is not run twice.
    out_BKGQH = kept(out_BKGQH, "attention")
    normaliser_BKGQ1 = kept(normaliser_BKGQ1, "attention")
    return out_BKGQH, (*arrays, out_BKGQH, normaliser_BKGQ1)


def _row_forward(q_KGQH, k_KSH, v_KSH, segments_S, branches_S, offset) -> tuple[Array, Array]:
    k_KHS = k_KSH.swapaxes(1, 2)
    dtype, block_size = q_KGQH.dtype, min(QUERY_BLOCK, q_KGQH.shape[2])

    def block(begin):
        q_KGbH, start = _cut(q_KGQH, begin, block_size, 2), offset + begin

        def attend(queries, keys, window):
            logits = _logits(q_KGbH, window.cut(k_KHS, 2), queries, keys)
            largest = jnp.max(logits, axis=-1, keepdims=True)
            weights = jnp.exp(logits - largest)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            # Divided last, where it is H numbers a query and not W.
            out = _product(weights.astype(dtype), window.cut(v_KSH, 1)) / total
            return out.astype(dtype), largest + jnp.log(total)

        return _in_window(attend, start, block_size, tokens_of(segments_S, branches_S))

    outs, normalisers = _map(block, jnp.arange(0, q_KGQH.shape[2], block_size))
    return _joined(outs), _joined(normalisers)


@jax.named_scope("attention")
def _backward(residuals, dout_BKGQH: Array):
    dq, dk, dv = _map(lambda row: _row_backward(*row), (*residuals, dout_BKGQH))
    return dq, dk, dv, None, None, None


def _row_backward(
    q_KGQH, k_KSH, v_KSH, segments_S, branches_S, offset, out_KGQH, normaliser_KGQ1, dout_KGQH
) -> tuple[Array, Array, Array]:
    k_KHS, v_KHS = k_KSH.swapaxes(1, 2), v_KSH.swapaxes(1, 2)
    dtype, Q, H = q_KGQH.dtype, q_KGQH.shape[2], q_KGQH.shape[3]
    block_size = min(QUERY_BLOCK, Q)
    share_KGQ1 = jnp.sum(
        dout_KGQH.astype(jnp.float32) * out_KGQH.astype(jnp.float32), axis=-1, keepdims=True
    )

    def block(sums, begin):
        q, dout, normaliser, share = (
            _cut(x, begin, block_size, 2) for x in (q_KGQH, dout_KGQH, normaliser_KGQ1, share_KGQ1)
        )
        start = offset + begin

        def attend(queries, keys, window):
            k_KHW, v_KHW = window.cut(k_KHS, 2), window.cut(v_KHS, 2)
            probs = jnp.exp(_logits(q, k_KHW, queries, keys) - normaliser)
            dlogits = (probs * (_product(dout, v_KHW) - share) * H**-0.5).astype(dtype)
            dq = _product(dlogits, window.cut(k_KSH, 1)).astype(dtype)
            dk, dv = _transposed_product(q, dlogits), _transposed_product(dout, probs.astype(dtype))
            return dq, window.added(sums[0], dk), window.added(sums[1], dv)

        row = tokens_of(segments_S, branches_S)
        dq, dk_KHS, dv_KHS = _in_window(attend, start, block_size, row)
        return (dk_KHS, dv_KHS), as_bits(dq)

    # Sums over query blocks, in float32. Transposed, since then only the small q and dout are.
    zeros = tuple(jnp.zeros_like(x, jnp.float32) for x in (k_KHS, v_KHS))
    sums, dq_blocks = jax.lax.scan(block, zeros, jnp.arange(0, Q, block_size))
    dk_KSH, dv_KSH = (x.swapaxes(1, 2).astype(dtype) for x in sums)
    return _joined(from_bits(dq_blocks)), dk_KSH, dv_KSH


_attention.defvjp(_forward, _backward)


def _joined(blocks_nKGQX: Array) -> Array:
    """Blocks [n, K, G, Q, X] -> [K, G, n * Q, X]."""
    n, K, G, Q, X = blocks_nKGQX.shape
    return blocks_nKGQX.transpose(1, 2, 0, 3, 4).reshape(K, G, n * Q, X)


def _map(function, arrays):
    """lax.map, with bfloat16 arrays on the way in and out as they are."""
    return from_bits(jax.lax.map(lambda one: as_bits(function(from_bits(one))), as_bits(arrays)))


def _cut(x: Array, start: Array | int, size: int, axis: int) -> Array:
    return from_bits(jax.lax.dynamic_slice_in_dim(as_bits(x), start, size, axis))


def _added(sum_KHS: Array, part_KHW: Array, first: Array) -> Array:
    """The sum with a window's part added in its place."""
    whole = _cut(sum_KHS, first, part_KHW.shape[2], 2) + part_KHW
    return jax.lax.dynamic_update_slice_in_dim(sum_KHS, whole, first, 2)


def _in_window(attend, start: Array, Q: int, row: Tokens):
    """attend(queries, keys, window), in the smallest window that the block needs."""
    queries = Tokens(*(_cut(x_S, start, Q, 0) for x_S in row))
    first, end = Tokens(*(x_Q[0] for x_Q in queries)), start + Q
    # A prompt with its branches lies in one piece, and so does each branch: what is between the
    # first query's prompt and its branch is not seen by any later query either.
    mine = row.segment == first.segment
    begin, own = jnp.argmax(mine), jnp.argmax(mine & (row.branch == first.branch))
    prompt = jnp.where(first.branch == 0, 0, jnp.sum(mine & (row.branch == 0)))
    needed = jnp.where(first.segment == 0, 0, prompt + end - own)  # padding: whatever it sees
    S = len(row.place)
    sizes = windows(S)

    def attend_in(W: int):
        window = _Window.of(begin, prompt, end, W, S)
        return attend(queries, window.keys(row, own), window)

    number = jnp.sum(needed > jnp.array(sizes))
    return jax.lax.switch(number, [functools.partial(attend_in, W) for W in sizes])


def _logits(q_KGQH, k_KHW, queries: Tokens, keys: Tokens) -> Array:
    """Scaled and masked float32 logits of a block of queries, [K, G, Q, W]."""
    logits = _product(q_KGQH, k_KHW) * q_KGQH.shape[-1] ** -0.5
    return jnp.where(visible(queries, keys)[None, None], logits, _MASKED)


def _product(a_KGQX: Array, b_KXY: Array) -> Array:
    """Float32 [K, G, Q, Y]; a group's G heads multiply the same right side, as one product."""
    K, G, Q, X = a_KGQX.shape
    return multiply(a_KGQX.reshape(K, G * Q, X), b_KXY).reshape(K, G, Q, -1)


def _transposed_product(a_KGQH: Array, b_KGQW: Array) -> Array:
    """The sum over heads and queries of a^T b, float32 [K, H, W]."""
    K, G, Q, _ = a_KGQH.shape
    a, b = (x.reshape(K, G * Q, x.shape[-1]) for x in (a_KGQH, b_KGQW))
    return multiply(row_major(a.swapaxes(1, 2)), b)
