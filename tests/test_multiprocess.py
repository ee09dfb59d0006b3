"""Two processes, as on two hosts: one run, each with its own part of every batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from processes import joined
from safetensors.numpy import load_file

from toolrm_jax.train import train

RUN = {"train.steps": 4, "train.eval_every": 3}

# The ordinary command, in a process that also tells which rows it reads, of which, and what files
# it writes.
WATCHED = """
import os, sys
from toolrm_jax import loader, train
workdir = os.path.abspath(sys.argv[sys.argv.index("--workdir") + 1])
log = open(f"{workdir}.{os.environ['JAX_PROCESS_ID']}.log", "w")
take = loader.RowShare.take
def told(self, rows):
    mine = take(self, rows)
    flat = lambda rows: [i for row in rows for i in row]
    print("READ", flat(rows), flat(mine), sep="\\t", file=log, flush=True)
    return mine
loader.RowShare.take = told
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path, flags = os.path.abspath(arguments[0]), arguments[2]
        if path.startswith(workdir + os.sep) and flags & (os.O_WRONLY | os.O_RDWR):
            print("WROTE", os.path.relpath(path, workdir), sep="\\t", file=log, flush=True)
sys.addaudithook(watch)
train.run()
"""


def run_together(
    folder: Path, name: str, processes: int, devices: int, **changes
) -> list[list[list[str]]]:
    """Runs the command as several processes; what each told, as tab-separated fields."""
    command = tiny.command(folder, folder / name, **changes)
    started = [tiny.start(command, devices, WATCHED, **each) for each in joined(processes)]
    outputs = []
    try:
        for process in started:
            outputs.append(process.communicate(timeout=400)[0])
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n\n".join(outputs)
    logs = [(folder / f"{name}.{number}.log").read_text() for number in range(processes)]
    return [[line.split("\t") for line in log.splitlines()] for log in logs]


@pytest.fixture(scope="module")
def toy(toy):
    """With the workdir `alone` of a run of one process."""
    train(tiny.run_config(toy, **RUN), toy / "alone")
    return toy


def assert_same_run(one, other, names=("loss",)) -> None:
    """The same figures at every step and evaluation, and an export of the same size."""
    for split in ("train", "heldout"):
        lines = tiny.metrics(one, split), tiny.metrics(other, split)
        assert [a["step"] for a in lines[0]] == [b["step"] for b in lines[1]]
        for a, b in zip(*lines, strict=True):
            for name in names:
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5), (split, a["step"])
    summaries = [json.loads((w / "evaluation.json").read_text()) for w in (one, other)]
    assert summaries[0]["pairs_seen"] == summaries[1]["pairs_seen"]
    weights = [load_file(w / "export" / "model.safetensors") for w in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        np.testing.assert_allclose(weight, weights[1][name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize(
    ("processes", "devices"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_processes_train_as_one(toy, processes, devices):
    name = f"of-{processes}"
    told = run_together(toy, name, processes=processes, devices=devices, **RUN)
    names = ("loss", "margin", "reward_mean", "reward_std", "accuracy", "ties")
    assert_same_run(toy / name, toy / "alone", names)

    reads = [
        [(json.loads(f[1]), json.loads(f[2])) for f in lines if f[0] == "READ"] for lines in told
    ]
    # The processes see the same batches, and each reads the part of it that no other does.
    parts = [{tuple(whole): mine for whole, mine in part} for part in reads]
    assert len({frozenset(part) for part in parts}) == 1
    assert len({len(read) for read in reads}) == 1
    assert len(reads[0]) >= RUN["train.steps"]
    for whole in parts[0]:
        assert [row for part in parts for row in part[whole]] == list(whole)
    assert all(any(part.values()) for part in parts)

    writes = [{f[1] for f in lines if f[0] == "WROTE"} for lines in told]
    assert {"metrics.jsonl", "export.partial/config.json"} <= writes[0]
    for others in writes[1:]:
        assert {path.split("/")[0] for path in others} <= {"checkpoints"}


@pytest.mark.slow
def test_two_processes_that_share_the_model_train_as_one(toy):
    """mesh.tensor across processes: both read the same rows."""
    changes = RUN | {"mesh.fsdp": 1, "mesh.tensor": 2}
    told = run_together(toy, "tensor", processes=2, devices=1, **changes)
    assert_same_run(toy / "tensor", toy / "alone")
    reads = [sorted(f[1:] for f in lines if f[0] == "READ") for lines in told]
    assert reads[0] == reads[1]
    assert all(whole == mine for whole, mine in reads[0])
