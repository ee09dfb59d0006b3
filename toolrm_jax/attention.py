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

import functools

import jax
import jax.numpy as jnp

from toolrm_jax.matmul import matmul

Array = jax.Array

# Queries are taken in blocks, and a block skips the keys after it: about half of the work of the
# full square. Smaller blocks skip more and multiply less efficiently; more blocks compile longer.
QUERY_BLOCK = 128
MAX_BLOCKS = 16

_MASKED = -1e30  # not -inf: a query that may see no key at all (padding) must not turn into NaN


def block_size(S: int) -> int:
    """Queries per block. The logits of one block are the most that is held at a time, forward and
    backward: 4 * B * N * block_size(S) * S bytes."""
    return max(QUERY_BLOCK, -(-S // MAX_BLOCKS))


def row_attention(
    q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, segments_BS: Array, branches_BS: Array
) -> Array:
    """Attention within each prompt and branch -> [B, S, N, H], in q's type; softmax in float32."""
    B, S, N, H = q_BSNH.shape
    K = k_BSKH.shape[2]
    q_BKGSH = q_BSNH.reshape(B, S, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKSH = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)
    blocks = []
    for start in range(0, S, block_size(S)):
        stop = min(start + block_size(S), S)
        mask_BQS = _mask(segments_BS, branches_BS, start, stop)
        # Recomputed in the backward pass, so that no more than one block's logits are ever held.
        attend = jax.checkpoint(_block_attention)
        blocks.append(
            attend(q_BKGSH[:, :, :, start:stop], k_BKHS[..., :stop], v_BKSH[:, :, :stop], mask_BQS)
        )
    out_BKGSH = jnp.concatenate(blocks, axis=3)
    return out_BKGSH.transpose(0, 3, 1, 2, 4).reshape(B, S, N, H)


def _mask(segments_BS: Array, branches_BS: Array, start: int, stop: int) -> Array:
    """Which of the keys before `stop` the queries start..stop-1 see, bool [B, Q, stop]."""
    causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
    same_prompt = segments_BS[:, start:stop, None] == segments_BS[:, None, :stop]
    keys = branches_BS[:, None, :stop]
    own_branch = (keys == 0) | (keys == branches_BS[:, start:stop, None])
    return causal[None] & same_prompt & own_branch


def _block_attention(q_BKGQH: Array, k_BKHS: Array, v_BKSH: Array, mask_BQS: Array) -> Array:
    B, K, G, Q, H = q_BKGQH.shape
    S = k_BKHS.shape[-1]
    multiply = functools.partial(matmul, dtype=q_BKGQH.dtype)
    logits = multiply(q_BKGQH.reshape(B, K, G * Q, H), k_BKHS).reshape(B, K, G, Q, S) * H**-0.5
    probs = jax.nn.softmax(jnp.where(mask_BQS[:, None, None], logits, _MASKED), axis=-1)
    out = multiply(probs.reshape(B, K, G * Q, S), v_BKSH)
    return out.astype(q_BKGQH.dtype).reshape(B, K, G, Q, H)
