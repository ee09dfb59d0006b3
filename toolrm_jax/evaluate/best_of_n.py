"""Best-of-n from pools of candidates: how often is the answer right that a scorer takes out of n?

    scores, rightness, how often each was sampled --expected_best--> P(the best of n is right)

n candidates are drawn without replacement; the one with the highest score is taken, of equal ones
any. Its chance to be right is exact, no sampling: sorted by score, a group of equal scores is taken
where none of a better group was drawn and one of it was,

    P(group) = [C(M - better, n) - C(M - better - size, n)] / C(M, n).

Two kinds of draws. "distinct": each candidate once, as if n different answers were to choose from.
"sampled": each as often as it was given, as if a model had been asked n times. A curve is over the
pools that have enough to draw from at every n, so that its points can be compared; the others are
counted.

The most frequent answer (majority) needs sampled draws; it is found from `SUBSETS` seeded ones, and
its Monte-Carlo error is told. A vote is for what is called: words that call nothing are candidates
of their own, for a scorer reads them, but however worded they vote for the same, unless there was
no tool to call. "oracle" takes a right one if there is any, "random" any. "greedy", what the data
marks as the model's answer without sampling, is no draw: `about` tells how often it is right, over
all pools that mark one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.evaluate.cases import Case
from toolrm_jax.examples import Response, Tool
from toolrm_jax.metrics import estimate
from toolrm_jax.synth.judging import same_key
from toolrm_jax.tool_calls import attempts_call, parse_calls, words_of

SUBSETS = 2000
DRAWS = ("distinct", "sampled")
BUILT = "built to have right and wrong"  # whether a file's pools are, among its figures
RANDOM, ORACLE, MAJORITY = LINES = ("random", "oracle", "majority")  # beside the scorers'


def expected_best(scores: np.ndarray, right: np.ndarray, counts: np.ndarray, n: int) -> float:
    """P(the best of n is right). scores, right (0, 1), counts: [candidates]; NaN scores come last.

    >>> scores, right = np.array([3.0, 2.0, 1.0]), np.array([0, 1, 0])
    >>> expected_best(scores, right, np.ones(3, int), 2)  # of three draws one has no first
    0.3333333333333333
    """
    total = int(counts.sum())
    if not 1 <= n <= total:
        raise ValueError(f"n={n}: expected 1 to {total}, the number to draw from")
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    left, found = total, 0.0
    for value in np.unique(ranked)[::-1]:
        here = ranked == value
        size = int(counts[here].sum())
        chance = (math.comb(left, n) - math.comb(left - size, n)) / math.comb(total, n)
        found += chance * float((right[here] * counts[here]).sum() / size)
        left -= size
    return found


def majority(
    right: np.ndarray,
    counts: np.ndarray,
    n: int,
    rng: np.random.Generator,
    votes: np.ndarray | None = None,
) -> tuple[float, float]:
    """(P(the most frequent of n sampled answers is right), its Monte-Carlo standard error).

    votes: the number of what each candidate votes for. [candidates]; default: each for itself
    """
    votes = np.arange(len(right)) if votes is None else votes
    drawn_SC = rng.multivariate_hypergeometric(counts, n, size=SUBSETS)
    for_CV = np.eye(votes.max() + 1, dtype=int)[votes]
    got_SV = drawn_SC @ for_CV
    share_SV = (drawn_SC * right) @ for_CV / np.maximum(got_SV, 1)  # of its draws that are right
    most_SV = got_SV == got_SV.max(axis=1, keepdims=True)
    chances = (most_SV * share_SV).sum(1) / most_SV.sum(1)  # of equally frequent ones any
    return float(chances.mean()), float(chances.std() / math.sqrt(SUBSETS))


def votes_of(case: Case) -> np.ndarray:
    """What each candidate votes for, as a number: its calls; of what calls nothing, that. [C]"""
    keys = [_vote(candidate.response, case.tools) for candidate in case.candidates]
    return np.unique(np.array(keys, object), return_inverse=True)[1]


def _vote(response: Response, tools: list[Tool]) -> str:
    calls, words = parse_calls(response), words_of(response)
    if calls is None and words and tools and not attempts_call(words, tools):
        calls = []  # as the judge has it
    return same_key(calls, words or json.dumps(response))


def curves(
    cases: Sequence[Case],
    scores: Mapping[str, Sequence[np.ndarray]],
    *,
    most: int,
    draws: str,
    seed: int,
) -> dict[str, Any]:
    """Curves over n = 1..most of every scorer, of random, oracle and majority; as JSON."""
    counts = [counts_of(case, draws) for case in cases]
    right = [np.array([c.right for c in case.candidates], int) for case in cases]
    used = [i for i, count in enumerate(counts) if count.sum() >= most]
    tasks = [cases[i].task for i in used]
    found: dict[str, Any] = {
        "draws": draws,
        "pools": len(used),
        "too small": len(cases) - len(used),
    }
    if not used:
        return {**found, "curves": {}}

    def curve(chance: Any) -> list[dict[str, Any]]:
        return [
            {"n": n, **_estimate([chance(i, n) for i in used], tasks, seed)}
            for n in range(1, most + 1)
        ]

    lines = {
        name: curve(lambda i, n, s=values: expected_best(s[i], right[i], counts[i], n))
        for name, values in scores.items()
    }
    lines[RANDOM] = curve(lambda i, n: float((right[i] * counts[i]).sum() / counts[i].sum()))
    lines[ORACLE] = curve(lambda i, n: expected_best(right[i] * 1.0, right[i], counts[i], n))
    if draws == "sampled":
        lines[MAJORITY] = _majority_curve(cases, used, tasks, most, seed)
    return {
        **found,
        "curves": lines,
        "by category": _by_category(cases, used, right, counts, scores, most, seed),
    }


def best_of_pool(case: Case, scores: np.ndarray, draws: str, n: int) -> float:
    """`expected_best` of one pool."""
    right = np.array([c.right for c in case.candidates], int)
    return expected_best(scores, right, counts_of(case, draws), n)


def majority_of_pool(case: Case, number: int, n: int, seed: int) -> tuple[float, float]:
    """`majority` of one pool, which is the run's so-and-so-many-th."""
    right = np.array([c.right for c in case.candidates], int)
    rng = np.random.default_rng([seed, n, number])
    return majority(right, counts_of(case, "sampled"), n, rng, votes_of(case))


