"""Normalised rows: JSON lines with tools as JSON Schema, a conversation and gold calls.

    {"id", "source", "license", "tools": [{"name", "description", "parameters"}],
     "conversation": [{"role", "content", ...}], "gold_calls": [{"name", "arguments"}], "meta": {}}

`"gold_calls": []` means that nothing should be called. Rows keep their own id, source and licence.
A row whose `meta` lists several right answers that call different tools makes a reject: a reference
holds one set of calls, and a right answer must not be judged wrong.
"""

import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Example
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, examples, field, rows


def read(
    path: str | os.PathLike[str], *, split: str = "train", subset: str | None = None
) -> Iterator[Example | Reject]:
    """The examples of a file of normalised rows."""
    return examples("normalised", "unknown", rows(path, split=split, subset=subset), _drafts)


def _drafts(row: Any, line: int) -> Iterator[Draft]:
    others = (row.get("meta") or {}) if isinstance(row, dict) else {}
    alternatives = others.get("gold_alternatives") if isinstance(others, dict) else None
    if isinstance(alternatives, list) and len(alternatives) > 1:
        raise Fault(Reason.SEVERAL_RIGHT, f"{len(alternatives)} under meta.gold_alternatives")
    yield Draft(
        field(row, "id", str),
        field(row, "tools", list),
        field(row, "conversation", list),
        field(row, "gold_calls", list),
        source=field(row, "source", str),
        license=field(row, "license", str),
    )
