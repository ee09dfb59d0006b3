"""GKE: launch/gke.sh, and the JobSet that it applies."""

import re
import shlex
import subprocess

import pytest
from launch_fakes import LAUNCH, POD


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


def kubernetes():
    return pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")


def assert_accepted(jobset: dict) -> None:
    """Kubernetes itself knows the Job alone: it is checked against the schema of its API."""
    assert_jobset(jobset)
    kubernetes().validate(job(jobset), "1.32", strict=True)


def printed(told: subprocess.CompletedProcess) -> dict:
    """The JobSet that a dry run printed, which Kubernetes would accept."""
    assert told.returncode == 0, told.stderr
    text, _, command = told.stdout.rstrip().rpartition("\n")
    assert command == "+ kubectl apply --filename -"
    jobset = the_jobset(text)
    assert_accepted(jobset)
    return jobset


def test_the_jobset_is_what_kubernetes_accepts():
    jobset = the_jobset((LAUNCH / "jobset.yaml").read_text())
    assert_accepted(jobset)
    # It would notice.
    job(jobset)["spec"]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"
    with pytest.raises(kubernetes().ValidationError, match="imagePullPolcy"):
        assert_accepted(jobset)


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
    jobset = printed(told)
    assert fakes.calls() == []
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
    jobset = printed(told)
    plain = the_jobset((LAUNCH / "jobset.yaml").read_text())
    args, before = (
        job(found)["spec"]["template"]["spec"]["containers"][0]["args"] for found in (jobset, plain)
    )
    assert args[: len(before)] == before
    # Kubernetes takes $(NAME) for a variable and $$ for a dollar.
    assert [arg.replace("$$", "$") for arg in args[len(before) :]] == FIELDS
    assert "$$(HOME)" in args[-1]


@pytest.mark.parametrize("more", [(), ("--spot", "--slices", "2", "--", *FIELDS)])
@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts"),
    [
        ("v4:2x2x4", "tpu-v4-podslice", 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1),
        ("v5e:4x8", "tpu-v5-lite-podslice", 8),
        ("v6e:4x4", "tpu-v6e-slice", 4),
    ],
)
def test_kubernetes_accepts_what_is_printed_for_any_chip(fakes, topology, accelerator, hosts, more):
    told = fakes.run("gke.sh", *APPLY, "--topology", topology, "--dry-run", *more)
    spec = job(printed(told))["spec"]
    selector = spec["template"]["spec"]["nodeSelector"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.partition(":")[2]
    assert ("cloud.google.com/gke-spot" in selector) == bool(more)


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
