"""Attention over the row layout equals plain causal attention over every prompt + response alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_models import batch_of, random_prompt
from toolrm_jax import attention
from toolrm_jax.attention import row_attention

HEADS, KV_HEADS, HEAD_DIM = 6, 2, 8
TOKENS, RESPONSES = 70, 6


@pytest.fixture(scope="module")
def batch():
    """A full row, a packed row with padding, and an empty row."""
    rng = np.random.default_rng(0)
    rows = [
        [random_prompt(rng, 40, 10, 1, 19)],
        [random_prompt(rng, 9, 5, 8), random_prompt(rng, 1, 3), random_prompt(rng, 17, 2, 2)],
        [],
    ]
    return batch_of(rows, TOKENS, RESPONSES)


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(1)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return tuple(rng.normal(size=(3, TOKENS, n, HEAD_DIM)).astype(np.float32) for n in heads)


def sequences(batch):
    """(row, places of a prompt's tokens, places of one of its branches' tokens), for every branch."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            mine = batch.segments[row] == segment
            prompt = np.flatnonzero(mine & (batch.branches[row] == 0))
            branches = sorted(set(batch.branches[row][mine]))
            yield from (
                (row, prompt, np.flatnonzero(mine & (batch.branches[row] == branch)))
                for branch in branches
            )


def plain(q_BSNH, k_BSKH, v_BSKH, batch):
    """Causal attention of every prompt + response on its own; zero at padding."""
    out_BSNH = jnp.zeros(q_BSNH.shape)
    group = q_BSNH.shape[2] // k_BSKH.shape[2]
    for row, prompt, branch in sequences(batch):
        places = np.union1d(prompt, branch)
        q, k, v = (x[row, places] for x in (q_BSNH, k_BSKH, v_BSKH))
        k, v = jnp.repeat(k, group, axis=1), jnp.repeat(v, group, axis=1)
        logits = jnp.einsum("qnh,knh->nqk", q, k) / HEAD_DIM**0.5
        seen = jnp.tri(len(places), dtype=bool)
        probs = jax.nn.softmax(jnp.where(seen[None], logits, -jnp.inf), axis=-1)
        out = jnp.einsum("nqk,knh->qnh", probs, v)
        out_BSNH = out_BSNH.at[row, branch].set(out[np.searchsorted(places, branch)])
    return out_BSNH


def ours(q_BSNH, k_BSKH, v_BSKH, batch):
    out_BSNH = row_attention(q_BSNH, k_BSKH, v_BSKH, batch.segments, batch.branches)
    return jnp.where((batch.segments > 0)[:, :, None, None], out_BSNH, 0.0)


@pytest.mark.parametrize("block", [1, 16, 64, 128])
def test_it_equals_attention_over_each_sequence_alone(qkv, batch, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    monkeypatch.setattr(attention, "MAX_BLOCKS", 8)
    result = jax.jit(ours)(*qkv, batch)
    np.testing.assert_allclose(result, plain(*qkv, batch), rtol=1e-5, atol=1e-5)


def test_its_gradients_equal_those_of_each_sequence_alone(qkv, batch, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    weights = np.random.default_rng(2).normal(size=qkv[0].shape).astype(np.float32)

    def total(attend):
        return jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, batch) * weights), (0, 1, 2))

    for got, expected in zip(jax.jit(total(ours))(*qkv), total(plain)(*qkv), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_padding_is_finite_and_moves_nothing(qkv, batch):
    padding = (np.asarray(batch.segments) == 0)[:, :, None, None]
    filled = [np.where(padding, 1e4, x).astype(np.float32) for x in qkv]
    with jax.debug_nans(True):
        gradients = jax.grad(lambda *x: jnp.sum(ours(*x, batch)), (0, 1, 2))(*filled)
    assert np.isfinite(row_attention(*filled, batch.segments, batch.branches)).all()
    np.testing.assert_array_equal(ours(*filled, batch), ours(*qkv, batch))
    for gradient in gradients:
        assert not np.where(padding, gradient, 0.0).any()


def test_bfloat16_keeps_its_type_and_softmax_runs_in_float32(qkv, batch):
    low = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    exact = ours(*(x.astype(jnp.float32) for x in low), batch)
    result = ours(*low, batch)
    assert result.dtype == jnp.bfloat16
    # Products of bf16 inputs are exact in float32; what is rounded is the probabilities and the
    # result, by 2^-9 each, of values within +-4.
    np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=4 * 2 * 2**-9)


def test_the_logits_of_one_block_are_the_most_that_is_held():
    B, S, N, H = 1, 1024, 8, 8
    q = jax.ShapeDtypeStruct((B, S, N, H), jnp.float32)
    ids = jax.ShapeDtypeStruct((B, S), jnp.int32)
    loss = jax.grad(lambda *x: jnp.sum(row_attention(*x)), (0, 1, 2))
    compiled = jax.jit(loss).lower(q, q, q, ids, ids).compile()
    block_bytes = 4 * B * N * attention.block_size(S) * S
    # Logits, probabilities and their gradients of one block; the full square would be 8 blocks each.
    assert compiled.memory_analysis().temp_size_in_bytes < 6 * block_bytes
