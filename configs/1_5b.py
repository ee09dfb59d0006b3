"""Qwen2.5-1.5B-Instruct as a reward model, by the paper's recipe.

python -m toolrm_jax.train --config configs/1_5b.py --workdir runs/1_5b
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen2.5-1.5B-Instruct", remat="projections")
