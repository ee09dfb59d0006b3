"""The matrix products: right values, right gradients, in the types that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from toolrm_jax.matmul import matmul, project

# A product of two bf16 roundings, each within 2^-9, over values of size 1 and sums of 12 to 40.
BF16_BOUND = 0.05


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def exact(spec, *operands):
    return np.einsum(spec, *(np.asarray(x, np.float64) for x in operands))


@pytest.mark.parametrize("shapes", [((5, 12), (12, 7)), ((2, 3, 5, 12), (2, 3, 12, 7))])
def test_matmul_in_float32_has_float32_values_and_gradients(shapes):
    a, b = arrays(*shapes)
    np.testing.assert_allclose(matmul(a, b, jnp.float32), exact("...mk,...kn->...mn", a, b), 1e-5)
    check_grads(lambda a, b: matmul(a, b, jnp.float32), (a, b), order=1, modes=["rev"], rtol=1e-2)
    y, vjp = jax.vjp(lambda a, b: matmul(a, b, jnp.float32), a, b)
    (dy,) = arrays(y.shape)
    da, db = vjp(jnp.asarray(dy))
    np.testing.assert_allclose(da, exact("...mn,...kn->...mk", dy, b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(db, exact("...mk,...mn->...kn", a, dy), rtol=1e-5, atol=1e-5)


def test_matmul_in_bfloat16_accumulates_in_float32_and_rounds_its_inputs_alone():
    a, b = arrays((9, 40), (40, 7))
    y, vjp = jax.vjp(lambda a, b: matmul(a, b, jnp.bfloat16), a, b)
    rounded = [x.astype(jnp.bfloat16).astype(np.float64) for x in (a, b)]
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    da, db = vjp(jnp.ones_like(y))
    assert (da.dtype, db.dtype) == (jnp.float32, jnp.float32)
    np.testing.assert_allclose(da, np.ones((9, 7)) @ b.T, atol=BF16_BOUND)
    np.testing.assert_allclose(db, a.T @ np.ones((9, 7)), atol=BF16_BOUND)


def test_matmul_returns_cotangents_in_the_types_of_its_operands():
    a, b = arrays((4, 6), (6, 3))
    low = jnp.asarray(b, jnp.bfloat16)
    _, vjp = jax.vjp(lambda a, b: matmul(a, b, jnp.bfloat16), a, low)
    da, db = vjp(jnp.ones((4, 3)))
    assert (da.dtype, db.dtype) == (jnp.float32, jnp.bfloat16)


@pytest.mark.usefixtures("single_device")
def test_project_in_float32_has_float32_values_and_gradients():
    x, w = (jnp.asarray(a) for a in arrays((2, 5, 12), (12, 7)))
    run = jax.jit(lambda x, w: project(x, w, jnp.float32))
    np.testing.assert_allclose(run(x, w), exact("bsi,io->bso", x, w), rtol=1e-5, atol=1e-5)
    check_grads(run, (x, w), order=1, modes=["rev"], rtol=1e-2)


@pytest.mark.usefixtures("single_device")
def test_project_gives_float32_gradients_to_float32_weights_in_bfloat16():
    x, w = (jnp.asarray(a) for a in arrays((2, 5, 12), (12, 7)))
    low = x.astype(jnp.bfloat16)
    y, vjp = jax.vjp(lambda x, w: project(x, w, jnp.bfloat16), low, w)
    dx, dw = vjp(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), exact("bsi,io->bso", x, w), atol=BF16_BOUND)
    np.testing.assert_allclose(
        dx.astype(jnp.float32), exact("bso,io->bsi", np.ones((2, 5, 7)), w), atol=BF16_BOUND
    )
    # Ten bf16 inputs summed in float32: exact in the inputs, so not a bf16 sum.
    expected = exact("bsi,bso->io", low.astype(jnp.float32), np.ones((2, 5, 7)))
    np.testing.assert_allclose(dw, expected, rtol=1e-5, atol=1e-5)
