"""Scores held-out preference rows with a model and sums up: loss, accuracy per error type, rewards.

Loader (in order, unshuffled) --forward--> reward of every response --> margins of every pair --> Report
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from tqdm import tqdm

from toolrm_jax.batch import Batch
from toolrm_jax.loader import Loader, to_device
from toolrm_jax.metrics import Estimate, credit, estimate
from toolrm_jax.model import Forward, Params

RewardFunction = Callable[[Params, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class PairScores:
    """Every pair's rewards, with the task it belongs to and its error type. Arrays [n]."""

    tasks: list[str]
    error_types: list[str]
    right: np.ndarray
    wrong: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        return self.right - self.wrong


@dataclasses.dataclass(frozen=True)
class Report:
    """What evaluation found; `accuracy` counts a tie as half."""

    loss: float
    accuracy: Estimate
    by_error_type: dict[str, Estimate]
    ties: int
    margin: float
    reward_mean: float
    reward_std: float

    def to_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return dataclasses.asdict(self)


def make_reward_function(forward: Forward) -> RewardFunction:
    """The jitted forward; its rewards come back whole on every process."""

    @jax.jit
    def rewards(params: Params, batch: Batch) -> jax.Array:
        return jax.sharding.reshard(forward(params, batch), PartitionSpec())

    return rewards


def score(
    rewards_of: RewardFunction, params: Params, loader: Loader, mesh: jax.sharding.Mesh
) -> PairScores:
    """Rewards of all pairs of an unshuffled loader, in the order of its plan."""
    steps = loader.epoch(0)
    tasks, types, right, wrong = [], [], [], []
    batches = loader.batches(0, len(steps))
    for step, batches in zip(
        tqdm(steps, desc="evaluating", unit="batch", leave=False), batches, strict=True
    ):
        for micro, rows in enumerate(step.micro_batches):
            local = jax.tree.map(lambda x, m=micro: x[m : m + 1], batches)
            batch = jax.tree.map(lambda x: x[0], to_device(local, mesh))
            rewards_BM = np.asarray(rewards_of(params, batch))
            for row, ids in enumerate(rows):
                slot = 0
                for i in ids:
                    pairs = rewards_of_row(loader, i, rewards_BM[row], slot)
                    slot += 1 + len(pairs)
                    for error_type, r_right, r_wrong in pairs:
                        tasks.append(loader.index.ids[i])
                        types.append(error_type)
                        right.append(r_right)
                        wrong.append(r_wrong)
    return PairScores(tasks, types, np.asarray(right, np.float32), np.asarray(wrong, np.float32))


def rewards_of_row(loader: Loader, i: int, rewards_M: np.ndarray, slot: int):
    """(error type, reward of the right response, reward of the wrong one) of each pair of row i."""
    rejected = loader.rows[i]["rejected"]
    return [
        (rejected[number].get("error_type", ""), rewards_M[slot], rewards_M[slot + 1 + place])
        for place, number in enumerate(loader.index.kept[i])
    ]


def report(scores: PairScores, eta: float = 0.0) -> Report:
    """Sums up pair scores; the loss is the training loss, with every pair weighing the same."""
    credits = credit(scores.margins)
    by_type = {}
    for error_type in sorted(set(scores.error_types)):
        chosen = np.array([t == error_type for t in scores.error_types])
        tasks = [task for task, c in zip(scores.tasks, chosen, strict=True) if c]
        by_type[error_type] = estimate(credits[chosen], tasks)
    margins = scores.margins.astype(np.float64)
    losses = np.logaddexp(0, -margins) + eta * np.square(scores.right + scores.wrong)
    rewards = np.concatenate([scores.right, scores.wrong])
    return Report(
        loss=float(losses.mean()),
        accuracy=estimate(credits, scores.tasks),
        by_error_type=by_type,
        ties=int((scores.margins == 0).sum()),
        margin=float(margins.mean()),
        reward_mean=float(rewards.mean()),
        reward_std=float(rewards.std()),
    )
