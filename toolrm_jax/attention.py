"""Attention over the row layout: prompts attend causally, responses attend to their prompt and themselves.

    keys:          prompt 1      prompt 2    pad | slot 0 | slot 1 | slot 2
    prompt 1      causal         -           -   |   -    |   -    |   -
    prompt 2        -          causal        -   |   -    |   -    |   -
    slot 0 (of 1)  all           -           -   | causal |   -    |   -
    slot 1 (of 1)  all           -           -   |   -    | causal |   -
    slot 2 (of 2)   -            all         -   |   -    |   -    | causal

So every response's reward is what it would be if prompt + response were run alone, and a prompt's keys are
computed once for all its responses. Shapes: see the legend in `model.py`. The functions here see one
device's rows and heads (`model.py` calls them inside `jax.shard_map`).
"""

import jax
import jax.numpy as jnp

from toolrm_jax.matmul import matmul

Array = jax.Array

# Queries are taken in blocks of this many tokens, and a block skips the keys after it: about half of the
# work of the full square. Smaller blocks skip more and multiply less efficiently.
QUERY_BLOCK = 256
# The response pass holds at most this many bytes of float32 logits at a time, per device.
RESPONSE_LOGITS_BYTES = 256 * 2**20

_MASKED = -1e30  # not -inf: a query that may see no key at all (padding) must not turn into NaN


def prompt_attention(q_BTNH, k_BTKH, v_BTKH, segments_BT) -> Array:
    """Causal attention within segments -> [B, T, N, H]. Source: the packed-sequence attention of T5X."""
    T = q_BTNH.shape[1]
    q_BKGTH = _group(q_BTNH, k_BTKH.shape[2])
    k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)
    blocks = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        causal = jnp.arange(start, stop)[:, None] >= jnp.arange(stop)[None, :]
        same = segments_BT[:, start:stop, None] == segments_BT[:, None, :stop]
        mask_BQS = causal[None] & same
        logits = _logits(q_BKGTH[:, :, :, start:stop], k_BKHT[..., :stop])
        logits = jnp.where(mask_BQS[:, None, None], logits, _MASKED)
        probs = jax.nn.softmax(logits, axis=-1)
        blocks.append(_mix(probs, v_BKTH[:, :, :stop], q_BTNH.dtype))
    return _ungroup(jnp.concatenate(blocks, axis=3))


def response_attention(q_BMRNH, k_BMRKH, v_BMRKH, k_BTKH, v_BTKH, segments_BT, answers_BM) -> Array:
    """Attention of response slots over their prompt (the segment `answers_BM`) and themselves.

    Returns [B, M, R, N, H]. Computed over chunks of slots, so that the logits of a chunk stay within
    RESPONSE_LOGITS_BYTES (or one slot, if a single one needs more).
    """
    B, M, R, N, _ = q_BMRNH.shape
    slot_bytes = 4 * B * R * N * (k_BTKH.shape[1] + R)
    chunk = next(
        c
        for c in range(M, 0, -1)
        if M % c == 0 and (c == 1 or c * slot_bytes <= RESPONSE_LOGITS_BYTES)
    )
    prompt = (k_BTKH, v_BTKH, segments_BT)
    slots = (q_BMRNH, k_BMRKH, v_BMRKH, answers_BM)
    if chunk == M:
        return _response_chunk(prompt, *slots)
    # Recomputed in the backward pass: otherwise the scan would keep every chunk's probabilities.
    attend = jax.checkpoint(lambda slots: _response_chunk(prompt, *slots))
    split = [x.reshape(B, M // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in slots]
    out_CBcRNH = jax.lax.map(attend, tuple(split))
    return out_CBcRNH.swapaxes(0, 1).reshape(q_BMRNH.shape)


def _response_chunk(prompt, q_BMRNH, k_BMRKH, v_BMRKH, answers_BM) -> Array:
    k_BTKH, v_BTKH, segments_BT = prompt
    B, M, R, N, H = q_BMRNH.shape
    T, K = k_BTKH.shape[1:3]
    G = N // K
    q_BKGQH = _group(q_BMRNH.reshape(B, M * R, N, H), K)
    k_BKHT, v_BKTH = k_BTKH.transpose(0, 2, 3, 1), v_BTKH.transpose(0, 2, 1, 3)
    to_prompt = _logits(q_BKGQH, k_BKHT).reshape(B, K, G, M, R, T)
    mine_BMT = answers_BM[:, :, None] == segments_BT[:, None, :]
    to_prompt = jnp.where(mine_BMT[:, None, None, :, None, :], to_prompt, _MASKED)

    q_BMKGRH = q_BMRNH.reshape(B, M, R, K, G, H).transpose(0, 1, 3, 4, 2, 5)
    to_self = _logits(q_BMKGRH, k_BMRKH.transpose(0, 1, 3, 4, 2))
    to_self = jnp.where(jnp.tri(R, dtype=bool), to_self, _MASKED).transpose(0, 2, 3, 1, 4, 5)

    probs = jax.nn.softmax(jnp.concatenate([to_prompt, to_self], axis=-1), axis=-1)
    from_prompt = _mix(probs[..., :T].reshape(B, K, G, M * R, T), v_BKTH, jnp.float32)
    own = probs[..., T:].transpose(0, 3, 1, 2, 4, 5)
    from_self = _mix(own, v_BMRKH.transpose(0, 1, 3, 2, 4), jnp.float32)
    out = _ungroup(from_prompt).reshape(B, M, R, N, H)
    return (out + from_self.transpose(0, 1, 4, 2, 3, 5).reshape(B, M, R, N, H)).astype(
        q_BMRNH.dtype
    )


def _group(q_BTNH: Array, K: int) -> Array:
    """[B, T, N, H] -> [B, K, G, T, H]: the G query heads that share a key head, side by side."""
    B, T, N, H = q_BTNH.shape
    return q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def _ungroup(x_BKGTH: Array) -> Array:
    B, K, G, T, H = x_BKGTH.shape
    return x_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _logits(q: Array, k: Array) -> Array:
    """q [..., K, G, Q, H] and k [..., K, H, S] -> float32 [..., K, G, Q, S], scaled."""
    *batch, G, Q, H = q.shape
    out = matmul(q.reshape(*batch, G * Q, H), k, q.dtype)
    return out.reshape(*batch, G, Q, k.shape[-1]) * H**-0.5


def _mix(probs: Array, v: Array, dtype) -> Array:
    """Float32 probs [..., K, G, Q, S] and v [..., K, S, H] -> [..., K, G, Q, H]."""
    *batch, G, Q, S = probs.shape
    out = matmul(probs.reshape(*batch, G * Q, S), v, v.dtype)
    return out.astype(dtype).reshape(*batch, G, Q, v.shape[-1])
