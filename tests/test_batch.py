"""The row layout: what `place` writes where, and what does not fit."""

import dataclasses

import numpy as np
import pytest

from toolrm_jax.batch import RowShape, TokenizedPrompt, empty_batch, place

FIRST = TokenizedPrompt(
    np.array([11, 12, 13]), [np.array([21, 22]), np.array([31])], [True, False], [0.0, 0.5]
)
SECOND = TokenizedPrompt(np.array([14]), [np.array([41, 42])])


def test_an_empty_batch_is_padding():
    batch = empty_batch(2, RowShape(5, 3))
    shapes = {name: x.shape for name, x in dataclasses.asdict(batch).items()}
    per_token = dict.fromkeys(("tokens", "segments", "branches", "positions"), (2, 5))
    assert shapes == per_token | dict.fromkeys(("ends", "answers", "right", "margins"), (2, 3))
    assert not any(x.any() for x in dataclasses.asdict(batch).values())


def test_prompts_and_responses_stand_one_after_another():
    batch = empty_batch(2, RowShape(11, 4))
    place(batch, 1, [FIRST, SECOND])
    row = {name: x[1].tolist() for name, x in dataclasses.asdict(batch).items()}
    assert row == {
        "tokens": [11, 12, 13, 21, 22, 31, 14, 41, 42, 0, 0],
        "segments": [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "branches": [0, 0, 0, 1, 1, 2, 0, 3, 3, 0, 0],
        "positions": [0, 1, 2, 3, 4, 3, 0, 1, 2, 0, 0],
        "ends": [4, 5, 8, 0],
        "answers": [1, 1, 2, 0],
        "right": [True, False, False, False],
        "margins": [0.0, 0.5, 0.0, 0.0],
    }
    assert not any(x[0].any() for x in dataclasses.asdict(batch).values())


def test_a_row_may_be_filled_to_the_brim():
    assert FIRST.tokens + SECOND.tokens == 9
    place(empty_batch(1, RowShape(9, 3)), 0, [FIRST, SECOND])


@pytest.mark.parametrize("shape", [RowShape(8, 3), RowShape(9, 2)])
def test_what_does_not_fit_is_an_error_and_writes_nothing(shape):
    batch = empty_batch(1, shape)
    with pytest.raises(
        ValueError, match=r"2 prompts with 9 tokens and 3 responses do not fit a row"
    ):
        place(batch, 0, [FIRST, SECOND])
    assert not any(x.any() for x in dataclasses.asdict(batch).values())


@pytest.mark.parametrize("field", ["right", "margins"])
def test_labels_that_are_not_one_a_response_are_an_error(field):
    with pytest.raises(ValueError, match=rf"{field} has 1 entries for 2 responses"):
        dataclasses.replace(FIRST, **{field: [1]})


def test_a_response_of_no_tokens_is_an_error():
    with pytest.raises(ValueError, match=r"empty response among 2"):
        TokenizedPrompt(np.array([1]), [np.array([2]), np.array([], int)])
