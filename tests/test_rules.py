"""Rules that cost nothing: what each prefers, and their best combination."""

import numpy as np
import pytest

from toolrm_jax.pairs import pairs_of
from toolrm_jax.rules import (
    BestCombination,
    features,
    longer,
    more_calls,
    schema_valid,
    verbatim,
)

TOOLS = [
    {
        "name": "f",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
            "required": ["a"],
        },
    }
]


def call(**arguments):
    return {"name": "f", "arguments": arguments}


def row(chosen, *rejected, text="Take 12 of the Blue Box."):
    return {
        "id": "r",
        "tools": TOOLS,
        "messages": [{"role": "user", "content": text}],
        "chosen": chosen,
        "rejected": [{"response": r, "error_type": "x", "kind": "y"} for r in rejected],
    }


def test_schema_valid_wants_every_call_to_fit_its_tool():
    here = row([])
    assert schema_valid(here, [call(a=1)]) == 1
    assert schema_valid(here, [call(a=1), call(a="1")]) == 0
    assert schema_valid(here, [call(b="x")]) == 0
    assert schema_valid(here, '[{"name": "f"') == 0
    assert schema_valid(here, "") == schema_valid(here, "No tool fits.") == 1


def test_longer_and_more_calls_count():
    here = row([])
    assert longer(here, [call(a=12)]) > longer(here, [call(a=1)]) > longer(here, [])
    assert more_calls(here, [call(a=1)] * 2) == 2
    assert more_calls(here, "No tool fits.") == 0


def test_verbatim_is_the_share_of_leaf_values_that_the_conversation_holds():
    here = row([])
    assert verbatim(here, [call(a=12, b="blue box")]) == 1
    assert verbatim(here, [call(a=1, b="Blue Box")]) == 0.5  # 1 is only a part of 12
    assert verbatim(here, [call(a={"x": [12, 13]}, b="Red")]) == pytest.approx(1 / 3)
    assert verbatim(here, []) == 0


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        (12345.67, "I owe 12345.67 euros.", True),
        (12345.67, "I owe 12,345.67 euros.", True),
        (12345.67, "I owe 12345.7 euros.", False),
        (1234567, "Some 1,234,567 people.", True),
        (567, "Some 1,234,567 people.", False),
        (123, "Take 1,2,3.", False),
        (2, "Take 1,2,3.", True),
        (12, "About 12.5 km.", False),
        (12.5, "About 12.50 km.", True),
        (3, "Exactly 3.0.", True),
        (3.0, "Take 3.", True),
        (0.00001, "A step of 0.00001.", True),
        (10**400, "Very many.", False),
    ],
)
def test_a_number_is_found_with_all_its_digits_and_no_others(value, text, found):
    assert verbatim(row([], text=text), [call(a=value)]) == found


def test_the_combination_learns_what_tells_right_from_wrong_and_generalises():
    train = [row([call(a=12)], [call(a=n)], [call(a=12, b="Red")]) for n in range(13, 40)]
    combination = BestCombination.fit(train)
    held_out = [row([call(a=7)], [call(a=8)], [call(a=7, b="Green")], text="Take 7.")]
    for here, right, wrong, _ in pairs_of(held_out):
        assert combination.score(here, right) > combination.score(here, wrong)


def test_the_combination_has_no_intercept_and_does_not_change_when_sides_are_swapped():
    train = [row([call(a=12)], [call(a=n)]) for n in range(13, 30)]
    swapped = [row(r["rejected"][0]["response"], r["chosen"]) for r in train]
    weights = BestCombination.fit(train).weights_F
    np.testing.assert_allclose(BestCombination.fit(swapped).weights_F, -weights, atol=1e-5)
    assert BestCombination.fit(train).score(train[0], []) == pytest.approx(
        features(train[0], []) @ weights
    )


def test_fitting_on_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        BestCombination.fit([])
