"""The command: formats in, rejects, exit codes, kills and shards, equal bytes at the end."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
import zstandard
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from processes import without_torch

from toolrm_jax import score
from toolrm_jax.checkpoint_files import LISTING, describe, files_below, listing
from toolrm_jax.convert import from_hf
from toolrm_jax.job_files import publish
from toolrm_jax.scorer import Scorer

CHUNK = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


def own_rows(count: int) -> list[dict]:
    return [
        {
            "id": row["id"],
            "tools": row["tools"],
            "messages": row["messages"],
            "responses": [row["chosen"], *(wrong["response"] for wrong in row["rejected"])],
        }
        for row in tiny.rows("row", count)
    ]


@pytest.fixture(scope="module")
def rows():
    return own_rows(60)


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    """A file of good rows, blank lines and bad rows."""
    lines = [json.dumps(row).encode() for row in rows]
    lines[5] = b"{bad"
    lines[6] = b""
    lines[20] = json.dumps(rows[20] | {"responses": ["word " * 3000]}).encode()
    lines[30] = b'{"id": "caf\xe9"}'
    lines[59] = json.dumps(rows[59] | {"messages": []}).encode()
    path = tmp_path_factory.mktemp("data") / "in.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def command(model, data, output, *more) -> list[str]:
    options = {"--model": model, "--input": data, "--output": output, "--dtype": "float32"}
    options |= {"--chunk-rows": CHUNK, "--workers": 0, "--batch-tokens": 2048}
    return [*(str(word) for pair in options.items() for word in pair), *map(str, more)]


def run(*arguments) -> int:
    return score.main(command(*arguments))


def start(arguments, program: str = "") -> subprocess.Popen:
    """The command as a process of its own, on the devices of this one."""
    call = ["-c", program] if program else ["-m", "toolrm_jax.score"]
    return subprocess.Popen(
        [sys.executable, *call, *arguments],
        cwd=tiny.ROOT,
        env=os.environ | without_torch() | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    """The folder of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(model, data, folder / "out.jsonl") == score.SOME_REJECTED
    return folder


# --- Output ---------------------------------------------------------------------------------------


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


# --- Inputs ---------------------------------------------------------------------------------------


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


# --- Errors ---------------------------------------------------------------------------------------


def test_a_damaged_file_is_an_error_before_anything_is_scored(model, tmp_path, rows, capsys):
    tiny.write_lines(tmp_path / "in.jsonl", rows)
    packed = gzip.compress((tmp_path / "in.jsonl").read_bytes())
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    assert run(model, path, tmp_path / "out.jsonl") == score.FAILED
    assert re.search(r"error: .*in\.jsonl\.gz is damaged after line \d+", capsys.readouterr().err)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--max-tokens", 1024), r"max_tokens=None \(now 1024\)"),
        (("--dtype", "bfloat16"), r"dtype='float32' \(now 'bfloat16'\)"),
        (("--chunk-rows", 9), r"chunk_rows=8 \(now 9\)"),
    ],
)
def test_a_job_is_not_continued_with_other_settings(model, data, finished, capsys, change, message):
    before = files_of(finished)
    assert run(model, data, finished / "out.jsonl", *change) == score.FAILED
    assert re.search(message, capsys.readouterr().err)
    assert files_of(finished) == before


def test_a_job_is_not_continued_with_another_model_or_input(
    model, data, finished, tmp_path, capsys
):
    other = tiny.write_reward_model(tmp_path / "model", head=2.0)
    assert run(other, data, finished / "out.jsonl") == score.FAILED
    assert "with another model" in capsys.readouterr().err
    longer = tmp_path / "longer.jsonl"
    longer.write_bytes(data.read_bytes() + b"{}\n")
    assert run(model, longer, finished / "out.jsonl") == score.FAILED
    assert "with another input" in capsys.readouterr().err


