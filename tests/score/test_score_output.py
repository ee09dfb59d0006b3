"""The scoring command: what it writes, of every kind of input."""

import gzip
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
import zstandard
from scoring_jobs import files_of, lines_of, run
from tqdm import tqdm

from toolrm_jax import score, score_job
from toolrm_jax.scorer import Scorer


def test_rewards_are_the_scorers_in_the_order_of_the_rows(model, rows, finished):
    found = lines_of(finished / "out.jsonl")
    good = [row for i, row in enumerate(rows) if i not in (5, 6, 20, 30, 59)]
    assert [line["id"] for line in found] == [row["id"] for row in good]
    with Scorer.from_pretrained(model, dtype="float32", devices=jax.devices()[:1]) as scorer:
        for line, scored in zip(found, scorer.score(good), strict=True):
            np.testing.assert_allclose(line["rewards"], scored.rewards, rtol=1e-5, atol=1e-5)
            assert line["tokens"] == scored.tokens.tolist()
            assert line.keys() == {"id", "rewards", "tokens"}


def test_bad_rows_are_listed_with_line_and_reason(finished):
    found = {line["line"]: line for line in lines_of(finished / "out.rejects.jsonl")}
    assert {number: line["reason"] for number, line in found.items()} == {
        6: "not JSON",
        21: "over-long",
        31: "not JSON",
        60: "not a request",
    }
    assert "at most 2048 are scored" in found[21]["detail"]
    assert found[21]["id"] == "row/20"
    assert "UTF-8" in found[31]["detail"]
    assert found[60]["detail"] == "expected at least one message, found an empty list"


def test_the_summary_counts_everything(finished):
    summary = json.loads((finished / "out.summary.json").read_text())
    counts = summary["counts"]
    assert (summary["rows"], counts["scored"]) == (59, 55)
    assert counts["rejected"] == {"not JSON": 2, "not a request": 1, "over-long": 1}
    assert counts["work"]["responses"] == 55 * 4
    tokens = [sum(line["tokens"]) for line in lines_of(finished / "out.jsonl")]
    assert counts["work"]["sequence_tokens"] == sum(tokens)
    assert sorted(path.name for path in finished.iterdir()) == [
        "out.jsonl", "out.rejects.jsonl", "out.summary.json",
    ]  # fmt: skip


def test_the_progress_moves_within_a_chunk(model, tmp_path, rows, monkeypatch):
    """A chunk may take half an hour."""
    moved = []

    class Bar(tqdm):
        def update(self, n=1):
            moved.append((n, self.postfix))
            return super().update(n)

    monkeypatch.setattr(score_job, "tqdm", Bar)
    path = tiny.write_lines(tmp_path / "in.jsonl", rows)
    options = ("--chunk-rows", 64, "--batch-tokens", 256)
    assert run(model, path, tmp_path / "out.jsonl", *options) == score.ALL_SCORED
    assert sum(n for n, _ in moved) == 60
    assert sum(n > 0 for n, _ in moved) > 2
    assert all("responses/s" in words for _, words in moved)


def test_a_finished_job_is_not_done_again(model, data, finished, capsys):
    before = files_of(finished)
    assert run(model, data, finished / "out.jsonl") == score.SOME_REJECTED
    assert files_of(finished) == before
    assert "is complete already" in capsys.readouterr().err


def test_without_rejects_the_exit_code_is_0_and_there_is_no_file_of_them(model, tmp_path, rows):
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:4])
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    assert not (tmp_path / "out.rejects.jsonl").exists()


def test_an_empty_input_gives_an_empty_output(model, tmp_path):
    (tmp_path / "in.jsonl").write_text("\n\n")
    assert run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl") == score.ALL_SCORED
    assert (tmp_path / "out.jsonl").read_bytes() == b""
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["shares"] == {"saved_by_prefixes": 0, "padding": 0}


def test_outputs_of_one_stem_have_each_their_own_summary(model, tmp_path, rows):
    for number, name in enumerate(("scores.a", "scores.b", "scores.jsonl", "scores")):
        path = tiny.write_lines(tmp_path / "in.jsonl", rows[number : number + 2])
        assert run(model, path, tmp_path / name) == score.ALL_SCORED
    assert {path.name for path in tmp_path.glob("*.summary*")} == {
        "scores.a.summary", "scores.b.summary", "scores.summary.json", "scores.summary",
    }  # fmt: skip


