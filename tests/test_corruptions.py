"""Corruptions: wrong in the way they were made to be, repeatable, and of every error type."""

import json
import random
import re

import pytest
from bfcl_samples import CATEGORIES, write_samples

from toolrm_jax.bfcl import read_tasks
from toolrm_jax.corruptions import KIND_WEIGHTS, corrupt
from toolrm_jax.examples import Example
from toolrm_jax.refusals import refusal
from toolrm_jax.task_view import TaskView
from toolrm_jax.tool_calls import ErrorType, exact_reference, judge


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    data_dir = write_samples(tmp_path_factory.mktemp("bfcl") / "data")
    return {task.id: task for task in read_tasks(data_dir, CATEGORIES)[0]}


def made(task, kind, seeds=40):
    """Distinct responses of one kind over several seeds."""
    found = [w for seed in range(seeds) for w in corrupt(task, seed=seed) if w.kind == kind]
    return [json.loads(r) for r in sorted({json.dumps(w.response) for w in found})]


def test_almost_all_corruptions_are_what_they_were_made_to_be(tasks):
    good = bad = 0
    for task in tasks.values():
        for seed in range(10):
            for wrong in corrupt(task, seed=seed):
                verdict = judge(wrong.response, task.reference, task.tools)
                assert not verdict.right
                good += verdict.error_type == wrong.error_type
                bad += verdict.error_type != wrong.error_type
    assert bad < 0.05 * good


def test_every_error_type_is_made_and_every_kind_has_a_weight(tasks):
    kinds, errors = set(), set()
    for task in tasks.values():
        for seed in range(40):
            for wrong in corrupt(task, seed=seed):
                kinds.add(wrong.kind)
                errors.add(wrong.error_type)
    assert errors == set(ErrorType)
    assert kinds <= set(KIND_WEIGHTS)


def test_the_same_seed_makes_the_same_and_another_seed_other_corruptions(tasks):
    task = tasks["bfcl/simple_python_0"]
    first = list(corrupt(task, seed=1))
    assert first == list(corrupt(task, seed=1))
    assert first != list(corrupt(task, seed=2))


def test_the_global_generator_and_the_task_are_left_alone(tasks):
    task = tasks["bfcl/parallel_multiple_0"]
    before = (random.getstate(), json.dumps(task.gold), json.dumps(task.tools))
    list(corrupt(task, seed=0))
    assert before == (random.getstate(), json.dumps(task.gold), json.dumps(task.tools))


def test_a_dropped_call_leaves_the_others_as_they_are(tasks):
    task = tasks["bfcl/parallel_multiple_0"]
    responses = made(task, "dropped_call")
    assert sorted(map(str, responses)) == sorted(str([call]) for call in task.gold)


def test_a_sibling_tool_takes_over_the_arguments_it_knows(tasks):
    task = tasks["bfcl/multiple_0"]
    responses = made(task, "sibling_tool")
    assert responses
    for (call,) in responses:
        assert call["name"] == "canteen.reserve"
        assert call["arguments"]["canteen"] == "Mensa Nord"


def test_a_dropped_optional_is_one_that_the_request_asked_for(tasks):
    task = tasks["bfcl/simple_python_0"]
    gone = [
        tuple(set(task.gold[0]["arguments"]) - set(call["arguments"]))
        for (call,) in made(task, "dropped_optional")
    ]
    assert set(gone) == {("day",), ("seat",)}


def test_an_invented_call_names_a_tool_of_the_catalogue(tasks):
    task = tasks["bfcl/irrelevance_0"]
    responses = made(task, "invented_call")
    assert responses
    assert all(call["name"] == "canteen.cancel" for (call,) in responses)


def test_an_enum_neighbour_stays_in_the_enum(tasks):
    responses = made(tasks["bfcl/simple_python_0"], "enum_neighbour")
    assert {call["arguments"]["seat"] for (call,) in responses} == {"window", "bar"}


def one_call(request, name, arguments, **schemas):
    """A task of one call; parameters not described otherwise are of their value's type."""
    types = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array"}
    properties = {p: {"type": types[type(v)]} for p, v in arguments.items()} | schemas
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    tool = {"name": name, "description": "", "parameters": parameters}
    gold = [{"name": name, "arguments": arguments}]
    messages = [{"role": "user", "content": request}]
    return Example("own/0", "own", "MIT", [tool], messages, exact_reference(gold), gold)


def values(task, kind, param):
    return {call["arguments"][param] for (call,) in made(task, kind)}


def test_a_conversation_value_comes_from_the_conversation_and_shares_no_word_with_the_right_one():
    text = "Fly from Oslo to New York City; my sister lives in New York and my brother in Bergen."
    task = one_call(text, "fly", {"to": "New York City"})
    assert values(task, "conversation_value", "to") == {"Oslo", "Bergen"}


def test_a_conversation_value_is_of_the_kind_and_magnitude_of_the_right_one():
    text = "In 1999, not 2004, Mr Smith and Ann Lee bought 5 flats and 7 houses for 90000 dollars."
    task = one_call(text, "sales", {"year": 1999, "flats": 5, "buyer": "Ann Lee"})
    assert values(task, "conversation_value", "year") == {1999, 2004}
    assert values(task, "conversation_value", "flats") == {5, 7}
    assert values(task, "conversation_value", "buyer") == {"Ann Lee", "Mr Smith"}