def test_a_file_of_somebody_elses_is_not_overwritten(model, data, tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("precious\n")
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert "exists and is not this command's" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "precious\n"


def test_missing_things_are_one_line_errors(model, data, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert run(model, tmp_path / "absent.jsonl", output) == score.FAILED
    assert "No input at" in capsys.readouterr().err
    assert run(tmp_path / "absent", data, output) == score.FAILED
    assert "No model at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [["--shard", "4/4"], ["--chunk-rows", "0"], ["--chunk-rows", "abc"], ["--workers", "-1"],
     ["--nonsense"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(model, data, tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as error:
        run(model, data, tmp_path / "out.jsonl", *wrong)
    assert error.value.code == score.USAGE
    assert wrong[-1] in capsys.readouterr().err


def test_two_processes_do_not_work_on_one_output(model, data, tmp_path, capsys):
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    import fcntl

    with (parts / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert "Another process is working on" in capsys.readouterr().err


def test_a_row_that_no_template_can_show_is_rejected_by_itself(model, tmp_path, rows):
    odd = {"role": "assistant", "content": "x", "tool_calls": 5}
    bad = rows[1] | {"messages": [*rows[1]["messages"], odd, rows[1]["messages"][0]]}
    path = tiny.write_lines(tmp_path / "in.jsonl", [rows[0], bad, rows[2]])
    assert run(model, path, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert [line["id"] for line in lines_of(tmp_path / "out.jsonl")] == ["row/0", "row/2"]
    (found,) = lines_of(tmp_path / "out.rejects.jsonl")
    assert (found["line"], found["reason"]) == (2, "cannot be rendered")


@pytest.mark.parametrize("gone", ["out.jsonl", "out.rejects.jsonl"])
def test_an_output_that_is_gone_is_made_again(model, data, finished, tmp_path, capsys, gone):
    for name, content in files_of(finished).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / gone).unlink()
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert f"{gone} is gone: making it again" in capsys.readouterr().err
    assert files_of(tmp_path) == files_of(finished)


def stopped(model, data, output, monkeypatch) -> None:
    """A job that stops on an error after three chunks."""
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_tokenized", after(3, OSError("the disk is full")))
        assert run(model, data, output) == score.FAILED


def after(windows: int, event):
    """Scoring that raises, or calls, `event` after so many windows."""
    score_tokenized = Scorer.score_tokenized

    def changed(self, given):
        for number, found in enumerate(score_tokenized(self, given)):
            if number == windows:
                if isinstance(event, Exception):
                    raise event
                event()
            yield found

    return changed


def test_chunks_of_nobody_knows_which_model_are_scored_again(
    model, data, finished, tmp_path, monkeypatch
):
    """Clean-up that was killed half-way may leave chunks without their job."""
    other = tiny.write_reward_model(tmp_path / "model", head=2.0)
    output = tmp_path / "out" / "out.jsonl"
    stopped(other, data, output, monkeypatch)
    assert committed(output.parent) == 3
    (output.parent / "out.jsonl.parts" / "job.json").unlink()
    assert run(model, data, output) == score.SOME_REJECTED
    assert files_of(output.parent) == files_of(finished)


def test_parts_that_were_left_of_a_finished_job_are_removed(model, data, finished, tmp_path):
    for name, content in files_of(finished).items():
        (tmp_path / name).write_bytes(content)
    parts = tmp_path / "out.jsonl.parts"
    parts.mkdir()
    (parts / "job.json").write_text("{}")
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert files_of(tmp_path) == files_of(finished)


def test_an_input_that_changes_meanwhile_is_refused(model, tmp_path, rows, monkeypatch, capsys):
    path = tiny.write_lines(tmp_path / "in.jsonl", rows)

    def append():
        with path.open("a") as file:
            file.write(json.dumps(rows[0]) + "\n")

    monkeypatch.setattr(Scorer, "score_tokenized", after(3, append))
    assert run(model, path, tmp_path / "out.jsonl") == score.FAILED
    assert "in.jsonl changed while it was being scored" in capsys.readouterr().err
    assert committed(tmp_path) == 3
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("text", ["{}", "hello", "[1]", '{"job": {"model": 5}}'])
def test_a_summary_of_somebody_elses_is_a_one_line_error(model, data, tmp_path, capsys, text):
    (tmp_path / "out.summary.json").write_text(text)
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert "out.summary.json is not this command's, or is damaged" in capsys.readouterr().err


def test_a_worker_that_dies_is_a_one_line_error(model, data, tmp_path, capsys, monkeypatch):
    import toolrm_jax.score_job as score_job

    monkeypatch.setattr(score_job, "LineTokenizer", lambda _: Dying())
    assert run(model, data, tmp_path / "out.jsonl", "--workers", 1) == score.FAILED
    assert "worker processes ended by itself" in capsys.readouterr().err


class Dying:
    """What kills the process that it is called in."""

    def __call__(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["workers", "bos"])
def test_workers_and_a_bos_change_no_reward(model, tmp_path, rows, kind):
    """With a tokenizer that adds a BOS, and with rows tokenised by other processes."""
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:12])
    if kind == "bos":
        model = tiny.write_reward_model(tmp_path / "model", tokenizer=tiny.bos_tokenizer())
    more = ("--workers", 2) if kind == "workers" else ()
    assert run(model, path, tmp_path / "out.jsonl", *more) == score.ALL_SCORED
    with Scorer.from_pretrained(model, dtype="float32", devices=jax.devices()[:1]) as scorer:
        renderer = scorer.tokenize.renderer
        for line, row in zip(lines_of(tmp_path / "out.jsonl"), rows[:12], strict=True):
            whole = [renderer.tokens(row["tools"], row["messages"], r) for r in row["responses"]]
            expected = scorer.score_sequences(whole).rewards
            np.testing.assert_allclose(line["rewards"], expected, rtol=1e-5, atol=1e-5)


def test_a_runs_workdir_is_told_by_its_checkpoint_and_its_tokenizer(model, tmp_path, rows, capsys):
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:4])
    run_folder = tmp_path / "run"
    from_hf(str(model), tmp_path / "converted")
    step = epath.Path(run_folder / "checkpoints" / "8")
    step.parent.mkdir(parents=True)
    (tmp_path / "converted").rename(step)
    (step / "tokenizer").rename(run_folder / "tokenizer")
    (step / LISTING).write_text(listing(describe(files_below(step), step, sums=True)))
    assert run(model, path, tmp_path / "plain.jsonl") == score.ALL_SCORED
    assert run(run_folder, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
    with (run_folder / "tokenizer" / "chat_template.jinja").open("a") as file:
        file.write("\n")
    assert run(run_folder, path, tmp_path / "out.jsonl") == score.FAILED
    assert "with another model" in capsys.readouterr().err


def test_names_are_text_or_whole_numbers_and_lines_are_never_taken_for_them(
    model, tmp_path, rows, capsys
):
    named = [rows[0] | {"id": 2}, rows[1] | {"id": None}, rows[2] | {"id": 1.5}]
    path = tiny.write_lines(tmp_path / "in.jsonl", named)
    assert run(model, path, tmp_path / "out.jsonl") == score.SOME_REJECTED
    found = [(line["id"], line.get("line")) for line in lines_of(tmp_path / "out.jsonl")]
    assert found == [(2, None), (None, 2)]
    (rejected,) = lines_of(tmp_path / "out.rejects.jsonl")
    assert (rejected["line"], rejected["id"]) == (3, None)
    assert "1 row rejected: 1 not a request" in capsys.readouterr().err


# --- A bucket -------------------------------------------------------------------------------------


class Bucket(MemoryFileSystem):
    """Objects in this process's memory, in the place of Google's store."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", "/", 1))


@pytest.fixture
def bucket(monkeypatch):
    for kind in Bucket.protocol:
        monkeypatch.setitem(_registry, kind, Bucket)
    forget = epath.backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    yield epath.Path("gs://bucket")
    forget()
    Bucket.store.clear()


def test_a_bucket_takes_input_parts_shards_and_output(model, data, finished, bucket, monkeypatch):
    (bucket / "in.jsonl").write_bytes(data.read_bytes())
    source, output = str(bucket / "in.jsonl"), str(bucket / "out.jsonl")
    shard = ("--shard", "0/2")
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_tokenized", after(2, OSError("gone")))
        assert run(model, source, output, *shard) == score.FAILED
    parts = bucket / "out.shard-00000-of-00002.jsonl.parts"
    assert len([path for path in parts.iterdir() if path.name.endswith(".part")]) == 2
    for index in range(2):
        assert run(model, source, output, "--shard", f"{index}/2") in (0, 3)
    assert [name for name in Bucket.store if ".parts/" in name] == []
    assert score.main(["merge", "--output", output]) == score.SOME_REJECTED
    for name in ("out.jsonl", "out.rejects.jsonl"):
        assert (bucket / name).read_bytes() == (finished / name).read_bytes()


def test_an_object_whose_rows_fail_half_way_never_appears(bucket):
    def failing():
        yield b"half"
        raise OSError("the shard is gone")

    with pytest.raises(OSError, match="the shard is gone"):
        publish(bucket / "out.jsonl", failing())
    assert not (bucket / "out.jsonl").exists()


# --- Shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [2, 3, 11])
def test_merged_shards_are_the_whole(model, data, finished, tmp_path, of):
    """11 shards of 8 chunks: some have nothing to do."""
    output = tmp_path / "out.jsonl"
    for index in reversed(range(of)):
        assert run(model, data, output, "--shard", f"{index}/{of}") in (0, 3)
    assert score.main(["merge", "--output", str(output)]) == score.SOME_REJECTED
    for name in ("out.jsonl", "out.rejects.jsonl"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    merged, whole = (
        json.loads((folder / "out.summary.json").read_text()) for folder in (tmp_path, finished)
    )
    assert merged == whole


def test_shards_do_not_overlap(model, data, finished, tmp_path):
    for index in range(2):
        run(model, data, tmp_path / "out.jsonl", "--shard", f"{index}/2")
    ids = [
        [line["id"] for line in lines_of(tmp_path / f"out.shard-0000{i}-of-00002.jsonl")]
        for i in range(2)
    ]
    assert not set(ids[0]) & set(ids[1])
    whole = [line["id"] for line in lines_of(finished / "out.jsonl")]
    assert sorted(ids[0] + ids[1]) == sorted(whole)
    assert min(map(len, ids)) > len(whole) // 3


def test_the_shard_is_the_process_by_default(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    run(model, data, tmp_path / "out.jsonl")
    assert (tmp_path / "out.shard-00001-of-00002.jsonl").exists()


@pytest.mark.parametrize("name", ["JAX_PROCESS_ID", "JAX_NUM_PROCESSES"])
def test_half_of_a_process_is_no_share(model, data, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "1")
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert f"{name} is set and JAX_" in capsys.readouterr().err


def test_brackets_in_a_name_are_only_a_name(model, data, finished, tmp_path):
    output = tmp_path / "h[1]*.jsonl"
    for index in range(2):
        run(model, data, output, "--shard", f"{index}/2")
    assert score.main(["merge", "--output", str(output)]) == score.SOME_REJECTED
    assert output.read_bytes() == (finished / "out.jsonl").read_bytes()


def test_a_merge_names_the_shards_that_are_missing(model, data, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert score.main(["merge", "--output", str(output)]) == score.FAILED
    assert "No shard of" in capsys.readouterr().err
    run(model, data, output, "--shard", "0/3")
    assert score.main(["merge", "--output", str(output)]) == score.FAILED
    message = capsys.readouterr().err
    assert "2 of 3 shards are not finished" in message
    assert "out.shard-00001-of-00003.jsonl" in message
    assert not output.exists()


# --- Kills ----------------------------------------------------------------------------------------

# The command, killed at the n-th file it publishes: before it has its name, or right after.
KILLED = """
import os, signal, sys
from toolrm_jax import score
from pathlib import Path
at, before = int(sys.argv[1]), sys.argv[2] == "before"
replace, count = Path.replace, 0
def replace_and_die(self, target):
    global count
    count += self.name.endswith(".partial")
    if count == at and before:
        os.kill(os.getpid(), signal.SIGKILL)
    done = replace(self, target)
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.replace = replace_and_die
sys.exit(score.main(sys.argv[3:]))
"""


def test_a_killed_job_continues_and_ends_with_equal_bytes(model, data, finished, tmp_path):
    """Kills: while a chunk is written; between output and rejects; before the summary."""
    arguments = command(model, data, tmp_path / "out.jsonl")
    # Published: job.json and eight chunks (of which a run skips what is there), then output,
    # rejects and summary.
    for at, when in ((4, "before"), (7, "after"), (3, "before")):
        process = start([str(at), when, *arguments], KILLED)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, output
        assert not (tmp_path / "out.summary.json").exists()
    process = start(arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == score.SOME_REJECTED, output
    assert files_of(tmp_path) == files_of(finished)


def test_no_chunk_is_scored_twice(model, data, tmp_path, monkeypatch):
    """What is committed is not computed again, even where the last run stopped on an error."""
    scored = []
    score_tokenized = Scorer.score_tokenized

    def stopping(self, windows, after=3):
        for number, found in enumerate(score_tokenized(self, windows)):
            if number == after:
                raise OSError("the disk is full")
            scored.append(len(found[0]))
            yield found

    monkeypatch.setattr(Scorer, "score_tokenized", stopping)
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert sum(scored) == 59


def committed(folder: Path) -> int:
    """Chunks that an unfinished job has committed."""
    return len(list((folder / "out.jsonl.parts").glob("chunk-*.part")))


@pytest.mark.slow
def test_20_kills_at_random_moments_change_no_byte(model, tmp_path):
    path = tmp_path / "in.jsonl"
    tiny.write_lines(path, own_rows(5000))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--chunk-rows", 64)
    began = time.monotonic()
    process = start(command(model, path, whole / "out.jsonl", *options))
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == score.ALL_SCORED, output
    seconds = time.monotonic() - began

    rng, kills = random.Random(0), 0
    arguments = command(model, path, parts / "out.jsonl", *options)
    while kills < 20:
        process, before = start(arguments), committed(parts)
        if kills % 4:  # while it scores; every fourth kill may come while it still starts
            while process.poll() is None and committed(parts) == before:
                time.sleep(0.01)
        try:
            process.communicate(timeout=rng.uniform(0, seconds / 15))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == score.ALL_SCORED
        assert files_of(parts) == files_of(whole)
        for file in parts.iterdir():  # it got to its end: begin anew, for 20 kills in all
            file.unlink()
    process = start(arguments)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == score.ALL_SCORED, output
    assert files_of(parts) == files_of(whole)
