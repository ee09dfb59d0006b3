"""Runs that are killed, stopped, damaged, or lose a process; and go on from there."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
from training_processes import (
    RUN,
    STEPS,
    TOLD,
    assert_same_losses,
    finish,
    start,
    start_two,
    steps_logged,
    stopped_at,
    until,
)

from toolrm_jax.interruption import BROKEN_OFF, STOPPED


@pytest.fixture(scope="module")
def whole(toy):
    """The workdir of a run that nothing interrupted, and how long it took."""
    began = time.monotonic()
    finish(start(toy, toy / "whole"))
    return toy / "whole", time.monotonic() - began


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
    while tiny.group_exists(process.pid):
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.1)


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


# --- Lost and hung --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_and_the_run_goes_on(toy, whole, lost):
    """Alone where process 1 was lost; as two again where 0 was, to which all others report."""
    workdir, lost_seconds = toy / f"lost_{lost}", 10
    changes = {"train.lost_seconds": lost_seconds}
    both = start_two(toy, workdir, **changes)
    assert until(lambda: steps_logged(workdir) > 6, both[0])
    both[lost].kill()
    began = time.monotonic()
    output, _ = both[1 - lost].communicate(timeout=60)
    both[lost].communicate()
    assert time.monotonic() - began < lost_seconds + 10
    # Whichever notices first: the step that the process does not take part in, or JAX's heartbeat.
    assert both[1 - lost].returncode in (BROKEN_OFF, -signal.SIGABRT), output
    assert re.search(r"another process was lost|another task died|unhealthy", output), output
    again = [start(toy, workdir)] if lost else start_two(toy, workdir, **changes)
    outputs = [finish(process) for process in again]
    assert "continuing at step" in outputs[0]
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


def test_devices_that_never_start_end_the_run(toy):
    program = """
import time
from toolrm_jax import train
train.unpack = lambda config: time.sleep(60)
train.run()
"""
    started = start(toy, toy / "no_devices", program, **{"train.patient_minutes": 1 / 60})
    assert "nothing has moved for 1 seconds in: starting the devices" in finish(started, BROKEN_OFF)


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
