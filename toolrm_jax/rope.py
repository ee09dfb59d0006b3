"""Rotary position embedding (RoFormer, arXiv:2104.09864), and its scalings for long contexts.

The two halves of a head are rotated as pairs (x[i], x[i + H/2]), as Hugging Face's checkpoints
expect. All in float32: at position 30,000 bfloat16 could not tell neighbours apart. Scalings:
"linear" (position interpolation), "llama3", and "yarn" (arXiv:2309.00071), each equal to
transformers' (`modeling_rope_utils.py`) in the tests.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from toolrm_jax.model_config import Rope


def inverse_frequencies(rope: Rope, head_dim: int) -> tuple[np.ndarray, float]:
    """Radians per position of each pair, float32 [head_dim / 2], and the factor on cos and sin."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    frequencies = (1.0 / np.float32(rope.theta) ** exponents).astype(np.float32)
    scaling = dict(rope.scaling)
    if rope.type == "default":
        return frequencies, 1.0
    if rope.type == "linear":
        return frequencies / np.float32(scaling["factor"]), 1.0
    if rope.type == "llama3":
        return _llama3(frequencies, scaling), 1.0
    return _yarn(frequencies, scaling, rope.theta, head_dim)


def _llama3(frequencies: np.ndarray, scaling: dict) -> np.ndarray:
    """Divides slow frequencies by the factor, keeps fast ones, and blends between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (frequencies * (kept + (1 - kept) / scaling["factor"])).astype(np.float32)


def _yarn(frequencies: np.ndarray, scaling: dict, theta: float, head_dim: int):
    """Interpolates pairs that turn seldom within the original context, keeps the others."""
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_that_turns(scaling.get("beta_fast") or 32)
    last = pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = (np.arange(head_dim // 2) - first) / (last - first or 0.001)
    kept = 1 - np.clip(ramp, 0, 1)
    scaled = (frequencies * (kept + (1 - kept) / factor)).astype(np.float32)
    return scaled, _yarn_attention_factor(scaling, factor)


def _yarn_attention_factor(scaling: dict, factor: float) -> float:
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]

    def growth(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return growth(scaling["mscale"]) / growth(scaling["mscale_all_dim"])
    return growth(1.0)


def rotation(rope: Rope, head_dim: int, positions_BS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of every position's angles, float32 [B, S, head_dim / 2] each."""
    frequencies, factor = inverse_frequencies(rope, head_dim)
    angles = positions_BS[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x_BSNH: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each head's pairs by their position's angles; returns x's type."""
    cos, sin = (part[:, :, None, :] for part in cos_sin)
    a, b = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BSNH.dtype)
