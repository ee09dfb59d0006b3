"""bfloat16 arrays pass loops as bits: equal values, no copy of a stack, no lost gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import BF16, batch_of, on_mesh, random_params, random_prompt, tiny

from toolrm_jax import attention
from toolrm_jax.bits import as_bits, from_bits, kept
from toolrm_jax.model import Forward


def test_values_come_back_as_they_were():
    tree = {
        "low": jnp.array([1.5, -0.0, jnp.inf, jnp.nan], jnp.bfloat16),
        "exact": jnp.array([0.1], jnp.float32),
    }
    bits = as_bits(tree)
    assert bits["low"].dtype == jnp.uint16
    assert bits["exact"] is tree["exact"]
    back = from_bits(bits)
    assert back["low"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(as_bits(back)["low"], bits["low"])
    np.testing.assert_array_equal(back["low"].astype(jnp.float32), [1.5, 0.0, np.inf, np.nan])
    assert jnp.signbit(back["low"][1])


def test_a_gradient_is_refused_where_it_would_be_lost():
    def total(x):
        return from_bits(as_bits(x)).astype(jnp.float32).sum()

    with pytest.raises(TypeError, match="float32 masters"):
        jax.grad(total)(jnp.ones(3, jnp.bfloat16))


def test_what_is_kept_has_its_value_and_its_gradient():
    policy = jax.checkpoint_policies.save_only_these_names("product")

    def total(x):
        return jnp.sum(kept(x * x, "product").astype(jnp.float32) ** 2)

    for dtype in (jnp.bfloat16, jnp.float32):
        x = jnp.arange(1, 5, dtype=dtype)
        assert total(x) == 1 + 16 + 81 + 256
        for run in (total, jax.checkpoint(total, policy=policy)):
            np.testing.assert_array_equal(jax.grad(run)(x), 4 * x**3)


def test_training_stacks_what_it_keeps_as_bits_and_no_masks(single_device, monkeypatch):
    """As it was: a third of a step's time."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    config = tiny(width=16, mlp_width=48, num_layers=3)
    params = random_params(config)
    rows = [[random_prompt(np.random.default_rng(0), 9, 3, 4)]]
    batch = on_mesh(batch_of(rows, 32, 4), single_device)
    run = Forward(config, BF16)
    gradient = jax.jit(jax.grad(lambda params: run(params, batch).sum()))
    compiled = gradient.lower(params).compile().as_text()
    assert "u16[3,1,32,48]" in compiled  # gate and up of all layers
    assert "bf16[3,1,32,48]" not in compiled
    assert "f32[3,1,32,48]" not in compiled
    # [blocks, key heads, queries a key head, queries of a block, keys of a window]
    assert not re.search(r"(pred|f32)\[4,2,2,8,(8|12|16|24|32)\]", compiled)


def test_no_stack_of_weights_is_converted_whole(single_device):
    """As it was: a fifth of the time of scoring."""
    config = tiny(width=16, mlp_width=48, num_layers=3)
    params = random_params(config)
    params["blocks"] = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params["blocks"])
    rows = [[random_prompt(np.random.default_rng(0), 9, 3, 4)]]
    batch = on_mesh(batch_of(rows, 24, 4), single_device)
    compiled = jax.jit(Forward(config, BF16)).lower(params, batch).compile().as_text()
    assert "u16[3,16,48]" in compiled
    assert "f32[3,16,48]" not in compiled