def test_the_summary_says_what_the_files_hold(finished):
    summary = json.loads((finished / "out.summary.json").read_text())
    for key, name in (("output", "out.jsonl"), ("rejects", "out.rejects.jsonl")):
        content = (finished / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert summary[key] == {"bytes": len(content), "sha256": digest}


def as_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "folder"])
def test_every_kind_of_file_gives_the_same(model, tmp_path, rows, kind):
    plain = [
        row | {"responses": ["Yes.", "No."], "tools": json.dumps(row["tools"])} for row in rows[:12]
    ]
    tiny.write_lines(tmp_path / "in.jsonl", plain)
    text = (tmp_path / "in.jsonl").read_bytes()
    if kind == "gz":
        # Two members, as files that are appended to have.
        half = text.index(b"\n", len(text) // 2) + 1
        path = tmp_path / "in.jsonl.gz"
        path.write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]))
    elif kind == "zst":
        path = tmp_path / "in.jsonl.zst"
        path.write_bytes(zstandard.compress(text[:100]) + zstandard.compress(text[100:]))
    elif kind == "parquet":
        as_parquet(path := tmp_path / "in.parquet", plain)
    else:  # a data set as hubs have them, in a local folder
        (path := tmp_path / "set").mkdir()
        as_parquet(path / "train.parquet", plain)
    assert run(model, tmp_path / "in.jsonl", tmp_path / "plain.jsonl") == score.ALL_SCORED
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_rows_of_parquet_lose_what_arrow_added(model, tmp_path):
    """Objects of one column share their fields there: every call gets every argument, null."""
    calls = [
        [{"name": "get_time", "arguments": {"city": "Rome"}}],
        [{"name": "get_time", "arguments": {"zone": "CET"}}],
    ]
    row = {"messages": [{"role": "user", "content": "Time in Rome?"}], "responses": calls}
    as_parquet(tmp_path / "in.parquet", [row])
    tiny.write_lines(tmp_path / "in.jsonl", [row])
    for name in ("in.parquet", "in.jsonl"):
        assert run(model, tmp_path / name, tmp_path / f"{name}.out.jsonl") == score.ALL_SCORED
    assert (tmp_path / "in.parquet.out.jsonl").read_bytes() == (
        tmp_path / "in.jsonl.out.jsonl"
    ).read_bytes()


def test_pairs_in_their_forms_get_the_rewards_of_their_sides(model, tmp_path, rows):
    row = rows[0]
    right, wrong = row["responses"][:2]
    turns = [{"role": "assistant", "tool_calls": [{"function": c}]} for c in (right[0], wrong[0])]
    tools, messages = row["tools"], row["messages"]
    forms = [
        {"id": "own", "tools": tools, "messages": messages, "responses": [right, wrong]},
        {"test_id": "fcrb", "tools": tools, "conversation": messages, "chosen_output": right,
         "rejected_output": wrong},
        {"tools": tools, "prompt": messages, "chosen": turns[:1], "rejected": turns[1:]},
        {"tools": tools, "chosen": [*messages, turns[0]], "rejected": [*messages, turns[1]]},
    ]  # fmt: skip
    path = tiny.write_lines(tmp_path / "in.jsonl", forms)
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    found = lines_of(tmp_path / "out.jsonl")
    assert [line["id"] for line in found] == ["own", "fcrb", None, None]
    assert [line.get("line") for line in found] == [None, None, 3, 4]
    assert len({tuple(line["rewards"]) for line in found}) == 1
    assert len(set(found[0]["rewards"])) == 2


def test_dropped_turns_are_reported_per_row_and_in_sum(model, tmp_path, rows):
    long = rows[0] | {"messages": rows[0]["messages"] * 60}
    path = tiny.write_lines(tmp_path / "in.jsonl", [rows[1], long])
    options = ("--max-tokens", 512, "--over-long", "drop-oldest-turns")
    assert run(model, path, tmp_path / "out.jsonl", *options) == score.ALL_SCORED
    found = lines_of(tmp_path / "out.jsonl")
    assert found[0]["dropped_messages"] == 0
    assert 0 < found[1]["dropped_messages"] < 60
    assert max(found[1]["tokens"]) <= 512
    counts = json.loads((tmp_path / "out.summary.json").read_text())["counts"]
    assert counts["dropped_rows"] == 1
    assert counts["dropped_messages"] == found[1]["dropped_messages"]