def test_a_number_beside_zero_keeps_its_sign_and_times_stay_times():
    task = one_call("From 0 at 23:00", "run", {"velocity": 0, "hour": 23, "at": "23:00"})
    assert values(task, "near_number", "velocity") == {0, 1}
    assert max(values(task, "near_number", "hour")) == 23
    times = values(task, "number_in_text", "at")
    assert len(times) > 3
    assert all(re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", time) for time in times)


def test_the_last_day_of_the_calendar_has_neighbours():
    task = one_call("on 9999-12-31", "go", {"day": "9999-12-31"})
    assert values(task, "near_date", "day") == {"9998-12-28", "9999-12-24", "9999-12-30"}


def test_a_default_is_not_offered_as_an_extra_argument(tasks):
    fees = {
        call["arguments"]["fee"] for (call,) in made(tasks["bfcl/multiple_0"], "extra_optional")
    }
    assert fees
    assert 0.1 not in fees


@pytest.mark.parametrize(
    ("schema", "instead"),
    [
        ({"type": "integer", "default": 1}, {1}),
        ({"type": "integer", "default": "1"}, set()),
        ({"type": "integer", "default": False}, set()),
        ({"type": "integer", "default": 1.0}, set()),
        ({"type": "integer", "default": 0, "minimum": 1}, set()),
        ({"type": "integer", "default": 6, "enum": [4, 5]}, set()),
        ({"type": ["integer", "string"], "default": "any"}, {"any"}),
        ({"default": 2.5}, {2.5}),
    ],
)
def test_a_default_that_its_own_schema_rejects_is_put_in_no_values_place(schema, instead):
    task = one_call("A table for 4", "book", {"guests": 4}, guests=schema)
    assert values(task, "default_instead", "guests") == instead
    for wrong in corrupt(task, seed=0):
        if wrong.kind == "default_instead":
            assert judge(wrong.response, task.reference, task.tools).error_type == wrong.error_type


def test_corruptions_are_made_of_tools_whose_parameters_have_several_types_or_none():
    either = {"type": ["integer", "string"]}
    percent = {"description": "As a decimal fraction."}
    task = one_call("5% off for 4", "book", {"guests": 4, "off": 0.05}, guests=either, off=percent)
    other = {"type": "object", "properties": {"guests": either}, "required": ["guests"]}
    task.tools.append({"name": "cancel", "description": "", "parameters": other})
    calls = [call for (call,) in made(task, "sibling_tool")]
    assert calls
    assert all(call["arguments"] == {"guests": 4} for call in calls)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("power", {"num1": 4, "num2": 6}),
        ("power", {"first_number": 4, "second_number": 6}),
        ("lcm", {"value": 4, "other": 6}),
        ("area", {"length": 4, "width": 6}),
        ("translate", {"text": "English", "source_language": "Hello, how are you?"}),
        ("remind", {"start_date": "2024-03-02", "at": "12:30"}),
        ("pay", {"year": 2020, "amount": 4}),
        ("play", {"artist": "Ann Lee", "city": "New York"}),
    ],
)
def test_values_whose_order_may_not_matter_or_whose_kinds_differ_are_not_swapped(name, arguments):
    assert not made(one_call("", name, arguments), "swapped_values")


@pytest.mark.parametrize(
    "arguments",
    [
        {"start_date": "2024-03-02", "end_date": "2024-03-09"},
        {"origin": "New York", "destination": "Bergen"},
        {"adults": 2, "children": 1},
    ],
)
def test_values_of_one_kind_are_swapped(arguments):
    (((call,)),) = made(one_call("", "book", arguments), "swapped_values")
    assert list(call["arguments"].values()) == list(arguments.values())[::-1]


def test_an_unknown_argument_comes_from_the_catalogue_or_says_a_known_one_again(tasks):
    task = tasks["bfcl/multiple_0"]
    known = {p for tool in task.tools for p in tool["parameters"]["properties"]}
    made_up = [
        (param, value)
        for (call,) in made(task, "unknown_parameter")
        for param, value in call["arguments"].items()
        if param not in task.tools[1]["parameters"]["properties"]
    ]
    assert {param for param, _ in made_up} & known
    assert all(param in known or value == "Mensa Nord" for param, value in made_up)


def test_a_wrong_value_may_spell_out_or_leave_out_what_is_optional(tasks):
    calls = [call for (call,) in made(tasks["bfcl/simple_python_0"], "near_number")]
    assert {"quiet" in call["arguments"] for call in calls} == {True, False}


def test_refusals_parse_as_no_call_and_vary_in_words_and_length():
    texts = {refusal(random.Random(seed), "Book a cab") for seed in range(200)}
    assert len(texts) > 50
    assert max(map(len, texts)) > 3 * min(map(len, texts))
    assert all(judge(text, [], []).right for text in texts)


def test_a_view_finds_numbers_dates_and_names(tasks):
    view = TaskView(tasks["bfcl/simple_python_0"], seed=0)
    assert 4 in view.numbers
    assert view.dates == ["2024-03-02"]
    assert "Mensa Nord" in view.phrases
    assert "Please" not in view.phrases
