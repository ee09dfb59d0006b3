"""Runs that are killed, stopped, short of disk, or lose a process; and go on from there."""

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from processes import free_port
from safetensors.numpy import load_file

from toolrm_jax import training_run
from toolrm_jax.convert import to_hf
from toolrm_jax.interruption import BROKEN_OFF, STOPPED
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.train import train

STEPS = 60
# Of runs in this process: as in test_train, so that nothing is compiled anew.
SHORT = 24
RUN = {
    "train.steps": STEPS,
    "train.checkpoint_every": 2,
    "train.eval_every": 20,
    "train.eval_rows": 4,
}
# The ordinary command, in a process that writes down which rows it trains on, step by step.
TOLD = """
import os, sys, zlib
import numpy as np
from toolrm_jax import train, training_run
workdir = os.path.abspath(sys.argv[sys.argv.index("--workdir") + 1])
log = open(f"{workdir}.rows.{os.environ.get('JAX_PROCESS_ID', '0')}", "a")
put = training_run.to_device
def told(batches, mesh):
    rows = [zlib.crc32(row.tobytes()) for micro in batches.tokens for row in np.asarray(micro)]
    print(rows, file=log, flush=True)
    return put(batches, mesh)
training_run.to_device = told
train.run()
"""


@pytest.fixture(scope="module")
def whole(toy):
    """The workdir of a run that nothing interrupted, and how long it took."""
    began = time.monotonic()
    finish(start(toy, toy / "whole"))
    return toy / "whole", time.monotonic() - began


def start(folder: Path, workdir: Path, program: str = TOLD, **changes) -> subprocess.Popen:
    return tiny.start(tiny.command(folder, workdir, **RUN | changes), devices=2, program=program)


def start_two(
    folder: Path, workdir: Path, program: str = TOLD, **changes
) -> list[subprocess.Popen]:
    """The same run as two processes of one device each."""
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        tiny.start(
            tiny.command(folder, workdir, **RUN | changes),
            1,
            program,
            JAX_COORDINATOR_ADDRESS=coordinator,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]


def finish(process: subprocess.Popen, code: int = 0, timeout: float = 200) -> str:
    """Waits for the process; its output."""
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def until(happened: Callable[[], bool], process: subprocess.Popen, timeout: float = 120) -> bool:
    """Waits for something to happen in a run; False if the run ended before."""
    end = time.monotonic() + timeout
    while process.poll() is None:
        if happened():
            return True
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)
    return False


