"""Accuracy of a reward model on pairs, with intervals that respect how the pairs hang together.

Pairs of one task share its prompt and its right side, so they are resampled together (a bootstrap
clustered by task). A tie counts as half right, and ties are also reported apart. Differences
between two scorers are paired: both are computed on the same resampled tasks.

    >>> str(estimate(credit(np.array([2.0, 1.0, 0.0, -1.0])), ["a", "b", "c", "d"]))
    '62.5 [25.0, 100.0]'
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval; n pairs."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def credit(margins: np.ndarray) -> np.ndarray:
    """What each pair earns by its margin (right minus wrong): 1, a half for a tie, or 0."""
    return (margins > 0) + 0.5 * (margins == 0)


def estimate(credits: np.ndarray, tasks: Sequence[str], seed: int = 0) -> Estimate:
    """Mean credit of pairs and its bootstrap interval over tasks. credits [n], tasks n names."""
    if not len(credits):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    means = _resampled_means(np.asarray(credits, np.float64), tasks, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(np.mean(credits)), float(low), float(high), len(credits))


def paired_gain(
    credits: np.ndarray, other: np.ndarray, tasks: Sequence[str], seed: int = 0
) -> Estimate:
    """How much more credit the first scorer earns than the other on the same pairs."""
    return estimate(np.asarray(credits) - np.asarray(other), tasks, seed)


def _resampled_means(values: np.ndarray, tasks: Sequence[str], seed: int) -> np.ndarray:
    """Means of the values over RESAMPLES draws of tasks with replacement. [RESAMPLES]"""
    _, cluster = np.unique(np.asarray(tasks), return_inverse=True)
    sums, counts = np.bincount(cluster, values), np.bincount(cluster)
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    return (draws @ sums) / (draws @ counts)
