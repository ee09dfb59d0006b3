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
    config.data.row_shapes = ((1024, 32),)
    config.data.max_tokens = 768
    config.train.steps = 110
    config.optimizer.learning_rate = 2e-4
    return config
