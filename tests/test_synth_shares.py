"""Caps and the mix hold of what is selected: real corruptions, quotas that nobody reaches."""

import collections
import copy
import itertools

import pytest
from synth_files import row, tools, trip

from toolrm_jax.examples import Example
from toolrm_jax.pairs import MIX
from toolrm_jax.synth.candidates import candidates_of
from toolrm_jax.synth.corruption_answers import corruption_answers
from toolrm_jax.synth.judging import judge_answers
from toolrm_jax.synth.selection import SelectionError, SelectionSettings, select
from toolrm_jax.synth.selection_report import off_the_mix_lines
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import ErrorType, exact_reference

VALUE, NAME = str(ErrorType.VALUE), str(ErrorType.FUNCTION_NAME)
COUNT, OPTIONAL = str(ErrorType.CALL_COUNT), str(ErrorType.MISSING_OPTIONAL)
UNREACHED = {"single": 5_000, "multi": 5_000, "irrelevance": 5_000}


def tasks():
    """Single-turn tasks with what every error needs, multi-turn ones, and some without a call."""
    yield from map(trip, range(60))
    for number in range(180):
        task = row(number)
        gold = task["gold_calls"]
        about = (task["id"], "made", "MIT", tools(), task["conversation"])
        yield Example(*about, exact_reference(gold), gold)


@pytest.fixture(scope="module")
def rows():
    counts = collections.Counter()
    return [judge_answers(task, corruption_answers(task, seed=0), counts) for task in tasks()]


def report_of(rows, **settings):
    settings = {"quotas": UNREACHED} | settings
    return select(candidates_of(rows, seed=0), SelectionSettings(**settings))[1]


def got(report, turn):
    """(pairs of a turn type, pairs of it by error type)."""
    found = report["turn_types"][turn]
    return found["pairs"], {e: about["after"]["pairs"] for e, about in found["error_types"].items()}


@pytest.mark.parametrize("cap", [0.05, 0.2])
def test_a_cap_of_an_error_type_is_a_share_of_what_is_selected(rows, cap):
    report = report_of(rows, error_caps={VALUE: cap})
    for turn in ("single", "multi"):
        pairs, by_error = got(report, turn)
        assert 30 < pairs < UNREACHED[turn]
        assert 0.8 * cap * pairs - 1 <= by_error[VALUE] <= cap * pairs
    assert got(report, "irrelevance")[0] > 0  # whose one error type no cap could hold


def test_a_type_whose_length_tells_has_no_more_than_its_share_of_what_is_selected(rows):
    report = report_of(rows)
    for turn in ("single", "multi"):
        pairs, by_error = got(report, turn)
        share = MIX[ErrorType.MISSING_OPTIONAL] / sum(MIX.values())
        assert by_error.get(OPTIONAL, 0) <= share * pairs
        assert turn == "multi" or by_error[OPTIONAL] > 0.8 * share * pairs - 1
        for error, share in MIX.items():  # with `fill` about twice the share of the mix
            assert by_error.get(str(error), 0) <= 2.2 * share / sum(MIX.values()) * pairs + 3


def of_models(rows, shares):
    """The same rows, each wrong answer said by one of these models, so many of a hundred each."""
    names = [name for name, share in shares.items() for _ in range(share)]
    rows, number = copy.deepcopy(rows), 0
    for judged in rows:
        for wrong in judged["wrong"]:
            wrong["models"], number = {names[37 * number % 100]: 1}, number + 1
    return rows


def test_a_cap_of_models_is_a_share_of_all_that_is_selected(rows):
    said = of_models(rows, {"corruption": 92, "a": 2, "b": 2, "c": 2, "d": 2})
    report = report_of(said, model_cap=0.2, length_tolerance=1.0, mix={})
    assert report["pairs"] > 50
    assert set(report["models"]) == {"corruption", "a", "b", "c", "d"}
    assert max(report["models"].values()) <= 0.2 * report["pairs"]
    report = report_of(said, model_caps={"corruption": 0.5})
    assert 0.4 * report["pairs"] <= report["models"]["corruption"] <= 0.5 * report["pairs"]