def line_scores(line: str, case: Case) -> np.ndarray:
    """Scores that put the candidates in the order of a line that is no scorer's. [C]

    Of majority, how often what a candidate votes for was sampled.
    """
    if line == RANDOM:
        return np.zeros(len(case.candidates))
    if line == ORACLE:
        return np.array([c.right for c in case.candidates], float)
    votes = votes_of(case)
    return np.bincount(votes, counts_of(case, "sampled"))[votes]


def counts_of(case: Case, draws: str) -> np.ndarray:
    """How often each candidate is there to be drawn. [candidates]"""
    if draws not in DRAWS:
        raise ValueError(f"draws={draws!r}: expected one of {', '.join(DRAWS)}")
    return np.array([c.count if draws == "sampled" else 1 for c in case.candidates], int)


def milestones(last: int) -> list[int]:
    """The n that are told of a curve up to the last one.

    >>> milestones(10)
    [1, 2, 4, 8, 10]
    """
    return [2**k for k in range(last.bit_length()) if 2**k < last] + [last]


def _estimate(values: Sequence[float], tasks: Sequence[str], seed: int) -> dict[str, Any]:
    made = estimate(np.asarray(values), tasks, seed)
    return {"mean": made.mean, "low": made.low, "high": made.high}


def _majority_curve(
    cases: Sequence[Case], used: Sequence[int], tasks: Sequence[str], most: int, seed: int
) -> list[dict[str, Any]]:
    points = []
    for n in range(1, most + 1):
        made = [majority_of_pool(cases[i], i, n, seed) for i in used]
        error = math.sqrt(sum(e * e for _, e in made)) / len(made)
        points.append({"n": n, **_estimate([m for m, _ in made], tasks, seed), "error": error})
    return points


def _by_category(
    cases: Sequence[Case],
    used: Sequence[int],
    right: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    scores: Mapping[str, Sequence[np.ndarray]],
    most: int,
    seed: int,
) -> dict[str, Any]:
    """At the largest n, every scorer's chance by category, and the bounds of chance and oracle."""
    ranks: dict[str, Sequence[np.ndarray]] = {
        **scores,
        RANDOM: [np.zeros(len(r)) for r in right],
        ORACLE: [r * 1.0 for r in right],
    }
    found = {}
    for category in sorted({cases[i].category for i in used} - {""}):
        mine = [i for i in used if cases[i].category == category]
        tasks = [cases[i].task for i in mine]
        found[category] = {"pools": len(mine)} | {
            name: _estimate(
                [expected_best(values[i], right[i], counts[i], most) for i in mine], tasks, seed
            )
            for name, values in ranks.items()
        }
    return found


def about(cases: Sequence[Case], seed: int = 0) -> dict[str, Any]:
    """What pools there are: with how many candidates, all right, all wrong, marked as greedy."""
    sizes = [len(case.candidates) for case in cases]
    rights = [sum(c.right for c in case.candidates) for case in cases]
    greedy = [(case.task, [c.right for c in case.candidates if c.greedy]) for case in cases]
    marked = [(task, sum(g) / len(g)) for task, g in greedy if g]
    shares = _estimate([share for _, share in marked], [task for task, _ in marked], seed)
    return {
        "pools": len(cases),
        "candidates": sum(sizes),
        "fewest": min(sizes),
        "most": max(sizes),
        "all right": sum(r == size for r, size in zip(rights, sizes, strict=True)),
        "all wrong": sum(r == 0 for r in rights),
        "greedy": {"pools": len(marked), **shares} if marked else None,
    }


def hold_both(cases: Sequence[Case]) -> bool:
    """Has every pool a right and a wrong candidate? Of a whole file, that is hardly by chance."""
    return all({c.right for c in case.candidates} == {True, False} for case in cases)
