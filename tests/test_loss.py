"""The loss: its closed form, its identities, its gradients; nothing but pairs counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from toolrm_jax.batch import Batch, RowShape, empty_batch
from toolrm_jax.loss import describe, pair_sums

ETA = 0.01
sums_of = jax.jit(pair_sums, static_argnums=2)


def batch_with(answers, right, margins=None) -> Batch:
    """A batch of which only what the loss reads is filled in."""
    answers = np.asarray(answers, np.int32)
    batch = empty_batch(len(answers), RowShape(1, answers.shape[1]))
    margins = np.zeros(answers.shape) if margins is None else margins
    return dataclasses.replace(
        batch,
        answers=answers,
        right=np.asarray(right, bool),
        margins=np.asarray(margins, np.float32),
    )


def pair(right: float, wrong: float, eta: float = 0.0, margin: float = 0.0) -> float:
    batch = batch_with([[1, 1]], [[1, 0]], [[0, margin]])
    return float(sums_of(jnp.array([[right, wrong]]), batch, eta).loss)


@pytest.fixture
def mixed():
    """Two rows: prompts of 1, 2 and 4 pairs, one without a wrong answer, and empty slots."""
    answers = [[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 0, 0]]
    right = [[1, 0, 0, 1, 0, 1], [1, 0, 1, 0, 0, 0]]
    margins = np.random.default_rng(0).uniform(0, 1, (2, 6))
    rewards = np.random.default_rng(1).normal(size=(2, 6)).astype(np.float32)
    return batch_with(answers, right, margins), jnp.asarray(rewards)


def by_hand(rewards, batch, eta):
    """Sum over prompts of the mean over their pairs, in float64 and loops."""
    total, prompts = 0.0, 0
    for row in range(len(batch.answers)):
        for segment in set(batch.answers[row]) - {0}:
            mine = np.flatnonzero(batch.answers[row] == segment)
            losses = [
                np.log1p(np.exp(-(r[i] - r[j] - batch.margins[row, j]))) + eta * (r[i] + r[j]) ** 2
                for r in [np.asarray(rewards[row], np.float64)]
                for i in mine[batch.right[row, mine]]
                for j in mine[~batch.right[row, mine]]
            ]
            if losses:
                total, prompts = total + np.mean(losses), prompts + 1
    return total, prompts


def test_it_is_the_closed_form_averaged_over_pairs_and_summed_over_prompts(mixed):
    batch, rewards = mixed
    sums = sums_of(rewards, batch, ETA)
    total, prompts = by_hand(rewards, batch, ETA)
    assert float(sums.loss) == pytest.approx(total, rel=1e-6)
    assert float(sums.prompts) == pytest.approx(prompts) == 3
    assert float(sums.pairs) == 1 + 2 + 4
    assert float(sums.responses) == 10
    assert float(describe(sums)["loss"]) == pytest.approx(total / prompts, rel=1e-6)


def test_without_centering_adding_a_constant_changes_nothing():
    assert pair(3.7, 2.2) == pytest.approx(pair(1.7, 0.2), rel=1e-5)
    assert pair(3.7, 2.2, eta=ETA) > pair(1.7, 0.2, eta=ETA)


def test_swapping_the_sides_adds_the_gap():
    # -log sigmoid(-x) = -log sigmoid(x) + x
    assert pair(0.3, 1.5) == pytest.approx(pair(1.5, 0.3) + 1.2, rel=1e-5)
    assert pair(0.4, 0.4) == pytest.approx(np.log(2), rel=1e-6)


def test_centering_adds_eta_times_the_squared_sum():
    assert pair(1.5, 0.3, eta=ETA) - pair(1.5, 0.3) == pytest.approx(ETA * 1.8**2, rel=1e-4)
    assert pair(1.5, -1.5, eta=ETA) == pair(1.5, -1.5)


def test_a_margin_is_a_gap_that_must_be_had_first():
    assert pair(1.5, 0.3, margin=0.5) == pytest.approx(pair(1.0, 0.3), rel=1e-5)
    assert pair(1.5, 0.3, margin=0.5) > pair(1.5, 0.3)


def test_empty_slots_and_rows_count_for_nothing(mixed):
    batch, rewards = mixed
    cut = jax.tree.map(lambda x: x[1:, :4] if x.shape[1:] == (6,) else x[1:], batch)
    alone = sums_of(rewards[1:, :4], cut, ETA)
    in_batch = jax.tree.map(lambda x: x[1:], batch)
    for padded in (
        sums_of(rewards[1:].at[:, 4:].set(1e3), in_batch, ETA),
        sums_of(rewards, dataclasses.replace(batch, answers=batch.answers * [[0], [1]]), ETA),
    ):
        for name, value in dataclasses.asdict(alone).items():
            assert float(getattr(padded, name)) == pytest.approx(float(value), rel=1e-6), name


@pytest.mark.parametrize("garbage", [np.inf, -np.inf, np.nan, 1e30])
def test_what_stands_in_an_empty_slot_reaches_neither_loss_nor_gradient(mixed, garbage):
    batch, rewards = mixed
    rewards = rewards.at[1, 4:].set(garbage)
    value, gradient = jax.value_and_grad(lambda r: sums_of(r, batch, ETA).loss)(rewards)
    assert float(value) == pytest.approx(by_hand(rewards, batch, ETA)[0], rel=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[1, 4:].any()


def test_prompts_weigh_the_same_however_many_responses_they_have():
    rewards = jnp.array([[1.0, 0.2, 0.2, 0.2], [1.0, 0.2, 9.0, 9.0]])
    many = batch_with([[1, 1, 1, 1], [1, 1, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]])
    assert float(sums_of(rewards, many, ETA).loss) == pytest.approx(2 * pair(1.0, 0.2, ETA))


def test_its_gradients_are_those_of_its_values(mixed):
    batch, rewards = mixed
    check_grads(lambda r: pair_sums(r, batch, ETA).loss, (rewards,), order=1, rtol=1e-2)
    gradient = jax.grad(lambda r: pair_sums(r, batch, 0.0).loss)(rewards)
    # Without centering each pair pulls both sides alike, so a prompt's gradients cancel.
    assert np.allclose(jnp.sum(gradient, axis=1), 0, atol=1e-6)


def test_a_batch_without_pairs_gives_zero_and_no_nan():
    empty = batch_with([[0, 0], [1, 1]], [[0, 0], [1, 1]])
    with jax.debug_nans(True):
        rewards = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        value, gradient = jax.value_and_grad(lambda r: pair_sums(r, empty, ETA).loss)(rewards)
        metrics = describe(pair_sums(rewards, empty, ETA))
    assert float(value) == 0
    assert not gradient.any()
    assert all(np.isfinite(metric) for metric in metrics.values())


@pytest.mark.parametrize("rewards", [(1e4, -1e4), (-1e4, 1e4), (1e4, 1e4)])
def test_extreme_rewards_stay_finite(rewards):
    batch = batch_with([[1, 1]], [[1, 0]])
    with jax.debug_nans(True):
        value, gradient = jax.value_and_grad(lambda r: pair_sums(r, batch, ETA).loss)(
            jnp.array([rewards])
        )
    expected = max(rewards[1] - rewards[0], 0.0) + ETA * sum(rewards) ** 2
    assert float(value) == pytest.approx(expected or 0, abs=1, rel=1e-6)
    assert np.isfinite(gradient).all()


def test_accuracy_counts_a_tie_as_half_and_rewards_are_described():
    answers, right = [[1, 1, 2, 2, 3, 3]], [[1, 0, 1, 0, 1, 0]]
    rewards = jnp.array([[2.0, 1.0, 0.5, 0.5, -1.0, 0.0]])
    metrics = describe(sums_of(rewards, batch_with(answers, right), 0.0))
    assert float(metrics["accuracy"]) == pytest.approx(0.5)
    assert float(metrics["ties"]) == pytest.approx(1 / 3)
    assert float(metrics["margin"]) == pytest.approx(0.0)
    assert float(metrics["reward_mean"]) == pytest.approx(0.5)
    assert float(metrics["reward_std"]) == pytest.approx(np.std(np.asarray(rewards)), rel=1e-5)
