"""The kernels of TPUs and GPUs equal attention in plain JAX, and are chosen by the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice
from tiny_models import batch_of, random_prompt

from toolrm_jax import flash_attention
from toolrm_jax.attention import row_attention
from toolrm_jax.flash_attention import KERNELS, kernel, splash_attention

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16
TOKENS = 300  # three blocks of the kernel, the last one in part


@pytest.fixture(scope="module")
def batch():
    """A row of one long prompt, a packed row with padding (whole blocks of it), an empty row."""
    rng = np.random.default_rng(0)
    rows = [
        [random_prompt(rng, 200, 60, 1, 39)],
        [random_prompt(rng, 9, 5, 8), random_prompt(rng, 1, 3), random_prompt(rng, 60, 20, 2)],
        [],
    ]
    return batch_of(rows, TOKENS, 8)


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(1)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return tuple(rng.normal(size=(3, TOKENS, n, HEAD_DIM)).astype(np.float32) for n in heads)


@pytest.fixture(params=[128, 512])
def block(request, monkeypatch):
    monkeypatch.setattr(flash_attention, "_BLOCK", request.param)


def attended(attend, batch, q, k, v, offset=0):
    mine = batch.segments[:, offset : offset + q.shape[1]]
    out = attend(q, k, v, batch.segments, batch.branches, offset)
    return jnp.where((mine > 0)[..., None, None], out, 0.0)


@pytest.mark.usefixtures("block")
def test_splash_attention_is_the_plain_one(qkv, batch):
    ours = jax.jit(lambda *x: attended(splash_attention, batch, *x))(*qkv)
    plain = jax.jit(lambda *x: attended(row_attention, batch, *x))(*qkv)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("block")
def test_splash_gradients_are_the_plain_ones(qkv, batch):
    weights = np.random.default_rng(2).normal(size=qkv[0].shape).astype(np.float32)

    def gradients(attend):
        def total(*x):
            return jnp.sum(attended(attend, batch, *x) * weights)

        return jax.jit(jax.grad(total, (0, 1, 2)))(*qkv)

    for ours, plain in zip(gradients(splash_attention), gradients(row_attention), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "splash"])
def test_a_part_of_the_queries_is_that_part_of_the_whole(qkv, batch, name):
    """As where a row's tokens are split over devices."""
    q, k, v = qkv
    whole = jax.jit(lambda *x: attended(row_attention, batch, *x))(q, k, v)
    part = jax.jit(lambda offset, *x: KERNELS[name](*x, batch.segments, batch.branches, offset))
    for offset in (0, 100, 200):
        mine = (batch.segments[:, offset : offset + 100] > 0)[..., None, None]
        got = jnp.where(mine, part(offset, q[:, offset : offset + 100], k, v), 0.0)
        np.testing.assert_allclose(got, whole[:, offset : offset + 100], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "name"), [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "plain")]
)
def test_the_devices_choose_the_kernel(platform, name):
    device = AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert kernel() is KERNELS[name]
        assert kernel("plain") is row_attention
