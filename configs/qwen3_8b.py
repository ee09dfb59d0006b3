"""Qwen3-8B as a reward model, by the paper's recipe.

python -m toolrm_jax.train --config configs/qwen3_8b.py --workdir runs/qwen3_8b
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen3-8B", remat="projections")
