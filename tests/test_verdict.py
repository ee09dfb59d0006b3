"""The verdict: who is compared on which pairs, and what is said about it."""

import numpy as np
import pytest

from toolrm_jax.metrics import estimate
from toolrm_jax.pair_scores import PairScores
from toolrm_jax.rules import RULES
from toolrm_jax.tool_calls import ErrorType
from toolrm_jax.verdict import BLIND, COMBINATION, MODEL, Comparison, compare

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
    said = "Pairs left out because only one of the two models scored them: 60."
    assert found.table().splitlines()[-1] == said
    with pytest.raises(ValueError, match="no pair was scored by both"):
        compare(scores(ROWS[:5], [1.0] * 10), scores(ROWS[5:], [1.0] * 70), ROWS, ROWS)


def test_words_follow_the_paired_interval():
    tasks = [f"t{n}" for n in range(200)]
    even = np.tile([1.0, 0.0], 100)
    found = Comparison(
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
    rows = ROWS + [row(n) for n in range(40, 50)]
    for wrongs in (r["rejected"] for r in rows[40:]):
        del wrongs[1]
    margins = [1.0, -1.0] * 40 + [1.0, -1.0] * 5
    found = compare(scores(rows, margins), scores(rows, [0.0] * 90), rows, rows)
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["all", "95%", "ties", "Parameter", "Missing"]
    assert MODEL in lines[0]
    assert lines[1].split()[:3] == ["all", "90", "50.0"]
    value = next(line for line in lines if line.startswith("Parameter value error"))
    assert value.split()[3:5] == ["50", "90.0"]


def test_the_reward_model_has_its_interval_in_every_line():
    rows = ROWS
    margins = np.tile([1.0, 1.0, -1.0, 1.0], 20)
    found = compare(scores(rows, margins), scores(rows, [0.0] * 80), rows, rows)
    lines = {line[:24].strip(): line for line in found.table().splitlines()[1:]}
    credits = found.credits[MODEL]
    for label, chosen in (
        ("all", slice(None)),
        ("Parameter value error", slice(0, None, 2)),
        ("Missing required parameter"[:24], slice(1, None, 2)),
    ):
        want = estimate(credits[chosen], found.tasks[chosen])
        low, high = (f"{100 * x:.1f}".replace("100.0", "100") for x in (want.low, want.high))
        assert f" {100 * want.mean:.1f} [{low}-{high}] " in lines[label]
    blind = estimate(found.credits["longer wins"], found.tasks)
    assert f"{100 * blind.low:.1f}-{100 * blind.high:.1f}" in lines["95% interval"]


def test_the_table_fits_into_120_columns_whatever_the_figures():
    n = 20_000
    names = [MODEL, BLIND, *RULES, COMBINATION]
    flips = np.random.default_rng(0).random(n) < 0.5
    kinds = [str(kind) for kind in ErrorType] * (n // len(ErrorType))
    tasks = [f"t{i % 50}" for i in range(n)]
    for credits in (np.ones(n), flips.astype(float), np.full(n, 0.5)):
        table = Comparison(tasks, kinds, dict.fromkeys(names, credits)).table()
        assert max(map(len, table.splitlines())) <= 120
        heads = table.splitlines()[0].split("  ")
        assert len([head for head in heads if head.strip()]) == 1 + len(names)
        assert all(" 100.0100" not in line for line in table.splitlines())


def test_the_table_says_how_many_prompts_were_too_long():
    same = scores(ROWS, [1.0] * 80)
    assert "Left out" not in compare(same, same, ROWS, ROWS).table()
    told = compare(same, same, ROWS, ROWS, over_long=1234).table()
    assert told.endswith("\nLeft out: 1,234 held-out prompts too long for the model.")
