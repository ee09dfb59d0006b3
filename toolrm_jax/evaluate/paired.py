"""Is one scorer better than another on the same pairs? Differences, intervals and tests.

    compare(run A, scorer, run B, scorer) -> JSON

Pairs are matched by task, prompt and both sides' text; those that only one run has, and those of
which one of the two scorers could score neither side, are left out and counted. The difference of
the accuracies has a 95% interval by a bootstrap over tasks. Two tests of "no difference":

- permutation: the sign of each task's difference is flipped at random, for pairs of one task hang
  together; the share of 10,000 flips (and what was found) that differ as much;
- McNemar's exact test on the pairs that one tells right and the other wrong, as if pairs were
  independent; a tie is neither.

Of two runs on pools, their curves of best-of-n are compared as well: pool by pool, at every n that
is told, with the interval of the difference. There "random", "oracle" and "majority" stand beside
the scorers; on pairs, majority prefers what was sampled more often.
"""

import json
import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import scipy.stats

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate import best_of_n
from toolrm_jax.evaluate.cases import Case
from toolrm_jax.evaluate.pair_metrics import credits_of, pairs_of
from toolrm_jax.evaluate.results import Run
from toolrm_jax.metrics import paired_gain
from toolrm_jax.splits import digest

PERMUTATIONS, _AT_ONCE = 10_000, 100


def compare(a: Run, a_scorer: str, b: Run, b_scorer: str, seed: int = 0) -> dict[str, Any]:
    """What the first earns more than the second: overall, by error type, as the best of n."""
    lines = _Line(a, a_scorer), _Line(b, b_scorer)
    mine, theirs = (line.credits() for line in lines)
    both = [key for key in mine if key in theirs]
    if not both:
        raise InputError(
            f"{a.path} and {b.path} have no pair in common: are they runs on the same data?"
        )
    shared = [key for key in both if not math.isnan(mine[key][2] + theirs[key][2])]
    if not shared:
        raise InputError(f"no pair that both {a_scorer!r} and {b_scorer!r} could score")
    tasks = [mine[key][0] for key in shared]
    first, second = (np.array([found[key][2] for key in shared]) for found in (mine, theirs))
    kinds = [mine[key][1] for key in shared]
    return {
        "a": {**_side(a, a_scorer), "accuracy": float(first.mean())},
        "b": {**_side(b, b_scorer), "accuracy": float(second.mean())},
        "pairs": len(shared),
        "tasks": len(set(tasks)),
        "left out": len(mine) + len(theirs) - 2 * len(both),
        "unscored": len(both) - len(shared),
        "difference": _gain(first, second, tasks, seed),
        "by error type": {
            kind: _gain(*_where(kinds, kind, first, second, tasks), seed)
            for kind in sorted(set(kinds) - {""})
        },
        "permutation p": permutation(first - second, tasks, seed),
        "McNemar": mcnemar(first, second),
        "best of n": _curve_gains(*lines, seed),
    }


def _side(run: Run, scorer: str) -> dict[str, Any]:
    sha256 = run.result["data"]["sha256"]
    return {"run": run.path, "scorer": scorer, "data sha256": sha256, "overlap": bool(run.mark)}


class _Line:
    """A scorer of a run; or of a run on pools "random", "oracle" or "majority"."""

    def __init__(self, run: Run, name: str):
        lines = best_of_n.LINES if "best of n" in run.result else ()
        if name not in (*run.scores, *lines):
            raise InputError(
                f"{run.path} has no scorer {name!r}; it has: "
                f"{', '.join([*run.scores, *lines]) or 'none'}."
            )
        self.run, self.votes = run, name == best_of_n.MAJORITY
        self.scores = run.scores.get(name) or [best_of_n.line_scores(name, c) for c in run.cases]

    def credits(self) -> dict[str, tuple[str, str, float]]:
        """By pair: its task, its error type, and what is earned on it; NaN: not scored."""
        pairs = pairs_of(self.run.cases)
        earned = credits_of(pairs, self.scores)
        found: dict[str, tuple[str, str, float]] = {}
        for place, value in enumerate(earned):
            number, i, j = pairs.numbers[place]
            case = self.run.cases[number]
            sides = [case.candidates[k].response for k in (i, j)]
            key = _unused(_digest(case, sides), found)
            found[key] = (pairs.tasks[place], pairs.error_types[place], float(value))
        return found

    def pools(self) -> dict[str, int]:
        """The pools' numbers, by what tells a pool from another."""
        found: dict[str, int] = {}
        for number, case in enumerate(self.run.cases):
            answers = [[c.response, c.right, c.count] for c in case.candidates]
            found[_unused(_digest(case, answers), found)] = number
        return found

    def chance(self, number: int, draws: str, n: int) -> float:
        """How often the best of n of a pool is right."""
        case = self.run.cases[number]
        if self.votes:
            return best_of_n.majority_of_pool(case, number, n, self.run.result["seed"])[0]
        return best_of_n.best_of_pool(case, self.scores[number], draws, n)

    def last(self, draws: str) -> int:
        """The largest n of the run's curves; 0 where there is no such line."""
        if self.votes and draws != "sampled":
            return 0
        curves = self.run.result.get("best of n", {}).get(draws, {}).get("curves", {})
        return max((point["n"] for line in curves.values() for point in line), default=0)


