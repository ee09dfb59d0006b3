"""Attention over the row layout: prompts are causal, responses see their prompt and themselves.

    queries | keys   prompt 1   1a       1b       prompt 2   2a
    prompt 1         causal     -        -        -          -
    1a               all        causal   -        -          -
    1b               all        -        causal   -          -
    prompt 2         -          -        -        causal     -
    2a               -          -        -        all        causal

So every response's reward is what it would be if prompt + response were run alone, and a prompt's
keys are computed once for all its responses. Axes: see the legend in `model.py`. The functions here
see one device's rows and heads (`model.py` calls them inside `jax.shard_map`).
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from toolrm_jax.matmul import multiply, row_major

Array = jax.Array

# Queries are taken in blocks, and a block skips the keys after it: about half of the work of the
# full square. Smaller blocks skip more and multiply less efficiently; more blocks compile longer.
QUERY_BLOCK = 128
MAX_BLOCKS = 16

_MASKED = -1e30  # not -inf: a query that may see no key at all (padding) must not turn into NaN


def block_size(S: int) -> int:
    """Queries per block. No step needs more than one block's float32 logits, 4 * B * N *
    block_size(S) * S bytes, and nothing of that size is kept for the backward pass. (Blocks do not
    depend on each other, though, and XLA:CPU overlaps them: it was seen to hold all at once.)"""
    return max(QUERY_BLOCK, -(-S // MAX_BLOCKS))


def row_attention(
    q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BS: Array, branches_BS: Array
) -> Array:
    """Attention within each prompt and branch -> [B, S, N, H], in q's type; softmax in float32."""
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    # The G query heads that share a key head lie side by side.
    q_BKGSH = q_BSNH.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    out_BKGSH = _attention(q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS)
    return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)


@jax.custom_vjp
def _attention(q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS) -> Array:
    return _forward(q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS)[0]


@jax.named_scope("attention")  # for profiles
def _forward(q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS):
    """The output, and what the backward pass needs: it computes the probabilities again, block by
    block, from the logarithm of each query's normaliser (FlashAttention, arXiv:2205.14135)."""
    S = q_BKGSH.shape[3]
    k_BKHS = k_BKSH.swapaxes(2, 3)
    outs, normalisers = [], []
    for block in _blocks(S):
        keys = slice(0, block.stop)
        logits = _logits(
            q_BKGSH[:, :, :, block], k_BKHS[..., keys], segments_BS, branches_BS, block
        )
        normaliser = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        probs = jnp.exp(logits - normaliser).astype(q_BKGSH.dtype)
        outs.append(_product(probs, v_BKSH[:, :, keys]).astype(q_BKGSH.dtype))
        normalisers.append(normaliser)
    # Named, so that rematerialisation may keep them: then the forward pass is not run twice.
    out_BKGSH = checkpoint_name(jnp.concatenate(outs, axis=3), "attention")
    normaliser_BKGS1 = checkpoint_name(jnp.concatenate(normalisers, axis=3), "attention")
    return out_BKGSH, (
        q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS, out_BKGSH, normaliser_BKGS1
    )  # fmt: skip


@jax.named_scope("attention")
def _backward(residuals, dout_BKGSH: Array):
    q_BKGSH, k_BKSH, v_BKSH, segments_BS, branches_BS, out_BKGSH, normaliser_BKGS1 = residuals
    dtype, S, H = q_BKGSH.dtype, q_BKGSH.shape[3], q_BKGSH.shape[4]
    k_BKHS, v_BKHS = k_BKSH.swapaxes(2, 3), v_BKSH.swapaxes(2, 3)
    # Sums over query blocks, in float32. Transposed, since then only the small q and dout are.
    dk_BKHS = jnp.zeros(k_BKHS.shape, jnp.float32)
    dv_BKHS = jnp.zeros(v_BKHS.shape, jnp.float32)
    share_BKGS1 = jnp.sum(
        dout_BKGSH.astype(jnp.float32) * out_BKGSH.astype(jnp.float32), axis=-1, keepdims=True
    )
    dq_blocks = []
    for block in _blocks(S):
        keys = slice(0, block.stop)
        q, dout = q_BKGSH[:, :, :, block], dout_BKGSH[:, :, :, block]
        logits = _logits(q, k_BKHS[..., keys], segments_BS, branches_BS, block)
        probs = jnp.exp(logits - normaliser_BKGS1[:, :, :, block])
        dprobs = _product(dout, v_BKHS[..., keys])
        dlogits = (probs * (dprobs - share_BKGS1[:, :, :, block]) * H**-0.5).astype(dtype)
        dq_blocks.append(_product(dlogits, k_BKSH[:, :, keys]).astype(dtype))
        dk_BKHS = dk_BKHS.at[..., keys].add(_transposed_product(q, dlogits))
        dv_BKHS = dv_BKHS.at[..., keys].add(_transposed_product(dout, probs.astype(dtype)))
    # row_major: where there is one block, XLA would fold this transpose into the product before it,
    # and XLA:CPU cannot run that form in bfloat16 ("Unsupported element type for DotThunk").
    dk_BKSH, dv_BKSH = (row_major(x).swapaxes(2, 3).astype(dtype) for x in (dk_BKHS, dv_BKHS))
    return jnp.concatenate(dq_blocks, axis=3), dk_BKSH, dv_BKSH, None, None


_attention.defvjp(_forward, _backward)


def _blocks(S: int) -> list[slice]:
    size = block_size(S)
    return [slice(start, min(start + size, S)) for start in range(0, S, size)]


def _logits(q_BKGQH, k_BKHS, segments_BS, branches_BS, block: slice) -> Array:
    """Scaled and masked float32 logits of a block of queries, [B, K, G, Q, keys]."""
    logits = _product(q_BKGQH, k_BKHS) * q_BKGQH.shape[-1] ** -0.5
    mask_BQS = _mask(segments_BS, branches_BS, block)
    return jnp.where(mask_BQS[:, None, None], logits, _MASKED)


def _mask(segments_BS: Array, branches_BS: Array, block: slice) -> Array:
    """Which of the keys before the block's end its queries see, bool [B, Q, keys]."""
    causal = jnp.arange(block.start, block.stop)[:, None] >= jnp.arange(block.stop)[None, :]
    same_prompt = segments_BS[:, block, None] == segments_BS[:, None, : block.stop]
    keys = branches_BS[:, None, : block.stop]
    own_branch = (keys == 0) | (keys == branches_BS[:, block, None])
    return causal[None] & same_prompt & own_branch


def _product(a_BKGQX: Array, b_BKXY: Array) -> Array:
    """Float32 [B, K, G, Q, Y]; a group's G heads multiply the same right side, as one product."""
    B, K, G, Q, X = a_BKGQX.shape
    return multiply(a_BKGQX.reshape(B, K, G * Q, X), b_BKXY).reshape(B, K, G, Q, -1)


def _transposed_product(a_BKGQH: Array, b_BKGQS: Array) -> Array:
    """The sum over heads and queries of a^T b, float32 [B, K, H, S]."""
    B, K, G, Q, _ = a_BKGQH.shape
    a, b = (x.reshape(B, K, G * Q, x.shape[-1]) for x in (a_BKGQH, b_BKGQS))
    return multiply(row_major(a.swapaxes(2, 3)), b)
