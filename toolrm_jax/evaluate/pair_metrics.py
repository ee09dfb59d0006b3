"""How well scores tell right from wrong: accuracy by kind, calibration, and what length has to do
with it.

    cases, scores [candidates] each --pairs--> Pairs --describe--> JSON

A pair is a right and a wrong candidate of one case. Equal scores earn half, and are counted apart.
A pair of which only one side could be scored goes to that side. One of which neither could (both
over-long, a judge without a reply) is in no share of that scorer: it is counted as unscored, and n
is smaller by it. Intervals are 95%, by a bootstrap over tasks (`metrics.py`).

Calibration takes the answer that the scores prefer: sigmoid(|difference|), at least a half, is how
sure they are, and the share that is right is how sure they may be. ECE is the mean distance of the
two over ten ranges of equal width, by the number of pairs in each (arXiv:1706.04599).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from toolrm_jax.evaluate.cases import Case
from toolrm_jax.metrics import credit, estimate
from toolrm_jax.task_view import response_length

BINS = 10


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Every pair of the cases, in order. Arrays [n]."""

    tasks: list[str]
    error_types: list[str]
    categories: list[str]
    models: list[str]
    numbers: list[tuple[int, int, int]]  # case, right candidate, wrong candidate
    longer: np.ndarray  # 1: the right side is the longer one, -1: the shorter, 0: as long


def pairs_of(cases: Sequence[Case]) -> Pairs:
    """The pairs of the cases."""
    numbers, longer = [], []
    for number, case in enumerate(cases):
        lengths = [response_length(c.response) for c in case.candidates]
        for i, right in enumerate(case.candidates):
            for j, wrong in enumerate(case.candidates):
                if right.right and not wrong.right:
                    numbers.append((number, i, j))
                    longer.append(np.sign(lengths[i] - lengths[j]))
    return Pairs(
        [cases[n].task for n, _, _ in numbers],
        [cases[n].candidates[j].error_type for n, _, j in numbers],
        [cases[n].category for n, _, _ in numbers],
        [cases[n].candidates[j].model for n, _, j in numbers],
        numbers,
        np.array(longer, int),
    )


def margins_of(pairs: Pairs, scores: Sequence[np.ndarray]) -> np.ndarray:
    """Right minus wrong, [n]; infinite where only one side could be scored, 0 where neither
    could: `credits_of` and `known_margins` leave those out."""
    right = np.array([scores[n][i] for n, i, _ in pairs.numbers], np.float64)
    wrong = np.array([scores[n][j] for n, _, j in pairs.numbers], np.float64)
    with np.errstate(invalid="ignore"):  # two infinite ones are equal
        margins = np.where(right == wrong, 0.0, right - wrong)
    margins = np.where(np.isnan(right), -np.inf, margins)
    margins = np.where(np.isnan(wrong), np.inf, margins)
    return np.where(np.isnan(right) & np.isnan(wrong), 0.0, margins)


def known_margins(pairs: Pairs, scores: Sequence[np.ndarray]) -> np.ndarray:
    """The margins of the pairs of which a side could be scored: of others, none is known."""
    return margins_of(pairs, scores)[_known(pairs, scores)]


def credits_of(pairs: Pairs, scores: Sequence[np.ndarray]) -> np.ndarray:
    """What each pair earns, [n]; NaN where neither side could be scored."""
    return np.where(_known(pairs, scores), credit(margins_of(pairs, scores)), np.nan)


def _known(pairs: Pairs, scores: Sequence[np.ndarray]) -> np.ndarray:
    known = [not np.isnan(scores[n][[i, j]]).all() for n, i, j in pairs.numbers]
    return np.array(known, bool)


