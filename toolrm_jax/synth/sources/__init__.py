"""Every source by its name: an upstream's own files to examples.

    xlam, xlam_irrelevance    APIGen's rows                        a file or a hub's data set
    sgd                       Schema-Guided Dialogue               the folder of a split
    sealtools                 Seal-Tools                           a file beside tool.jsonl
    toolalpaca                ToolAlpaca's evaluation files        a file
    toolalpaca_hammer         ToolAlpaca as in Hammer's files      a file
    api_bank                  API-Bank as in Hammer's files        a file
    nexusraven                NexusRaven's evaluation              a hub's data set, or two files
    rotbench                  RoTBench, first turn                 a file
    bfcl                      BFCL                                 "wheel", or a folder
    toolrm_pairs              ibm-research/ToolRM-train-data       a file or a hub's data set
    fc_reward_bench           ibm-research/fc-reward-bench         a file or a hub's data set
    normalised                tools, conversation, gold_calls      a file or a hub's data set
    openai                    messages and tools                   a file or a hub's data set

A file is JSON lines (.gz, .zst too), a JSON array or Parquet, here or under gs://. Options of a
hub's data set: `split`, `revision` (a commit, branch or tag; default: its newest), and of most
sources `subset`.

    for found in open_source("sgd", "data/sgd/train"):
        ...                                     # an Example, or a Reject with reason and line
"""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.source import Reject
from toolrm_jax.synth.sources import (
    bfcl,
    fc_reward_bench,
    hammer,
    nexusraven,
    normalised,
    openai_rows,
    rotbench,
    sealtools,
    sgd,
    toolalpaca,
    toolrm_pairs,
    xlam,
)

SOURCES: dict[str, Callable[..., Iterator[Example | Reject]]] = {
    "xlam": xlam.read,
    "xlam_irrelevance": xlam.read_irrelevance,
    "sgd": sgd.read,
    "sealtools": sealtools.read,
    "toolalpaca": toolalpaca.read,
    "toolalpaca_hammer": hammer.read_toolalpaca,
    "api_bank": hammer.read_api_bank,
    "nexusraven": nexusraven.read,
    "rotbench": rotbench.read,
    "bfcl": bfcl.read,
    "toolrm_pairs": toolrm_pairs.read,
    "fc_reward_bench": fc_reward_bench.read,
    "normalised": normalised.read,
    "openai": openai_rows.read,
}


def open_source(
    name: str, path: str | os.PathLike[str], **options: Any
) -> Iterator[Example | Reject]:
    """The examples and rejects of a source's files, one after the other.

    Raises InputError for an unknown source or option, and where nothing can be opened.
    """
    check_options(name, path, options)
    return SOURCES[name](path, **options)


def check_options(name: str, path: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
    """Raises InputError for an unknown source or option; nothing is opened."""
    if name not in SOURCES:
        raise InputError(f"No source is called {name!r}; expected one of {', '.join(SOURCES)}")
    signature = inspect.signature(SOURCES[name])
    for part in ("split", "subset", "revision"):
        if not isinstance(options.get(part), str | None):
            raise InputError(f"source {name!r}: {part}={options[part]!r}; expected text")
    try:
        signature.bind(path, **options)
    except TypeError as error:
        known = [p for p in signature.parameters if p != "path"]
        raise InputError(
            f"source {name!r}: {error}. Its options: {', '.join(known) or 'none'}"
        ) from None
