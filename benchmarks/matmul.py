"""The machine's matmul rate: what the training step is measured against.

    python -m benchmarks.matmul

Times the seven projections of one SmolLM2 layer over a batch of tokens, in each precision, as
the forward pass multiplies them (row-major), and as autodiff would write their transposed
products; medians, GFLOP/s.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

# (inputs, outputs) of q, k, v, o, gate, up, down in SmolLM2-135M.
LAYER = ((576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576))


def seconds(run: Callable[[], object], repetitions: int = 7) -> float:
    """The median time of a call, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def layer_rate(dtype: str, tokens: int = 4096, form: str = "xw") -> float:
    """FLOP/s over one layer's projections. form: "xw" (forward), "xTy" (the weight's gradient),
    or "ywT" (the input's gradient)."""
    precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    equation = {"xw": "si,io->so", "xTy": "si,so->io", "ywT": "so,io->si"}[form]
    multiply = jax.jit(
        lambda a, b: jnp.einsum(
            equation, a, b, precision=precision, preferred_element_type=jnp.float32
        )
    )
    total = 0.0
    for inputs, outputs in LAYER:
        x, w, y = (
            jnp.ones(shape, dtype)
            for shape in ((tokens, inputs), (inputs, outputs), (tokens, outputs))
        )
        a, b = {"xw": (x, w), "xTy": (x, y), "ywT": (y, w)}[form]
        total += seconds(lambda multiply=multiply, a=a, b=b: multiply(a, b))
    return sum(2 * tokens * i * o for i, o in LAYER) / total


def main() -> None:
    """Prints the table."""
    print(f"{'':10}{'x w':>10}{'x^T y':>10}{'y w^T':>10}   GFLOP/s")
    for dtype in ("bfloat16", "float32"):
        rates = (layer_rate(dtype, form=form) / 1e9 for form in ("xw", "xTy", "ywT"))
        print(f"{dtype:10}" + "".join(f"{rate:10.0f}" for rate in rates))


if __name__ == "__main__":
    main()
