"""What a scoring job refuses, or does again."""

import functools
import gzip
import json
import multiprocessing
import os
import re
import signal
import types

import jax
import numpy as np
import pytest
import tiny
from etils import epath
from scoring_jobs import after, committed, files_of, lines_of, run

from toolrm_jax import score
from toolrm_jax.ahead import OrderedPool
from toolrm_jax.checkpoint_files import LISTING, describe, files_below, listing
from toolrm_jax.compilation_cache import keeps_programs, use_compilation_cache
from toolrm_jax.convert import from_hf
from toolrm_jax.row_source import LineRows
from toolrm_jax.scorer import Scorer


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


@pytest.mark.parametrize("name", ["out.jsonl", "out.rejects.jsonl"])
def test_a_file_of_somebody_elses_is_not_overwritten(model, data, tmp_path, capsys, name):
    (tmp_path / "out.jsonl.parts").mkdir()
    (tmp_path / name).write_text("precious\n")
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert f"{name} exists and is not this command's" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "precious\n"


def test_what_is_not_a_jobs_stays_where_it_lies(model, tmp_path, rows):
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:4])
    mine = tmp_path / "out.jsonl.parts" / "mine.txt"
    (mine.parent / "folder").mkdir(parents=True)
    mine.write_text("precious\n")
    (mine.parent / ".chunk-00000007.part.partial").write_text("of a kill")
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED
    assert sorted(path.name for path in mine.parent.iterdir()) == ["folder", "mine.txt"]
    assert mine.read_text() == "precious\n"


