"""The first layers of SmolLM2-135M on synthesised pairs, with nothing from BFCL among them.

    python -m toolrm_jax.synth --config configs/synth/local.py:DATA --workdir runs/pairs \\
        --config.longest_prompt=2500 --config.selection.wrong_per_prompt=6
    python -m toolrm_jax.evaluate probe --model embedded:smollm2 --layers 10 --fit FILE \\
        --output runs/probe
    python -m toolrm_jax.train --config configs/smollm2_synth.py --workdir runs/synth \\
        --config.model.source=runs/probe \\
        --config.data.train=runs/pairs/dataset/array_record \\
        --config.data.heldout=FILE

It starts at a linear probe's head (fitted on a FILE of such pairs): from a random one, the first
hundred steps go by with little learnt. On 2 CPU cores 10,000 pairs take about an hour, 100,000
many; a run that is stopped goes on by the same command. `configs/quickstart.py` says why there are
10 layers.
"""

from ml_collections import ConfigDict

from toolrm_jax.default_config import default_config


def get_config() -> ConfigDict:
    """A lower rate than the quickstart's, for a start at a probe's head."""
    config = default_config()
    config.model.num_layers = 10
    config.data.row_shapes = ((2048, 64),)
    config.data.max_tokens = 1536
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_fraction = 0.1
    return config
