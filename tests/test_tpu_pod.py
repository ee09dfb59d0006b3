"""A TPU pod: launch/tpu_pod.sh from outside, launch/tpu_host.sh on a host."""

import fcntl
import json
import os
import shlex
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from launch_fakes import LAUNCH, POD, TOKEN, shown

WHERE = ["rm", "--zone", "us-east5-a"]
RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
LIST = [*RESOURCES, "list", *WHERE[1:], "--format", "value(name.basename(),state.state)"]


def on_hosts(worker: str, command: str) -> list[str]:
    hosts = [f"--node={worker}", f"--worker={worker}"]
    return [*RESOURCES, "ssh", *WHERE, *hosts, "--command", command]


HOST = "bash toolrm_jax/launch/tpu_host.sh"
CREATE = [
    *[*RESOURCES, "create", *WHERE, "--node-id", "rm", "--accelerator-type", "v5p-32"],
    *["--runtime-version", "v2-alpha-tpuv5"],
]
DELETE = [*RESOURCES, "delete", *WHERE, "--force", "--quiet"]
START = (
    f"{HOST} start --restarts 3 -- "
    "--distributed=on --config configs/14b.py --workdir gs://bucket/rm"
)


def test_a_dry_run_prints_every_step_of_a_tpu_run_and_takes_none(fakes):
    options = ("--workdir", "gs://bucket/rm", "--spot", "--dry-run")
    fields = ("--", "--config.data.row_shapes=((4096, 64),)")
    told = fakes.run("tpu_pod.sh", "up", *POD, *options, *fields, HF_TOKEN=TOKEN)
    assert told.returncode == 0, told.stderr
    assert fakes.calls() == []
    archive, *steps = [line for line in shown(told) if line[0] == "git"] + [
        line for line in shown(told) if line[0] != "git"
    ]
    assert archive[3:6] == ["archive", "--format=tar.gz", "--output"]
    assert archive[-1] == "HEAD"
    copied = ["--node=all", "--worker=all"]
    assert steps[0] == [*CREATE, "--spot"]
    assert steps[1][:5] == [*RESOURCES, "scp"]
    assert steps[1][5:] == [archive[6], "rm:toolrm_jax.tar.gz", *WHERE[1:], *copied]
    assert steps[2][6:] == ["rm:.toolrm_secrets", *WHERE[1:], *copied]
    assert steps[3][:-1] == on_hosts("all", "")[:-1]
    assert steps[3][-1].endswith(f"tar -xzf toolrm_jax.tar.gz -C toolrm_jax && {HOST} install")
    quoted = shlex.split(steps[4][-1])
    assert steps[4][:-1] == on_hosts("all", "")[:-1]
    assert quoted == [*shlex.split(START), "--config.data.row_shapes=((4096, 64),)"]
    assert steps[5:] == [on_hosts("0", f"{HOST} state")]
    assert TOKEN not in told.stdout + told.stderr
    assert not list(Path(archive[6]).parent.glob("*"))