def test_a_job_that_committed_nothing_may_become_another(model, tmp_path, rows, capsys):
    """A command that failed at once can be corrected, and so can its input."""
    path = tmp_path / "in.jsonl.gz"
    packed = gzip.compress(tiny.write_lines(tmp_path / "in.jsonl", rows[:4]).read_bytes())
    path.write_bytes(packed[: len(packed) // 2])
    assert run(model, path, tmp_path / "out.jsonl") == score.FAILED
    path.write_bytes(packed)
    assert run(model, path, tmp_path / "out.jsonl") == score.ALL_SCORED


def test_a_job_that_is_not_finished_is_not_continued_as_another(
    model, data, tmp_path, monkeypatch, capsys
):
    stopped(model, data, tmp_path / "out.jsonl", monkeypatch)
    assert run(model, data, tmp_path / "out.jsonl", "--raw") == score.FAILED
    assert "holds an unfinished job with raw=False (now True)" in capsys.readouterr().err
    assert committed(tmp_path) == 3


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
     ["--output", "out.jsonl.gz"], ["--nonsense"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(model, data, tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as error:
        run(model, data, tmp_path / "out.jsonl", *wrong)
    assert error.value.code == score.USAGE
    assert wrong[-1] in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--split", "train"], ["--subset", "a", "--split", "b"]])
def test_parts_of_a_data_set_are_refused_for_a_file(model, data, tmp_path, capsys, options):
    assert run(model, data, tmp_path / "out.jsonl", *options) == score.FAILED
    given = " and ".join(sorted(option for option in options if option[0] == "-"))
    assert f"error: {given} may be given of a hub's data set, and {data}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (lambda rows: json.dumps(rows, indent=2), "jq -c '.[]'"),
        (lambda rows: json.dumps(rows), "jq -c '.[]'"),
        (lambda rows: "\n" + "\n".join(json.dumps(row, indent=2) for row in rows), "jq -c '.'"),
    ],
)
def test_one_json_value_is_no_file_of_rows(model, tmp_path, rows, capsys, text, parts):
    """Its first line says so, and not hundreds of rejected ones."""
    path = tmp_path / "in.json"
    path.write_text(text(rows[:3]))
    assert run(model, path, tmp_path / "out.jsonl") == score.FAILED
    message = capsys.readouterr().err
    assert "a row on each line" in message
    assert parts in message
    assert not (tmp_path / "out.jsonl").exists()


@pytest.fixture
def cache_setting():
    """JAX's, as it was."""
    before = jax.config.values["jax_compilation_cache_dir"]
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("cache_setting")
def test_a_folder_that_no_program_can_be_kept_in_is_a_one_line_error(model, data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ("--cache-dir", tmp_path / "file" / "cache")
    assert run(model, data, tmp_path / "out.jsonl", *options) == score.FAILED
    message = capsys.readouterr().err
    assert re.search(r"error: Compiled programs cannot be kept in .*cache' \(Not a dir", message)
    assert '"none" to keep none' in message


@pytest.mark.usefixtures("cache_setting")
def test_programs_need_not_be_kept(caplog, tmp_path):
    """None are where that is said, and where a folder that nobody chose is out of order."""
    use_compilation_cache("none")
    assert not keeps_programs()
    assert caplog.text == ""
    (tmp_path / "file").write_text("")
    use_compilation_cache(default=tmp_path / "file" / "cache")
    assert not keeps_programs()
    assert "every start compiles anew" in caplog.text
    use_compilation_cache(tmp_path / "made")
    assert keeps_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "made")


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


@pytest.mark.parametrize("name", ["out.jsonl", "out.rejects.jsonl"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (None, "is gone: making it again"),
        (lambda content: content[: len(content) // 2], "bytes where its summary says"),
        (lambda content: content.replace(b"5", b"6"), "has other content than its summary says"),
        (lambda content: b"garbage\n", "has 8 bytes where"),
    ],
)
def test_an_output_that_is_not_what_was_written_is_made_again(
    model, data, finished, tmp_path, capsys, name, damage, message
):
    """The summary beside it is not believed unread."""
    for kept, content in files_of(finished).items():
        (tmp_path / kept).write_bytes(content)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert re.search(rf"{re.escape(name)} [^\n]*{message}", capsys.readouterr().err)
    assert files_of(tmp_path) == files_of(finished)


def stopped(model, data, output, monkeypatch) -> None:
    """A job that stops on an error after three chunks."""
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_tokenized", after(3, OSError("the disk is full")))
        assert run(model, data, output) == score.FAILED


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


def test_an_input_that_reads_otherwise_than_it_was_counted_is_refused(
    model, tmp_path, rows, monkeypatch, capsys
):
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:4])
    monkeypatch.setattr(LineRows, "count", lambda _: 5)
    assert run(model, path, tmp_path / "out.jsonl") == score.FAILED
    assert "had 5 rows when they were counted, and 4 when" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("text", ["{}", "hello", "[1]", '{"job": {"model": 5}}'])
def test_a_summary_of_somebody_elses_is_a_one_line_error(model, data, tmp_path, capsys, text):
    (tmp_path / "out.summary.json").write_text(text)
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert "out.summary.json is not this command's, is an earlier" in capsys.readouterr().err


def test_a_worker_that_dies_is_a_one_line_error(model, data, tmp_path, capsys, monkeypatch):
    import toolrm_jax.score_job as score_job

    monkeypatch.setattr(score_job, "LineTokenizer", lambda _: Dying())
    assert run(model, data, tmp_path / "out.jsonl", "--workers", 1) == score.FAILED
    assert "worker processes ended by itself" in capsys.readouterr().err


class Dying:
    """What kills the process that it is called in."""

    def __call__(self, row):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_do_not_import_jax(model, tmp_path, rows, monkeypatch):
    """It is six times the memory of the rest."""
    found = []
    close = OrderedPool.close

    def asked(pool):
        if pool._pool is not None:
            found.append(pool._pool.submit(eval, "'jax' in __import__('sys').modules").result())
        close(pool)

    monkeypatch.setattr(OrderedPool, "close", asked)
    path = tiny.write_lines(tmp_path / "in.jsonl", rows[:4])
    assert run(model, path, tmp_path / "out.jsonl", "--workers", 1) == score.ALL_SCORED
    assert found == [False]


@pytest.mark.usefixtures("ctrl_c")
def test_sigterm_ends_the_workers_and_ctrl_c_is_one_line(
    model, data, tmp_path, monkeypatch, capsys
):
    before = signal.getsignal(signal.SIGTERM)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        kill = functools.partial(os.kill, os.getpid(), number)
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "score_tokenized", after(2, kill))
            try:
                found = run(model, data, tmp_path / "out.jsonl", "--workers", 2)
            except SystemExit as error:
                found = error.code
        assert found == status
        assert multiprocessing.active_children() == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.endswith("goes on from what is committed\n")
    assert committed(tmp_path) == 4


class Hub:
    """A hub of one data set, which is pushed to: each look finds the next commit."""

    def __init__(self, rows):
        self.info, self.rows = types.SimpleNamespace(splits=None), rows
        self.commits, self.loaded = ["1" * 40, "2" * 40], []
        self.tags = {"v1": "3" * 40}

    def dataset_info(self, name, revision, timeout):
        return types.SimpleNamespace(sha=self.tags.get(revision) or self.commits.pop(0))

    def load(self, path, *, revision, **_):
        self.loaded.append(revision)
        return self

    def __iter__(self):
        return iter(self.rows)


def test_a_push_to_the_hub_strands_no_job(model, tmp_path, rows, monkeypatch):
    hub = Hub(rows)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("datasets.load_dataset", hub.load)
    stopped(model, "org/name", tmp_path / "out.jsonl", monkeypatch)
    assert run(model, "org/name", tmp_path / "out.jsonl") == score.ALL_SCORED
    assert hub.loaded == ["1" * 40] * 2
    assert len(lines_of(tmp_path / "out.jsonl")) == len(rows)


def test_a_revision_of_the_hub_is_read_and_no_other_is_continued(
    model, tmp_path, rows, monkeypatch, capsys
):
    hub = Hub(rows)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("datasets.load_dataset", hub.load)
    tagged = (model, "org/name", tmp_path / "out.jsonl", "--revision", "v1")
    assert run(*tagged) == score.ALL_SCORED
    assert hub.loaded == ["3" * 40]
    about = json.loads((tmp_path / "out.summary.json").read_text())["job"]["input"]
    assert about["commit"] == "3" * 40
    assert run(*tagged[:3], "--revision", "4" * 40) == score.FAILED
    assert "is there already, but was made with another input" in capsys.readouterr().err
    path = tiny.write_lines(tmp_path / "in.jsonl", rows)
    assert run(model, path, tmp_path / "other.jsonl", "--revision", "v1") == score.FAILED
    assert "A revision ('v1') is of a hub's data set" in capsys.readouterr().err


def test_other_versions_of_libraries_are_said(model, data, tmp_path, monkeypatch, capsys):
    stopped(model, data, tmp_path / "out.jsonl", monkeypatch)
    path = tmp_path / "out.jsonl.parts" / "job.json"
    job = json.loads(path.read_text())
    job["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(job))
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert f"was scored with jax 0.1 (now {jax.__version__});" in capsys.readouterr().err


def test_a_device_without_memory_names_the_option(model, data, tmp_path, monkeypatch, capsys):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")
    monkeypatch.setattr(Scorer, "score_tokenized", after(0, error))
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert "Try a smaller --batch-tokens" in capsys.readouterr().err


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
