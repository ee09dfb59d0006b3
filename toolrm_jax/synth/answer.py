"""An answer: what one model, or a generator of wrong answers, replied to one example.

    {"example_id": "ste/17", "model": "Qwen3-4B", "license": "apache-2.0", "permissive": true,
     "response": [{"name", "arguments"}, ...] | "raw text", "right": false, "count": 3}

Endpoints, replayed files and corruptions all give answers; what judges them need not know which.

>>> answer = Answer("q1", "m", "MIT", True, [{"name": "f", "arguments": {}}])
>>> from_row(to_row(answer)) == answer
True
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from toolrm_jax.examples import Response


@dataclasses.dataclass(frozen=True)
class Answer:
    """One response to one example, with whose it is."""

    example_id: str
    model: str
    license: str  # the model's, as an SPDX identifier or a name
    permissive: bool
    response: Response  # calls, or the raw text
    right: bool | None = None  # the upstream's own verdict; None: judge against the gold
    count: int = 1  # how often the same answer was given
    kind: str | None = None  # a corruption's kind


CORRUPTION = "corruption"  # the model that wrong answers made from right ones are said to be of


def main_model(given: Mapping[str, int]) -> str:
    """Of models and how often each gave the same answer, the one it is said to be of."""
    return min(given, key=lambda name: (name == CORRUPTION, -given[name], name))


def to_row(answer: Answer) -> dict[str, Any]:
    """The answer as a JSON object; fields at their defaults are left out."""
    return {
        field.name: value
        for field in dataclasses.fields(answer)
        if (value := getattr(answer, field.name)) != field.default
    }


def from_row(row: dict[str, Any]) -> Answer:
    """The answer that `to_row` wrote."""
    return Answer(**row)
