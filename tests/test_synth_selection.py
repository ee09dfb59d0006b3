"""Selection: quotas, mix, caps, and lengths that tell nothing."""

import collections

import numpy as np
import pytest

from toolrm_jax.synth.candidates import candidates_of, merge
from toolrm_jax.synth.selection import SelectionSettings, select
from toolrm_jax.tool_calls import ErrorType

VALUE, NAME = str(ErrorType.VALUE), str(ErrorType.FUNCTION_NAME)
COUNT, OPTIONAL = str(ErrorType.CALL_COUNT), str(ErrorType.MISSING_OPTIONAL)


def calls(letters: int):
    return [{"name": "f", "arguments": {"x": "a" * letters}}]


def wrong(error, letters, model="corruption", kind="near_number", response=None):
    return {
        "response": calls(letters) if response is None else response,
        "error_type": error,
        "kind": kind,
        "models": {model: 1},
        "license": "MIT",
        "count": 1,
    }


def judged(number, wrongs, turn="single", right=None):
    right = calls(50) if right is None else right
    return {"id": f"{turn}/{number}", "turn": turn, "chosen": right, "right": [], "wrong": wrongs}


def chosen(rows, **settings):
    settings = {"mix": {}, "quotas": {"single": 10_000}} | settings
    found, report = select(candidates_of(rows, seed=0), SelectionSettings(**settings))
    taken, at = [], 0
    for row in rows:
        mine = found[at : at + len(row["wrong"])]
        taken.append([w for w, is_in in zip(row["wrong"], mine, strict=True) if is_in])
        at += len(row["wrong"])
    return taken, report


def many(count=200):
    """Of each error type wrong answers mostly longer than the right one."""
    return [
        judged(n, [wrong(e, 50 + d) for e in (VALUE, NAME) for d in (-5, 5, 7, 9, 11)])
        for n in range(count)
    ]


def test_a_quota_is_met_exactly_and_what_it_lacks_is_said():
    _, report = chosen(many(), quotas={"single": 101, "multi": 7})
    assert report["turn_types"]["single"]["pairs"] == 101
    assert report["lacking"] == {"multi: pairs that the quota lacks": 7}


def test_the_mix_over_error_types_is_met():
    taken, _ = chosen(many(), quotas={"single": 400}, mix={VALUE: 3, NAME: 1})
    counts = collections.Counter(w["error_type"] for row in taken for w in row)
    assert counts == {VALUE: 300, NAME: 100}


def test_the_report_says_of_each_turn_type_what_was_wanted_and_what_there_is():
    rows = many(20) + [judged(n, [wrong(NAME, 50)], turn="multi") for n in range(20)]
    rows += [judged(n, [wrong(COUNT, 50)], turn="irrelevance", right="") for n in range(5)]
    quotas = {"single": 40, "multi": 40, "irrelevance": 5}
    _, report = chosen(rows, quotas=quotas, mix={VALUE: 3, NAME: 1})
    found = {
        (turn, error): (about["wanted"], about["after"]["pairs"])
        for turn, of in report["turn_types"].items()
        for error, about in of["error_types"].items()
    }
    assert found == {
        ("single", VALUE): (0.75, 30),
        ("single", NAME): (0.25, 10),
        ("multi", VALUE): (0.75, 0),  # wanted, though there is none
        ("multi", NAME): (0.25, 20),
        ("irrelevance", COUNT): (None, 5),
    }


def test_length_tells_nothing_within_an_error_type():
    _, report = chosen(many(), wrong_per_prompt=4)
    for error in (VALUE, NAME):
        about = report["error_types"][error]
        assert about["before"]["right_longer"] == pytest.approx(0.2)
        assert about["after"]["right_longer"] == pytest.approx(0.5, abs=0.01)
        assert about["after"]["pairs"] > 200


def test_how_much_the_sides_differ_tells_nothing_either():
    # As many are longer as shorter, but those that are longer are so by much.
    rows = [judged(n, [wrong(VALUE, 50 + d) for d in (-2, -1, 30, 60, -30)]) for n in range(100)]
    _, report = chosen(rows, wrong_per_prompt=5)
    about = report["error_types"][VALUE]
    assert about["before"]["right_longer"] == pytest.approx(0.6)
    assert about["before"]["told_by_length"] == pytest.approx(0.8)
    assert about["after"]["told_by_length"] == pytest.approx(0.5, abs=0.015)
    assert about["after"]["pairs"] >= 200


def test_what_would_tip_the_lengths_is_left_unless_its_type_is_exempt():
    rows = [judged(n, [wrong(VALUE, 90), wrong(OPTIONAL, 5)]) for n in range(50)]
    taken, _ = chosen(rows)
    counts = collections.Counter(w["error_type"] for row in taken for w in row)
    assert counts[VALUE] <= 1
    assert counts[OPTIONAL] == 50


