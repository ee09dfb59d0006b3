"""How the processes of one run start together, and end together."""

import json

import numpy as np
import pytest
import tiny
from processes import joined
from safetensors.numpy import load_file
from training_processes import RUN, STEPS, TOLD, finish, start_two, stopped_at

from toolrm_jax.convert import to_hf
from toolrm_jax.interruption import STOPPED
from toolrm_jax.train import train

# --- Starting -------------------------------------------------------------------------------------


def test_a_workdir_that_the_processes_do_not_share_is_refused(toy):
    both = [
        tiny.start(tiny.command(toy, toy / f"of-{number}", **RUN), 1, **each)
        for number, each in enumerate(joined(2))
    ]
    outputs = [finish(process, code=1, timeout=60) for process in both]
    blind = "what process 0 writes there, the processes [1] do not see"
    assert f"--workdir={toy / 'of-0'}: {blind}" in outputs[0]
    assert "Give a folder of a file system that all machines share" in outputs[1]
    assert list((toy / "of-0").iterdir()) == []


def refused(toy, *changes):
    """What both processes say, of which the second starts with these changes."""
    both = [
        tiny.start(tiny.command(toy, toy / "differing", **RUN | given), 1, **each)
        for given, each in zip(({}, *changes), joined(2), strict=True)
    ]
    return [finish(process, code=1, timeout=100) for process in both]


def test_processes_with_other_rows_are_refused(toy, tmp_path):
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()]
    other = tiny.write_lines(tmp_path / "train.jsonl", rows[::-1][:30])
    for output in refused(toy, {"data.train": str(other)}):
        assert "beside process 0, process 1 has another model, or other rows in data" in output


def test_processes_with_other_fields_are_refused_by_name(toy):
    """One that saves at other steps would wait for the others while they wait for it."""
    for output in refused(toy, {"train.checkpoint_every": 7}):
        assert (
            f"process 1 has train.checkpoint_every=7 and not {RUN['train.checkpoint_every']}"
            in output
        )


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
    (alone,) = joined(1)
    process = tiny.start(tiny.command(toy, toy / "early", **RUN), 1, TOLD_AT_START + TOLD, **alone)
    assert stopped_at(finish(process, STOPPED)) < STEPS / 2


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
