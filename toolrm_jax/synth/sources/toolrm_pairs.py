"""The authors' training pairs: `ibm-research/ToolRM-train-data` (arXiv:2509.11963).

Written from the published schema, not run on the real file: the columns are taken to be those of
FC-RewardBench, or a prompt with chosen and rejected sides (see `preferences`). A row in another
form makes a reject that names the columns found. Licence: Apache-2.0.
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
    """Every pair's prompt with the chosen calls as gold."""
    return preferences.read_pairs(
        path, name="toolrm_pairs", license=LICENSE, split=split, revision=revision
    )


def answers(
    path: str | os.PathLike[str], *, split: str = "train", revision: str | None = None
) -> Iterator[Answer | Reject]:
    """Every pair's two sides, judged as published."""
    return preferences.answers(path, name="toolrm_pairs", split=split, revision=revision)
