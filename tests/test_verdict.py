"""The verdict: who is compared on which pairs, and what is said about it."""

import numpy as np
import pytest

from toolrm_jax.evaluate import PairScores
from toolrm_jax.verdict import BLIND, COMBINATION, MODEL, Verdict, compare

TOOL = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}


def row(number: int) -> dict:
    """A prompt with a wrong value as long as the right one, and a call that its schema rejects."""
    city = f"town{number:02}"
    right = [{"name": "weather", "arguments": {"city": city}}]
    other = [{"name": "weather", "arguments": {"city": "bytes7"}}]
    bare = [{"name": "weather", "arguments": {"days": 3}}]
    return {
        "id": f"task/{number}",
        "tools": [TOOL],
        "messages": [{"role": "user", "content": f"Weather in {city}, not bytes7, in 3 days?"}],
        "chosen": right,
        "rejected": [
            {"response": other, "error_type": "Parameter value error"},
            {"response": bare, "error_type": "Missing required parameter"},
        ],
    }


def scores(rows: list[dict], margins) -> PairScores:
    pairs = [(r["id"], n, w["error_type"]) for r in rows for n, w in enumerate(r["rejected"])]
    tasks, numbers, kinds = (list(column) for column in zip(*pairs, strict=True))
    right = np.asarray(margins, np.float32)
    return PairScores(tasks, numbers, kinds, right, np.zeros_like(right))


ROWS = [row(n) for n in range(40)]


def test_every_scorer_is_judged_on_the_same_pairs_and_ties_count_half():
    found = compare(scores(ROWS, [1.0] * 80), scores(ROWS, [0.0] * 80), ROWS, ROWS)
    assert found.credits[MODEL].mean() == 1.0
    assert found.credits[BLIND].mean() == 0.5
    # The schema rule ties on the wrong values and wins on the calls without their required
    # argument.
    assert found.credits["schema-valid wins"].mean() == pytest.approx(0.75)
    assert set(found.credits) >= {COMBINATION, "longer wins", "verbatim arguments win"}
    assert all(len(credit) == 80 for credit in found.credits.values())


def test_pairs_that_only_one_model_scored_are_left_out():
    found = compare(scores(ROWS, [1.0] * 80), scores(ROWS[:10], [1.0] * 20), ROWS, ROWS)
    assert len(found.tasks) == 20
    assert found.credits[MODEL].mean() == 1.0


def test_words_follow_the_paired_interval():
    tasks = [f"t{n}" for n in range(200)]
    even = np.tile([1.0, 0.0], 100)
    found = Verdict(
        tasks,
        ["Parameter value error"] * 200,
        {MODEL: even, BLIND: np.zeros(200), "perfect": np.ones(200), "twin": even[::-1]},
    )
    blind, perfect, twin = found.words().splitlines()
    assert "beats the blind model" in blind
    assert "+50.0 points" in blind
    assert "loses to the rule 'perfect'" in perfect
    assert "is level with the rule 'twin'" in twin


def test_the_table_has_a_line_per_error_type_the_most_frequent_first():
    found = compare(scores(ROWS, [1.0, -1.0] * 40), scores(ROWS, [0.0] * 80), ROWS, ROWS)
    lines = found.table().splitlines()
    assert MODEL in lines[0]
    assert lines[1].split()[:3] == ["all", "80", "50.0"]
    value = next(line for line in lines if line.startswith("Parameter value error"))
    assert value.split()[3:5] == ["40", "100.0"]
