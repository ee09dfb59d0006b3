"""Judging: right and wrong answers, each once, whatever their order."""

import collections
import copy
import dataclasses
import json
import random

from hypothesis import given
from hypothesis import strategies as st
from synth_files import row, tools, trip

from toolrm_jax.corruptions import corrupt
from toolrm_jax.examples import Example
from toolrm_jax.schema import call_is_valid
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.corruption_answers import corruption_answers
from toolrm_jax.synth.judging import MADE_TO_BE, judge_answers
from toolrm_jax.synth.obfuscation import obfuscate
from toolrm_jax.tool_calls import (
    ErrorType,
    canonical_calls,
    exact_reference,
    judge,
    parse_calls,
)


def example(number: int = 0) -> Example:
    task = row(number)
    gold = task["gold_calls"]
    reference = exact_reference(gold)
    return Example(task["id"], "made", "MIT", tools(), task["conversation"], reference, gold)


def answer(response, model="m", **more) -> Answer:
    return Answer("made/0", model, "MIT", True, response, **more)


def judged(task, *answers, seed=0):
    counts = collections.Counter()
    return judge_answers(task, answers, counts, seed=seed), counts


def call(**arguments):
    return [{"name": "find_restaurant", "arguments": arguments}]


def shuffled(value, rng):
    """The same JSON with its keys, and the calls of a list, in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, rng)) for key, item in value.items()]
        rng.shuffle(items)
        return dict(items)
    return value


def test_an_answer_equal_to_gold_is_right_and_others_get_their_error_type():
    task = example()
    right = {"city": "Rome", "dish": "pasta", "guests": 2}
    found, _ = judged(
        task,
        answer(call(**right)),
        answer(call(**right | {"dish": "PASTA"})),
        answer(call(**right | {"guests": 5})),
        answer(call(**right | {"guests": "2"})),
        answer('<tool_call>{"name": "find_restaurant"'),
        answer([{"name": "get_weather", "arguments": {"city": "Rome"}}]),
        answer("Which city?"),
    )
    assert [r["response"][0]["arguments"]["dish"] for r in found["right"]] == ["PASTA"]
    assert [w["error_type"] for w in found["wrong"]] == [
        "Parameter value error",
        "Parameter value type error",
        "Parsing error",
        "Incorrect function name",
        "Incorrect number of function calls",
    ]


def test_a_right_answer_in_doubt_is_no_right_side():
    """BFCL's rule takes no account of signs; an example of what is right must."""
    gold = call(city="Rome", dish="pasta at -12.5 from 2024-11-1", guests=2)
    task = dataclasses.replace(example(), gold=gold, reference=exact_reference(gold))

    def with_dish(text):
        return answer(call(city="Rome", dish=text, guests=2))

    right = with_dish("Pasta  at -12.5, from 2024/11/1")
    doubtful = [with_dish(f"pasta at {x}") for x in ("-12.5 from 2024-1-11", "12.5 from 2024-11-1")]
    found, counts = judged(task, right, *doubtful)
    assert [r["response"] for r in found["right"]] == [right.response]
    assert found["wrong"] == []
    assert counts["left out: right, but with other signs between digits"] == 2
    assert counts["right"] == 1


def test_an_answer_right_by_its_outcome_fits_the_schema_and_calls_no_more_than_the_gold():
    task = dataclasses.replace(example(), by_outcome=True)
    gold = task.gold[0]["arguments"]
    fine, misfit = call(**gold | {"city": "Roma"}), call(**gold | {"guests": "2"})
    given = [answer(response, right=True) for response in (fine, misfit, fine + fine)]
    found, counts = judged(task, *given)
    assert [r["response"] for r in found["right"]] == [fine]
    assert counts["left out: right, but its tools' schemas reject it"] == 1
    assert counts["left out: right, but it calls more than the gold"] == 1


def test_where_nothing_is_to_be_called_words_are_right_if_they_decline_or_ask():
    task = dataclasses.replace(example(), gold=[], reference=[])
    booked = "Done! I have booked a table for two."
    found, counts = judged(task, *map(answer, (booked, "Sorry, no tool fits.", "Which city?", "")))
    assert [r["response"] for r in found["right"]] == ["Sorry, no tool fits.", "Which city?"]
    assert counts["left out: right, but it neither declines nor asks"] == 1
    assert len(judged(task, answer(booked, right=True))[0]["right"]) == 1
    task = dataclasses.replace(task, by_outcome=True)
    assert len(judged(task, answer(booked, right=True))[0]["right"]) == 0


def test_whose_the_right_side_is_stands_beside_it():
    task = example()
    other = answer(call(**task.gold[0]["arguments"] | {"dish": "PASTA"}), model="other")
    by = [judged(task, other, seed=seed)[0] for seed in range(20)]
    assert {json.dumps(row["chosen_by"]) for row in by} == {
        "null",
        '{"model": "other", "license": "MIT"}',
    }
    for row_ in by:
        assert (row_["chosen"] == task.gold) == (row_["chosen_by"] is None)


