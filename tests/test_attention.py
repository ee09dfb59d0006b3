"""Attention over the row layout equals causal attention over every prompt + response alone."""

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
    """(row, places of a prompt's tokens, places of a branch's tokens), for every branch."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            mine = batch.segments[row] == segment
            prompt = np.flatnonzero(mine & (batch.branches[row] == 0))
            branches = sorted(set(batch.branches[row][mine]))
            yield from (
                (row, prompt, np.flatnonzero(mine & (batch.branches[row] == branch)))
                for branch in branches
            )


def seen_by(batch):
    """Which keys a token sees where prompt + response is a plain causal sequence of its own."""
    rows, tokens = np.shape(batch.tokens)
    seen_BQS = np.zeros((rows, tokens, tokens), bool)
    for row, prompt, branch in sequences(batch):
        places = np.union1d(prompt, branch)
        for query in branch:
            seen_BQS[row, query, places[places <= query]] = True
    return seen_BQS


@pytest.fixture(scope="module")
def seen_BQS(batch):
    return seen_by(batch)


def plain(q_BSNH, k_BSKH, v_BSKH, seen_BQS):
    """Dense attention by that mask; zero at padding."""
    group = q_BSNH.shape[2] // k_BSKH.shape[2]
    k_BSNH, v_BSNH = (jnp.repeat(x, group, axis=2) for x in (k_BSKH, v_BSKH))
    logits = jnp.einsum("bqnh,bsnh->bnqs", q_BSNH, k_BSNH) / HEAD_DIM**0.5
    weights = jnp.where(seen_BQS[:, None], jnp.exp(logits), 0.0)
    out_BSNH = jnp.einsum("bnqs,bsnh->bqnh", weights, v_BSNH)
    sums_BSN = weights.sum(axis=-1).swapaxes(1, 2)
    return out_BSNH / jnp.where(sums_BSN > 0, sums_BSN, 1.0)[..., None]


def ours(q_BSNH, k_BSKH, v_BSKH, batch):
    out_BSNH = row_attention(q_BSNH, k_BSKH, v_BSKH, batch.segments, batch.branches)
    return jnp.where((batch.segments > 0)[:, :, None, None], out_BSNH, 0.0)


@pytest.mark.parametrize("block", [1, 7, 16, 128])
def test_it_equals_attention_over_each_sequence_alone(qkv, batch, seen_BQS, block, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    result = jax.jit(ours)(*qkv, batch)
    np.testing.assert_allclose(result, plain(*qkv, seen_BQS), rtol=1e-5, atol=1e-5)


def test_its_gradients_equal_those_of_each_sequence_alone(qkv, batch, seen_BQS, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    weights = np.random.default_rng(2).normal(size=qkv[0].shape).astype(np.float32)

    def gradients(attend, where):
        def total(q, k, v):
            return jnp.sum(attend(q, k, v, where) * weights)

        return jax.jit(jax.grad(total, (0, 1, 2)))(*qkv)

    pairs = zip(gradients(ours, batch), gradients(plain, seen_BQS), strict=True)
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def many():
    """A row of a prompt and 16 responses, far longer than a block and its prompt."""
    rng = np.random.default_rng(3)
    batch = batch_of([[random_prompt(rng, 20, *[13] * 16)]], 230, 16)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    qkv = tuple(rng.normal(size=(1, 230, n, HEAD_DIM)).astype(np.float32) for n in heads)
    return qkv, batch


def test_responses_far_from_their_prompt_have_it_beside_them(many, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    qkv, batch = many
    weights = np.random.default_rng(4).normal(size=qkv[0].shape).astype(np.float32)

    def with_gradients(attend, where):
        def total(q, k, v):
            out = attend(q, k, v, where)
            return jnp.sum(out * weights), out

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*qkv)

    ((_, out), gradients), ((_, expected), others) = (
        with_gradients(ours, batch),
        with_gradients(plain, seen_by(batch)),
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for got, right in zip(gradients, others, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-4)


def test_responses_do_not_look_at_those_between_them_and_their_prompt(many, monkeypatch):
    """What lies in a block's window and is not a number would make its output none, seen or not."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    (q, k, v), batch = many
    v = v.copy()
    v[:, 60:130] = np.nan
    out = jax.jit(ours)(q, k, v, batch)
    assert np.isfinite(out[:, 176:]).all()  # with windows of up to 64 keys


def test_padding_is_finite_and_moves_nothing(qkv, batch):
    padding = (np.asarray(batch.segments) == 0)[:, :, None, None]
    filled = [np.where(padding, 1e4, x).astype(np.float32) for x in qkv]
    attend = jax.jit(ours)
    with jax.debug_nans(True):
        gradients = jax.jit(jax.grad(lambda *x: jnp.sum(ours(*x, batch)), (0, 1, 2)))(*filled)
        np.testing.assert_array_equal(attend(*filled, batch), attend(*qkv, batch))
    for gradient in gradients:
        assert not np.where(padding, gradient, 0.0).any()


def test_bfloat16_gradients_are_near_float32_ones(qkv, batch):
    def gradients(dtype):
        def total(*x):
            return jnp.sum(jnp.square(ours(*x, batch).astype(jnp.float32)))

        return jax.jit(jax.grad(total, (0, 1, 2)))(*(jnp.asarray(x, dtype) for x in qkv))

    for low, exact in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert low.dtype == jnp.bfloat16
        # Inputs, output, cotangent, probabilities and result, rounded by 2^-9 each.
        error = np.linalg.norm(low.astype(jnp.float32) - exact) / np.linalg.norm(exact)
        assert error < 5 * 2**-9


def test_bfloat16_keeps_its_type_and_softmax_runs_in_float32(qkv, batch):
    low = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    exact = jax.jit(ours)(*(x.astype(jnp.float32) for x in low), batch)
    result = jax.jit(ours)(*low, batch)
    assert result.dtype == jnp.bfloat16
    # Products of bf16 inputs are exact in float32; what is rounded is the probabilities and the
    # result, by 2^-9 each, of values within +-4.
    np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=4 * 2 * 2**-9)


def test_memory_stays_within_the_stated_bound():
    """The compiler's own figure for its scratch, with SmolLM2's heads; see `windows`."""
    B, S, N, K, H = 2, 2048, 9, 3, 64
    arrays = [jax.ShapeDtypeStruct((B, S, heads, H), jnp.bfloat16) for heads in (N, K, K)]
    arrays += [jax.ShapeDtypeStruct((B, S), jnp.int32)] * 2
    logits = 4 * N * attention.QUERY_BLOCK * S
    given = 4 * B * S * (N + 2 * K) * H  # queries, keys and values, in float32

    def scratch(function):
        return jax.jit(function).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    def total(*x):
        return jnp.sum(row_attention(*x).astype(jnp.float32))

    assert scratch(row_attention) < 2 * logits + 2 * given
    assert scratch(jax.grad(total, (0, 1, 2))) < 4 * logits + 3 * given
    assert 4 * logits + 3 * given < 4 * B * N * S * S  # what all logits at once would take
