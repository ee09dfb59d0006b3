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
_DRAWN_AT_ONCE = 2**22  # numbers held together; the draws are the same however they are cut


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
    """Mean credit of pairs and its bootstrap interval over tasks. credits [n], tasks n names.

    Resampling cannot tell how much is known where all is right, all is wrong, or of one task: the
    interval is Wilson's then, as if each task were one trial.
    """
    credits = np.asarray(credits, np.float64)
    count = len(np.unique(np.asarray(tasks)))
    if count == 1 or (count and (credits.min() == 1 or credits.max() == 0)):
        return _wilson(float(credits.mean()), count, len(credits))
    return _bootstrap(credits, tasks, seed)


def paired_gain(
    credits: np.ndarray, other: np.ndarray, tasks: Sequence[str], seed: int = 0
) -> Estimate:
    """How much more credit the first scorer earns than the other on the same pairs."""
    return _bootstrap(np.asarray(credits, np.float64) - np.asarray(other), tasks, seed)


def _bootstrap(values: np.ndarray, tasks: Sequence[str], seed: int) -> Estimate:
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    low, high = np.quantile(_resampled_means(values, tasks, seed), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def _wilson(mean: float, trials: int, n: int) -> Estimate:
    """Wilson's score interval (E. B. Wilson, 1927)."""
    z = 1.959964  # two-sided, 95%
    middle = (mean + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = mean * (1 - mean) / trials + (z / (2 * trials)) ** 2
    half = z / (1 + z * z / trials) * spread**0.5
    # Rounding must not put an end on the mean's other side, or beyond a share.
    low, high = max(min(middle - half, mean), 0.0), min(max(middle + half, mean), 1.0)
    return Estimate(mean, low, high, n)


def _resampled_means(values: np.ndarray, tasks: Sequence[str], seed: int) -> np.ndarray:
    """Means of the values over RESAMPLES draws of tasks with replacement. [RESAMPLES]"""
    _, cluster = np.unique(np.asarray(tasks), return_inverse=True)
    sums, counts = np.bincount(cluster, values), np.bincount(cluster)
    random = np.random.default_rng(seed)
    chances = np.full(len(sums), 1 / len(sums))
    at_once = max(1, _DRAWN_AT_ONCE // len(sums))
    means = []
    for begin in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - begin)
        draws = random.multinomial(len(sums), chances, size=size)
        means.append((draws @ sums) / (draws @ counts))
    return np.concatenate(means)
