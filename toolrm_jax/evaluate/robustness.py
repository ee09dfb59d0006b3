"""Does a reward hold when the same is said otherwise, and when tools are named badly?

    pairs --perturbations--> the same pairs, changed: accuracy, and how far rewards move
    tasks with levels of noise (RoTBench) --corruptions--> pairs, a category for each level

Accuracy is told for each way of changing beside that of the same pairs as they were: not every way
can change every pair. What a run tells first is of the cases as they are; the changed ones and the
levels of noise are told by category alone, and counted apart. Levels are not paired: each has the
tasks of its rows that can be judged.

Drift is the mean distance that the right answer's reward moves, over the standard deviation of all
rewards as they were, so that models with other scales compare. A right answer that could not be
scored before or after is not in that mean; a figure that nothing is known of is null.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from toolrm_jax.corruptions import corrupt
from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Candidate, Case, Cases, Reject
from toolrm_jax.evaluate.pair_metrics import by_label, credits_of, pairs_of
from toolrm_jax.evaluate.perturbations import KINDS, perturb
from toolrm_jax.examples import Example
from toolrm_jax.row_source import open_rows
from toolrm_jax.splits import digest as digest_of
from toolrm_jax.synth import source as sources
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import judge

PLAIN = "as it is"
WRONGS = 3  # a task of a level
FORMS = ("normalised", "rotbench")  # of --levels
_TAKEN = {PLAIN, *KINDS}


def as_they_are(data: Cases) -> Cases:
    """The data's cases, their category that they are unchanged."""
    cases = [dataclasses.replace(case, category=PLAIN) for case in data.cases]
    return dataclasses.replace(data, cases=cases)


def changed_cases(cases: Sequence[Case], seed: int) -> tuple[list[Case], list[tuple[int, str]]]:
    """(the cases changed in every way, which is their category; the case and way of each)."""
    made, origins = [], []
    for kind in KINDS:
        for number, case in enumerate(cases):
            changed = perturb(case, kind, cases, seed=seed)
            if changed is not None:
                made.append(dataclasses.replace(changed, category=kind))
                origins.append((number, kind))
    return made, origins


def left_out(origins: Sequence[tuple[int, str]], cases: int) -> list[str]:
    """In how many of the cases each way has nothing to change, as a note; none if there is none."""
    made = collections.Counter(way for _, way in origins)
    words = [f"{kind}: {cases - made[kind]:,}" for kind in KINDS if made[kind] < cases]
    return [f"Cases with nothing to change, left out: {', '.join(words)}."] if words else []


def by_category(
    cases: Sequence[Case], scores: Sequence[np.ndarray], seed: int
) -> dict[str, dict[str, Any]]:
    """Accuracy of the cases as they are, of each way of changing and of each level."""
    pairs = pairs_of(cases)
    return by_label(credits_of(pairs, scores), pairs.tasks, pairs.categories, seed)


