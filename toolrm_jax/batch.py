"""The row layout: prompts packed into rows, and response slots that each name the prompt they answer.

    prompt buffer of a row, T tokens                 M response slots of R tokens
    [ prompt 1 ...... | prompt 2 ... | padding ]     [ to 1 ][ to 1 ][ to 2 ][ to 2 ][ empty ]

One prompt with N responses is the simplest row. A prompt is computed once however many responses it has;
`attention.py` draws who attends to whom.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """B rows of T prompt tokens and M response slots of R tokens. Int32 where not said otherwise."""

    prompt_tokens: jax.Array | np.ndarray  # [B, T]
    prompt_segments: jax.Array | np.ndarray  # [B, T] 1.. within the row; 0 is padding
    prompt_positions: jax.Array | np.ndarray  # [B, T] restart with each prompt
    response_tokens: jax.Array | np.ndarray  # [B, M, R]
    response_lengths: jax.Array | np.ndarray  # [B, M] 0: the slot is empty
    response_starts: (
        jax.Array | np.ndarray
    )  # [B, M] position of the first token = the prompt's length
    answers: jax.Array | np.ndarray  # [B, M] the segment of the prompt answered
    right: jax.Array | np.ndarray  # [B, M] bool: the preferred side (training)
    margins: jax.Array | np.ndarray  # [B, M] float32, of a wrong response against the right one


@dataclasses.dataclass(frozen=True, order=True)
class RowShape:
    """A row's static size: T prompt tokens, M slots of R response tokens."""

    prompt_tokens: int
    slots: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens computed for the row, padding included."""
        return self.prompt_tokens + self.slots * self.response_tokens


@dataclasses.dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt and its responses as token ids, as `rendering.Rendered` splits them."""

    prompt: np.ndarray  # int32 [T]
    responses: Sequence[np.ndarray]  # int32 [R_i] each
    right: Sequence[bool] = ()
    margins: Sequence[float] = ()


def empty_batch(rows: int, shape: RowShape) -> Batch:
    """A batch of padding, to be filled row by row with `place`."""
    B, T, M, R = rows, shape.prompt_tokens, shape.slots, shape.response_tokens
    zeros = lambda *size: np.zeros(size, np.int32)  # noqa: E731
    return Batch(
        prompt_tokens=zeros(B, T),
        prompt_segments=zeros(B, T),
        prompt_positions=zeros(B, T),
        response_tokens=zeros(B, M, R),
        response_lengths=zeros(B, M),
        response_starts=zeros(B, M),
        answers=zeros(B, M),
        right=np.zeros((B, M), bool),
        margins=np.zeros((B, M), np.float32),
    )


def place(batch: Batch, row: int, prompts: Sequence[TokenizedPrompt]) -> None:
    """Writes these prompts and all their responses into one row, in order; in place.

    Raises:
      ValueError: they do not fit. The batch plan never lets that happen.
    """
    at = slot = 0
    for segment, item in enumerate(prompts, start=1):
        length = len(item.prompt)
        end = slot + len(item.responses)
        fits = at + length <= batch.prompt_tokens.shape[1] and end <= batch.answers.shape[1]
        if not fits or max(map(len, item.responses)) > batch.response_tokens.shape[2]:
            raise ValueError(
                f"A prompt of {length} tokens with responses of {[len(r) for r in item.responses]} "
                f"does not fit behind {at} tokens and {slot} slots of a row shaped "
                f"{batch.prompt_tokens.shape[1:]} + {batch.response_tokens.shape[1:]}."
            )
        batch.prompt_tokens[row, at : at + length] = item.prompt
        batch.prompt_segments[row, at : at + length] = segment
        batch.prompt_positions[row, at : at + length] = np.arange(length)
        for number, response in enumerate(item.responses):
            batch.response_tokens[row, slot + number, : len(response)] = response
            batch.response_lengths[row, slot + number] = len(response)
        batch.response_starts[row, slot:end] = length
        batch.answers[row, slot:end] = segment
        if item.right:
            batch.right[row, slot:end] = item.right
        if item.margins:
            batch.margins[row, slot:end] = item.margins
        at, slot = at + length, end
