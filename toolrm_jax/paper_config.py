"""The recipe of the paper (arXiv:2509.11963) for one base model: what the configs of it share.

Published: one epoch, learning rate 1e-6, cosine with 3% warm-up, reward centering. Not published,
and chosen here: eta 0.01, the usual value; 64k tokens a step, about 65 pairs; AdamW's betas. Each
shard of rows takes one row at least, so 32 chips take 128k tokens a step: training says so.
"""

from ml_collections import ConfigDict

from toolrm_jax.default_config import default_config


def paper_config(source: str, remat: str) -> ConfigDict:
    """The recipe for a base model, by its hub id or folder, in rows of 4,096 tokens.

    The data is yours: files as the README describes them, or what `--config.data.train` names.
    """
    config = default_config()
    config.model.source = source
    config.model.remat = remat

    config.data.train = "data/train.jsonl"
    config.data.heldout = "data/heldout.jsonl"
    config.data.row_shapes = ((4096, 64),)
    config.data.batch_tokens = 65_536
    config.data.workers = 8

    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_fraction = 0.03
    config.optimizer.final_fraction = 0.0

    config.train.epochs = 1.0
    config.train.log_every = 10
    config.train.eval_every = 500
    config.train.eval_rows = 512
    config.train.checkpoint_every = 200
    return config