def drift(
    cases: Sequence[Case],
    origins: Sequence[tuple[int, str]],
    before: Mapping[str, Sequence[np.ndarray]],
    after: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """By way of changing: how many cases, and of each scorer what became of it."""
    found: dict[str, Any] = {}
    spreads = {name: _spread(np.concatenate(scores)) for name, scores in before.items()}
    for kind in KINDS:
        here = [place for place, (_, way) in enumerate(origins) if way == kind]
        if not here:
            continue
        numbers = [origins[place][0] for place in here]
        mine = [cases[number] for number in numbers]
        found[kind] = {"cases": len(here)} | {
            name: _moved(
                mine,
                [before[name][number] for number in numbers],
                [after[name][place] for place in here],
                spreads[name],
            )
            for name in before
        }
    return found


def _spread(rewards: np.ndarray) -> float:
    known = rewards[np.isfinite(rewards)]
    return float(known.std()) if len(known) else 0.0


def _moved(
    cases: Sequence[Case], before: Sequence[np.ndarray], after: Sequence[np.ndarray], spread: float
) -> dict[str, float | None]:
    pairs = pairs_of(cases)
    was, now = (credits_of(pairs, scores) for scores in (before, after))
    moved = np.abs(was - now)
    right = np.array([c.right for case in cases for c in case.candidates], bool)
    old, new = (np.concatenate(scores)[right] for scores in (before, after))
    known = np.isfinite(old) & np.isfinite(new)
    distance = _mean(np.abs(new[known] - old[known]))
    return {
        "accuracy before": _mean(was),
        "accuracy": _mean(now),
        "turned": _mean(np.where(np.isnan(moved), np.nan, moved == 1)),
        "drift": None if distance is None or spread == 0 else distance / spread,
    }


def _mean(values: np.ndarray) -> float | None:
    """Of what is known (no NaN); None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def read_levels(path: str | os.PathLike[str], seed: int, form: str = "normalised") -> Cases:
    """Cases from tasks with a level of noise: the gold against up to three corruptions of it, which
    are judged wrong. A row that is none is rejected.

    Args:
      form: "normalised", the level stands under meta.kind; "rotbench", the level is the file's
        stem (clean.json, slight.json, medium.json, heavy.json, union.json).
    """
    digest = open_rows(os.fspath(path)).digest()
    cases, rejects = [], []
    for line, level, found in _levelled(path, form):
        if isinstance(found, sources.Reject):
            rejects.append(Reject(line, f"{found.reason}: {found.detail}"[:300]))
        elif level in (None, ""):
            rejects.append(Reject(line, f"expected a level under meta.kind, found {level!r}"))
        elif level in _TAKEN:
            rejects.append(Reject(line, f"a level is called {level!r}, as cases of the run are"))
        else:
            cases.append(_level_case(found, str(level), seed))
    if not cases:
        why = f"; the first: line {rejects[0].line}, {rejects[0].reason}" if rejects else ""
        way = (
            "" if form == "rotbench" else "; of RoTBench's own files, give --levels-format rotbench"
        )
        raise InputError(f"--levels {os.fspath(path)}: no row is of a level of noise{why}{way}")
    return Cases(os.fspath(path), digest, cases, rejects)


def _levelled(
    path: str | os.PathLike[str], form: str
) -> Iterator[tuple[int, Any, Example | sources.Reject]]:
    """(line, level, what the row is). A row gives one example or reject; examples do not say their
    line, and only rejects of RoTBench's need it."""
    found = open_source(form, path)
    if form == "rotbench":
        level = PurePath(os.fspath(path)).name.partition(".")[0]
        yield from ((getattr(one, "line", None) or 0, level, one) for one in found)
        return
    for (_, line, row), one in zip(sources.rows(path), found, strict=True):
        meta = (row.get("meta") or {}) if isinstance(one, Example) else {}
        yield line, meta.get("kind"), one


def joined(files: Sequence[Cases]) -> Cases:
    """The cases of all files as one; the lines of rejects are then under their file's name."""
    if len(files) == 1:
        return files[0]
    return Cases(
        ", ".join(one.name for one in files),
        digest_of(*(one.digest for one in files)),
        [case for one in files for case in one.cases],
        [Reject(r.line, f"{one.name}: {r.reason}") for one in files for r in one.rejects],
    )


def said_of_beside(changed: Cases, files: Sequence[Cases], levels: Cases | None) -> list[str]:
    """What was scored beside the data's own cases, as notes."""
    notes = [f"Scored beside them: {len(changed.cases):,} changed cases{_by_category(changed)}."]
    notes += [f"Levels of noise: {one.name} (SHA-256 {one.digest[:16]})." for one in files]
    if levels:
        count = f"Scored beside them: {len(levels.cases):,} cases of levels{_by_category(levels)}"
        notes.append(f"{count}; {len(levels.rejects):,} rows of their files were rejected.")
    return notes


def _by_category(data: Cases) -> str:
    counts = collections.Counter(case.category for case in data.cases)
    words = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    return f" ({words})" if words else ""


def _level_case(example: Example, level: str, seed: int) -> Case:
    candidates = [Candidate(example.gold or example.words or "", True)]
    errors: set[str] = set()
    for wrong in corrupt(example, seed=seed):
        kind = str(wrong.error_type)
        verdict = judge(wrong.response, example.reference, example.tools)
        if verdict.error_type == wrong.error_type and kind not in errors:
            errors.add(kind)
            candidates.append(Candidate(wrong.response, False, kind, "corruption"))
        if len(candidates) > WRONGS:
            break
    return Case(example.id, example.tools, example.messages, candidates, level)
