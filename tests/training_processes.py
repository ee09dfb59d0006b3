"""Runs of the training command as processes of their own, which tests stop, kill and watch.

process = start(toy, workdir)                  # alone, on two devices
lead, other = start_two(toy, workdir)          # as two processes of one device each
output = finish(process)
"""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from processes import joined

STEPS = 60
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


def start(folder: Path, workdir: Path, program: str = TOLD, **changes) -> subprocess.Popen:
    return tiny.start(tiny.command(folder, workdir, **RUN | changes), devices=2, program=program)


def start_two(
    folder: Path, workdir: Path, program: str = TOLD, **changes
) -> list[subprocess.Popen]:
    """The same run as two processes of one device each."""
    command = tiny.command(folder, workdir, **RUN | changes)
    return [tiny.start(command, 1, program, **each) for each in joined(2)]


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


def stopped_at(output: str) -> int:
    found = re.search(r"stopped after step (\d+), as asked; saved until step (\d+)\.", output)
    assert found, output
    assert found[1] == found[2]
    return int(found[1])


def assert_same_losses(workdir: Path, whole: Path) -> None:
    """To rounding: sums over two processes are taken in another order."""
    for mine, theirs in zip(tiny.metrics(workdir), tiny.metrics(whole), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4, abs=1e-4)
