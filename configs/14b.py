"""Qwen2.5-14B-Instruct as a reward model: one of the paper's base models.

    python -m toolrm_jax.train --config configs/14b.py --workdir gs://bucket/14b \\
        --config.data.train=gs://bucket/train.jsonl \\
        --config.data.heldout=gs://bucket/heldout.jsonl

The recipe is that of arXiv:2509.11963: see `toolrm_jax/paper_config.py`. Planned, not measured, by
`python -m toolrm_jax.plan` (docs/plan.md): memory a chip, and between two bounds the tokens/s and
the hours of an epoch of 180,000 pairs, in rows of 4,096 tokens:

    v5p:2x2x4                    36.8 of 95.0 GiB, 43-66k tokens/s, 0.76-1.2 h
    v6e:4x4, model.remat=full    20.9 of 31.2 GiB, 50-96k tokens/s, 0.52-1.0 h
    v5e:4x8, model.remat=full    13.9 of 15.8 GiB, 34-50k tokens/s, 1.0-1.5 h
    h100:2x8                     29.8 of 72.8 GiB, 90-129k tokens/s, 0.39-0.56 h
"""

from ml_collections import ConfigDict

from toolrm_jax.paper_config import paper_config


def get_config() -> ConfigDict:
    """The paper's recipe."""
    return paper_config("Qwen/Qwen2.5-14B-Instruct", remat="projections")
