"""The row layout: prompts packed into rows, each followed by its responses.

    tokens    [ prompt 1 ...... | 1a .. | 1b ... | prompt 2 ... | 2a . | 2b .. | padding ]
    segments    1 1 1 1 1 1 1 1   1 1 1   1 1 1 1  2 2 2 2 2 2    2 2    2 2 2   0 0 0
    branches    0 0 0 0 0 0 0 0   1 1 1   2 2 2 2  0 0 0 0 0 0    3 3    4 4 4   0 0 0
    positions   0 1 2 3 4 5 6 7   8 9 10  8 9 ...  0 1 2 3 4 5    6 7    6 7 8   0 0 0

A prompt is computed once however many responses it has: a response attends to its prompt and to
itself, never to a sibling (`attention.py`), and its positions continue from the prompt's end. Rows
are filled to the brim by example size alone, so padding stays at a few percent whatever the mix of
long and short responses; fixed slots for responses would cost a third of the tokens on real pairs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

Array = Any  # numpy's while a batch is filled, JAX's on devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of S tokens with up to M responses. Int32 where not said otherwise."""

    tokens: Array  # [B, S]
    segments: Array  # [B, S] which prompt, 1.. within the row; 0 is padding
    branches: Array  # [B, S] which response, 1.. within the row; 0 is the prompt's
    positions: Array  # [B, S] as if prompt and response were alone
    ends: Array  # [B, M] where in the row each response's last token is
    answers: Array  # [B, M] the segment each response answers; 0: no response
    right: Array  # [B, M] bool: the preferred side (training)
    margins: Array  # [B, M] float32, of a wrong response against the right one


@dataclasses.dataclass(frozen=True, order=True)
class RowShape:
    """A row's static size: S tokens, and at most M responses among them."""

    tokens: int
    responses: int


@dataclasses.dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt and its responses as token ids, as `rendering.Rendered` splits them."""

    prompt: np.ndarray  # int32 [T]
    responses: Sequence[np.ndarray]  # int32 [R_i] each, R_i >= 1
    right: Sequence[bool] = ()
    margins: Sequence[float] = ()

    def __post_init__(self):
        count = len(self.responses)
        if any(len(response) == 0 for response in self.responses):
            raise ValueError(f"An empty response among {count}: each needs a token to be read at.")
        for name in ("right", "margins"):
            labels = getattr(self, name)
            if len(labels) not in (0, count):
                raise ValueError(f"{name} has {len(labels)} entries for {count} responses.")

    @property
    def tokens(self) -> int:
        """Tokens computed for it: the prompt once, and every response."""
        return len(self.prompt) + sum(map(len, self.responses))


def empty_batch(rows: int, shape: RowShape) -> Batch:
    """A batch of padding, to be filled row by row with `place`."""
    tokens, responses = (rows, shape.tokens), (rows, shape.responses)
    return Batch(
        tokens=np.zeros(tokens, np.int32),
        segments=np.zeros(tokens, np.int32),
        branches=np.zeros(tokens, np.int32),
        positions=np.zeros(tokens, np.int32),
        ends=np.zeros(responses, np.int32),
        answers=np.zeros(responses, np.int32),
        right=np.zeros(responses, bool),
        margins=np.zeros(responses, np.float32),
    )


def place(batch: Batch, row: int, prompts: Sequence[TokenizedPrompt]) -> None:
    """Writes these prompts, each with all its responses, into one row, in order; in place.

    Raises:
      ValueError: they do not fit. The batch plan never lets that happen.
    """
    needed = (sum(item.tokens for item in prompts), sum(len(item.responses) for item in prompts))
    room = (batch.tokens.shape[1], batch.answers.shape[1])
    if needed[0] > room[0] or needed[1] > room[1]:
        raise ValueError(
            f"{len(prompts)} prompts with {needed[0]} tokens and {needed[1]} responses do not fit "
            f"a row of {room[0]} tokens and {room[1]} responses."
        )
    at = branch = 0
    for segment, item in enumerate(prompts, start=1):
        length = len(item.prompt)
        _write(batch, row, at, item.prompt, segment, branch=0, position=0)
        at += length
        first = branch
        for response in item.responses:
            branch += 1
            _write(batch, row, at, response, segment, branch, position=length)
            at += len(response)
            batch.ends[row, branch - 1] = at - 1
        batch.answers[row, first:branch] = segment
        if len(item.right):
            batch.right[row, first:branch] = item.right
        if len(item.margins):
            batch.margins[row, first:branch] = item.margins


def _write(batch, row: int, at: int, tokens: np.ndarray, segment: int, branch: int, position: int):
    span = slice(at, at + len(tokens))
    batch.tokens[row, span] = tokens
    batch.segments[row, span] = segment
    batch.branches[row, span] = branch
    batch.positions[row, span] = np.arange(position, position + len(tokens))
