"""cuDNN's attention: equal to attention in plain JAX, on a GPU; without one, what its compiler is
given, and what it makes of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from tiny_models import batch_of, random_prompt

from toolrm_jax.attention import row_attention
from toolrm_jax.compilation_cache import compilation_cache_off
from toolrm_jax.flash_attention import cudnn_attention
from toolrm_jax.hlo import parse

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
RAGGED = (300, 301)  # tokens of a row: even, and odd, which cuDNN's backward pass does not take
FORWARD, BACKWARD = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"


def rows(tokens):
    """A row of one long prompt, a packed row with padding, an empty row."""
    rng = np.random.default_rng(0)
    long = [random_prompt(rng, 200, 60, 1, tokens - 261)]
    packed = [random_prompt(rng, 9, 5, 8), random_prompt(rng, 1, 3), random_prompt(rng, 60, 20, 2)]
    return batch_of([long, packed, []], tokens, 8)


def gradients_and_values(attend, batch, dtype, offset=0, queries=None):
    """A function of q, k, v (any type; attention is in `dtype`) -> output, dq, dk, dv; padding 0.

    Queries are `queries` (default: all) of the row's tokens, from `offset` on.
    """
    mine = batch.segments[:, offset:][:, :queries] > 0
    weights = np.random.default_rng(2).normal(size=(*mine.shape, HEADS, HEAD_DIM))

    def total(*qkv):
        q, k, v = (x.astype(dtype) for x in qkv)
        out = attend(q[:, offset:][:, :queries], k, v, batch.segments, batch.branches, offset)
        out = jnp.where(mine[..., None, None], out.astype(jnp.float32), 0.0)
        return jnp.sum(out * weights), out

    def both(*qkv):
        gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(*qkv)
        return out, *gradients

    return both


def qkv_shapes(tokens):
    return [(3, tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]


# --- On a GPU -------------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("JAX sees no GPU")


def assert_equal_to_plain(attend, gpu, tokens, **part):
    """Of the same bfloat16 inputs, against float32 products: within bfloat16's rounding."""
    batch, rng = rows(tokens), np.random.default_rng(1)
    qkv = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in qkv_shapes(tokens)]
    with jax.default_device(gpu), jax.default_matmul_precision("highest"):
        ours = jax.jit(gradients_and_values(attend, batch, jnp.bfloat16, **part))(*qkv)
        plain = jax.jit(gradients_and_values(row_attention, batch, jnp.float32, **part))(*qkv)
    for got, wanted in zip(ours, plain, strict=True):
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        assert np.isfinite(got).all()
        assert np.abs(got - wanted).max() <= 0.02 * np.abs(wanted).max()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", RAGGED)
def test_cudnn_attention_and_its_gradients_are_the_plain_ones(gpu, tokens):
    assert_equal_to_plain(cudnn_attention, gpu, tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 101, 200])
def test_a_part_of_the_queries_is_that_part_of_the_whole(gpu, offset):
    """As where a row's tokens are split over devices."""
    assert_equal_to_plain(cudnn_attention, gpu, 301, offset=offset, queries=101)


def test_the_bound_holds_for_plain_attention_in_bfloat16():
    """It is one of bfloat16, which is off by 0.6% of the largest here, not one made for cuDNN."""
    assert_equal_to_plain(row_attention, jax.devices("cpu")[0], 301)


# --- Without one ----------------------------------------------------------------------------------


def arguments(tokens, dtype=jnp.bfloat16, **options):
    return [jax.ShapeDtypeStruct(shape, dtype, **options) for shape in qkv_shapes(tokens)]


def lowered_for_gpus(tokens, dtype):
    """What JAX hands to the GPU's compiler."""
    both = jax.jit(gradients_and_values(cudnn_attention, rows(tokens), dtype))
    return both.trace(*arguments(tokens, dtype)).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("tokens", RAGGED)
def test_forward_and_backward_are_cudnns(monkeypatch, tokens):
    # It would ask the library, which comes with the CUDA plugin.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 90800)
    program = lowered_for_gpus(tokens, jnp.bfloat16)
    assert re.findall(r"custom_call @(\S*cudnn[^(]*)", program) == [FORWARD, BACKWARD]
    # The mask goes with it once a row, not once a head.
    even = tokens + tokens % 2
    taken = re.findall(rf"custom_call @{re.escape(FORWARD)}\(.* : \((.*)\) ->", program)
    assert taken == [
        f"tensor<3x{even}x4x64xbf16>, tensor<3x{even}x2x64xbf16>, tensor<3x{even}x2x64xbf16>, "
        f"tensor<3x1x{even}x{even}xbf16>"
    ]


def test_float32_goes_the_plain_way():
    assert "cudnn" not in lowered_for_gpus(300, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_the_gpus_compiler_keeps_cudnns_kernels_and_writes_no_logits(chip):
    pytest.importorskip("jax_plugins.xla_cuda12", reason="the CUDA plugin (extra: cuda)")
    from toolrm_jax.topology import open_topology

    tokens = 1024
    (device,) = open_topology(f"{chip}:1").devices
    place = jax.sharding.SingleDeviceSharding(device)
    both = jax.jit(gradients_and_values(cudnn_attention, rows(tokens), jnp.bfloat16))
    with compilation_cache_off():
        program = both.lower(*arguments(tokens, sharding=place)).compile().as_text()
    assert program.count(f'custom_call_target="{FORWARD}"') == 1
    assert program.count(f'custom_call_target="{BACKWARD}"') == 1
    logits = 3 * HEADS * tokens * tokens
    computations = parse(program).computations.values()
    sizes = [s.size for c in computations for i in c.instructions.values() for s in i.shapes]
    assert max(sizes) < logits
