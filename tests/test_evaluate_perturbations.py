"""Prompts and answers said otherwise: what must hold for any seed."""

import json

import pytest
from evaluate_rows import TOOL

from toolrm_jax.corruptions import corrupt
from toolrm_jax.evaluate import perturbations
from toolrm_jax.evaluate.cases import Candidate, Case
from toolrm_jax.evaluate.perturbations import perturb
from toolrm_jax.examples import Example
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import exact_reference, judge, parse_calls


def tool(name, *params, description="For a place"):
    properties = {param: {"type": "string"} for param in params}
    schema = {"type": "object", "properties": properties}
    return {"name": name, "description": description, "parameters": schema}


def call(name="weather", **arguments):
    return [{"name": name, "arguments": arguments}]


def case_of(right, *wrong, tools=None, earlier=(), said="Is it warm in Rome?"):
    messages = [{"role": "user", "content": said}, *earlier]
    candidates = [Candidate(right, True), *(Candidate(one, False) for one in wrong)]
    return Case("t", [tool("weather", "city")] if tools is None else tools, messages, candidates)


def values(answer):
    """What the arguments of each call are, under whatever names."""
    return [sorted(map(str, call["arguments"].values())) for call in parse_calls(answer) or []]


# By what a new name could hit: an argument that the schema lacks, in every form of an answer; a
# value in a text that is a name as well.
EARLIER = {"role": "assistant", "content": "", "tool_calls": call(city="Rome", town="Oslo")}
TEXT = '<tool_call>{"name": "weather", "arguments": {"city": "%s"}}</tool_call>'
TRAPS = {
    "another name": case_of(call(city="Rome"), call(town="Rome"), call(location="Rome")),
    "one more": case_of(call(city="Rome"), call(city="Rome", town="Oslo"), call(town="Oslo")),
    "in a text": case_of(call(city="Rome"), TEXT.replace("city", "town") % "Rome"),
    "in a message": case_of(
        call(city="Rome"),
        {"role": "assistant", "content": "So:", "tool_calls": call(town="Rome")},
    ),
    "said before": case_of(call(city="Rome"), call(city="Oslo"), earlier=[EARLIER]),
    "a value": case_of(TEXT % "city", TEXT % "weather", call(city="Rome")),
}


@pytest.mark.parametrize("kind", perturbations.KINDS)
@pytest.mark.parametrize("trap", TRAPS)
def test_the_right_answer_stays_the_only_right_one(trap, kind):
    made = TRAPS[trap]
    for seed in range(20):
        changed = perturb(made, kind, [], seed=seed)
        if changed is None:
            continue
        right, *wrong = (c.response for c in changed.candidates)
        reference = exact_reference(parse_calls(right))
        assert judge(right, reference, changed.tools).right
        assert not any(judge(one, reference, changed.tools).right for one in wrong)
        for before, after in zip(made.candidates, changed.candidates, strict=True):
            assert values(before.response) == values(after.response)
        for before, after in zip(made.messages, changed.messages, strict=True):
            assert values(before.get("tool_calls", [])) == values(after.get("tool_calls", []))


@pytest.mark.parametrize("tools", [[], [tool("a", "city")]])
def test_names_that_no_tool_has_are_told_apart_under_their_new_names(tools):
    answers = [call("a", x=1), call("a", y=1), call("b", x=1), call("c", x=1)]
    changed = perturb(case_of(*answers, tools=tools), "tools renamed", [], seed=0)
    found = [c.response for c in changed.candidates]
    assert found != answers
    assert len({json.dumps(one) for one in found}) == 4
    (first,), _, (third,), _ = found
    assert first["arguments"] == third["arguments"]  # one name is one name


def test_a_parameter_that_no_call_stands_in_the_way_of_gets_another_name():
    changed = [perturb(TRAPS["another name"], "keys paraphrased", [], seed=s) for s in range(20)]
    names = {name for one in changed for name in one.tools[0]["parameters"]["properties"]}
    assert names == {"weather_city"}  # "town" and "location" are used
    # The name of an argument of another tool is free.
    made = case_of(call(city="Rome"), call("time", town="Rome", location="Rome"))
    changed = [perturb(made, "keys paraphrased", [], seed=s) for s in range(20)]
    names = {name for one in changed for name in one.tools[0]["parameters"]["properties"]}
    assert names == {"town", "location", "weather_city"}


@pytest.mark.parametrize("kind", ["keys paraphrased", "tools renamed"])
def test_no_corruption_of_real_tasks_becomes_right(toolrm_data, kind):
    """The reference is a candidate too, so that it gets the new names as well."""
    told = 0
    for number, example in enumerate(
        open_source("normalised", toolrm_data / "data/train/ste_train.jsonl.gz")
    ):
        if number == 100:
            break
        if not isinstance(example, Example):
            continue
        wrong = [
            one.response
            for one in corrupt(example, seed=0)
            if not judge(one.response, example.reference, example.tools).right
        ]
        made = Case(
            example.id,
            example.tools,
            example.messages,
            [Candidate(example.gold, True), Candidate(example.reference, True)]
            + [Candidate(one, False) for one in wrong],
        )
        if (changed := perturb(made, kind, [], seed=0)) is None:
            continue
        gold, reference, *others = (c.response for c in changed.candidates)
        assert judge(gold, reference, changed.tools).right
        assert not any(judge(one, reference, changed.tools).right for one in others)
        assert list(map(values, others)) == list(map(values, wrong))
        told += len(others)
    assert told > 1000


def test_tools_in_the_same_order_are_not_said_otherwise():
    one = case_of(call(city="Rome"), call(city="Oslo"))  # one tool, one parameter
    for seed in range(50):
        changed = perturb(one, "tools reordered", [], seed=seed)
        assert changed.tools == one.tools
        assert json.dumps(changed.tools) != json.dumps(one.tools)
    assert perturb(case_of("a", "b", tools=[]), "tools reordered", [], seed=0) is None


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 9])
def test_up_to_three_tools_are_added(spare):
    others = [case_of("a", tools=[tool(f"other_{n}")]) for n in range(spare)]
    for seed in range(10):
        changed = perturb(case_of(call(city="Rome")), "tools added", others, seed=seed)
        if not spare:
            assert changed is None
            continue
        names = [one["name"] for one in changed.tools]
        assert len(names) == len(set(names)) == 1 + min(3, spare)
        assert "weather" in names


def test_what_an_irrelevance_request_lacks_is_not_added():
    lent = [
        tool("search_flight", "to"),
        tool("book", description="Finds a seat on flights"),
        tool("to_a", description="For you and me"),
        TOOL,
    ]
    others = [case_of("a", tools=[one]) for one in lent]
    said = "Search flights to Rome for me"
    silent = [case_of(right, call(city="Rome"), said=said) for right in ("I cannot.", "", [])]
    for made in silent:
        changed = perturb(made, "tools added", others, seed=0)
        assert {one["name"] for one in changed.tools} == {"weather", "to_a", "tide"}
        assert perturb(made, "tools added", others[:2], seed=0) is None
    called = perturb(case_of(call(city="Rome"), said=said), "tools added", others[:2], seed=0)
    assert len(called.tools) == 3