def test_caps_hold_by_prompt_model_and_error_type():
    quotas = {"single": 300}
    taken, report = chosen(many(), wrong_per_prompt=2, error_caps={VALUE: 0.01}, quotas=quotas)
    assert max(map(len, taken)) == 2
    assert report["error_types"][VALUE]["after"]["pairs"] == 3
    rows = [
        judged(n, [wrong(VALUE, 50, model=m, response=calls(50 + i)) for i, m in enumerate("ab")])
        for n in range(100)
    ]
    _, report = chosen(rows, quotas={"single": 100}, model_caps={"a": 0.1}, any_length=(VALUE,))
    assert report["models"] == {"b": 90, "a": 10}


def test_answers_of_models_come_before_corruptions():
    rows = [
        judged(n, [wrong(VALUE, 50), wrong(VALUE, 50, model="m", kind="answer")]) for n in range(20)
    ]
    _, report = chosen(rows, wrong_per_prompt=1)
    assert report["models"] == {"m": 20}


def said_and_made(count=60):
    """To a third of the examples a model said something longer; corruptions differ both ways."""
    return [
        judged(n, [wrong(VALUE, 50 + d) for d in (-5, 5)])
        if n % 3
        else judged(n, [wrong(VALUE, 57, model="m", kind="answer"), wrong(VALUE, 45)])
        for n in range(count)
    ]


def test_corruptions_make_up_for_the_lengths_of_what_models_said():
    _, report = chosen(said_and_made(), wrong_per_prompt=1)
    assert report["models"] == {"corruption": 40, "m": 20}
    assert report["error_types"][VALUE]["after"]["right_longer"] == pytest.approx(0.5, abs=0.02)


def test_what_corruptions_cannot_make_up_for_is_dropped_again():
    rows = [judged(n, [wrong(VALUE, 57, model="m", kind="answer")]) for n in range(50)]
    rows += [judged(n, [wrong(VALUE, 45)]) for n in range(50, 70)]
    _, report = chosen(rows)
    assert report["models"] == {"m": 21, "corruption": 20}
    assert report["lacking"]["chosen and dropped again, for their lengths"] == 29


def test_what_models_said_takes_no_more_than_its_share_of_a_quota():
    _, report = chosen(said_and_made(), quotas={"single": 20}, answers_cap=0.25)
    assert report["models"] == {"corruption": 15, "m": 5}


def test_of_one_prompt_more_answers_of_models_may_be_taken_than_corruptions():
    rows = [judged(n, [wrong(VALUE, 50, model=m, kind="answer") for m in "abcdef"]) for n in (1, 2)]
    rows += [judged(n, [wrong(VALUE, 50) for _ in range(6)]) for n in (3, 4)]
    taken, _ = chosen(rows, wrong_per_prompt=3, answers_per_prompt=5)
    assert list(map(len, taken)) == [5, 5, 3, 3]


def test_silence_is_wrong_at_most_as_often_as_it_is_right():
    silent = [wrong(COUNT, 0, response="", kind="no_call"), wrong(VALUE, 50)]
    words = [wrong(COUNT, 0, response="No tool does that.", kind="no_call")]
    rows = [judged(n, silent + words) for n in range(100)]
    rows += [judged(n, [wrong(COUNT, 3)], "irrelevance", "") for n in range(10)]
    rows += [judged(n, [wrong(COUNT, 3)], "irrelevance", "What for?") for n in range(10, 14)]
    quotas = {"single": 500, "irrelevance": 500}
    taken, _ = chosen(rows, quotas=quotas, any_length=(COUNT,))
    wrongly = collections.Counter(
        w["response"] for row in taken for w in row if isinstance(w["response"], str)
    )
    assert wrongly == {"": 10, "No tool does that.": 4}


def test_what_is_chosen_does_not_depend_on_the_order_of_examples():
    rows = many(100)
    settings = {"quotas": {"single": 90}, "wrong_per_prompt": 2}
    first = dict(zip((r["id"] for r in rows), chosen(rows, **settings)[0], strict=True))
    again = dict(zip((r["id"] for r in rows[::-1]), chosen(rows[::-1], **settings)[0], strict=True))
    assert first == again


def test_candidates_of_shards_are_those_of_all_rows_together():
    rows = many(9) + [judged(n, [wrong(NAME, 3, model="other")], "multi") for n in range(4)]
    whole = candidates_of(rows, seed=0)
    parts = merge([candidates_of(rows[a:b], seed=0) for a, b in ((0, 3), (3, 3), (3, 13))])
    assert set(parts.names) == set(whole.names)
    for name in ("order", "turn", "silent", "first"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    for mine, theirs in zip(parts.table, whole.table, strict=True):
        assert parts.names[mine[2]] == whole.names[theirs[2]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quotas": {"sinlge": 3}}, "quotas has 'sinlge'"),
        ({"mix": {"Value": 3}}, "mix has 'Value'"),
        ({"wrong_per_prompt": 0}, "it must be 1 or more"),
        ({"length_tolerance": 2}, "expected 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        SelectionSettings(**fields)
