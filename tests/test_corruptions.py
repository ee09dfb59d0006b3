"""Corruptions: wrong in the way they were made to be, repeatable, and of every error type."""

import json
import random

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
    for calls in made(task, "dropped_call"):
        assert len(calls) == 1
        assert calls[0] in task.gold


def test_a_sibling_tool_takes_over_the_arguments_it_knows(tasks):
    task = tasks["bfcl/multiple_0"]
    responses = made(task, "sibling_tool")
    assert responses
    for (call,) in responses:
        assert call["name"] == "canteen.reserve"
        assert call["arguments"]["canteen"] == "Mensa Nord"


def test_a_dropped_optional_is_one_that_the_request_asked_for(tasks):
    task = tasks["bfcl/simple_python_0"]
    for (call,) in made(task, "dropped_optional"):
        gone = set(task.gold[0]["arguments"]) - set(call["arguments"])
        assert gone <= {"day", "seat"}


def test_an_invented_call_names_a_tool_of_the_catalogue(tasks):
    task = tasks["bfcl/irrelevance_0"]
    responses = made(task, "invented_call")
    assert responses
    assert all(call["name"] == "canteen.cancel" for (call,) in responses)


def test_an_enum_neighbour_stays_in_the_enum(tasks):
    for (call,) in made(tasks["bfcl/simple_python_0"], "enum_neighbour"):
        assert call["arguments"]["seat"] in ("window", "bar")


def test_a_conversation_value_comes_from_the_conversation_and_shares_no_word_with_the_right_one():
    text = "Fly from Oslo to New York City; my sister lives in New York and my brother in Bergen."
    tool = {
        "name": "fly",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string"}},
            "required": ["to"],
        },
    }
    gold = [{"name": "fly", "arguments": {"to": "New York City"}}]
    task = Example(
        id="own/0",
        source="own",
        license="MIT",
        tools=[tool],
        messages=[{"role": "user", "content": text}],
        reference=exact_reference(gold),
        gold=gold,
    )
    values = {call["arguments"]["to"] for (call,) in made(task, "conversation_value")}
    assert values == {"Oslo", "Bergen"}


def test_a_default_is_not_offered_as_an_extra_argument(tasks):
    for (call,) in made(tasks["bfcl/multiple_0"], "extra_optional"):
        assert call["arguments"]["fee"] != 0.1


def test_operands_whose_order_may_not_matter_are_not_swapped():
    number = {"type": "integer"}
    tool = {
        "name": "gcd",
        "description": "",
        "parameters": {"type": "object", "properties": {"num1": number, "num2": number}},
    }
    gold = [{"name": "gcd", "arguments": {"num1": 4, "num2": 6}}]
    messages = [{"role": "user", "content": "gcd of 4 and 6"}]
    reference = exact_reference(gold)
    task = Example("own/1", "own", "MIT", [tool], messages, reference, gold)
    assert not made(task, "swapped_values")


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
