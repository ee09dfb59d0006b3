"""Ctrl-C in a terminal, which sends it to all processes: one line, and no traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
from synth_files import row, write_rows


def start(folder, workers) -> subprocess.Popen:
    command = [sys.executable, "-m", "toolrm_jax.synth"]
    command += [f"--config={tiny.ROOT / 'configs/synth/local.py'}:{folder / 'data'}"]
    command += [f"--workdir={folder / 'run'}", f"--config.workers={workers}"]
    command += ["--config.shard_rows=50"]
    return subprocess.Popen(
        command,
        cwd=tiny.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("workers", "moment"),
    [
        (0, "2-obfuscated"),
        (2, "2-obfuscated"),  # the workers begin
        (2, "3-answers/*.jsonl.zst"),  # they work
    ],
)
def test_an_interrupted_run_says_one_line_and_the_same_command_goes_on(tmp_path, workers, moment):
    write_rows(tmp_path / "data/train/made.jsonl.gz", [row(n) for n in range(600)])
    process = start(tmp_path, workers)
    while process.poll() is None and not any((tmp_path / "run").glob(moment)):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 130
    assert said == ["interrupted: the same command goes on from here"]
    until = time.monotonic() + 30
    while tiny.group_exists(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not tiny.group_exists(process.pid)
    assert not (tmp_path / "run/dataset").exists()
    if "3-answers" not in moment:
        return  # one of them is enough: it takes a while
    again = start(tmp_path, workers)
    assert again.communicate()[1] == ""
    assert again.returncode == 0
    assert (tmp_path / "run/dataset/card.json").exists()
