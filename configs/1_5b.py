"""Qwen2.5-1.5B-Instruct as a reward model: one of the paper's base models.

    python -m toolrm_jax.train --config configs/1_5b.py --workdir gs://bucket/1_5b \\
        --config.data.train=gs://bucket/train.jsonl \\
        --config.data.heldout=gs://bucket/heldout.jsonl

The recipe is that of arXiv:2509.11963: see `toolrm_jax/paper_config.py`. Planned, not measured, by
`python -m toolrm_jax.plan` (docs/plan.md): memory a chip, and between two bounds the tokens/s and
the hours of an epoch of 180,000 pairs, in rows of 4,096 tokens:

    v5e:2x4, model.remat=full    6.4 of 15.8 GiB, 96-119k tokens/s, 0.42-0.52 h
    v6e:2x2, model.remat=full    12.2 of 31.2 GiB, 163-193k tokens/s, 0.26-0.31 h
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen2.5-1.5B-Instruct", remat="projections")
