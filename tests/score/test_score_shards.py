"""The shards of a scoring job, and their merge."""

import json
import re

import pytest
from scoring_jobs import files_of, lines_of, run

from toolrm_jax import score
from toolrm_jax.job_files import Shard
from toolrm_jax.score_share import process_shard


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


def test_shards_without_work_are_said(model, data, tmp_path, capsys):
    """59 rows in chunks of 8 are 8 chunks."""
    run(model, data, tmp_path / "out.jsonl", "--shard", "0/8")
    assert "shards have work" not in capsys.readouterr().err
    run(model, data, tmp_path / "out.jsonl", "--shard", "10/11")
    message = "Only 8 of 11 shards have work: --chunk-rows 5 gives"
    assert message in capsys.readouterr().err


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


SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}
SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({}, (0, 1)),
        ({"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2", "SLURM_PROCID": "0"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
        # srun -n 2 in an allocation for 8
        (SRUN | {"SLURM_PROCID": "1", "SLURM_NTASKS": "8"}, (1, 2)),
        (SBATCH, (0, 1)),
        (SBATCH | {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, (2, 4)),
        # as salloc's shell has it
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, (0, 1)),
    ],
)
def test_the_shard_is_the_process_by_default(environment, shard):
    assert process_shard(environment) == Shard(*shard)


def test_the_tasks_of_slurm_score_each_their_share(
    model, data, finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    output = tmp_path / "out.jsonl"
    for number in range(2):
        monkeypatch.setenv("SLURM_PROCID", str(number))
        run(model, data, output)
        assert f"One of 2 processes: --shard {number}/2" in capsys.readouterr().err
    assert score.main(["merge", "--output", str(output)]) == score.SOME_REJECTED
    assert output.read_bytes() == (finished / "out.jsonl").read_bytes()


@pytest.mark.parametrize("number", ["2", "x"])
def test_a_number_that_is_no_processs_is_an_error(
    model, data, tmp_path, monkeypatch, capsys, number
):
    monkeypatch.setenv("SLURM_PROCID", number)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert f"SLURM_PROCID='{number}', SLURM_NTASKS='2' in the" in capsys.readouterr().err


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


@pytest.fixture(scope="module")
def shards(model, data, tmp_path_factory):
    """The folder of two finished shards."""
    folder = tmp_path_factory.mktemp("shards")
    for index in range(2):
        run(model, data, folder / "out.jsonl", "--shard", f"{index}/2")
    return folder


LINE = b'{"id": "foreign", "rewards": [9.0], "tokens": [9]}\n'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "bytes where its summary says"),
        (lambda content: LINE + content, "bytes where its summary says"),
        (lambda content: content.replace(b"5", b"6"), "has other content than its summary says"),
        (None, "is gone"),
    ],
)
@pytest.mark.parametrize("kind", ["", ".rejects"])
def test_a_shard_that_is_not_what_was_written_is_named_scored_again_and_merged(
    model, data, shards, finished, tmp_path, capsys, kind, damage, message
):
    for name, content in files_of(shards).items():
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "out.jsonl"
    path = tmp_path / f"out.shard-00001-of-00002{kind}.jsonl"
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    merge = ["merge", "--output", str(output)]
    assert score.main(merge) == score.FAILED
    found = capsys.readouterr().err
    assert f"error: {path} {message}" in re.sub(r"has [\d,]+ bytes", "bytes", found)
    assert "(its command with --shard 1/2), then merge" in found
    assert not output.exists()
    assert not (tmp_path / "out.rejects.jsonl").exists()
    run(model, data, output, "--shard", "1/2")  # what the message says to do
    assert score.main(merge) == score.SOME_REJECTED
    assert output.read_bytes() == (finished / "out.jsonl").read_bytes()


@pytest.mark.parametrize(("scored", "what"), [(1, "more"), (9, "fewer")])
def test_a_summary_of_other_chunks_than_its_shard_is_damaged(
    shards, tmp_path, capsys, scored, what
):
    for name, content in files_of(shards).items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "out.shard-00001-of-00002.summary.json"
    summary = json.loads(path.read_text())
    summary["chunks"][-1][0] = scored
    path.write_text(json.dumps(summary))
    output = tmp_path / "out.jsonl"
    assert score.main(["merge", "--output", str(output)]) == score.FAILED
    assert f"00001-of-00002.jsonl has {what} rows than" in capsys.readouterr().err
    assert not output.exists()


def test_a_merged_output_that_is_not_what_was_written_is_merged_again(
    shards, finished, tmp_path, capsys
):
    for name, content in files_of(shards).items():
        (tmp_path / name).write_bytes(content)
    output = tmp_path / "out.jsonl"
    for _ in range(2):
        assert score.main(["merge", "--output", str(output)]) == score.SOME_REJECTED
        assert output.read_bytes() == (finished / "out.jsonl").read_bytes()
        output.write_bytes(b"garbage\n")
    assert "out.jsonl has 8 bytes where its summary says" in capsys.readouterr().err


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
