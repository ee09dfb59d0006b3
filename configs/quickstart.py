"""The quickstart: the first layers of SmolLM2-135M on corrupted BFCL calls, on a laptop's CPU.

    python -m toolrm_jax.train --config configs/quickstart.py --workdir runs/quickstart/model

`make quickstart` runs this, the blind model it is compared with, and the verdict
(`toolrm_jax/quickstart.py`); the README shows what that printed and how long it took. The first
layers of a decoder keep much of what tells right calls from wrong ones, at a fraction of the cost:
hence `num_layers`.
"""

from ml_collections import ConfigDict

from toolrm_jax.default_config import default_config


def get_config() -> ConfigDict:
    """The full model's config with fewer layers and steps."""
    config = default_config()
    config.model.num_layers = 10
    config.data.row_shapes = ((1344, 48),)
    config.data.max_tokens = 768
    # Small steps: so early in training, their number counts for more than their size.
    config.data.batch_tokens = 2688
    config.train.steps = 140
    # At 2e-4 rewards collapsed to one value in the first steps, and took half of the run to recover.
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_fraction = 0.1
    return config
