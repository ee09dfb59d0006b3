"""bfloat16 arrays as uint16 on their way through a loop: XLA:CPU slices those as they are.

    as_bits(tree) --loop slices or stacks it--> from_bits(part)
    kept(x, name)  the same for what `jax.checkpoint` keeps of each layer

A CPU has no bfloat16 arithmetic of its own, so XLA converts to float32 and back around whatever it
does with such arrays, slicing included; and it moves the conversion out of the loop, so that the
whole stack of weights is converted for each batch. That took a fifth of the time of scoring. Other
types pass as they are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array


def as_bits(tree: Any) -> Any:
    """The tree with its bfloat16 arrays as uint16; not to be differentiated (a TypeError)."""
    return jax.tree.map(lambda x: _bits(x) if x.dtype == jnp.bfloat16 else x, tree)


def from_bits(tree: Any) -> Any:
    """The tree with its uint16 arrays as the bfloat16 ones that they were."""
    return jax.tree.map(lambda x: _bfloat16(x) if x.dtype == jnp.uint16 else x, tree)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def kept(x: Array, name: str) -> Array:
    """x, named for rematerialisation (`jax.checkpoint`'s policies) in the form in which it is best
    stacked over layers."""
    return _named(x, name)


@kept.defjvp
def _kept_jvp(name: str, primals, tangents):
    # Not `kept` again: policies do not look for names inside of calls.
    return _named(primals[0], name), tangents[0]


def _named(x: Array, name: str) -> Array:
    if x.dtype != jnp.bfloat16:
        return checkpoint_name(x, name)
    return _bfloat16(checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), name))


@jax.custom_jvp
def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint16)


@_bits.defjvp
def _no_gradient(primals, tangents):
    # JAX would give zero, without a word.
    raise TypeError("A gradient by bfloat16 weights: train float32 masters, which are cast at use.")


def _bfloat16(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16)
