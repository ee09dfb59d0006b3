"""A scoring job that is killed ends with equal bytes."""

import random
import signal
import subprocess
import time

import pytest
import tiny
from scoring_jobs import command, committed, files_of, own_rows, run, start

from toolrm_jax import score
from toolrm_jax.scorer import Scorer

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


def test_a_job_that_is_killed_leaves_no_worker_and_continues_in_bfloat16(model, data, tmp_path):
    """In the default precision, with workers, and killed from outside."""
    options = ("--dtype", "bfloat16", "--workers", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(command(model, data, parts / "out.jsonl", *options))
    while process.poll() is None and committed(parts) == 0:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # to the end of its output, which workers hold open
    assert process.returncode == -signal.SIGKILL
    assert 0 < committed(parts) < 8
    assert run(model, data, parts / "out.jsonl", *options) == score.SOME_REJECTED
    assert run(model, data, whole / "out.jsonl", *options) == score.SOME_REJECTED
    assert files_of(parts) == files_of(whole)


def test_no_chunk_is_scored_twice(model, data, tmp_path, monkeypatch):
    """What is committed is not computed again, even where the last run stopped on an error."""
    scored = []
    score_tokenized = Scorer.score_tokenized

    def stopping(self, windows, **options):
        for number, found in enumerate(score_tokenized(self, windows, **options)):
            if number == 3:
                raise OSError("the disk is full")
            scored.append(len(found[0]))
            yield found

    monkeypatch.setattr(Scorer, "score_tokenized", stopping)
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert run(model, data, tmp_path / "out.jsonl") == score.FAILED
    assert run(model, data, tmp_path / "out.jsonl") == score.SOME_REJECTED
    assert sum(scored) == 59


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
