"""Does a reward hold when the same is said otherwise, and when tools are named badly?

    pairs --perturbations--> the same pairs, changed: accuracy, and how far rewards move
    rows with levels of noise (RoTBench) --corruptions--> pairs, a category for each level

Accuracy is told for each way of changing beside that of the same pairs as they were: not every way
can change every pair. Drift is the mean distance that the right answer's reward moves, over the
standard deviation of all rewards as they were, so that models with other scales compare.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.corruptions import corrupt
from toolrm_jax.evaluate.cases import Candidate, Case, Cases, Reject
from toolrm_jax.evaluate.pair_metrics import margins_of, pairs_of
from toolrm_jax.evaluate.perturbations import KINDS, perturb
from toolrm_jax.examples import Example
from toolrm_jax.literals import read_json
from toolrm_jax.metrics import credit
from toolrm_jax.row_source import open_rows
from toolrm_jax.synth import source as sources
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import judge

PLAIN = "as it is"
WRONGS = 3  # a task of a level


def changed_cases(cases: Sequence[Case], seed: int) -> tuple[list[Case], list[tuple[int, str]]]:
    """(the cases changed in every way, which case and way each comes from)."""
    made, origins = [], []
    for kind in KINDS:
        for number, case in enumerate(cases):
            changed = perturb(case, kind, cases, seed=seed)
            if changed is not None:
                made.append(changed)
                origins.append((number, kind))
    return made, origins


def drift(
    cases: Sequence[Case],
    origins: Sequence[tuple[int, str]],
    before: Mapping[str, Sequence[np.ndarray]],
    after: Mapping[str, Sequence[np.ndarray]],
) -> dict[str, Any]:
    """By way of changing: how many cases, and of each scorer what became of it."""
    found: dict[str, Any] = {}
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
                float(np.nanstd(np.concatenate(before[name]))),
            )
            for name in before
        }
    return found


def _moved(
    cases: Sequence[Case], before: Sequence[np.ndarray], after: Sequence[np.ndarray], spread: float
) -> dict[str, float | None]:
    pairs = pairs_of(cases)
    was, now = (credit(margins_of(pairs, scores)) for scores in (before, after))
    right = [np.array([c.right for c in case.candidates]) for case in cases]
    moves = [abs(a[r] - b[r]) for a, b, r in zip(after, before, right, strict=True)]
    distance = float(np.nanmean(np.concatenate(moves))) if moves else 0.0
    return {
        "accuracy before": float(was.mean()),
        "accuracy": float(now.mean()),
        "turned": float((np.abs(was - now) == 1).mean()),
        "drift": distance / spread if spread > 0 else None,
    }


def read_levels(path: str | os.PathLike[str], seed: int) -> Cases:
    """Cases from normalised rows with a level under meta.kind: the gold against up to three
    corruptions of it, judged wrong."""
    rows = open_rows(os.fspath(path))
    digest = rows.digest()
    levels: dict[str, str] = {}
    for _, content in rows:
        row = content if isinstance(content, dict) else read_json(content.decode())
        levels[str(row.get("id"))] = str((row.get("meta") or {}).get("kind") or "")
    cases, rejects = [], []
    for found in open_source("normalised", path):
        if isinstance(found, sources.Reject):
            rejects.append(Reject(found.line or 0, f"{found.reason}: {found.detail}"[:300]))
        else:
            cases.append(_level_case(found, levels[found.id], seed))
    return Cases(os.fspath(path), digest, cases, rejects)


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
