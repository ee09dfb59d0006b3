"""Whether a process is one of several: what the environment of each cluster means."""

import os
import subprocess
import sys

import jax
import pytest
import tiny
from jax._src import cloud_tpu_init

from toolrm_jax import cluster as module
from toolrm_jax.cluster import Cluster, NoClusterError, ProcessError, find_cluster, start_processes

# Of the second of two tasks that srun started on two nodes.
SRUN = {
    "SLURM_JOB_ID": "61",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
# Tells, in two processes, how many there are and whether they can compute together.
PROGRAM = """
import jax
from jax.experimental import multihost_utils
from toolrm_jax.cluster import start_processes
cluster = start_processes(timeout_seconds=60)
numbers = multihost_utils.process_allgather(jax.process_index())
print(cluster.name, jax.process_count(), sorted(map(int, numbers.flat)), jax.local_device_count())
print(jax.config._read('jax_cuda_visible_devices'))
"""


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize() was called with; it joins nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "JAX_COORDINATOR", "JAX_NUM_PROCESSES")):
            monkeypatch.delenv(name)
    return calls


def test_a_machine_without_a_cluster_stays_alone(joined):
    assert find_cluster({"HOME": "/root", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert start_processes() is None
    assert joined == []


def test_a_process_of_srun_is_one_of_several():
    cluster = find_cluster(SRUN)
    assert (cluster.name, cluster.method, cluster.processes) == ("Slurm", "slurm", 2)


@pytest.mark.parametrize(
    "changes",
    [
        # A login node, or the script of a batch job: no step.
        {"SLURM_STEP_NODELIST": None, "SLURM_PROCID": "0"},
        # A shell that salloc opened is a step of one task; the job may start 16.
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_a_shell_under_slurm_waits_for_nobody(changes):
    environment = {k: v for k, v in (SRUN | changes).items() if v is not None}
    assert find_cluster(environment) is None


@pytest.mark.parametrize(
    ("changes", "all_devices"),
    [
        ({}, True),  # one task on the node
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, False),  # a GPU a task, by local number
        ({"SLURM_STEP_TASKS_PER_NODE": "8,1"}, True),  # the second node runs one
        ({"SLURM_STEP_TASKS_PER_NODE": "1,8"}, False),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_PER_TASK": "1"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "3"}, True),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "CUDA_VISIBLE_DEVICES": "0,1"}, False),
    ],
)
def test_a_task_takes_the_devices_that_are_its_own(changes, all_devices):
    assert find_cluster(SRUN | changes).all_devices is all_devices


def test_tpu_hosts_are_known_without_a_flag():
    gke = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1", "KUBERNETES_SERVICE_HOST": "x"}
    assert find_cluster(gke, tpu=True) == Cluster("GKE", "gketpu")
    assert find_cluster({"TPU_PROCESS_ADDRESSES": "a"}, tpu=True) == Cluster("GKE", "gketpu")
    assert find_cluster({}, tpu=True) == Cluster("TPU VM", "gcetpu")
    # The same variables on a machine where JAX computes on something else.
    assert find_cluster(gke, tpu=False) is None
    # Set by those who compile for a TPU ahead of time.
    assert find_cluster({"TPU_SKIP_MDS_QUERY": "1"}, tpu=True) is None


def test_jax_knows_the_methods_that_are_named_to_it():
    """Names and the flag for TPU chips are not in JAX's public documentation."""
    from jax._src.clusters import ClusterEnv

    known = {cluster.name for cluster in ClusterEnv._cluster_types}
    assert {"slurm", "ompi", "gketpu", "gcetpu"} <= known
    assert cloud_tpu_init.running_in_cloud_tpu_vm is False


def test_jax_platforms_cpu_on_a_tpu_vm_stays_alone(joined, monkeypatch):
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cpu")
        assert start_processes() is None
        jax.config.update("jax_platforms", "tpu,cpu")
        # JAX sets it where it finds no chip.
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
        assert start_processes().name == "TPU VM"
    finally:
        jax.config.update("jax_platforms", before)
    assert [call["cluster_detection_method"] for call in joined] == ["gcetpu"]


@pytest.mark.parametrize("error", [ValueError("coordinator_address"), ConnectionError("no host")])
def test_tpu_chips_without_googles_metadata_are_one_host(joined, monkeypatch, error):
    def nothing_found(**_):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    monkeypatch.setattr(module, "_has_tpu", lambda: True)
    assert start_processes() is None
    with pytest.raises(NoClusterError, match="TPU VM"):
        start_processes("on")
    # On GKE and under srun there are others, who would wait.
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    with pytest.raises(NoClusterError, match="GKE"):
        start_processes()


def test_open_mpi_counts_its_processes():
    mpi = {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"}
    assert find_cluster(mpi).processes == 4
    assert find_cluster(mpi | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_what_the_user_sets_comes_first(joined, monkeypatch):
    given = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    for name, value in (SRUN | given).items():
        monkeypatch.setenv(name, value)
    assert start_processes(lost_seconds=7).name == "JAX_COORDINATOR_ADDRESS"
    assert joined[0]["heartbeat_timeout_seconds"] == 7
    assert (joined[0]["num_processes"], joined[0]["process_id"]) == (4, 3)
    assert joined[0]["cluster_detection_method"] is None
    assert start_processes("off") is None
    assert len(joined) == 1


def test_a_variable_that_is_no_number_is_named():
    with pytest.raises(ProcessError, match=r"JAX_NUM_PROCESSES='two'.*expected a number"):
        find_cluster({"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two"})


def test_on_without_a_cluster_says_what_to_do(joined, monkeypatch):
    def nothing_found(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nothing_found)
    with pytest.raises(ProcessError, match="JAX_COORDINATOR_ADDRESS=host:port"):
        start_processes("on")


def test_processes_that_do_not_come_are_an_error_not_a_traceback(joined, monkeypatch):
    def too_late(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nMore.")

    monkeypatch.setattr(jax.distributed, "initialize", too_late)
    with pytest.raises(
        ProcessError, match=r"Slurm did not all join within 300 s: DEADLINE_EXCEEDED"
    ):
        module._join(Cluster("Slurm", "slurm", 2), 300, 100)


def test_two_tasks_of_slurm_compute_together(tmp_path):
    """For real, on one machine: the variables that srun would set, and JAX's own way with them."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=tiny.ROOT,
            env=os.environ
            | SRUN
            | {
                "SLURM_JOB_ID": str(os.getpid()),  # the coordinator's port follows from it
                "SLURM_STEP_NODELIST": "127.0.0.1",
                "SLURM_PROCID": str(number),
                "SLURM_NODEID": str(number),
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_PLATFORMS": "cpu",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
        # Between them may stand lines of gloo's.
        assert {"Slurm 2 [0, 1] 2", "all"} <= set(output.splitlines())
