"""Is one scorer better than another on the same pairs? Differences, intervals and tests.

    compare(run A, scorer, run B, scorer) -> JSON

Pairs are matched by task, prompt and both sides' text; those that only one run has are left out and
counted. The difference of the accuracies has a 95% interval by a bootstrap over tasks. Two tests of
"no difference":

- permutation: the sign of each task's difference is flipped at random, for pairs of one task hang
  together; the share of 10,000 flips (and what was found) that differ as much;
- McNemar's exact test on the pairs that one tells right and the other wrong, as if pairs were
  independent; a tie is neither.
"""

import json
from typing import Any

import numpy as np
import scipy.stats

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.pair_metrics import Pairs, margins_of, pairs_of
from toolrm_jax.evaluate.results import Run
from toolrm_jax.metrics import credit, paired_gain
from toolrm_jax.splits import digest

PERMUTATIONS, _AT_ONCE = 10_000, 100


def compare(a: Run, a_scorer: str, b: Run, b_scorer: str, seed: int = 0) -> dict[str, Any]:
    """What the first earns more than the second, overall and by error type."""
    mine, theirs = _credits(a, a_scorer), _credits(b, b_scorer)
    shared = [key for key in mine if key in theirs]
    if not shared:
        raise InputError(
            f"{a.path} and {b.path} have no pair in common: are they runs on the same data?"
        )
    tasks = [mine[key][0] for key in shared]
    first, second = (np.array([found[key][2] for key in shared]) for found in (mine, theirs))
    kinds = [mine[key][1] for key in shared]
    return {
        "a": {"run": a.path, "scorer": a_scorer, "accuracy": float(first.mean())},
        "b": {"run": b.path, "scorer": b_scorer, "accuracy": float(second.mean())},
        "pairs": len(shared),
        "tasks": len(set(tasks)),
        "left out": len(mine) + len(theirs) - 2 * len(shared),
        "difference": _gain(first, second, tasks, seed),
        "by error type": {
            kind: _gain(*_where(kinds, kind, first, second, tasks), seed)
            for kind in sorted(set(kinds) - {""})
        },
        "permutation p": permutation(first - second, tasks, seed),
        "McNemar": mcnemar(first, second),
    }


def _credits(run: Run, scorer: str) -> dict[str, tuple[str, str, float]]:
    """By pair: its task, its error type, and what the scorer earns on it."""
    if scorer not in run.scores:
        raise InputError(
            f"{run.path} has no scorer {scorer!r}; it has: {', '.join(run.scores) or 'none'}."
        )
    pairs = pairs_of(run.cases)
    earned = credit(margins_of(pairs, run.scores[scorer]))
    found: dict[str, tuple[str, str, float]] = {}
    for place, value in enumerate(earned):
        key = _key(run, pairs, place)
        while key in found:  # the same pair twice in the data
            key += "+"
        found[key] = (pairs.tasks[place], pairs.error_types[place], float(value))
    return found


def _key(run: Run, pairs: Pairs, place: int) -> str:
    number, i, j = pairs.numbers[place]
    case = run.cases[number]
    sides = [case.candidates[k].response for k in (i, j)]
    return digest(case.task, json.dumps([case.tools, case.messages, sides], sort_keys=True))


def _gain(first: np.ndarray, second: np.ndarray, tasks: list[str], seed: int) -> dict[str, Any]:
    found = paired_gain(first, second, tasks, seed)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _where(
    kinds: list[str], kind: str, first: np.ndarray, second: np.ndarray, tasks: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    here = [i for i, k in enumerate(kinds) if k == kind]
    return first[here], second[here], [tasks[i] for i in here]


def permutation(differences: np.ndarray, tasks: list[str], seed: int = 0) -> float:
    """p of the sum of the tasks' differences under random signs; never below 1 in 10,001."""
    _, cluster = np.unique(np.asarray(tasks), return_inverse=True)
    sums = np.bincount(cluster, differences)
    rng, as_far = np.random.default_rng(seed), 0
    for _ in range(PERMUTATIONS // _AT_ONCE):
        signs = rng.choice((-1.0, 1.0), (_AT_ONCE, len(sums)))
        as_far += int((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9).sum())
    return (as_far + 1) / (PERMUTATIONS + 1)


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """The pairs that one tells right and the other wrong, and the exact two-sided p."""
    only_first = int(((first == 1) & (second == 0)).sum())
    only_second = int(((first == 0) & (second == 1)).sum())
    both = only_first + only_second
    p = scipy.stats.binomtest(only_first, both, 0.5).pvalue if both else 1.0
    return {"only a": only_first, "only b": only_second, "p": float(p)}


def words(found: dict[str, Any]) -> str:
    """The comparison as a few lines."""
    gain = found["difference"]
    lines = [
        f"a: {found['a']['scorer']} ({found['a']['run']}): {100 * found['a']['accuracy']:.1f}%",
        f"b: {found['b']['scorer']} ({found['b']['run']}): {100 * found['b']['accuracy']:.1f}%",
        f"{found['pairs']:,} pairs of {found['tasks']:,} tasks; left out as only one run has them: "
        f"{found['left out']:,}",
        f"a - b: {_points(gain)} points",
        f"permutation test over tasks: p = {found['permutation p']:.4f}",
        f"McNemar, of the pairs that both decide: {found['McNemar']['only a']} against "
        f"{found['McNemar']['only b']}, p = {found['McNemar']['p']:.4f}",
    ]
    lines += [
        f"  {kind}: {_points(g)} (n = {g['n']:,})" for kind, g in found["by error type"].items()
    ]
    return "\n".join(lines)


def _points(gain: dict[str, Any]) -> str:
    return f"{100 * gain['mean']:+.1f} [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