def _digest(case: Case, answers: list[Any]) -> str:
    return digest(case.task, json.dumps([case.tools, case.messages, answers], sort_keys=True))


def _unused(key: str, found: Container[str]) -> str:
    """The key of a pair or pool that may stand in the data more than once."""
    while key in found:
        key += "+"
    return key


def _gain(first: np.ndarray, second: np.ndarray, tasks: list[str], seed: int) -> dict[str, Any]:
    found = paired_gain(first, second, tasks, seed)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _where(
    kinds: list[str], kind: str, first: np.ndarray, second: np.ndarray, tasks: list[str]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    here = [i for i, k in enumerate(kinds) if k == kind]
    return first[here], second[here], [tasks[i] for i in here]


# Best of n ---------------------------------------------------------------------------------------


def _curve_gains(first: _Line, second: _Line, seed: int) -> dict[str, Any]:
    """By kind of draws: how much more often the best of n of the first is right.

    Over the pools that both runs have and that hold enough for the last n of both curves.
    """
    mine, theirs = first.pools(), second.pools()
    cases = first.run.cases
    found = {}
    for draws in best_of_n.DRAWS:
        last = min(first.last(draws), second.last(draws))
        used = [
            (number, theirs[key])
            for key, number in mine.items()
            if key in theirs and best_of_n.counts_of(cases[number], draws).sum() >= last
        ]
        if last and used:
            found[draws] = {
                "pools": len(used),
                "left out": len(mine.keys() | theirs.keys()) - len(used),
                "points": [
                    _point(first, second, used, draws, n, seed) for n in best_of_n.milestones(last)
                ],
            }
    return found


def _point(
    first: _Line, second: _Line, used: Sequence[tuple[int, int]], draws: str, n: int, seed: int
) -> dict[str, Any]:
    mine = np.array([first.chance(number, draws, n) for number, _ in used])
    theirs = np.array([second.chance(number, draws, n) for _, number in used])
    gain = _gain(mine, theirs, [first.run.cases[number].task for number, _ in used], seed)
    return {**gain, "n": n, "a": float(mine.mean()), "b": float(theirs.mean())}


# Tests and words ---------------------------------------------------------------------------------


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
        *(f"{name}: {_said(found[name])}" for name in ("a", "b")),
        f"{found['pairs']:,} pairs of {found['tasks']:,} tasks; left out as only one run has them: "
        f"{found['left out']:,}; as one of the two could not score them: {found['unscored']:,}",
        f"a - b: {_points(gain)} points",
        f"permutation test over tasks: p = {found['permutation p']:.4f}",
        f"McNemar, of the pairs that both decide: {found['McNemar']['only a']} against "
        f"{found['McNemar']['only b']}, p = {found['McNemar']['p']:.4f}",
    ]
    lines += [
        f"  {kind}: {_points(g)} (n = {g['n']:,})" for kind, g in found["by error type"].items()
    ]
    for draws, made in found["best of n"].items():
        lines.append(
            f"best of n, {draws} draws, {made['pools']:,} pools; left out as too small or only in "
            f"one run: {made['left out']:,}"
        )
        lines += [
            f"  n = {p['n']}: {100 * p['a']:.1f}% and {100 * p['b']:.1f}%, a - b: {_points(p)}"
            for p in made["points"]
        ]
    return "\n".join(lines)


def _said(side: dict[str, Any]) -> str:
    trained = " (OVERLAP with training)" if side["overlap"] else ""
    return (
        f"{side['scorer']} ({side['run']}, data {side['data sha256'][:16]}): "
        f"{100 * side['accuracy']:.1f}%{trained}"
    )


def _points(gain: dict[str, Any]) -> str:
    # Adding 0 makes 0.0 of -0.0.
    mean, low, high = (round(100 * gain[name], 1) + 0.0 for name in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
