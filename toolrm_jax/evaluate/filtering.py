"""Keeps the best part of fine-tuning data by its rewards; with planted noise, says what that found.

    examples with their own answers --a share corrupted--> scored --best fraction--> kept | dropped

Planted noise is a corruption of the answer, of a kind that models make (`corruptions.py`), judged
wrong; which rows get one depends on the seed and their ids. Without noise nothing is known about
which answers are wrong, and only rewards are told.

    figures: the share of planted noise that was dropped, precision and recall of "this row is
    noise" along the rewards (`CURVE` points of them), and their average precision (area under the
    whole curve).
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolrm_jax.corruptions import corrupt
from toolrm_jax.evaluate.cases import Candidate, Case
from toolrm_jax.examples import Example
from toolrm_jax.rendering import assistant_turn
from toolrm_jax.splits import digest
from toolrm_jax.tool_calls import judge

Row = dict[str, Any]
CURVE = 50


def answered(examples: Sequence[Example], noise: float, seed: int) -> Iterator[Case]:
    """Each example with the one answer that is in the data, or a wrong one in its place."""
    for example in examples:
        answer = example.gold or (example.words or "")
        candidate = Candidate(answer, True)
        if int(digest(seed, "noise", example.id)[:8], 16) / 16**8 < noise:
            candidate = _corrupted(example, seed) or candidate
        yield Case(example.id, example.tools, example.messages, [candidate], example.source)


def _corrupted(example: Example, seed: int) -> Candidate | None:
    made = list(corrupt(example, seed=seed))
    random.Random(f"{seed}/noise/{example.id}").shuffle(made)
    for wrong in made:
        if judge(wrong.response, example.reference, example.tools).error_type == wrong.error_type:
            return Candidate(wrong.response, False, str(wrong.error_type), "corruption")
    return None


def keep(
    rewards: np.ndarray,
    sources: Sequence[str],
    *,
    fraction: float | None,
    threshold: float | None,
    per_source: bool,
) -> np.ndarray:
    """Which rows to keep, bool [n]: the best fraction of all, or of each source, or those whose
    reward is at least the threshold.

    A fraction is rounded to whole rows, but to no fewer than one. What has no reward (NaN, or an
    infinite one) is dropped, whatever the threshold; of equal rewards the earlier row is kept.
    """
    ranked = np.where(np.isnan(rewards), -np.inf, rewards)
    if threshold is not None:
        return (ranked >= threshold) & np.isfinite(ranked)
    assert fraction is not None
    groups = np.array(sources, object) if per_source else np.zeros(len(rewards), int)
    kept = np.zeros(len(rewards), bool)
    for group in dict.fromkeys(groups.tolist()):
        mine = np.flatnonzero(groups == group)
        best = mine[np.argsort(-ranked[mine], kind="stable")]
        kept[best[: max(1, round(fraction * len(mine)))]] = True
    return kept & np.isfinite(ranked)


def describe(rewards: np.ndarray, noisy: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """What filtering found, as JSON. noisy, kept: bool [n]."""
    known = rewards[np.isfinite(rewards)]
    found: dict[str, Any] = {
        "rows": len(rewards),
        "kept": int(kept.sum()),
        "unscored": int(np.isnan(rewards).sum()),
        "rewards": {
            name: float(value)
            for name, value in zip(
                ("5%", "50%", "95%"), np.quantile(known, [0.05, 0.5, 0.95]), strict=True
            )
        }
        if len(known)
        else {},
    }
    if noisy.any():
        found["noise"] = {
            "rows": int(noisy.sum()),
            "dropped": float((~kept)[noisy].mean()),
            "share before": float(noisy.mean()),
            "share after": float(noisy[kept].mean()) if kept.any() else None,
            "average precision": average_precision(rewards, noisy),
            "curve": curve(rewards, noisy),
        }
    return found


def precision_recall(rewards: np.ndarray, noisy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(precision, recall) of calling the rows with the lowest rewards noise: one point for each
    distinct reward, from the lowest on. What has no reward comes first."""
    ranked = np.where(np.isnan(rewards), -np.inf, rewards)
    values, place = np.unique(ranked, return_inverse=True)
    called = np.cumsum(np.bincount(place, minlength=len(values)))
    found = np.cumsum(np.bincount(place, noisy, minlength=len(values)))
    return found / called, found / noisy.sum()


def curve(rewards: np.ndarray, noisy: np.ndarray) -> list[dict[str, float]]:
    """At most `CURVE` points of precision and recall, evenly among all, the first and last too."""
    precision, recall = precision_recall(rewards, noisy)
    places = np.unique(np.linspace(0, len(recall) - 1, CURVE).round().astype(int))
    return [{"recall": float(recall[i]), "precision": float(precision[i])} for i in places]


def average_precision(rewards: np.ndarray, noisy: np.ndarray) -> float:
    """The mean precision, each point weighing as much as recall grows there."""
    precision, recall = precision_recall(rewards, noisy)
    return float(np.sum(np.diff(np.r_[0.0, recall]) * precision))


def sft_rows(cases: Sequence[Case], rewards: np.ndarray) -> Iterator[Row]:
    """Chats that fine-tuning reads: the answer is the last message. A reward of NaN is unknown."""
    for case, reward in zip(cases, rewards, strict=True):
        (candidate,) = case.candidates
        turn = assistant_turn(candidate.response, case.tools)
        yield {
            "id": case.task,
            "source": case.category,
            "messages": [*case.messages, turn],
            "tools": case.tools,
            "reward": None if np.isnan(reward) else float(reward),
            "planted_noise": not candidate.right,
        }
