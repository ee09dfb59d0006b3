"""What there is to say of a model and of data, as plain JSON that a run keeps and a report shows.

toolrm.json              --model_card-->  {"config.model.source": ..., "train_tasks": 1034, ...}
cases, rejects by reason --data_counts--> {"right answers": 40, "category: simple": 12, ...}
"""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.evaluate.cases import Case

_MOST = 20  # labels of a kind; the rest are one


def model_card(about: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars, nested ones under their path; of the lists of tasks, how many.

    >>> model_card({"train_tasks": ["a", "b"], "config": {"seed": 0, "shape": [1]}, "base": None})
    {'train_tasks': 2, 'config.seed': 0}
    """
    return dict(_scalars(about, ""))


def _scalars(about: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in about.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{path}{name}.")
        elif isinstance(value, list) and name.endswith("_tasks"):
            yield path + name, len(value)
        elif isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
            yield path + name, value  # NaN is no JSON


def data_counts(cases: Sequence[Case], rejected: Mapping[str, int]) -> dict[str, int]:
    """How many cases, answers, and rows that are no case, of each kind."""
    wrong = [c for case in cases for c in case.candidates if not c.right]
    answers = sum(len(case.candidates) for case in cases)
    return {
        "cases": len(cases),
        "tasks": len({case.task for case in cases}),
        "right answers": answers - len(wrong),
        "wrong answers": len(wrong),
        **_by("category", collections.Counter(case.category for case in cases)),
        **_by("error type", collections.Counter(c.error_type for c in wrong)),
        **_by("rejected", collections.Counter(rejected)),
    }


def _by(kind: str, counts: collections.Counter[str]) -> dict[str, int]:
    """The most frequent labels and what is left; "" is no label."""
    named = [(name, number) for name, number in counts.most_common() if name]
    found = {f"{kind}: {name}": number for name, number in named[:_MOST]}
    if left := named[_MOST:]:
        found[f"{kind}: {len(left):,} others"] = sum(number for _, number in left)
    return found