def test_every_distinct_answer_is_counted_once():
    task = example()
    right = task.gold[0]["arguments"]
    given = [answer(call(**right | {"guests": n})) for n in range(5)]
    _, counts = judged(task, *given, *corruption_answers(task, seed=0), answer("Which city?"))
    parts = ("right", "wrong", "left out", "corruptions discarded")
    told = sum(n for what, n in counts.items() if what.startswith(parts))
    assert told == counts["distinct answers"]


def test_the_gold_in_other_words_is_neither_right_nor_wrong():
    task = Example("made/0", "made", "MIT", tools(), [{"role": "user", "content": "?"}], [], [])
    gold = call(city="Tokyo, Japan", dish="noodles of the house", guests=2)
    task = dataclasses.replace(task, gold=gold, reference=exact_reference(gold))
    reworded = {"city": "Tokyo", "dish": "house noodles", "guests": 2}
    found, counts = judged(
        task,
        answer(call(**reworded), right=False),
        answer(call(**reworded | {"city": "Kyoto"})),
        answer(call(**reworded | {"dish": "noodles of house 7"})),
        answer(call(**reworded | {"guests": 3})),
    )
    assert counts["left out: the gold in other words"] == 1
    assert len(found["wrong"]) == 3
    # A corruption is made to be wrong, and a verdict by what the calls did says more than words.
    made = answer(call(**reworded), kind="cut_text", model="corruption")
    assert len(judged(task, made)[0]["wrong"]) == 1
    task = dataclasses.replace(task, by_outcome=True)
    assert len(judged(task, answer(call(**reworded), right=False))[0]["wrong"]) == 1


def test_where_calls_are_right_by_their_outcome_only_verdicts_count():
    task = dataclasses.replace(example(), by_outcome=True)
    assert list(corruption_answers(task, seed=0)) == []
    found, counts = judged(
        task,
        answer(call(city="Oslo")),
        answer(call(city="Roma"), right=True),
        answer(call(city="Bari"), right=False),
    )
    assert counts["left out: without a verdict on what it brings about"] == 1
    assert [len(found[side]) for side in ("right", "wrong")] == [1, 1]


def test_wrong_answers_are_named_by_how_they_differ_from_the_right_side_shown():
    # Of many tasks some show the model's right answer, which leaves the number of guests open.
    shown = {"city": "Rome", "dish": "pasta"}
    right = answer(call(**shown), right=True)
    wrong = answer(call(**shown, guests="2"))
    made = answer(call(**shown, guests=7), kind="near_number", model="corruption")
    near = answer(call(city="Rome", dish="pizza"))
    seen = set()
    for seed in range(20):
        found, counts = judged(example(), right, wrong, made, near, seed=seed)
        gold = found["chosen"] == example().gold
        seen.add(gold)
        assert ("near_number" in {w["kind"] for w in found["wrong"]}) == gold
        name = "left out: corruptions of another error beside their pair's right answer"
        assert counts[name] == (not gold)
        for w in found["wrong"]:
            reference = exact_reference(found["chosen"])
            assert judge(w["response"], reference, example().tools).error_type == w["error_type"]
    assert seen == {True, False}


def test_other_words_are_found_in_any_order_of_the_calls():
    task = example()
    first, second = call(city="Tokyo, Japan"), call(city="Oslo")
    task = dataclasses.replace(task, gold=first + second)
    task = dataclasses.replace(task, reference=exact_reference(task.gold))
    for said in (call(city="Tokyo") + second, second + call(city="Tokyo")):
        found, counts = judged(task, answer(said))
        assert (found["right"], found["wrong"]) == ([], [])
        assert counts["left out: the gold in other words"] == 1


def test_a_licence_is_that_of_the_model_that_said_it_most():
    said, task = call(city="Nowhere"), example()
    once = dataclasses.replace(answer(said, model="a"), license="llama2")
    often = dataclasses.replace(answer(said, model="b", count=5), license="apache-2.0")
    for answers in ((once, often), (often, once)):
        found, _ = judged(task, *answers)
        assert found["wrong"][0]["license"] == "apache-2.0"


def test_the_upstreams_verdict_decides_where_there_is_one():
    task = example()
    unlike, like = call(city="Roma"), task.gold
    found, counts = judged(task, answer(unlike, right=True), answer(like, right=False))
    assert [r["response"] for r in found["right"]] == [unlike]
    assert found["wrong"] == []
    assert counts["left out: right by the gold, wrong by the upstream"] == 1
    found, counts = judged(task, answer(unlike, right=True), answer(unlike, "n", right=False))
    assert found["right"] == found["wrong"] == []
    assert counts["left out: the upstream calls the answer both right and wrong"] == 1


def test_the_same_answer_in_another_order_is_merged_with_its_counts():
    task = example(1)
    calls = [
        {"name": "book_table", "arguments": {"city": "Oslo", "guests": 9}},
        {"name": "get_weather", "arguments": {"city": "Oslo"}},
    ]
    turned = [calls[1], {"name": "book_table", "arguments": {"guests": 9, "city": "Oslo"}}]
    found, _ = judged(
        task, answer(calls, "a", count=2), answer(turned, "b"), answer(json.dumps(calls), "a")
    )
    (wrong,) = found["wrong"]
    assert (wrong["count"], wrong["models"]) == (4, {"a": 3, "b": 1})