@pytest.mark.parametrize(
    ("topology", "accelerator", "runtime"),
    [
        ("v5p:2x2x4", "v5p-32", "v2-alpha-tpuv5"),
        ("v5e:4x8", "v5litepod-32", "v2-alpha-tpuv5-lite"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
        ("v4:2x2x4", "v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_the_planners_topologies_are_googles_types(fakes, topology, accelerator, runtime):
    (created,) = shown(fakes.run("tpu_pod.sh", "create", *POD, "--topology", topology, "--dry-run"))
    types = created[created.index("--accelerator-type") :]
    assert types == ["--accelerator-type", accelerator, "--runtime-version", runtime]


def test_slices_and_accounts_reach_gcloud(fakes):
    more = ("--slices", "2", "--project", "p", "--service-account", "a@p.iam.gserviceaccount.com")
    (created,) = shown(fakes.run("tpu_pod.sh", "create", *POD, *more, "--dry-run"))
    text = " ".join(created)
    assert "--zone us-east5-a --project p --node-count 2 --node-prefix rm " in text
    assert "--service-account a@p.iam.gserviceaccount.com --scopes https://www" in text


def test_create_waits_until_the_slice_is_there(fakes):
    fakes.answers("states", "ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = fakes.run("tpu_pod.sh", "create", *POD)
    assert done.returncode == 0, done.stderr
    assert fakes.calls() == [LIST, CREATE, LIST, LIST, LIST]


def test_create_leaves_a_slice_that_exists(fakes):
    fakes.answers("states", "ACTIVE")
    done = fakes.run("tpu_pod.sh", "create", *POD)
    assert done.returncode == 0
    assert "rm exists (ACTIVE): not created again" in done.stderr
    assert fakes.calls() == [LIST, LIST]


def test_create_does_not_wait_for_a_slice_that_will_not_come(fakes):
    fakes.answers("states", "SUSPENDED")
    done = fakes.run("tpu_pod.sh", "create", *POD)
    assert done.returncode == 2
    assert "rm is SUSPENDED, not ACTIVE" in done.stderr


def test_nothing_is_created_or_deleted_on_a_question_that_failed(fakes):
    fakes.answers("states", "FAILS")
    for command in ("create", "delete"):
        done = fakes.run("tpu_pod.sh", command, *POD, "--yes")
        assert done.returncode == 2
        assert "cannot list queued resources" in done.stderr
    assert fakes.calls() == [LIST, LIST]


def test_delete_asks_unless_told_not_to(fakes):
    fakes.answers("states", "ACTIVE")
    refused = fakes.run("tpu_pod.sh", "delete", *POD)
    assert (refused.returncode, fakes.calls()) == (2, [])
    done = fakes.run("tpu_pod.sh", "delete", *POD, "--yes")
    assert done.returncode == 0
    assert fakes.calls() == [LIST, DELETE]
    fakes.answers("states", "ABSENT")
    again = fakes.run("tpu_pod.sh", "delete", *POD, "--yes")
    assert again.returncode == 0
    assert fakes.calls()[2:] == [LIST]


def test_hosts_get_the_commit_and_the_token_but_no_command_shows_it(fakes, checkout):
    done = fakes.run("tpu_pod.sh", "setup", *POD, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fakes.folder / "toolrm_jax.tar.gz") as archive:
        assert {"pyproject.toml", "toolrm_jax/train.py"} <= set(archive.getnames())
    secrets = fakes.folder / ".toolrm_secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    read = subprocess.run(
        ["bash", "-c", f"source {secrets} && printenv HF_TOKEN"], capture_output=True, text=True
    )
    assert read.stdout == TOKEN + "\n"
    assert TOKEN not in json.dumps(fakes.calls()) + done.stdout + done.stderr
    # Nor does it stay here.
    copied = [call[5] for call in fakes.calls() if "scp" in call]
    assert len(copied) == 2
    assert not any(Path(path).exists() for path in copied)


def test_setup_leaves_a_host_alone_where_a_training_runs(fakes, checkout, tmp_path):
    told = fakes.run("tpu_pod.sh", "setup", *POD, "--dry-run")
    command = next(words[-1] for words in shown(told) if words[-1].endswith("install"))
    (tmp_path / "toolrm_jax").mkdir()
    with (tmp_path / ".toolrm_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "training is running: left as it is\n")
    assert (tmp_path / "toolrm_jax").exists()


def test_up_asks_for_another_slice_when_one_is_taken_away(fakes, checkout):
    # Absent, created, there; taken away while training, which takes a while, and deleted; absent,
    # created again, there; training ends.
    first = ["ABSENT", "ACTIVE", "ACTIVE", *["SUSPENDING"] * 4, "SUSPENDED", "SUSPENDED"]
    fakes.answers("states", *first, "ABSENT", "ACTIVE", "ACTIVE")
    fakes.answers("said", "running", "ended 0")
    done = fakes.run("tpu_pod.sh", "up", *POD, "--workdir", "gs://bucket/rm")
    assert done.returncode == 0, done.stderr
    assert "taken away: asking for another one (1 of 3)" in done.stderr
    done_things = [call[4] for call in fakes.calls() if call[4] != "list"]
    once = ["create", "scp", "ssh", "ssh"]  # install, start
    assert done_things == [*once, "ssh", "delete", *once, "ssh"]
    started = [call for call in fakes.calls() if call[-1] == START]
    assert started == [on_hosts("all", START)] * 2


def test_up_ends_with_the_status_of_a_training_that_failed(fakes, checkout):
    fakes.answers("states", "ACTIVE")
    fakes.answers("said", "running", "", "ended 1")
    done = fakes.run("tpu_pod.sh", "up", *POD, "--workdir", "gs://bucket/rm")
    assert done.returncode == 1
    assert "training ended with status 1" in done.stderr
    assert not any("delete" in call for call in fakes.calls())


def test_up_asks_for_another_slice_when_one_goes_before_training_starts(fakes, checkout):
    fakes.answers("states", "ABSENT", "ACTIVE", *["SUSPENDED"] * 3, "ABSENT", "ACTIVE", "ACTIVE")
    fakes.answers("ssh", "FAILS", "works")  # of the first one's setup
    fakes.answers("said", "ended 0")
    done = fakes.run("tpu_pod.sh", "up", *POD, "--workdir", "gs://bucket/rm")
    assert done.returncode == 0, done.stderr
    assert "taken away: asking for another one (1 of 3)" in done.stderr
    done_things = [call[4] for call in fakes.calls() if call[4] != "list"]
    assert done_things == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "ssh", "ssh"]


def test_up_ends_where_setup_fails_on_a_slice_that_is_there(fakes, checkout):
    fakes.answers("states", "ACTIVE")
    fakes.answers("ssh", "FAILS")
    done = fakes.run("tpu_pod.sh", "up", *POD, "--workdir", "gs://bucket/rm")
    assert done.returncode == 1
    assert "rm is still there" in done.stderr
    assert not any(call[-1] == START for call in fakes.calls())


def test_up_starts_training_again_on_a_host_that_was_restarted(fakes, checkout):
    fakes.answers("states", "ACTIVE")
    fakes.answers("said", "ended 137", "ended 137", "ended 0")
    done = fakes.run("tpu_pod.sh", "up", *POD, "--workdir", "gs://bucket/rm")
    assert done.returncode == 0, done.stderr
    assert "training was killed on a host of rm: it is started again (1 of 3)" in done.stderr
    assert [call[-1] for call in fakes.calls()].count(START) == 2
    assert not any("delete" in call for call in fakes.calls())


def test_logs_status_and_stop_reach_the_hosts(fakes):
    for command in ("logs", "stop", "status"):
        assert fakes.run("tpu_pod.sh", command, *POD).returncode == 0
    assert fakes.calls() == [
        on_hosts("0", "tail -n 200 -F toolrm_train.log"),
        on_hosts("all", f"{HOST} stop"),
        [*RESOURCES, "describe", *WHERE, "--format", "value(state.state)"],
        on_hosts("all", f"{HOST} state"),
    ]


# --- A host of it ---------------------------------------------------------------------------------

# Stands for Python on a host: ends as often as told, with the statuses told; then waits for TERM.
TRAINING = """\
#!/usr/bin/env bash
echo "training $* with token ${HF_TOKEN:-none}"
status=$(head -n 1 "$HOME/statuses")
sed -i 1d "$HOME/statuses"
if [[ $status == wait ]]; then
    trap 'exit 75' TERM
    touch "$HOME/waiting"
    while true; do sleep 0.05; done
fi
exit "$status"
"""


@pytest.fixture
def host(tmp_path):
    """A function that calls tpu_host.sh as on a host, whose training ends with these statuses."""
    (tmp_path / "python").write_text(TRAINING)
    (tmp_path / "python").chmod(0o755)

    def call(*arguments: str, statuses: tuple[str, ...] = (), pause: str = "0") -> str:
        if statuses:
            (tmp_path / "statuses").write_text("\n".join([*statuses, ""]))
        env = os.environ | {
            "HOME": str(tmp_path),
            "TOOLRM_PYTHON": str(tmp_path / "python"),
            "TOOLRM_PAUSE_SECONDS": pause,
        }
        script = ["bash", str(LAUNCH / "tpu_host.sh"), *arguments]
        done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    call.home = tmp_path
    return call


def ended(host) -> str:
    """What the host says when training has ended."""
    return _when(lambda: host("state") if host("state") != "running" else "")


def _when(condition, seconds: float = 30):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("did not happen")


def runs(host) -> int:
    return (host.home / "toolrm_train.log").read_text().count("training -m toolrm_jax.train")


def test_a_preempted_training_is_started_again_without_counting(host):
    assert host("state") == "never started"
    arguments = ("--config", "c.py", "--config.data.row_shapes=((8, 2),)")
    host("start", "--restarts", "1", "--", *arguments, statuses=("75", "76", "75", "75", "0"))
    assert ended(host) == "ended 0"
    log = (host.home / "toolrm_train.log").read_text()
    assert log.count(f"training -m toolrm_jax.train {' '.join(arguments)} with token none") == 5


def test_a_failing_training_is_started_again_as_often_as_asked(host):
    host("start", "--restarts", "2", "--", statuses=("1", "1", "3", "0"))
    assert ended(host) == "ended 3"
    assert runs(host) == 3


def test_training_is_started_once_and_stopped_for_good(host):
    (host.home / ".toolrm_secrets").write_text(f"HF_TOKEN={TOKEN}\nexport HF_TOKEN\n")
    assert host("start", "--", statuses=("wait", "0")).startswith("started; log: ")
    _when((host.home / "waiting").exists)
    assert host("start", "--") == "training is running already: not started again"
    assert host("state") == "running"
    assert host("stop") == "asked to save and end"
    assert ended(host) == "ended 75"
    assert runs(host) == 1
    assert f"with token {TOKEN}" in (host.home / "toolrm_train.log").read_text()


def test_training_that_is_stopped_between_two_starts_is_not_started_again(host):
    host("start", "--", statuses=("76", "0"), pause="2")
    _when(lambda: "started again in" in (host.home / "toolrm_train.log").read_text())
    assert host("stop") == "between two starts: it is not started again"
    assert ended(host) == "ended 76"
    assert runs(host) == 1


def test_a_host_that_was_restarted_does_not_say_running(host):
    (host.home / ".toolrm_state").write_text("running\n")
    assert host("state") == "ended 137"
