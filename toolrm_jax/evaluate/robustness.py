"""Does a reward hold when the same is said otherwise, and when tools are named badly?

    pairs --perturbations--> the same pairs, changed: accuracy, and how far rewards move
    rows with levels of noise (RoTBench) --corruptions--> pairs, a category for each level

Accuracy is told for each way of changing beside that of the same pairs as they were: not every way
can change every pair. What a run tells first is of the cases as they are; the changed ones and the
levels of noise are told by category alone.

Drift is the mean distance that the right answer's reward moves, over the standard deviation of all
rewards as they were, so that models with other scales compare. A right answer that could not be
scored before or after is not in that mean; a figure that nothing is known of is null.
"""

import collections
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.corruptions import corrupt
from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Candidate, Case, Cases, Reject
from toolrm_jax.evaluate.pair_metrics import by_label, credits_of, pairs_of
from toolrm_jax.evaluate.perturbations import KINDS, perturb
from toolrm_jax.examples import Example
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


def read_levels(path: str | os.PathLike[str], seed: int) -> Cases:
    """Cases from normalised rows with a level under meta.kind: the gold against up to three
    corruptions of it, judged wrong. A row that is none is rejected."""
    digest = open_rows(os.fspath(path)).digest()
    cases, rejects = [], []
    # Of each row comes one example or reject.
    found = zip(sources.rows(path), open_source("normalised", path), strict=True)
    for (_, line, row), example in found:
        if isinstance(example, sources.Reject):
            rejects.append(Reject(line, f"{example.reason}: {example.detail}"[:300]))
        elif (level := (row.get("meta") or {}).get("kind")) in (None, ""):
            rejects.append(Reject(line, f"expected a level under meta.kind, found {level!r}"))
        else:
            cases.append(_level_case(example, str(level), seed))
    if not cases:
        why = f"; the first: line {rejects[0].line}, {rejects[0].reason}" if rejects else ""
        raise InputError(f"--levels {os.fspath(path)}: no row is of a level of noise{why}")
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