def test_a_task_that_calls_nothing_has_a_right_side_in_words_or_silence():
    said = {judged(example(n))[0]["chosen"] == "" for n in range(2, 62, 3)}
    assert said == {True}  # what was said nobody knows
    tasks = [dataclasses.replace(example(n), words=None) for n in range(2, 62, 3)]
    said = {judged(task)[0]["chosen"] == "" for task in tasks}
    assert said == {True, False}  # that no tool does it: in words, or in silence
    asked = dataclasses.replace(example(2), words="In which city?")
    assert judged(asked)[0]["chosen"] == "In which city?"
    found, _ = judged(example(2), answer("None of these can translate."), answer(call(city="Rome")))
    assert [r["response"] for r in found["right"]] == ["None of these can translate."]
    assert [w["error_type"] for w in found["wrong"]] == ["Incorrect number of function calls"]


@given(st.integers(0, 300), st.randoms(use_true_random=False))
def test_verdicts_do_not_depend_on_the_order_of_keys_and_calls(number, rng):
    task = example(number)
    answers = list(corruption_answers(task, seed=number))
    turned = []
    for given_ in answers:
        response = copy.deepcopy(given_.response)
        if isinstance(response, list):
            response = [shuffled(c, rng) for c in response]
            rng.shuffle(response)
        turned.append(answer(response, kind=given_.kind, model="corruption"))
    first, second = judged(task, *answers)[0], judged(task, *turned)[0]
    kept = [[(w["error_type"], w["kind"], w["count"]) for w in f["wrong"]] for f in (first, second)]
    assert kept[0] == kept[1]


@given(st.integers(0, 300), st.integers(0, 5))
def test_verdicts_do_not_depend_on_obfuscation(number, seed):
    task = example(number)
    hidden, names = obfuscate(task, random.Random(seed))
    assert names is not None
    for wrong in corrupt(task, seed=seed):
        response = wrong.response
        if isinstance(response, list):
            there = judge(names.hide(response), hidden.reference, hidden.tools)
            here = judge(response, task.reference, task.tools)
            assert (there.right, there.error_type) == (here.right, here.error_type)


@given(st.integers(0, 300), st.randoms(use_true_random=False))
def test_canonical_calls_are_their_own_canonical_form(number, rng):
    task = example(number)
    for wrong in corrupt(task, seed=0):
        if isinstance(wrong.response, list):
            once = canonical_calls([shuffled(c, rng) for c in wrong.response], task.tools)
            again = canonical_calls(once, task.tools)
            assert json.dumps(once) == json.dumps(again)  # the order of keys, too


def plain_fault(response, task) -> ErrorType | None:
    """What is wrong, told by sets, equality and JSON Schema alone: calls in the gold's order."""
    calls = parse_calls(response)
    if calls is None:
        tried = any(sign in response for sign in ("book_trip", "{", "<tool_call>"))
        return ErrorType.PARSING if tried else ErrorType.CALL_COUNT
    if len(calls) != len(task.gold):
        return ErrorType.CALL_COUNT
    beside = zip(calls, task.gold, task.reference, strict=True)
    found = [_call_fault(call, *of, task) for call, *of in beside]
    return next((error for error in ErrorType if error in found), None)


def _call_fault(mine, gold, accepted, task) -> ErrorType | None:
    (tool,) = [tool for tool in task.tools if tool["name"] == gold["name"]]
    given, wanted = mine["arguments"], gold["arguments"]
    if mine["name"] != gold["name"]:
        return ErrorType.FUNCTION_NAME
    if set(tool["parameters"]["required"]) - set(given):
        return ErrorType.MISSING_REQUIRED
    if set(given) - set(tool["parameters"]["properties"]):
        return ErrorType.UNEXPECTED
    if not call_is_valid(mine, task.tools):
        return ErrorType.VALUE_TYPE
    if any(value not in [wanted.get(p), *accepted["arguments"][p]] for p, value in given.items()):
        return ErrorType.VALUE
    return ErrorType.MISSING_OPTIONAL if set(wanted) - set(given) else None


def test_corruptions_that_are_kept_have_the_error_that_they_were_made_to_have(monkeypatch):
    monkeypatch.setattr("toolrm_jax.corruptions._often", lambda *_: 1.0)  # some are for one in 50
    counts = collections.Counter()
    for number in range(40):
        task = trip(number, silent=number % 20 == 0)
        found = judge_answers(task, corruption_answers(task, seed=1), counts)
        for wrong in found["wrong"]:
            assert plain_fault(wrong["response"], task) == MADE_TO_BE[wrong["kind"]], wrong
    for kind in MADE_TO_BE:
        kept, lost = (counts[f"corruptions {what}: {kind}"] for what in ("kept", "discarded"))
        assert kept + lost > 0, f"the rows offer nothing for {kind}"
        assert lost <= 0.05 * (kept + lost), kind
