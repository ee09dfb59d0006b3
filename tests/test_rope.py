"""Rotary embeddings: every scaling equals transformers', far positions keep their digits."""

import jax
import numpy as np
import pytest

from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.rope import inverse_frequencies, rotate, rotation

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": YARN,
    "yarn, untruncated": YARN | {"truncate": False},
    "yarn, given attention": YARN | {"attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn, mscale": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1},
    "yarn, short context": YARN | {"original_max_position_embeddings": 64},
}


def hf_config(scaling: dict, theta: float = 1e6):
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": theta},
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_frequencies_and_factor_equal_transformers(name, theta):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    theirs = hf_config(SCALINGS[name], theta)
    # It takes both from its ROPE_INIT_FUNCTIONS, or from its own rule where nothing is scaled.
    embedding = Qwen2RotaryEmbedding(theirs)
    ours = ModelConfig.from_hf(theirs.to_dict())
    frequencies, our_factor = inverse_frequencies(ours.rope, ours.head_dim)
    np.testing.assert_allclose(frequencies, embedding.inv_freq.numpy(), rtol=1e-6)
    assert our_factor == pytest.approx(embedding.attention_scaling, rel=1e-7)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["default", "yarn"])
def test_rotation_equals_transformers_at_far_positions(name):
    import torch
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

    theirs = hf_config(SCALINGS[name])
    ours = ModelConfig.from_hf(theirs.to_dict())
    positions = np.array([[0, 1, 2, 511, 30_000, 30_001]])
    x_BSNH = np.random.default_rng(0).normal(size=(1, 6, 4, 64)).astype(np.float32)
    x_BNSH = torch.from_numpy(x_BSNH).transpose(1, 2)
    cos, sin = Qwen2RotaryEmbedding(theirs)(x_BNSH, torch.from_numpy(positions))
    expected, _ = apply_rotary_pos_emb(x_BNSH, x_BNSH, cos, sin)
    expected = expected.transpose(1, 2).numpy()
    result = rotate(x_BSNH, rotation(ours.rope, 64, positions))
    np.testing.assert_allclose(result[:, :4], expected[:, :4], atol=1e-5)
    # The last bit of a frequency, 30,000 positions on, is 30,000 * 2^-24 radians.
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_scores_depend_on_the_distance_alone():
    rope = Rope(1e4)
    q_BSNH, k_BSNH = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def score(q_at, k_at):
        turn = [rotation(rope, 16, np.array([[at]])) for at in (q_at, k_at)]
        return np.vdot(rotate(q_BSNH, turn[0]), rotate(k_BSNH, turn[1]))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_rotation_is_in_float32_and_returns_the_type_it_got():
    cos_sin = rotation(Rope(1e4), 16, np.array([[30_000, 30_001]]))
    assert {x.dtype for x in cos_sin} == {np.dtype(np.float32)}
    assert not np.array_equal(cos_sin[0][0, 0], cos_sin[0][0, 1])
    low = jax.numpy.ones((1, 2, 1, 16), jax.numpy.bfloat16)
    assert rotate(low, cos_sin).dtype == low.dtype
