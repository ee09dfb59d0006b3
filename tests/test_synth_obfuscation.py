"""Obfuscation: names go, everything else stays, and everything comes back."""

import collections
import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.obfuscation import Names, Obfuscation, obfuscate, reveal
from toolrm_jax.tool_calls import canonical_calls, exact_reference, judge


def rain(**changes) -> Example:
    tools = [
        {
            "name": "get_rain",
            "description": "Rain by city. Use get_rain, not 'search'; give `city`. A city, short.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The 'city' of get_rain"},
                    "unit_name": {"type": "string", "enum": ["mm", "search"], "default": "mm"},
                },
                "required": ["city"],
                "anyOf": [{"required": ["city"]}, {"properties": {"unit_name": {"const": "mm"}}}],
            },
        },
        {
            "name": "search",
            "description": "Finds anything",
            "parameters": {
                "type": "object",
                "properties": {
                    "about": {"type": "object", "properties": {"city": {"type": "string"}}}
                },
            },
        },
    ]
    gold = [{"name": "get_rain", "arguments": {"city": "Rome"}}]
    messages = [
        {"role": "user", "content": "Call get_rain with unit_name for a city; get_rains is none."},
        {"role": "assistant", "content": "", "tool_calls": gold},
        {"role": "tool", "name": "get_rain", "content": "3 mm"},
        {"role": "user", "content": "Again, with `search` maybe."},
    ]
    example = Example("t/1", "t/x", "MIT", tools, messages, exact_reference(gold), gold)
    return dataclasses.replace(example, **changes)


def hidden(example=None, seed=0):
    obfuscated, names = Obfuscation(seed=seed)(example or rain())
    assert names is not None
    return obfuscated, names


def test_names_change_alike_in_tools_calls_reference_and_gold():
    example, names = hidden()
    function, city = names.functions["get_rain"], names.parameters["city"]
    tool = next(tool for tool in example.tools if tool["name"] == function)
    assert set(tool["parameters"]["properties"]) == {city, names.parameters["unit_name"]}
    assert tool["parameters"]["required"] == [city]
    assert tool["parameters"]["anyOf"][0] == {"required": [city]}
    assert example.gold == [{"name": function, "arguments": {city: "Rome"}}]
    assert example.messages[1]["tool_calls"] == example.gold
    assert example.messages[2]["name"] == function
    assert judge(example.gold, example.reference, example.tools).right


def test_names_in_text_follow_the_rule():
    example, names = hidden()
    rained, unit = names.functions["get_rain"], names.parameters["unit_name"]
    city = names.parameters["city"]
    # Words that can be no ordinary ones go everywhere, as whole words only.
    said = f"Call {rained} with {unit} for a city; get_rains is none."
    assert example.messages[0]["content"] == said
    tool = next(tool for tool in example.tools if tool["name"] == rained)
    # In quotes and backticks any name goes; "search" is a value of an enum as well, so it stays.
    assert tool["description"] == (
        f"Rain by city. Use {rained}, not 'search'; give `{city}`. A city, short."
    )
    assert tool["parameters"]["properties"][city]["description"] == f"The '{city}' of {rained}"
    assert example.messages[3]["content"] == "Again, with `search` maybe."


def test_names_within_values_stay():
    example, names = hidden()
    tool = next(tool for tool in example.tools if tool["name"] == names.functions["search"])
    about = tool["parameters"]["properties"][names.parameters["about"]]
    assert set(about["properties"]) == {"city"}


def test_depends_on_seed_and_id_alone():
    one, two = rain(id="t/1"), rain(id="t/2")
    rule = Obfuscation(seed=3)
    forwards = [rule(one), rule(two)]
    assert forwards == [rule(two), rule(one)][::-1]
    assert rule(one)[1] != rule(two)[1]
    assert rule(one)[1] != Obfuscation(seed=4)(one)[1]


def test_keys_and_tools_are_shuffled():
    orders = collections.Counter()
    for seed in range(40):
        example, names = hidden(seed=seed)
        orders["tools", tuple(names.places)] += 1
        orders["tool", tuple(example.tools[0])] += 1
        schema = next(
            t["parameters"] for t in example.tools if t["name"] == names.functions["get_rain"]
        )
        back = {new: old for old, new in names.parameters.items()}
        orders["properties", tuple(back[p] for p in schema["properties"])] += 1
    counts = collections.Counter(what for what, _ in orders)
    assert counts == {"tools": 2, "tool": 6, "properties": 2}