def describe(
    cases: Sequence[Case],
    pairs: Pairs,
    scores: Sequence[np.ndarray],
    *,
    is_log_odds: bool,
    seed: int,
) -> dict[str, Any]:
    """All figures of one scorer, as JSON."""
    earned = credits_of(pairs, scores)
    known = known_margins(pairs, scores)
    found = {
        "accuracy": _share(earned, pairs.tasks, seed),
        "ties": int((known == 0).sum()),
        "unscored": int(sum(np.isnan(s).sum() for s in scores)),
        "unscored pairs": int(np.isnan(earned).sum()),
        "by": {
            name: by_label(earned, pairs.tasks, labels, seed)
            for name, labels in (
                ("error type", pairs.error_types),
                ("category", pairs.categories),
                ("model", pairs.models),
            )
        },
        "length": _length(cases, scores, earned, pairs, seed),
        "margin": _margin(known),
    }
    if is_log_odds:
        found["calibration"] = calibration(known)
    return found


def _share(earned: np.ndarray, tasks: Sequence[str], seed: int) -> dict[str, float | int | None]:
    """Accuracy with its interval, over what is known (no NaN)."""
    known = ~np.isnan(earned)
    mine = [task for task, k in zip(tasks, known, strict=True) if k]
    numbers = dataclasses.asdict(estimate(earned[known], mine, seed))
    return {name: None if np.isnan(value) else value for name, value in numbers.items()}


def by_label(
    earned: np.ndarray, tasks: Sequence[str], labels: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Accuracy under each label, the most frequent first; "" is no label, NaN is not counted."""
    names, counts = np.unique(np.array(labels, object), return_counts=True)
    found = {}
    for _, name in sorted(zip(-counts, names, strict=True)):
        if name:
            chosen = np.array([label == name for label in labels])
            mine = [task for task, c in zip(tasks, chosen, strict=True) if c]
            found[str(name)] = _share(earned[chosen], mine, seed)
    return found


def _length(
    cases: Sequence[Case],
    scores: Sequence[np.ndarray],
    earned: np.ndarray,
    pairs: Pairs,
    seed: int,
) -> dict[str, Any]:
    """Accuracy where the right side is the longer, the shorter, as long; and rank correlations of
    score and length: over all candidates, and within the cases (ranks centred in each)."""
    lengths = [np.array([response_length(c.response) for c in case.candidates]) for case in cases]
    names = {1: "right is longer", -1: "right is shorter", 0: "as long"}
    found: dict[str, Any] = {
        name: _share(
            earned[pairs.longer == sign],
            [t for t, s in zip(pairs.tasks, pairs.longer, strict=True) if s == sign],
            seed,
        )
        for sign, name in names.items()
    }
    found["correlation"] = _rank_correlation(np.concatenate(scores), np.concatenate(lengths))
    within = [
        [scipy.stats.rankdata(x[~np.isnan(s)]) for x in (s, length)]
        for s, length in zip(scores, lengths, strict=True)
    ]
    centred = [
        np.concatenate([r[k] - r[k].mean() for r in within if len(r[k])] or [[]]) for k in (0, 1)
    ]
    found["correlation within a prompt"] = _correlation(*centred)
    return found


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None where one of the two does not vary."""
    known = ~np.isnan(a)
    return _correlation(scipy.stats.rankdata(a[known]), scipy.stats.rankdata(b[known]))


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _margin(margins: np.ndarray) -> dict[str, float | None]:
    finite = margins[np.isfinite(margins)]
    if not len(finite):
        return {"mean": None, "std": None, "5%": None, "50%": None, "95%": None}
    marks = np.quantile(finite, [0.05, 0.5, 0.95])
    names = ("mean", "std", "5%", "50%", "95%")
    values = (finite.mean(), finite.std(), *marks)
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def calibration(margins: np.ndarray) -> dict[str, Any]:
    """How sure the preference is and how often it is right, by range; and the ECE."""
    finite = margins[np.isfinite(margins)]
    sure = scipy.special.expit(np.abs(finite))
    earned = credit(finite)
    places = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    ranges = []
    for place in range(BINS):
        here = places == place
        if here.any():
            low = 0.5 + place / (2 * BINS)
            ranges.append(
                {
                    "from": low,
                    "to": low + 1 / (2 * BINS),
                    "pairs": int(here.sum()),
                    "sure": float(sure[here].mean()),
                    "right": float(earned[here].mean()),
                }
            )
    gaps = [r["pairs"] * abs(r["sure"] - r["right"]) for r in ranges]
    return {"ece": sum(gaps) / len(finite) if len(finite) else None, "ranges": ranges}