def test_caps_of_models_that_no_selection_can_meet_are_refused(rows):
    said = r"\(corruption: 0\.2\) add up to 20% of the pairs.*\(\('corruption', 1\),\)"
    with pytest.raises(SelectionError, match=said):
        report_of(rows, model_cap=0.2)


def test_what_models_said_is_a_share_of_what_is_selected(rows):
    said = of_models(rows, {"corruption": 50, "m": 50})
    report = report_of(said, answers_cap=0.25, quotas={"single": 5_000})
    assert 0.2 * report["pairs"] <= report["models"]["m"] <= 0.25 * report["pairs"]


@pytest.fixture(scope="module")
def real_rows(toolrm_data):
    """Judged corruptions of the first rows of real files: both turn types, some call nothing."""
    counts, judged = collections.Counter(), []
    for name, number in (("glaive_demo_train", 349), ("ste_train", 300), ("sgd_train_20k", 500)):
        path = toolrm_data / f"data/train/{name}.jsonl.gz"
        for task in itertools.islice(open_source("normalised", path), number):
            if isinstance(task, Example):
                answers = corruption_answers(task, seed=0)
                judged.append(judge_answers(task, answers, counts))
    return judged


def test_the_mix_is_met_where_quotas_are_reached(real_rows):
    report = report_of(real_rows, quotas={"single": 150, "multi": 100, "irrelevance": 60})
    for turn in ("single", "multi"):
        pairs, by_error = got(report, turn)
        assert pairs == report["turn_types"][turn]["quota"]
        for error, share in MIX.items():
            wanted = share / sum(MIX.values()) * pairs
            assert abs(by_error[error] - wanted) < 1, (turn, error)
    assert report["off_the_mix"] == []


def test_without_fill_the_mix_is_met_of_as_many_pairs_as_there_can_be(rows):
    mix = {VALUE: 0.5, NAME: 0.3, COUNT: 0.2}
    report = report_of(rows, fill=False, mix=mix)
    for turn in ("single", "multi"):
        pairs, by_error = got(report, turn)
        assert 15 < pairs < UNREACHED[turn]
        for error, share in mix.items():
            assert by_error[error] == pytest.approx(share * pairs, abs=2), (turn, error)
        assert sum(by_error[error] for error in mix) == pairs


def test_what_is_off_the_mix_is_reported(rows):
    report = report_of(rows, mix={VALUE: 0.2, COUNT: 0.8}, any_length=())
    (off,) = [o for o in report["off_the_mix"] if (o["turn"], o["error_type"]) == ("single", COUNT)]
    pairs, by_error = got(report, "single")
    assert off == {
        "turn": "single",
        "error_type": COUNT,
        "wanted": 0.8,
        "got": by_error[COUNT] / pairs,
    }
    assert abs(off["got"] - 0.8) > 0.08
    assert f"{COUNT} {off['got']:.1%} (80.0% wanted)" in off_the_mix_lines(report)[0]


def test_length_tells_nothing_of_a_turn_type_and_error_type_where_both_sides_call(rows):
    """The exceptions: what is shorter by nature, and a side that calls nothing."""
    report = report_of(rows)
    balanced = 0
    for turn in ("single", "multi"):
        for error, about in report["turn_types"][turn]["error_types"].items():
            found = about["after"]["both_call"]
            if error != COUNT:
                assert found["pairs"] == about["after"]["pairs"]
            if error == OPTIONAL or not found["pairs"]:
                continue
            room = 0.01 + 4 / found["pairs"]  # a pair in each range of the difference
            assert found["right_longer"] == pytest.approx(0.5, abs=room), (turn, error)
            assert found["told_by_length"] <= 0.5 + room, (turn, error)
            balanced += 1
    assert balanced >= 10
    silent = report["turn_types"]["irrelevance"]["error_types"][COUNT]["after"]
    assert silent["pairs"] > silent["both_call"]["pairs"] == 0
