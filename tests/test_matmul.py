"""The matrix products: right values, right gradients, in the types that were asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from toolrm_jax.matmul import multiply, project

# A result rounded to bf16, and inputs rounded to bf16 (2^-9 each), over sums of 5 to 12 values of
# size 1 to 3.
BF16_BOUND = 0.05


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def exact(spec, *operands):
    return np.einsum(spec, *(np.asarray(x, np.float64) for x in operands))


@pytest.mark.parametrize("shapes", [((5, 12), (12, 7)), ((2, 3, 5, 12), (2, 3, 12, 7))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_multiply_rounds_its_inputs_alone_and_accumulates_in_float32(shapes, dtype):
    a, b = arrays(*shapes)
    y = multiply(a.astype(dtype), b)
    assert y.dtype == jnp.float32
    expected = exact("...mk,...kn->...mn", a.astype(dtype), b.astype(dtype))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("single_device")
def test_project_in_float32_has_float32_values_and_gradients():
    x, w = arrays((2, 5, 12), (12, 7))
    run = jax.jit(lambda x, w: project(x, w, jnp.float32))
    np.testing.assert_allclose(run(x, w), exact("bsi,io->bso", x, w), rtol=1e-5, atol=1e-5)
    check_grads(run, (x, w), order=1, modes=["rev"], rtol=1e-2)
    y, vjp = jax.vjp(run, x, w)
    (dy,) = arrays(y.shape)
    dx, dw = vjp(dy)
    np.testing.assert_allclose(dx, exact("bso,io->bsi", dy, w), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, exact("bsi,bso->io", x, dy), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("single_device")
def test_project_gives_float32_gradients_to_float32_weights_in_bfloat16():
    x, w = arrays((2, 5, 12), (12, 7))
    low = x.astype(jnp.bfloat16)
    y, vjp = jax.vjp(jax.jit(lambda x, w: project(x, w, jnp.bfloat16)), low, w)
    dx, dw = vjp(jnp.ones_like(y))
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    ones = np.ones((2, 5, 7))
    np.testing.assert_allclose(y.astype(jnp.float32), exact("bsi,io->bso", x, w), atol=BF16_BOUND)
    np.testing.assert_allclose(
        dx.astype(jnp.float32), exact("bso,io->bsi", ones, w), atol=BF16_BOUND
    )
    # Ten bf16 inputs summed in float32, not in bf16: exact but for float32's own rounding.
    np.testing.assert_allclose(dw, exact("bsi,bso->io", low, ones), rtol=1e-5, atol=1e-5)
