"""FC-RewardBench: `ibm-research/fc-reward-bench`, for evaluation.

    {"tools", "conversation", "chosen_output", "rejected_output", "error_type", "model_name",
     "test_category", "test_id"}

Run on a replica with the published columns (of which the project's shared data has one), not on the
published rows. It is an evaluation set: what overlaps it does not belong in training. Licence:
Apache-2.0.
"""

import os
from collections.abc import Iterator

from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.source import Reject
from toolrm_jax.synth.sources import preferences

LICENSE = "Apache-2.0"


def read(
    path: str | os.PathLike[str], *, split: str = "train", revision: str | None = None
) -> Iterator[Example | Reject]:
    """Every pair's prompt with the right calls as gold."""
    return preferences.read_pairs(
        path, name="fc_reward_bench", license=LICENSE, split=split, revision=revision
    )


def answers(
    path: str | os.PathLike[str], *, split: str = "train", revision: str | None = None
) -> Iterator[Answer | Reject]:
    """Every pair's two sides, judged as published."""
    return preferences.answers(path, name="fc_reward_bench", split=split, revision=revision)
