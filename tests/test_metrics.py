"""Accuracy and its interval: against closed forms and scipy, and as pairs hang together."""

import numpy as np
import pytest
from scipy import stats

from toolrm_jax.metrics import RESAMPLES, credit, estimate, paired_gain


def coin_flips(n: int, chance: float = 0.7, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < chance).astype(float)


def alone(n: int) -> list[str]:
    """Every pair a task of its own."""
    return [f"task {i}" for i in range(n)]


def test_a_tie_counts_as_half_right():
    assert credit(np.array([2.0, 0.0, -1.0, -0.0])).tolist() == [1.0, 0.5, 0.0, 0.5]


def test_the_interval_of_independent_pairs_is_the_binomial_one():
    credits = coin_flips(400)
    found = estimate(credits, alone(400))
    mean = credits.mean()
    half = 1.96 * np.sqrt(mean * (1 - mean) / 400)
    assert found.mean == mean
    assert found.n == 400
    # A quantile of 2,000 resamples has a standard error of about 0.06 standard deviations.
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.2 * half / 2)


def test_the_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(1).exponential(size=60)
    found = estimate(values, alone(60))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(2)
    )
    low, high = theirs.confidence_interval
    tolerance = 0.25 * theirs.standard_error
    assert (found.low, found.high) == pytest.approx((low, high), abs=tolerance)


def test_tasks_of_unequal_size_are_resampled_whole():
    """Against scipy's bootstrap of the ratio sum / count over tasks."""
    random = np.random.default_rng(3)
    sizes = random.integers(1, 6, 50)
    tasks = np.repeat(np.arange(50), sizes)
    credits = (random.random(len(tasks)) < np.repeat(random.random(50), sizes)).astype(float)
    sums = np.bincount(tasks, credits)

    def ratio(sums, counts, axis=-1):
        return sums.sum(axis) / counts.sum(axis)

    theirs = stats.bootstrap(
        (sums, sizes.astype(float)),
        ratio,
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(4),
    )
    found = estimate(credits, [f"task {t}" for t in tasks])
    low, high = theirs.confidence_interval
    assert found.mean == pytest.approx(credits.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.25 * theirs.standard_error)


def test_copies_of_a_pair_within_a_task_add_no_certainty():
    credits = coin_flips(100)
    once = estimate(credits, alone(100))
    copied = estimate(np.repeat(credits, 4), np.repeat(alone(100), 4))
    taken_apart = estimate(np.repeat(credits, 4), alone(400))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))
    assert copied.n == 400
    # Pairs taken as independent would claim an interval half as wide.
    width, claimed = copied.high - copied.low, taken_apart.high - taken_apart.low
    assert width == pytest.approx(2 * claimed, rel=0.15)


def test_the_same_pairs_give_the_same_interval_every_time():
    values = np.random.default_rng(5).normal(size=90)
    tasks = np.repeat(alone(30), 3)
    assert estimate(values, tasks) == estimate(values.tolist(), tasks.tolist())
    assert estimate(values, tasks) != estimate(values, tasks, seed=1)


def test_a_gain_is_judged_on_the_same_pairs():
    base = coin_flips(200, 0.5)
    better = base.copy()
    better[np.flatnonzero(base == 0)[:12]] = 1.0
    gain = paired_gain(better, base, alone(200))
    assert gain.mean == pytest.approx(0.06)
    # Never worse on any pair: certain, although the two intervals themselves overlap.
    assert gain.low > 0
    assert estimate(better, alone(200)).low < estimate(base, alone(200)).high
    reverse = paired_gain(base, better, alone(200))
    assert (reverse.low, reverse.high) == pytest.approx((-gain.high, -gain.low))


def test_no_pairs_give_no_number():
    found = estimate(np.array([]), [])
    assert found.n == 0
    assert np.isnan([found.mean, found.low, found.high]).all()


def test_where_resampling_sees_no_difference_the_interval_is_wilsons():
    for rights in (0, 24):
        found = estimate(np.full(24, rights / 24), alone(24))
        theirs = stats.binomtest(rights, 24).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=1e-6)
    # Copies within a task are one trial.
    assert estimate(np.ones(48), np.repeat(alone(24), 2)).low == found.low
    one_task = estimate(np.array([1.0, 0.0, 1.0]), ["t"] * 3)
    assert (one_task.mean, one_task.n) == (pytest.approx(2 / 3), 3)
    assert one_task.low < 0.2 < 0.9 < one_task.high
    for n in range(1, 200):  # whatever the rounding
        none, all_ = (estimate(np.full(n, value), alone(n)) for value in (0.0, 1.0))
        assert (none.low, all_.high) == (0.0, 1.0)
    # A difference is no share: none at all stays none.
    same = paired_gain(np.ones(9), np.ones(9), alone(9))
    assert (same.low, same.high) == (0.0, 0.0)


def test_many_tasks_are_resampled_in_parts(monkeypatch):
    credits, tasks = coin_flips(500), np.repeat(alone(250), 2)
    whole = estimate(credits, tasks)
    monkeypatch.setattr("toolrm_jax.metrics._DRAWN_AT_ONCE", 7 * 250)
    assert estimate(credits, tasks) == whole


def test_an_estimate_reads_as_percent():
    assert str(estimate(np.array([1.0, 0.0]), ["a", "b"])) == "50.0 [0.0, 100.0]"
