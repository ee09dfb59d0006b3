"""The matrix product behind every projection and every attention score.

`matmul(a, b, dtype)` casts both sides to the compute type, multiplies, accumulates in float32, and
does the same in its backward pass, whose cotangents come back in the type of the operand (so
float32 master weights get float32 gradients while all three products run in bfloat16).

Why not leave it to `jnp.einsum` and autodiff? Because the cotangent of a float32 accumulation is
float32, which makes both backward products float32; and because XLA's fast bfloat16 kernel on CPUs
takes only the plain row-major product: the transposed forms that autodiff produces run at under
half its rate (150 against 340 GFLOP/s on 2 cores, `benchmarks/matmul.py`). So the transposes are
materialised there, which costs a few percent of the product.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from toolrm_jax.sharding import gather_weight

Array = jax.Array


def _row_major(x: Array) -> Array:
    """On CPUs, stores x row by row, so that a transpose before it is carried out, not fused."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: with_layout_constraint(x, Layout(tuple(range(x.ndim)))),
        default=lambda x: x,
    )


def _dot(a: Array, b: Array, dims, out_spec: PartitionSpec | None = None) -> Array:
    # float32 means float32: TPUs and GPUs would round the inputs to bf16 or TF32 without HIGHEST.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dims, precision=precision, preferred_element_type=jnp.float32, out_sharding=out_spec
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(a: Array, b: Array, dtype: jax.typing.DTypeLike) -> Array:
    """a [*batch, M, K] times b [*batch, K, N] -> float32 [*batch, M, N]; inputs cast to `dtype`."""
    return _batched(a.astype(dtype), b.astype(dtype))


def _batched(a: Array, b: Array) -> Array:
    batch = tuple(range(a.ndim - 2))
    return _dot(a, b, (((a.ndim - 1,), (b.ndim - 2,)), (batch, batch)))


def _matmul_forward(a, b, dtype):
    return matmul(a, b, dtype), (a, b)


def _matmul_backward(dtype, residuals, dy):
    a, b = residuals
    dy = dy.astype(dtype)
    a_t, b_t = (_row_major(x.astype(dtype).swapaxes(-1, -2)) for x in (a, b))
    return _batched(dy, b_t).astype(a.dtype), _batched(a_t, dy).astype(b.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: Array, w: Array, dtype: jax.typing.DTypeLike) -> Array:
    """x [B, S, I] times the master weight w [I, O] -> [B, S, O] in `dtype`; w is gathered here.

    The weight's gradient is float32 and comes back laid out as the weight is.
    """
    w = gather_weight(w, dtype)
    rows, tokens, _ = jax.typeof(x).sharding.spec
    y_spec = PartitionSpec(rows, tokens, jax.typeof(w).sharding.spec[1])
    return _dot(x.astype(dtype), w, (((2,), (0,)), ((), ())), y_spec).astype(dtype)


def _project_forward(x, w, dtype):
    return project(x, w, dtype), (x, w)


def _project_backward(dtype, residuals, dy):
    x, w = residuals
    w_t = _row_major(gather_weight(w, dtype).T)
    dx = _dot(dy, w_t, (((2,), (0,)), ((), ())), jax.typeof(x).sharding.spec)
    x_t = _row_major(x.astype(dtype).transpose(2, 0, 1))
    dw = _dot(x_t, dy, (((1, 2), (0, 1)), ((), ())), jax.typeof(w).sharding.spec)
    return dx.astype(x.dtype), dw.astype(w.dtype)


project.defvjp(_project_forward, _project_backward)
