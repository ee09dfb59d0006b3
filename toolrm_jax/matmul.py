"""The matrix products: projections by master weights, and the batched products of attention.

Both cast their inputs to the compute type and accumulate in float32; `project` does the same in
its backward pass, and returns a float32 gradient to a float32 master weight while all three
products run in bfloat16.

Why not leave it to `jnp.einsum` and autodiff? Because the cotangent of a float32 accumulation is
float32, which makes both backward products float32; and because XLA's fast bfloat16 kernel on
CPUs takes only the plain row-major product: the transposed forms that autodiff produces run at
under half its rate (`benchmarks/matmul.py`). So the transposes are carried out there, which costs
a few percent of the product.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from toolrm_jax.sharding import gather_weight

Array = jax.Array


def row_major(x: Array) -> Array:
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


def multiply(a: Array, b: Array) -> Array:
    """a [*batch, M, K] times b [*batch, K, N] -> float32 [*batch, M, N]. Not for autodiff: see
    above."""
    batch = tuple(range(a.ndim - 2))
    b = row_major(b.astype(a.dtype))
    return _dot(a, b, (((a.ndim - 1,), (b.ndim - 2,)), (batch, batch)))


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
    w_t = row_major(gather_weight(w, dtype).T)
    dx = _dot(dy, w_t, (((2,), (0,)), ((), ())), jax.typeof(x).sharding.spec)
    x_t = row_major(x.astype(dtype).transpose(2, 0, 1))
    dw = _dot(x_t, dy, (((1, 2), (0, 1)), ((), ())), jax.typeof(w).sharding.spec)
    return dx.astype(x.dtype), dw.astype(w.dtype)


project.defvjp(_project_forward, _project_backward)
