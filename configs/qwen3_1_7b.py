"""Qwen3-1.7B as a reward model: by the paper's recipe, whose base models are Qwen2.5's.

    python -m toolrm_jax.train --config configs/qwen3_1_7b.py --workdir gs://bucket/qwen3_1_7b \\
        --config.data.train=gs://bucket/train.jsonl \\
        --config.data.heldout=gs://bucket/heldout.jsonl

The recipe is that of arXiv:2509.11963: see `toolrm_jax/paper_config.py`. Planned, not measured, by
`python -m toolrm_jax.plan` (docs/plan.md): memory a chip, and between two bounds the tokens/s and
the hours of an epoch of 180,000 pairs, in rows of 4,096 tokens:

    v6e:2x2, model.remat=full    13.7 of 31.2 GiB, 137-160k tokens/s, 0.31-0.37 h
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen3-1.7B", remat="projections")
