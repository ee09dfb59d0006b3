"""Scores held-out preference rows with a model and sums up: loss, accuracy per error type, rewards.

Loader (unshuffled) --forward--> reward of every response --> margins of every pair --> Report

    rewards_of = make_reward_function(forward)
    print(report(score(rewards_of, params, heldout_loader, mesh)).accuracy)
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from tqdm import tqdm

from toolrm_jax.batch import Batch
from toolrm_jax.files import write_text
from toolrm_jax.loader import Loader, to_device
from toolrm_jax.metrics import Estimate, credit, estimate
from toolrm_jax.model import Forward, Params
from toolrm_jax.paths import as_path

RewardFunction = Callable[[Params, Batch], jax.Array]


@dataclasses.dataclass(frozen=True)
class PairScores:
    """Every pair's rewards, with the task it belongs to and its error type. Arrays [n]."""

    tasks: list[str]
    numbers: list[int]  # which of the task's wrong responses
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
    batches = zip(steps, loader.batches(0, len(steps)), strict=True)
    pairs: list[_Pair] = []
    for step, local in tqdm(
        batches, "evaluating", len(steps), unit="batch", leave=False, disable=None
    ):
        for micro, rows in enumerate(step.micro_batches):
            part = jax.tree.map(lambda x, m=micro: x[m : m + 1], local)
            batch = jax.tree.map(lambda x: x[0], to_device(part, mesh))
            rewards_BM = np.asarray(rewards_of(params, batch))
            for ids, rewards_M in zip(rows, rewards_BM, strict=True):
                pairs += _pairs_of_row(loader, ids, rewards_M)
    tasks, numbers, types, right, wrong = map(list, zip(*pairs, strict=True))
    return PairScores(
        tasks, numbers, types, np.asarray(right, np.float32), np.asarray(wrong, np.float32)
    )


_Pair = tuple[str, int, str, float, float]  # as PairScores has them


def _pairs_of_row(loader: Loader, ids: Sequence[int], rewards_M: np.ndarray) -> Iterator[_Pair]:
    """The pairs of the prompts packed into one row, responses in the order `place` wrote them."""
    slots = iter(rewards_M)
    for i in ids:
        rejected = loader.rows[i]["rejected"]
        right = next(slots)
        for number in loader.index.kept[i]:
            error_type = rejected[number].get("error_type") or ""
            yield loader.index.ids[i], number, error_type, right, next(slots)


def report(scores: PairScores, eta: float = 0.0) -> Report:
    """Sums up pair scores.

    The loss is the training loss without the rows' own margins, every pair weighing the same.
    """
    credits = credit(scores.margins)
    by_type = {}
    for error_type in sorted(set(scores.error_types) - {""}):
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


def write_scores(path: str | os.PathLike[str], scores: PairScores) -> None:
    """Every pair as a JSON line; the file is written whole or not at all."""
    names = [field.name for field in dataclasses.fields(scores)]
    columns = [np.asarray(getattr(scores, name)).tolist() for name in names]
    lines = [json.dumps(dict(zip(names, pair, strict=True))) for pair in zip(*columns, strict=True)]
    write_text(path, (f"{line}\n" for line in lines))


def read_scores(path: str | os.PathLike[str]) -> PairScores:
    """What `write_scores` wrote."""
    pairs = [json.loads(line) for line in as_path(path).read_text().splitlines()]

    def column(name: str) -> list[Any]:
        return [pair[name] for pair in pairs]

    right, wrong = (np.asarray(column(side), np.float32) for side in ("right", "wrong"))
    return PairScores(column("tasks"), column("numbers"), column("error_types"), right, wrong)