def test_a_rate_per_source_and_a_default():
    rule = Obfuscation(seed=0, rates={"t": 0.25, "t/all": 1.0}, default=0.0)

    def share(source):
        examples = (rain(id=f"t/{i}", source=source) for i in range(400))
        return sum(rule(example)[1] is not None for example in examples) / 400

    assert (share("t/all"), share("other")) == (1.0, 0.0)
    assert share("t/x") == pytest.approx(0.25, abs=0.08)
    with pytest.raises(InputError, match=r"'t' is 1\.5"):
        Obfuscation(rates={"t": 1.5})


def test_schemas_that_refer_to_their_own_parts_stay_as_they_are():
    tool = {
        "name": "f",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"$ref": "#/properties/a"}},
        },
    }
    example = rain(tools=[tool], messages=[{"role": "user", "content": "x"}])
    assert Obfuscation()(example) == (example, None)


def test_names_survive_their_file():
    _, names = hidden()
    assert Names.from_json(json.loads(json.dumps(names.to_json()))) == names
    assert names.reveal(names.hide(rain().gold)) == rain().gold


# Properties --------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["get_rain", "getRain", "a.b", "a", "b", "city", "x1", "find it", "Ü_1", "q%%r", "name", "type"]
)
VALUES = st.recursive(
    st.sampled_from(["city", "get_rain", "Rome", "x1"]) | st.integers(0, 3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=3,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)
MENTIONS = (
    """get_rain getRain a.b a b city 'city' `city` "name" x1. find it (Ü_1) q%%r get_rain2 ."""
)
WORDS = st.lists(st.sampled_from(MENTIONS.split()), max_size=8).map(" ".join)


@st.composite
def schemas(draw):
    properties = draw(st.dictionaries(NAMES, st.just({}), max_size=3))
    for name in properties:
        properties[name] = {"description": draw(WORDS), "title": draw(WORDS)}
        if draw(st.booleans()):
            properties[name]["default"] = draw(VALUES)
    required = [name for name in properties if draw(st.booleans())]
    return {"type": "object", "properties": properties, "required": required}


@st.composite
def tasks(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    tools = [
        {"name": name, "description": draw(WORDS), "parameters": draw(schemas())} for name in names
    ]
    gold = []
    for tool in draw(st.lists(st.sampled_from(tools), max_size=3)):
        arguments = {p: draw(VALUES) for p in tool["parameters"]["properties"]}
        gold.append({"name": tool["name"], "arguments": arguments})
    earlier = [{"name": draw(NAMES), "arguments": draw(ARGUMENTS)}]
    messages = [
        {"role": "user", "content": draw(WORDS)},
        {"role": "assistant", "content": draw(WORDS), "tool_calls": earlier},
        {"role": "tool", "name": earlier[0]["name"], "content": draw(WORDS)},
        {"role": "user", "content": draw(WORDS)},
    ]
    return Example(
        draw(st.text("xyz", max_size=3)),
        "t",
        "MIT",
        tools,
        messages,
        exact_reference(gold),
        canonical_calls(gold, tools),
    )


def answers(example):
    """Calls like the right ones, some of them changed."""
    call = st.builds(
        lambda name, arguments: {"name": name, "arguments": arguments}, NAMES, ARGUMENTS
    )
    right = st.sampled_from(example.gold) if example.gold else call
    return st.lists(right | call, max_size=3)


@settings(max_examples=200, deadline=None)
@given(tasks(), st.integers(0, 9))
def test_obfuscate_then_reveal_is_the_identity(example, seed):
    obfuscated, names = obfuscate(example, random.Random(seed))
    assert reveal(obfuscated, names) == example
    new = set(names.functions.values()) | set(names.parameters.values())
    assert len(new) == len(names.functions) + len(names.parameters)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_judging_is_invariant_under_obfuscation(data):
    example = data.draw(tasks())
    answer = data.draw(answers(example))
    obfuscated, names = obfuscate(example, random.Random(data.draw(st.integers(0, 9))))
    before = judge(answer, example.reference, example.tools)
    after = judge(names.hide(answer), obfuscated.reference, obfuscated.tools)
    assert (after.right, after.error_type) == (before.right, before.error_type)
