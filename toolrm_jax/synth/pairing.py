"""Stages 4 and 5 of a synthesis: answers are judged, and pairs chosen among all that were.

Judge(seed)(unit, tally)            a shard of examples and one of answers -> judged rows
plan_selection(folder, ...)         once: chooses among all candidates of the run
Pair(folder, k_way)(unit, tally)   what was chosen of a shard, as rows of the loader
"""

import dataclasses
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolrm_jax.files import write_bytes
from toolrm_jax.synth.answer import from_row, main_model
from toolrm_jax.synth.candidates import Candidates, candidates_of, merge
from toolrm_jax.synth.judging import judge_answers
from toolrm_jax.synth.reading import example_of
from toolrm_jax.synth.selection import SelectionSettings, select
from toolrm_jax.synth.selection_report import off_the_mix_lines
from toolrm_jax.synth.shards import Row, read_shard
from toolrm_jax.synth.stage import Summary
from toolrm_jax.synth.units import Tally, Unit, unit_name
from toolrm_jax.synth.workers import in_order


@dataclasses.dataclass(frozen=True)
class Judge:
    """Stage 4: a unit is a shard of examples and one of answers, row for row."""

    seed: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        examples, answers = map(read_shard, unit.inputs)
        for row, given in zip(examples, answers, strict=True):
            assert row["id"] == given["id"], (row["id"], given["id"])
            found = [from_row({"example_id": row["id"], **a}) for a in given["answers"]]
            yield judge_answers(example_of(row), found, tally.counts, seed=self.seed)


def _candidates(shard: Path, seed: int) -> Candidates:
    return candidates_of(read_shard(shard), seed)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Stage 5: a unit is a shard of examples and one of judged answers, row for row."""

    folder: Path  # of the plan
    k_way: bool

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        chosen = np.load(self.folder / f"{unit.name}.chosen.npy")
        examples, judged = map(read_shard, unit.inputs)
        at = 0
        for example, row in zip(examples, judged, strict=True):
            mine = chosen[at : at + len(row["wrong"])]
            at += len(row["wrong"])
            if not row["wrong"]:
                tally.count("left out: examples without a wrong answer")
            elif not mine.any():
                tally.count("left out: examples of which no wrong answer was chosen")
            yield from pair_rows(example, row, mine.tolist(), k_way=self.k_way)


def pair_rows(example: Row, judged: Row, chosen: Sequence[bool], *, k_way: bool) -> Iterator[Row]:
    """The rows of one example for the loader: one with all its wrong answers, or one for each."""
    wrongs = [wrong for wrong, taken in zip(judged["wrong"], chosen, strict=True) if taken]
    if not wrongs:
        return
    row = {
        "id": example["id"],
        "source": example["source"],
        "license": example["license"],
        "turn": judged["turn"],
        "tools": example["tools"],
        "messages": example["messages"],
        "chosen": judged["chosen"],
        "chosen_by": judged["chosen_by"],
    }
    rejected = [
        {
            "response": wrong["response"],
            "error_type": wrong["error_type"],
            "kind": wrong["kind"],
            "model": main_model(wrong["models"]),
            "license": wrong["license"],
            "count": wrong["count"],
        }
        for wrong in wrongs
    ]
    if k_way:
        yield row | {"rejected": rejected}
        return
    for number, wrong in enumerate(rejected):
        yield row | {"id": f"{row['id']}#{number}", "rejected": [wrong]}


def plan_selection(
    folder: Path, _: Tally, judged: Summary, settings: SelectionSettings, workers: int
) -> dict[str, Any]:
    """Chooses among all candidates; leaves what was chosen beside each shard's rows."""
    read = functools.partial(_candidates, seed=settings.seed)
    parts = in_order(read, judged.shards, workers)
    found = merge(parts)
    if absent := sorted(set(settings.model_caps) - set(found.names)):
        print(f"pairs: no wrong answer is of {', '.join(absent)} (model_caps)", flush=True)
    chosen, report = select(found, settings)
    for line in off_the_mix_lines(report):
        print(f"pairs: off the mix by more than a tenth, {line}", flush=True)
    at = 0
    for shard, part in zip(judged.shards, parts, strict=True):
        packed = io.BytesIO()
        np.save(packed, chosen[at : at + len(part.table)])
        write_bytes(folder / f"{unit_name(shard)}.chosen.npy", packed.getvalue())
        at += len(part.table)
    return {"selection": report}