def steps_logged(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count('"split": "train"') if path.exists() else 0


def is_saving(workdir: Path) -> bool:
    return bool(list((workdir / "checkpoints").glob("*.partial")))


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """All arrays of the newest checkpoint: parameters, moments, step."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    handler = ocp.PyTreeCheckpointHandler()
    shape = handler.metadata(newest / "state").tree
    args = ocp.args.PyTreeRestore(
        restore_args=_map(shape, lambda _: ocp.RestoreArgs(restore_type=np.ndarray))
    )
    found: dict[str, np.ndarray] = {}
    _map(handler.restore(newest / "state", args=args), lambda x: x, found)
    return found


def _map(tree, change, found: dict | None = None, name: str = ""):
    if isinstance(tree, dict):
        return {k: _map(v, change, found, f"{name}/{k}") for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_map(v, change, found, f"{name}/{k}") for k, v in enumerate(tree)]
    if found is not None:
        found[name] = tree
    return change(tree)


def assert_bit_equal(workdir: Path, whole: Path) -> None:
    """The same last state, export, and losses along the way."""
    mine, theirs = arrays(workdir), arrays(whole)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 30
    for name, array in theirs.items():
        assert np.array_equal(mine[name], array), name
    assert mine["/step"] == STEPS
    for name in ("export/model.safetensors", "heldout_scores.jsonl"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes()
    for split in ("train", "heldout"):
        lines = [
            [(line["step"], line["loss"]) for line in tiny.metrics(folder, split)]
            for folder in (workdir, whole)
        ]
        assert lines[0] == lines[1]


# --- Killed ---------------------------------------------------------------------------------------


def kill(process: subprocess.Popen) -> bool:
    """SIGKILL; whether the process was still there."""
    process.kill()
    process.wait()
    process.stdout.close()
    return process.returncode == -signal.SIGKILL


@pytest.mark.slow  # test_train kills a run once
def test_a_run_killed_three_times_ends_bit_equal(toy, whole):
    """Once between saves, twice in the middle of one."""
    workdir, kills = toy / "thrice", 0
    for saving in (False, True, True):
        before = steps_logged(workdir)
        process = start(toy, workdir)
        assert until(lambda b=before: steps_logged(workdir) > b + 4, process)
        assert not saving or until(lambda: is_saving(workdir), process)
        kills += kill(process)
    assert kills == 3
    output = finish(start(toy, workdir))
    assert "continuing at step" in output
    assert_bit_equal(workdir, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_a_run_killed_at_a_random_moment_ends_bit_equal(toy, whole, seed):
    """Half of the moments fall anywhere between the start and the end of the run, half into a save;
    every fourth run is killed again while it goes on."""
    rng = random.Random(seed)
    workdir, kills = toy / f"random-{seed}", 0
    while not kills:
        shutil.rmtree(workdir, ignore_errors=True)
        for _ in range(1 + (seed % 4 == 3)):
            process = start(toy, workdir)
            if seed % 2:
                first = steps_logged(workdir) + rng.randrange(STEPS // 2)
                until(lambda n=first: steps_logged(workdir) > n and is_saving(workdir), process)
                time.sleep(rng.uniform(0, 0.05))
            else:
                time.sleep(rng.uniform(0, whole[1]))
            kills += kill(process)
    finish(start(toy, workdir))
    assert_bit_equal(workdir, whole[0])


def damaged_copy(whole: Path, workdir: Path) -> Path:
    """As a machine that lost its power might leave it: the newest checkpoint has a bit changed."""
    shutil.copytree(whole, workdir)
    newest = workdir / "checkpoints" / str(STEPS) / "state" / "ocdbt.process_0" / "d"
    path = max(newest.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    return workdir


PASSED_OVER = f"checkpoint {STEPS} is damaged and is passed over: .*state/.*checksum"


@pytest.mark.slow
def test_the_newest_checkpoint_is_damaged_and_the_run_ends_bit_equal(toy, whole):
    workdir = damaged_copy(whole[0], toy / "damaged")
    output = finish(start(toy, workdir))
    assert re.search(PASSED_OVER, output)
    assert f"continuing at step {STEPS - 2} from" in output
    assert_bit_equal(workdir, whole[0])


@pytest.mark.slow
def test_two_processes_agree_on_which_checkpoint_is_damaged(toy, whole):
    """Each of them checks a part of the files."""
    workdir = damaged_copy(whole[0], toy / "damaged-for-two")
    outputs = [finish(process) for process in start_two(toy, workdir)]
    assert re.search(PASSED_OVER, outputs[0])
    assert f"continuing at step {STEPS - 2} from" in outputs[0]
    assert_same_losses(workdir, whole[0])
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert str(STEPS) in kept


# --- Stopped --------------------------------------------------------------------------------------


def stopped_at(output: str) -> int:
    found = re.search(r"stopped after step (\d+), as asked; saved until step (\d+)\.", output)
    assert found, output
    assert found[1] == found[2]
    return int(found[1])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_run_that_is_asked_to_stop_saves_and_goes_on(toy, whole, number):
    workdir = toy / f"stopped-{number}"
    process = start(toy, workdir, **{"train.checkpoint_every": 50})
    assert until(lambda: steps_logged(workdir) > 3, process)
    process.send_signal(number)
    step = stopped_at(finish(process, STOPPED))
    assert 3 < step < 50
    assert (workdir / "checkpoints" / str(step)).is_dir()
    assert not (workdir / "evaluation.json").exists()
    assert f"continuing at step {step} from" in finish(start(toy, workdir))
    assert_bit_equal(workdir, whole[0])


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_run(toy):
    """As schedulers, and a terminal's Ctrl-C, send it; and no worker outlives a killed run."""
    workdir = toy / "group"
    changes = {"data.workers": 1, "train.checkpoint_every": 50}
    command = tiny.command(toy, workdir, **RUN | changes)
    process = tiny.start(command, devices=2, start_new_session=True)
    assert until(lambda: steps_logged(workdir) > 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    assert 3 < stopped_at(finish(process, STOPPED)) < 50

    process = tiny.start(command, devices=2, start_new_session=True)
    before = steps_logged(workdir)
    assert until(lambda: steps_logged(workdir) > before, process)
    assert kill(process)
    end = time.monotonic() + 10
    while group_exists(process.pid):
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.1)


def group_exists(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


# One process of two is told to stop as it writes this step down.
TOLD_TO_STOP = """
import os, signal
from toolrm_jax import metrics_log
write = metrics_log.MetricsLog.write
def write_and_tell(self, step, split, values):
    write(self, step, split, values)
    if split == "train" and os.environ["JAX_PROCESS_ID"] == "1" and step >= int(os.environ["AT"]):
        os.environ["AT"] = "1000000"
        os.kill(os.getpid(), signal.SIGTERM)
metrics_log.MetricsLog.write = write_and_tell
"""


def rows_trained_on(workdir: Path, processes: int) -> list[list[int]]:
    """The rows of each step, of all processes, and forgets them."""
    parts = []
    for number in range(processes):
        path = Path(f"{workdir}.rows.{number}")
        parts.append([json.loads(line) for line in path.read_text().splitlines()])
        path.unlink()
    assert len({len(part) for part in parts}) == 1
    return [[row for part in step for row in part] for step in zip(*parts, strict=True)]


@pytest.mark.slow
def test_a_run_goes_on_with_other_process_counts_and_the_rows_not_yet_seen(toy, whole):
    """Two processes, one of which is told to stop; then one process, told to stop; then two."""
    rows_whole = rows_trained_on_by_whole(whole[0])
    workdir = toy / "counts"
    os.environ["AT"] = "7"
    try:
        both = start_two(toy, workdir, TOLD_TO_STOP + TOLD)
        steps = {stopped_at(finish(process, STOPPED)) for process in both}
    finally:
        del os.environ["AT"]
    assert len(steps) == 1  # both stop after the same step, though one alone was told
    (first,) = steps
    rows = rows_trained_on(workdir, 2)
    assert len(rows) == first

    alone = start(toy, workdir)
    assert until(lambda: steps_logged(workdir) > first + 3, alone)
    alone.send_signal(signal.SIGTERM)
    output = finish(alone, STOPPED)
    assert f"continuing at step {first} from" in output
    rows += rows_trained_on(workdir, 1)
    assert len(rows) == stopped_at(output)

    outputs = [finish(process) for process in start_two(toy, workdir)]
    assert f"continuing at step {len(rows)} from" in outputs[0]
    rows += rows_trained_on(workdir, 2)
    assert rows == rows_whole
    assert_same_losses(workdir, whole[0])


def rows_trained_on_by_whole(workdir: Path) -> list[list[int]]:
    return [json.loads(line) for line in Path(f"{workdir}.rows.0").read_text().splitlines()]


def assert_same_losses(workdir: Path, whole: Path) -> None:
    """To rounding: sums over two processes are taken in another order."""
    for mine, theirs in zip(tiny.metrics(workdir), tiny.metrics(whole), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-4)


# --- Lost and hung --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_goes_on_alone(toy, whole):
    workdir, lost_seconds = toy / "lost", 10
    lead, other = start_two(toy, workdir, **{"train.lost_seconds": lost_seconds})
    assert until(lambda: steps_logged(workdir) > 6, lead)
    other.kill()
    began = time.monotonic()
    output, _ = lead.communicate(timeout=60)
    other.communicate()
    assert time.monotonic() - began < lost_seconds + 10
    # Whichever notices first: the step that the process does not take part in, or JAX's heartbeat.
    assert lead.returncode in (BROKEN_OFF, -signal.SIGABRT), output
    assert re.search(r"another process was lost|another task died|unhealthy", output), output
    assert "continuing at step" in finish(start(toy, workdir))
    assert_same_losses(workdir, whole[0])


@pytest.mark.slow
def test_a_hung_process_ends_the_other_with_a_message(toy):
    """It neither ends nor takes part; its machine is there, or so its heartbeat would say."""
    workdir = toy / "hung"
    changes = {"train.lost_seconds": 600, "train.hang_minutes": 0.1}
    lead, other = start_two(toy, workdir, **changes)
    try:
        assert until(lambda: steps_logged(workdir) > 6, lead)
        other.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        output = finish(lead, BROKEN_OFF, timeout=60)
        assert time.monotonic() - began < 6 + 10
    finally:
        for process in (lead, other):
            process.kill()
            process.communicate()
    assert "nothing has moved for 6 seconds in: " in output
    assert "train.hang_minutes" in output
    assert "Where the threads of this process stand" in output
    assert re.search(r'train\.py", line \d+ in train', output)  # where the main thread stands


def test_the_watchdog_waits_longer_where_something_is_compiled():
    program = """
import time
from toolrm_jax.watchdog import Watchdog
dog = Watchdog(0.5 / 60, 60)
time.sleep(1)
dog.feed("step 1", patient=True)
time.sleep(1.5)
print("compiled", flush=True)
dog.feed("step 2")
time.sleep(30)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == BROKEN_OFF
    assert done.stdout == "compiled\n"
    assert "nothing has moved for 0.5 seconds in: step 2" in done.stderr
    assert "patient_minutes" in done.stderr


# --- Saves ----------------------------------------------------------------------------------------


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
    report = training_run.evaluate.report

    def graded(scores, eta):
        found = report(scores, eta)
        mean = next(accuracies, None)
        accuracy = (
            found.accuracy if mean is None else dataclasses.replace(found.accuracy, mean=mean)
        )
        return dataclasses.replace(found, accuracy=accuracy)

    monkeypatch.setattr(training_run.evaluate, "report", graded)
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
    """Full from step 7 to step 12, of 24, where every second step is saved."""
    workdir = toy / "full"
    workdir.mkdir()
    (workdir / "checkpoints").symlink_to(small_disk, target_is_directory=True)
    filler, write = small_disk / "filler", MetricsLog.write

    def write_and_fill(self, step, split, values):
        write(self, step, split, values)
        if (step, split) == (7, "train"):
            time.sleep(1)  # the save of step 6
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
        if (step, split) == (12, "train"):
            filler.unlink()

    monkeypatch.setattr(MetricsLog, "write", write_and_fill)
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
def test_a_process_that_holds_copies_alone_takes_part_in_saves(toy, whole):
    """mesh.data across processes: each holds everything."""
    workdir, mesh = toy / "copies", {"mesh.data": 2, "mesh.fsdp": 1}
    os.environ["AT"] = "7"
    try:
        both = start_two(toy, workdir, TOLD_TO_STOP + TOLD, **mesh)
        steps = {stopped_at(finish(process, STOPPED)) for process in both}
    finally:
        del os.environ["AT"]
    assert len(steps) == 1
    assert f"continuing at step {steps.pop()} from" in finish(start(toy, workdir))
    assert_same_losses(workdir, whole[0])


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_a_failed_save_of_both(toy):
    workdir, changes = toy / "full-of-one", {"train.steps": 7, "train.keep_checkpoints": 9}
    lead, other = start_two(toy, workdir, FULL + TOLD, **changes, **{"train.checkpoint_every": 2})
    output = finish(lead)
    finish(other)
    assert "step 4 could not be saved (process 1: OSError: [Errno 28] No space left" in output
    kept = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    assert kept == ["2", "6", "7"]


# --- The end of a run of several processes --------------------------------------------------------

# Process 0 takes longer to export than JAX lets the others wait for its exit.
SLOW_EXPORT = """
import time
import jax
from toolrm_jax.training_run import TrainingRun
join, export = jax.distributed.initialize, TrainingRun._export
jax.distributed.initialize = lambda **given: join(**given, shutdown_timeout_seconds=2)
def slow(*given):
    time.sleep(8)
    return export(*given)
TrainingRun._export = slow
"""


@pytest.mark.slow
def test_all_processes_wait_for_the_export_of_the_first(toy):
    """The weights of the export are those of the checkpoint, whichever process held them."""
    workdir = toy / "slow-export"
    both = start_two(toy, workdir, SLOW_EXPORT + TOLD, **{"train.steps": 4})
    outputs = [finish(process) for process in both]
    assert f"exported to {workdir / 'export'}" in outputs[0]
    exported = load_file(workdir / "export" / "model.safetensors")
    done = to_hf(str(workdir), toy / "converted").path
    for name, tensor in load_file(done / "model.safetensors").items():
        np.testing.assert_array_equal(exported[name], tensor)
    alone = tiny.run_config(toy, **RUN | {"train.steps": 4})
    train(alone, toy / "not-slow")
    expected = load_file(toy / "not-slow" / "export" / "model.safetensors")
    assert expected.keys() == exported.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(exported[name], tensor, atol=1e-4)


NO_ROOM = """
import errno
from toolrm_jax.training_run import TrainingRun
def full(*given):
    raise OSError(errno.ENOSPC, "No space left on device")
TrainingRun._export = full
"""


@pytest.mark.slow
def test_where_the_first_process_cannot_export_all_say_so(toy):
    both = start_two(toy, toy / "no-room", NO_ROOM + TOLD, **{"train.steps": 4})
    outputs = [finish(process, code=1) for process in both]
    assert "error: [Errno 28] No space left on device" in outputs[0]
    assert "error: Process 0 could not end the run: [Errno 28] No space left" in outputs[1]
    assert "Traceback" not in outputs[1]


# --- Starting -------------------------------------------------------------------------------------


def test_a_workdir_that_the_processes_do_not_share_is_refused(toy):
    address = f"127.0.0.1:{free_port()}"
    both = [
        tiny.start(
            tiny.command(toy, toy / f"of-{number}", **RUN),
            1,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    outputs = [finish(process, code=1, timeout=60) for process in both]
    assert (
        f"--workdir={toy / 'of-0'}: what process 0 writes there, the processes [1] do not see"
        in (outputs[0])
    )
    assert "Give a folder of a file system that all machines share" in outputs[1]
    assert list((toy / "of-0").iterdir()) == []


def test_processes_with_other_rows_are_refused(toy, tmp_path):
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()]
    other = tiny.write_lines(tmp_path / "train.jsonl", rows[::-1][:30])
    address = f"127.0.0.1:{free_port()}"
    both = [
        tiny.start(
            tiny.command(toy, toy / "differing", **RUN | changes),
            1,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number, changes in enumerate(({}, {"data.train": str(other)}))
    ]
    for process in both:
        output = finish(process, code=1, timeout=100)
        assert "error: The processes [1] have other fields, another model, or other rows" in output


# On a TPU VM of one host, JAX's own service takes the notice, from before there is a step.
TOLD_AT_START = """
import os, signal
from toolrm_jax import run_inputs
opened = run_inputs.open_pretrained
def told(source):
    os.kill(os.getpid(), signal.SIGTERM)
    return opened(source)
run_inputs.open_pretrained = told
"""


def test_sigterm_while_one_joined_process_starts_stops_it_after_a_step(toy):
    process = tiny.start(
        tiny.command(toy, toy / "early", **RUN),
        1,
        TOLD_AT_START + TOLD,
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{free_port()}",
        JAX_NUM_PROCESSES="1",
        JAX_PROCESS_ID="0",
    )
    assert stopped_at(finish(process, STOPPED)) < STEPS / 2
