"""When a run saves, and what a full disk costs it."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import pytest
import tiny
from training_processes import RUN, TOLD, finish, start_two

from toolrm_jax import training_run
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.train import train

# As in test_train, so that nothing is compiled anew.
SHORT = 24


def saved_steps(monkeypatch) -> list[int]:
    """Of a run in this process, the steps at which it saves."""
    steps: list[int] = []
    save = training_run.Checkpoints.save

    def noted(self, state, meta, score=None):
        if int(state.step) not in steps:
            steps.append(int(state.step))
        save(self, state, meta, score)

    monkeypatch.setattr(training_run.Checkpoints, "save", noted)
    return steps


def test_saves_by_minutes(toy, tmp_path, monkeypatch):
    """Alone, at the first step after the time; each step takes a minute here."""
    steps = saved_steps(monkeypatch)
    clock = iter(range(0, 100_000, 60))
    monkeypatch.setattr(training_run._SaveTimes, "now", staticmethod(lambda: next(clock)))
    changes = {"train.steps": SHORT, "train.checkpoint_every": 0, "train.checkpoint_minutes": 3.5}
    train(tiny.run_config(toy, **changes, **{"train.export": False}), tmp_path / "run")
    assert steps[-1] == SHORT
    assert 5 <= len(steps) - 1 <= 6


def test_a_better_evaluation_is_saved_and_kept(toy, tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    accuracies = iter([0.5, 0.8, 0.7, 0.75])
    report = training_run.pair_scores.report

    def graded(scores, eta):
        found = report(scores, eta)
        mean = next(accuracies, None)
        accuracy = (
            found.accuracy if mean is None else dataclasses.replace(found.accuracy, mean=mean)
        )
        return dataclasses.replace(found, accuracy=accuracy)

    monkeypatch.setattr(training_run.pair_scores, "report", graded)
    changes = {
        "train.steps": SHORT,
        "train.checkpoint_every": 12,
        "train.eval_every": 5,
        "train.keep_checkpoints": 1,
        "train.export": False,
    }
    console = io.StringIO()
    with contextlib.redirect_stderr(console):
        train(tiny.run_config(toy, **changes), tmp_path / "run")
    assert steps == [5, 10, 12, 24]
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [10, 24]
    assert "best evaluation during training: accuracy 80.0 at step 10" in console.getvalue()
    meta = json.loads((tmp_path / "run" / "checkpoints" / "10" / "meta" / "metadata").read_text())
    assert meta["heldout"][0] == 0.8


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(toy, small_disk, monkeypatch):
    """Full for the saves of steps 8 and 10, of 24 steps, where every second one is saved."""
    workdir = toy / "full"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(small_disk, target_is_directory=True)
    filler, save = small_disk / "filler", training_run.Checkpoints.save

    def fill_and_save(self, state, meta, score=None):
        if int(state.step) == 8:
            self.wait()
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        if int(state.step) == 12:
            self.wait()
            filler.unlink()
        save(self, state, meta, score)

    monkeypatch.setattr(training_run.Checkpoints, "save", fill_and_save)
    console, changes = io.StringIO(), {"train.steps": SHORT, "train.export": False}
    with contextlib.redirect_stderr(console):
        train(tiny.run_config(toy, **RUN | changes), workdir)
    said = console.getvalue()
    failures = re.findall(r"error: step (\d+) could not be saved \((.*)\)\. Training goes on", said)
    assert [int(step) for step, _ in failures] == [8, 10]
    assert all("No space left on device" in error for _, error in failures)
    assert "saved until step 6" in said
    kept = sorted(path.name for path in small_disk.iterdir())
    assert kept == ["20", "22", "24"]  # the best one, and the newest
    lines = tiny.metrics(workdir, "checkpoint")
    assert [(line["step"], line["failures"]) for line in lines] == [(8, 1), (10, 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_costs_points_of_the_board_and_holds_up_nothing(small_disk):
    values = {f"figure {number}": 0.5 for number in range(200)}
    log = MetricsLog(small_disk, 0, 3)
    for step in (1, 2, 3):
        if step == 2:
            (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        log.write(step, "train", values)
        if step == 2:
            (small_disk / "filler").unlink()
    log.close()
    assert [line["step"] for line in tiny.metrics(small_disk)] == [1, 2, 3]
    shown = {step for _, step in tiny.board(small_disk)}
    assert {1, 3} <= shown


# The writer of one process of two fails at step 4.
FULL = """
import errno, os
import orbax.checkpoint as ocp
save = ocp.StandardCheckpointHandler.async_save
class Full:
    def result(self):
        raise OSError(errno.ENOSPC, "No space left on device")
async def fails(self, directory, args):
    futures = await save(self, directory, args=args)
    here = os.environ["JAX_PROCESS_ID"] == "1" and "4.partial" in str(directory)
    return futures + [Full()] if here else futures
ocp.StandardCheckpointHandler.async_save = fails
"""


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_a_failed_save_of_both(toy):
    workdir, changes = toy / "full-of-one", {"train.steps": 7, "train.keep_checkpoints": 9}
    lead, other = start_two(toy, workdir, FULL + TOLD, **changes, **{"train.checkpoint_every": 2})
    output = finish(lead)
    finish(other)
    assert "step 4 could not be saved (process 1: OSError: [Errno 28] No space left" in output
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert kept == ["2", "6", "7"]
