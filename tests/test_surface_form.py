"""Canonical calls against answers as written: what is compared, and that nothing else differs."""

import gzip
import json

import numpy as np
import pytest
import tiny

from benchmarks.surface_form import SPELLINGS, Scorer, drift, pool_rows, respelled, unseen
from toolrm_jax.batch import RowShape
from toolrm_jax.pair_scores import PairScores
from toolrm_jax.rendering import Renderer
from toolrm_jax.tool_calls import parse_calls


def scores_of(*pairs):
    tasks, numbers, right, wrong = map(list, zip(*pairs, strict=True))
    return PairScores(tasks, numbers, [""] * len(pairs), np.array(right), np.array(wrong))


def test_drift_by_hand():
    canonical = scores_of(
        ("a", 0, 1.0, 0.0), ("a", 1, 1.0, 2.0), ("b", 0, 0.0, 3.0), ("c", 0, 9, 9)
    )
    written = scores_of(("b", 0, 0.0, -1.0), ("a", 0, 2.0, 0.0), ("a", 1, 2.0, 2.5))
    found = drift(canonical, written)
    # Rewards: a's and b's right answers once each, three wrong ones; c is in one scoring only.
    assert (found.pairs, found.rewards) == (3, 5)
    assert found.change == pytest.approx((1.0 + 0.0 + 0.0 + 0.5 + 4.0) / 5)
    assert found.spread == pytest.approx(np.std([1.0, 0.0, 0.0, 2.0, 3.0]))
    assert found.flips == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no pair in common"):
        drift(canonical, scores_of(("d", 0, 1.0, 0.0)))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_changes_the_text_and_not_the_calls(spelling):
    rows = [row for row in tiny.rows("train", 8) if isinstance(row["chosen"], list)]
    for before, after in zip(rows, respelled(rows, spelling), strict=True):
        assert parse_calls(after["chosen"]) == before["chosen"]
        wrongs = [w["response"] for w in before["rejected"] if isinstance(w["response"], list)]
        assert [parse_calls(w["response"]) for w in after["rejected"]] == wrongs


def test_only_the_spelling_moves_the_reward(tmp_path):
    tiny.write_model(tmp_path / "model")
    scorer = Scorer(str(tmp_path / "model"), "float32", RowShape(512, 16))
    rows = list(respelled(tiny.rows("heldout", 8), "arguments shuffled"))
    canonical, _ = scorer.score(rows, raw=False)
    found = drift(canonical, scorer.score(rows, raw=True)[0])
    assert found.change > 0
    # As its canonical form stands in the text, an answer as written gets the same reward.
    renderer = Renderer(scorer.tokenizer)
    rendered = [_as_rendered(row, renderer) for row in rows]
    same = drift(canonical, scorer.score(rendered, raw=True)[0])
    assert (same.change, same.flips) == (0.0, 0.0)
    assert same.pairs == found.pairs


def _as_rendered(row, renderer):
    def text(response):
        whole = renderer.text(row["tools"], row["messages"], response)
        return whole.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")

    wrongs = [{**wrong, "response": text(wrong["response"])} for wrong in row["rejected"]]
    return {**row, "chosen": text(row["chosen"]), "rejected": wrongs}


def test_rows_of_tasks_that_the_model_saw_are_left_out(tmp_path):
    rows = tiny.rows("train", 3)
    assert unseen(rows, str(tmp_path), 2) == rows[:2]
    (tmp_path / "toolrm.json").write_text(json.dumps({"train_tasks": [rows[0]["id"]]}))
    assert unseen(rows, str(tmp_path), 9) == rows[1:]


def test_pools_give_the_same_answers_in_both_forms(tmp_path):
    def answer(name, correct, raw=None, calls=True):
        calls = [{"name": name, "arguments": {}}] if calls else None
        error = None if correct else "Parsing error"
        return {
            "calls": calls,
            "raw": raw or f"[{name}()]",
            "correct": correct,
            "error_type": error,
        }

    candidates = [answer("x", False, calls=False), answer("a", False), answer("b", True)]
    pool = {"test_id": "7", "tools": [], "conversation": [], "candidates": candidates}
    path = tmp_path / "pools.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(pool) + "\n")
        file.write(json.dumps(pool | {"candidates": candidates[:2]}) + "\n")
    (read,), (written,) = (list(pool_rows(path, form)) for form in ("calls", "raw"))
    assert read["id"] == "bfcl/7"
    assert (written["chosen"], read["chosen"]) == ("[b()]", [{"name": "b", "arguments": {}}])
    assert [w["response"] for w in written["rejected"]] == ["[a()]"]
