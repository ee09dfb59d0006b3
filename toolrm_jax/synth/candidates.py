"""Every wrong answer of a run as a few numbers: what a selection chooses from.

    judged examples --candidates_of--> Candidates, a shard each --merge--> Candidates of the run

The text of no example is held: memory is 30 bytes a candidate and 20 an example, 110 MB for 180,000
examples with 20 candidates each.

How much longer the right side is goes into one of `LENGTH_STEPS`' ranges: 1 and 2 characters are
what quotes around a value take, 24 are about an argument.

    >>> length_range(10, 10), length_range(12, 10), length_range(10, 15), length_range(99, 0)
    (0, 1, -2, 4)
"""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from toolrm_jax.examples import Response
from toolrm_jax.splits import digest
from toolrm_jax.synth.answer import main_model
from toolrm_jax.synth.shards import Row
from toolrm_jax.synth.turn_type import TURN_TYPES
from toolrm_jax.task_view import argument_count, response_length
from toolrm_jax.tool_calls import ErrorType, parse_calls

ERRORS = [str(error) for error in ErrorType]
LENGTH_STEPS = (1, 3, 9, 25)  # where the ranges of a difference begin, in characters
EMPTY, WORDS = 1, 2  # a turn that calls nothing: with nothing at all, or saying something


@dataclasses.dataclass
class Candidates:
    """Every wrong answer as numbers; `names` are what kinds and models are numbered by."""

    order: np.ndarray  # uint64 [examples]
    turn: np.ndarray  # uint8 [examples] in TURN_TYPES
    silent: np.ndarray  # uint8 [examples] the right side calls nothing: EMPTY or WORDS; else 0
    first: np.ndarray  # int64 [examples + 1] where an example's candidates begin
    table: np.ndarray  # int32 [n, 6]: error, kind, model, length range, more arguments, silent
    names: list[str]


def candidates_of(rows: Iterable[Row], seed: int) -> Candidates:
    """The candidates of judged examples."""
    names: dict[str, int] = {}
    order, turn, silent, first = [], [], [], [0]
    table: list[tuple[int, ...]] = []
    for row in rows:
        right = row["chosen"]
        order.append(int(digest(seed, row["id"])[:16], 16))
        turn.append(TURN_TYPES.index(row["turn"]))
        silent.append(_silence(right))
        size, given = response_length(right), argument_count(right)
        for wrong in row["wrong"]:
            response = wrong["response"]
            kind = names.setdefault(wrong["kind"], len(names))
            model = names.setdefault(main_model(wrong["models"]), len(names))
            longer = length_range(size, response_length(response))
            more = sign(given - argument_count(response))
            error = ERRORS.index(wrong["error_type"])
            table.append((error, kind, model, longer, more, _silence(response)))
        first.append(len(table))
    return Candidates(
        np.array(order, np.uint64),
        np.array(turn, np.uint8),
        np.array(silent, np.uint8),
        np.array(first, np.int64),
        np.array(table, np.int32).reshape(-1, 6),
        list(names),
    )


def _silence(response: Response) -> int:
    """EMPTY or WORDS where it calls nothing and is no broken call; else 0."""
    if not isinstance(response, str) or parse_calls(response) or response[:1] in tuple("[{<"):
        return 0
    return WORDS if response.strip() else EMPTY


def length_range(right: int, wrong: int) -> int:
    """By how much the right side is longer: 0 not at all, +-1 .. +-4 by LENGTH_STEPS."""
    return sign(right - wrong) * bisect.bisect(LENGTH_STEPS, abs(right - wrong))


def sign(number: int) -> int:
    """-1, 0 or 1."""
    return (number > 0) - (number < 0)


def merge(parts: Sequence[Candidates]) -> Candidates:
    """All parts, in order, under one numbering of names."""
    names: dict[str, int] = {}
    tables, firsts, at = [], [np.zeros(1, np.int64)], 0
    for part in parts:
        renumber = np.array([names.setdefault(n, len(names)) for n in part.names] or [0], np.int32)
        table = part.table.copy()
        table[:, 1:3] = renumber[table[:, 1:3]]
        tables.append(table)
        firsts.append(part.first[1:] + at)
        at += len(table)
    return Candidates(
        np.concatenate([part.order for part in parts] or [np.zeros(0, np.uint64)]),
        np.concatenate([part.turn for part in parts] or [np.zeros(0, np.uint8)]),
        np.concatenate([part.silent for part in parts] or [np.zeros(0, np.uint8)]),
        np.concatenate(firsts),
        np.concatenate(tables) if tables else np.zeros((0, 6), np.int32),
        list(names),
    )
