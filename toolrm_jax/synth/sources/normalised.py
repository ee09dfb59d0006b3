"""Normalised rows: JSON lines with tools as JSON Schema, a conversation and gold calls.

    {"id", "source", "license", "tools": [{"name", "description", "parameters"}],
     "conversation": [{"role", "content", ...}], "gold_calls": [{"name", "arguments"}], "meta": {}}

`"gold_calls": []` means that nothing should be called. What should be said instead no row tells,
but where `meta.kind` is "irrelevant_tools": that no tool on offer does what was asked. Where
`meta.verdict` is "state_outcome", a call is right by what it brings about. Rows keep their own id,
source and licence.

A row that says itself that its gold is not to be trusted (`doubt`) makes a reject, unless the
options say otherwise; so does one that calls nothing where a call would not be plainly wrong
(`meta.kind` "answer_in_context" and "closing", of SGD). A row whose gold takes another call's
result (`meta.kind` "nested", of Seal-Tools) always does, and one whose `meta` lists several right
answers that call different tools: a reference holds one set of calls, and a right answer must not
be judged wrong.
"""

import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Example
from toolrm_jax.synth.doubt import Doubts
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, examples, field, rows


def read(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    sound_gold: bool = True,
    min_right_rate: float = 0.5,
    before_first_error: bool = True,
    sure_silence: bool = True,
) -> Iterator[Example | Reject]:
    """The examples of a file of normalised rows.

    Args:
      sound_gold, min_right_rate, before_first_error: those of `Doubts`.
      sure_silence: leaves out rows that call nothing where a call would not be plainly wrong.
    """
    doubts = Doubts(sound_gold, min_right_rate, before_first_error)

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        yield _draft(row, doubts, sure_silence)

    values = rows(path, split=split, subset=subset, revision=revision)
    return examples("normalised", "unknown", values, drafts)


_NO_CALL_NEEDED = ("answer_in_context", "closing")


def _draft(row: Any, doubts: Doubts, sure_silence: bool) -> Draft:
    meta = (row.get("meta") or {}) if isinstance(row, dict) else {}
    if not isinstance(meta, dict):
        raise Fault(Reason.FORM, f"expected an object under 'meta', found {meta!r:.80}")
    alternatives = meta.get("gold_alternatives")
    fault = None
    if isinstance(alternatives, list) and len(alternatives) > 1:
        fault = Fault(Reason.SEVERAL_RIGHT, f"{len(alternatives)} under meta.gold_alternatives")
    elif meta.get("kind") == "nested":
        fault = Fault(Reason.NESTED, "by meta.kind")
    elif doubt := doubts.about(meta):
        fault = Fault(Reason.DOUBTED, doubt)
    elif sure_silence and meta.get("kind") in _NO_CALL_NEEDED:
        fault = Fault(Reason.DOUBTED, "a call would not be plainly wrong")
    return Draft(
        field(row, "id", str),
        field(row, "tools", list),
        field(row, "conversation", list),
        field(row, "gold_calls", list),
        source=field(row, "source", str),
        license=field(row, "license", str),
        words=None if meta.get("kind") == "irrelevant_tools" else "",
        by_outcome=meta.get("verdict") == "state_outcome",
        fault=fault,
    )
