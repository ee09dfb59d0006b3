"""Near-duplicates, and what an evaluation set holds too."""

import itertools
import random

import numpy as np
import pytest

from toolrm_jax.examples import Example
from toolrm_jax.splits import words
from toolrm_jax.synth.overlap import (
    EvaluationSets,
    concatenate,
    join,
    minima_of,
    near_duplicates,
    sketch,
)

TOOL = {"name": "get_rain", "description": "", "parameters": {"type": "object", "properties": {}}}
LONG = (
    "Could you please tell me how much rain is expected to fall in the old town of Rome during "
    "the second week of March because we plan to walk there with our children and their friends"
)


def task(name, request, tool="get_rain", x=1):
    gold = [{"name": tool, "arguments": {"x": x}}]
    messages = [{"role": "user", "content": request}]
    return Example(name, "s", "MIT", [{**TOOL, "name": tool}], messages, gold, gold)


def kept(tasks, similarity=0.9):
    found = near_duplicates(join(sketch(t, seed=0) for t in tasks), similarity)
    return {t.id: tasks[f].id if f >= 0 else None for t, f in zip(tasks, found, strict=True)}


def test_of_near_duplicates_with_one_answer_one_is_kept():
    tasks = [
        task("a", LONG),
        task("b", LONG.upper() + "!"),
        task("c", LONG + " please"),
        task("d", LONG, x=2),
        task("e", "Another thing altogether"),
    ]
    found = kept(tasks)
    assert sum(found[name] is None for name in "abc") == 1
    assert found["d"] is found["e"] is None
    assert {found[n] for n in "abc" if found[n]} == {n for n in "abc" if found[n] is None}


def test_which_is_kept_does_not_depend_on_the_order():
    tasks = [task(f"t{i}", f"{LONG} {'and so on ' * (i % 3)}") for i in range(30)]
    turned = random.Random(0).sample(tasks, 30)
    assert {n for n, of in kept(tasks).items() if of is None} == {
        n for n, of in kept(turned).items() if of is None
    }


def test_a_sketch_estimates_how_alike_two_requests_are():
    rng = random.Random(1)
    for overlap in (0.2, 0.5, 0.8, 1.0):
        shared = [f"w{rng.random()}" for _ in range(round(1000 * overlap))]
        mine, other = ([f"{side}{i}" for i in range(1000 - len(shared))] for side in "ab")
        a, b = shared + mine, shared + other
        pairs = [set(r) | set(map(" ".join, itertools.pairwise(r))) for r in (a, b)]
        true = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
        assert (minima_of(a) == minima_of(b)).mean() == pytest.approx(true, abs=0.2)


def test_sketches_of_parts_are_those_of_the_whole():
    tasks = [task(f"t{i}", f"request number {i}") for i in range(7)]
    whole = join(sketch(t, seed=0) for t in tasks)
    parts = concatenate([join(sketch(t, seed=0) for t in tasks[a:b]) for a, b in ((0, 3), (3, 7))])
    np.testing.assert_array_equal(whole.minima, parts.minima)


@pytest.mark.parametrize(
    ("mine", "how"),
    [
        (task("m", LONG + "?", tool="other"), "the same request"),
        (
            task("m", LONG.replace("please ", ""), tool="getRain"),
            "nearly the same request, and a tool",
        ),
        (task("m", LONG.replace("please ", ""), tool="other"), None),
        (task("m", "rain now", tool="other"), None),
        (task("m", "Rain, now!"), "the same request"),
        (task("m", "Anything else", tool="GetRain"), None),
    ],
)
def test_what_an_evaluation_set_holds_is_found(mine, how):
    sets = EvaluationSets(similarity=0.8)
    sets.add("first", [task("x", "Some other set")])
    sets.add("second", [task("e1", LONG), task("e2", "rain now")])
    found = sets.overlap(mine, minima_of(words(mine.messages[0]["content"])))
    assert found == (None if how is None else ("second", how))


def test_a_shared_tool_name_is_enough_where_that_is_wanted():
    sets = EvaluationSets(similarity=0.8, drop_shared_tools=True)
    sets.add("set", [task("e", LONG)])
    mine = task("m", "Anything else", tool="GetRain")
    assert sets.overlap(mine, minima_of(["anything", "else"])) == ("set", "a tool")
    assert sets.shares_tool(mine)
