"""Distractors: only beside a lone tool, of another purpose, from the same tasks."""

import random

from toolrm_jax.distractors import with_distractors
from toolrm_jax.examples import Example

TOPICS = ["weather", "recipe", "train", "loan", "museum", "poem", "engine", "garden", "chess"]


def tool(name, *params):
    properties = {p: {"type": "string"} for p in params}
    parameters = {"type": "object", "properties": properties, "required": list(params)[:1]}
    return {"name": name, "description": f"About one {name}.", "parameters": parameters}


def task(n, request, tools, calls=True):
    gold = [{"name": tools[0]["name"], "arguments": {}}] if calls else []
    messages = [{"role": "user", "content": request}]
    return Example(f"t/{n}", "t", "MIT", tools, messages, gold, gold)


def lone(count=90):
    return [
        task(n, f"My {topic}, please", [tool(f"get_{topic}", "city", f"{topic}_id")], n % 5 > 0)
        for n, topic in ((n, TOPICS[n % len(TOPICS)]) for n in range(count))
    ]


def test_a_share_of_the_lone_tools_gets_company_from_the_same_tasks():
    before = lone()
    after = with_distractors(before, seed=0, share=0.75)
    names = {t["name"] for example in before for t in example.tools}
    widened = [example for example in after if len(example.tools) > 1]
    assert 0.6 < len(widened) / len(after) < 0.9
    assert any(not example.gold for example in widened)
    for old, new in zip(before, after, strict=True):
        assert old.tools[0] in new.tools
        assert {t["name"] for t in new.tools} <= names
        assert len({t["name"] for t in new.tools}) == len(new.tools) <= 3
        assert (old.gold, old.reference, old.messages) == (new.gold, new.reference, new.messages)


def test_the_right_tool_stands_at_any_place():
    after = [example for example in with_distractors(lone(), seed=0) if len(example.tools) > 1]
    places = {[t["name"] for t in e.tools].index(f"get_{TOPICS[int(e.id[2:]) % 9]}") for e in after}
    assert places == {0, 1, 2}


def test_no_distractor_shares_a_word_with_the_request_or_the_tool():
    tasks = [
        task(0, "What is the forecast for my garden?", [tool("forecast", "city")]),
        task(1, "x", [tool("gardening_advice", "city")]),
        task(2, "x", [tool("weather_forecasts", "city")]),
        task(3, "x", [tool("web_search", "city")]),
        task(4, "x", [tool("chess", "city")]),
    ]
    widened = with_distractors(tasks, seed=1, share=1.0)[0]
    assert {t["name"] for t in widened.tools} == {"forecast", "chess"}


def test_catalogues_of_several_tools_are_left_alone_and_order_plays_no_part():
    tasks = [*lone(), task(99, "Go", [tool("a", "x"), tool("b", "y")])]
    after = with_distractors(tasks, seed=0)
    assert after[-1] == tasks[-1]
    shuffled = random.Random(3).sample(tasks, len(tasks))
    again = {example.id: example for example in with_distractors(shuffled, seed=0)}
    assert [again[example.id] for example in after] == after


def test_a_tool_that_takes_source_text_is_joined_by_its_like_only():
    java = Example("j/0", "j", "MIT", [tool("Java", "v")], [], [], [])
    wants = [{"name": "Java", "arguments": {}, "language": "java"}]
    java = Example("j/0", "j", "MIT", java.tools, [], wants, [{"name": "Java", "arguments": {}}])
    assert with_distractors([java, *lone()], seed=0, share=1.0)[0] == java
    names = {t["name"] for e in with_distractors([java, *lone()], seed=0)[1:] for t in e.tools}
    assert "Java" not in names
