"""Qwen2.5-7B-Instruct as a reward model: one of the paper's base models.

    python -m toolrm_jax.train --config configs/7b.py --workdir gs://bucket/7b \\
        --config.data.train=gs://bucket/train.jsonl \\
        --config.data.heldout=gs://bucket/heldout.jsonl

The recipe is that of arXiv:2509.11963: see `toolrm_jax/paper_config.py`. Planned, not measured, by
`python -m toolrm_jax.plan` (docs/plan.md): memory a chip, and between two bounds the tokens/s and
the hours of an epoch of 180,000 pairs, in rows of 4,096 tokens:

    v5p:2x2x1                    83.8 of 95.0 GiB, 31-37k tokens/s, 1.4-1.6 h
    v6e:2x4, model.remat=full    23.4 of 31.2 GiB, 67-100k tokens/s, 0.50-0.75 h
    v5e:4x4, model.remat=full    12.0 of 15.8 GiB, 35-52k tokens/s, 0.96-1.4 h
    h100:8                       35.5 of 72.8 GiB, 109-132k tokens/s, 0.38-0.46 h
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen2.5-7B-Instruct", remat="projections")
