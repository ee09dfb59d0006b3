"""Slurm: launch/slurm.sh, as it submits itself and as a job."""

import inspect
import os
import shlex
import sys

import pytest
import tiny
from launch_fakes import LAUNCH, shown

from toolrm_jax.cluster import start_processes


def slurm_job(*more: str) -> list[str]:
    """The arguments of a job that was submitted, as sbatch would pass them."""
    return ["--repository", str(tiny.ROOT), "--workdir", "/w", *more]


def test_a_dry_run_prints_the_job_and_its_run_and_submits_nothing(fakes):
    told = fakes.run(
        "slurm.sh", "--workdir", "/w", "--partition", "h100", "--dry-run", "--", "--config.seed=1"
    )
    assert told.returncode == 0
    assert fakes.calls() == []
    folder, sbatch, srun, requeue = shown(told)
    assert folder == ["mkdir", "-p", str(tiny.ROOT / "runs" / "slurm")]
    assert sbatch == [
        *shlex.split("sbatch --job-name toolrm --nodes 2 --ntasks-per-node 1 --gpus-per-node 8"),
        *shlex.split(
            "--exclusive --mem 0 --time 1-00:00:00 --requeue --signal TERM@300 --export ALL"
        ),
        *["--open-mode", "append", "--output", str(tiny.ROOT / "runs" / "slurm" / "%x-%j.log")],
        *["--partition", "h100", str(LAUNCH / "slurm.sh"), "--repository", str(tiny.ROOT)],
        *shlex.split(
            "--workdir /w --config configs/14b.py --nodes 2 --gpus 8 --grace 300 --restarts 3"
        ),
        *["--", "--config.seed=1"],
    ]
    assert srun == [
        *shlex.split(
            "srun --nodes 2 --ntasks 2 --ntasks-per-node 1 --gpus-per-node 8 --cpu-bind none"
        ),
        *["--kill-on-bad-exit=0", "--wait", "600", "--label"],
        *[str(tiny.ROOT / ".venv" / "bin" / "python"), "-m", "toolrm_jax.train"],
        *shlex.split("--config configs/14b.py --workdir /w --config.seed=1"),
    ]
    assert requeue[:2] == ["scontrol", "requeue"]


@pytest.mark.parametrize(
    ("status", "before", "again"),
    [
        (0, "0", False),
        (75, "9", True),
        (143, "9", True),
        (76, "", True),
        (134, "2", True),
        (137, "3", False),
        (1, "3", False),
    ],
)
def test_a_job_is_put_back_into_the_queue(fakes, status, before, again):
    """Always when it was preempted (75; 143 in start-up), after a failure as often as asked."""
    fakes.answers("status", str(status))
    count = {"SLURM_RESTART_COUNT": before} if before else {}
    done = fakes.run("slurm.sh", *slurm_job(), SLURM_JOB_ID="61", **count)
    assert done.returncode == status
    assert fakes.calls()[0][0] == "srun"
    assert fakes.calls()[1:] == ([["scontrol", "requeue", "61"]] if again else [])


def test_srun_leaves_tasks_more_time_than_they_wait_for_one_that_never_joins(fakes):
    """Ended by srun (143) before, they would be taken for preempted, again and again."""
    joining = inspect.signature(start_processes).parameters["timeout_seconds"].default
    fakes.run("slurm.sh", *slurm_job("--grace", "30"), SLURM_JOB_ID="61")
    (srun,) = fakes.calls()
    assert int(srun[srun.index("--wait") + 1]) == joining + 30


def test_an_allocation_opened_by_hand_is_not_put_back(fakes):
    fakes.answers("status", "75")
    done = fakes.run("slurm.sh", "--workdir", "/w", SLURM_JOB_ID="61")
    assert done.returncode == 75
    assert [call[0] for call in fakes.calls()] == ["srun"]


# Starts the tasks as srun does, on one machine, and ends with the highest status.
LOCAL_SRUN = """\
#!{python} -E
import os, subprocess, sys
given = sys.argv[1:]
tasks, command = int(given[given.index("--ntasks") + 1]), given[given.index("--label") + 1 :]
step = {{
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": str(tasks),
    "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": f"1(x{{tasks}})",
    "SLURM_LOCALID": "0",
}}
started = [
    subprocess.Popen(
        command, env=os.environ | step | {{"SLURM_PROCID": str(n), "SLURM_NODEID": str(n)}}
    )
    for n in range(tasks)
]
sys.exit(max(process.wait() for process in started))
"""


@pytest.mark.slow
def test_two_tasks_of_a_slurm_job_train_together(fakes, tmp_path):
    """The script's own run, with a srun that starts both tasks here."""
    tiny.write_model(tmp_path / "model")
    tiny.write_data(tmp_path)
    fakes.write("srun", LOCAL_SRUN.format(python=sys.executable))
    workdir = tmp_path / "run"
    changes = {"train.steps": 2, "train.checkpoint_every": 2}
    config, where, *fields = _pairs(tiny.command(tmp_path, workdir, **changes))
    done = fakes.run(
        "slurm.sh",
        *["--repository", str(tiny.ROOT), *config, *where, "--", *[f for (f,) in fields]],
        SLURM_JOB_ID=str(os.getpid()),
        TOOLRM_PYTHON=sys.executable,
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line["step"] for line in tiny.metrics(workdir)] == [1, 2]
    assert done.stderr.count("step 2/2") == 1  # the first process speaks for both
    assert (workdir / "export" / "model.safetensors").exists()


def _pairs(arguments: list[str]) -> list[tuple[str, ...]]:
    """--config FILE, --workdir DIR, and the fields."""
    return [tuple(arguments[:2]), tuple(arguments[2:4]), *((field,) for field in arguments[4:])]
