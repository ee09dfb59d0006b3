"""Evaluation: which reward belongs to which pair, and the report's figures by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from toolrm_jax import pair_scores
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.loader import Loader, RowFile, RowTokenizer, build_index
from toolrm_jax.pair_scores import PairScores, report, score
from toolrm_jax.rendering import Renderer


def scores_of(pairs: list[tuple[str, str, float, float]]) -> PairScores:
    tasks, types, right, wrong = map(list, zip(*pairs, strict=True))
    numbers = list(range(len(pairs)))
    return PairScores(tasks, numbers, types, np.float32(right), np.float32(wrong))


PAIRS = [
    ("a", "Parameter value error", 2.0, 0.0),
    ("a", "Incorrect function name", 2.0, 3.0),
    ("b", "Parameter value error", 1.0, 1.0),
    ("c", "", 0.5, -0.5),
]


def test_a_report_by_hand():
    found = report(scores_of(PAIRS), eta=0.1)
    margins = [2.0, -1.0, 0.0, 1.0]
    sums = [2.0, 5.0, 2.0, 0.0]
    losses = [math.log(1 + math.exp(-m)) + 0.1 * s * s for m, s in zip(margins, sums, strict=True)]
    assert found.loss == pytest.approx(sum(losses) / 4)
    assert found.accuracy.mean == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found.accuracy.n == 4
    assert found.ties == 1
    assert found.margin == pytest.approx(0.5)
    rewards = [2, 2, 1, 0.5, 0, 3, 1, -0.5]
    assert found.reward_mean == pytest.approx(np.mean(rewards))
    assert found.reward_std == pytest.approx(np.std(rewards))


def test_accuracy_per_error_type_and_none_for_pairs_without_one():
    found = report(scores_of(PAIRS)).by_error_type
    assert {name: (e.mean, e.n) for name, e in found.items()} == {
        "Incorrect function name": (0.0, 1),
        "Parameter value error": (0.75, 2),
    }


def test_centering_counts_in_the_loss_only_where_it_is_asked_for():
    without = report(scores_of(PAIRS)).loss
    assert report(scores_of(PAIRS), eta=0.2).loss == pytest.approx(without + 0.2 * 33 / 4)


def test_a_huge_margin_overflows_nothing():
    found = report(scores_of([("a", "", -500.0, 500.0)]))
    assert found.loss == pytest.approx(1000.0)


def test_a_report_is_plain_json():
    found = report(scores_of(PAIRS)).to_json()
    assert found["accuracy"]["n"] == 4
    assert found["by_error_type"]["Parameter value error"]["mean"] == 0.75


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_reward_is_booked_on_its_pair(tmp_path, single_device, micro_batches):
    """With a reward that can be worked out from the text: here, by the last token but two."""
    rows = tiny.rows("heldout", 9)
    rows[2]["rejected"].insert(0, {"response": rows[2]["chosen"]})  # left out: no pair
    rows[3]["rejected"] = rows[3]["rejected"][1:]
    rows[4]["messages"][0]["role"] = "oracle"  # cannot be rendered
    del rows[5]["rejected"][0]["error_type"]
    file = RowFile(tiny.write_lines(tmp_path / "rows.jsonl", rows))
    renderer = Renderer(tiny.tokenizer())
    tokenize = RowTokenizer(renderer)
    plan = PlanConfig((RowShape(600, 9), RowShape(900, 16)), 1800, micro_batches)
    loader = Loader(file, build_index(file, tokenize, plan.shapes), tokenize, plan, shuffle=False)

    @jax.jit
    def rewards_of(scale, batch):
        # The sum over a response's tokens and its prompt's.
        own = batch.branches[:, None, :] == (1 + jnp.arange(batch.ends.shape[1]))[None, :, None]
        prompt = batch.segments[:, None, :] == batch.answers[:, :, None]
        mine = prompt & (own | (batch.branches == 0)[:, None, :])
        return scale * jnp.sum(jnp.where(mine, batch.tokens[:, None, :], 0), axis=-1)

    scores = score(rewards_of, jnp.float32(0.001), loader, single_device)

    def by_hand(row, response):
        return 0.001 * sum(renderer.tokens(row["tools"], row["messages"], response))

    expected = {
        (row["id"], number): (
            wrong.get("error_type") or "",
            by_hand(row, row["chosen"]),
            by_hand(row, wrong["response"]),
        )
        for row in rows
        if row["messages"][0]["role"] == "user"
        for number, wrong in enumerate(row["rejected"])
        if wrong["response"] != row["chosen"]
    }
    keys = list(zip(scores.tasks, scores.numbers, strict=True))
    assert sorted(keys) == sorted(expected)
    for at, key in enumerate(keys):
        error_type, right, wrong = expected[key]
        assert scores.error_types[at] == error_type
        assert (scores.right[at], scores.wrong[at]) == pytest.approx((right, wrong), rel=1e-5)


def test_scores_come_back_from_their_file_as_they_were(tmp_path):
    scores = scores_of([("a", "x", 0.1, 1e-8), ("ü", "", -3.3333333, 7.0)])
    pair_scores.write_scores(tmp_path / "scores.jsonl", scores)
    again = pair_scores.read_scores(tmp_path / "scores.jsonl")
    assert again.right.dtype == np.float32
    for field in ("tasks", "numbers", "error_types", "right", "wrong"):
        assert list(getattr(again, field)) == list(getattr(scores, field))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.jsonl"]
