"""bfloat16 arrays as uint16 on their way through a loop: XLA:CPU slices those as they are.

    as_bits(tree) --loop slices or stacks it--> from_bits(part)

A CPU has no bfloat16 arithmetic of its own, so XLA converts to float32 and back around whatever it
does with such arrays, slicing included; and it moves the conversion out of the loop, so that the
whole stack of weights is converted for each batch. That took a fifth of the time of scoring. Other
types pass as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def as_bits(tree: Any) -> Any:
    """The tree with its bfloat16 arrays as uint16; not to be differentiated (a TypeError)."""
    return jax.tree.map(lambda x: _bits(x) if x.dtype == jnp.bfloat16 else x, tree)


def from_bits(tree: Any) -> Any:
    """The tree with its uint16 arrays as the bfloat16 ones that they were."""
    return jax.tree.map(lambda x: _bfloat16(x) if x.dtype == jnp.uint16 else x, tree)


@jax.custom_jvp
def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@_bits.defjvp
def _no_gradient(primals, tangents):
    # JAX would give zero, without a word.
    raise TypeError("A gradient by bfloat16 weights: train float32 masters, which are cast at use.")


def _bfloat16(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
