"""Makes this process one of several where a cluster has started it as such; else it stays alone.

    who started it      how that is seen                          processes
    the user            JAX_COORDINATOR_ADDRESS                   JAX_NUM_PROCESSES
    Slurm (srun)        SLURM_STEP_NODELIST and its like          SLURM_STEP_NUM_TASKS
    Open MPI            OMPI_COMM_WORLD_SIZE                      the same
    GKE                 TPU chips and TPU_WORKER_HOSTNAMES        one a host of all slices
    a TPU VM            TPU chips and Google's metadata server    one a host of all slices

    start_processes()            # joins where one of these is seen and counts more than one process
    start_processes("on")        # joins, or says that there is nothing to join
    start_processes("off")       # stays alone, whatever the environment says

Each is an explicit rule, as jax.distributed.initialize() alone takes too much for a cluster: in a
shell that salloc or sbatch opened it would wait five minutes for tasks that nobody started, and in
any Kubernetes pod it asks the API server.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

import jax
from absl import logging

from toolrm_jax.errors import InputError, first_line

MODES = ("auto", "on", "off")
# Of a task that srun started; jax.distributed.initialize() needs them all.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class ProcessError(InputError):
    """The processes of a run cannot be joined."""


class NoClusterError(ProcessError):
    """JAX finds no cluster where one was looked for."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Who started the processes, and what jax.distributed.initialize() is to be told."""

    name: str
    method: str | None = None  # JAX's name of its way to find the others; None: it tries them all
    processes: int | None = None  # None: JAX asks the cluster
    process: int | None = None
    all_devices: bool = False  # of this machine, where JAX would take one a process


def start_processes(
    mode: str = "auto", timeout_seconds: int = 300, lost_seconds: int = 100
) -> Cluster | None:
    """Joins the processes of this run; what was joined, None for a process alone.

    All must come within `timeout_seconds`; later, one that is silent for `lost_seconds` ends all.
    Must come before anything that starts JAX's backend. Raises ProcessError.
    """
    cluster = find_cluster(os.environ, tpu=_has_tpu()) if mode != "off" else None
    if cluster is None and mode == "on":
        cluster = Cluster("a cluster that JAX recognises")
    if cluster is not None:
        try:
            _join(cluster, timeout_seconds, lost_seconds)
        except NoClusterError as error:
            if mode == "on" or cluster.method != "gcetpu":
                raise
            # Chips without Google's metadata, as in hosted notebooks; or it does not answer now,
            # and the other hosts of a slice wait for this one.
            logging.warning(
                "This host trains alone: %s. On a slice of several hosts, start again, or give "
                "--distributed=on, which does not go on alone.",
                first_line(error.__cause__ or error),
            )
            return None
    return cluster


def find_cluster(environment: Mapping[str, str], tpu: bool = False) -> Cluster | None:
    """The cluster that started this process as one of several, by the environment's variables."""
    if "JAX_COORDINATOR_ADDRESS" in environment:
        count, number = (_number(environment, f"JAX_{n}") for n in ("NUM_PROCESSES", "PROCESS_ID"))
        return Cluster("JAX_COORDINATOR_ADDRESS", processes=count, process=number)
    if all(name in environment for name in SLURM):
        return _slurm(environment)
    if "OMPI_MCA_orte_hnp_uri" in environment:
        count = _number(environment, "OMPI_COMM_WORLD_SIZE")
        return Cluster("Open MPI", "ompi", count) if count != 1 else None
    if tpu and {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & set(environment):
        return Cluster("GKE", "gketpu")
    if tpu and "TPU_SKIP_MDS_QUERY" not in environment:
        return Cluster("TPU VM", "gcetpu")  # of one host, too: it is then process 0 of 1
    return None


def _slurm(environment: Mapping[str, str]) -> Cluster | None:
    # In a shell that salloc opened, SLURM_NTASKS counts what the job may start; the shell is alone.
    count = _number(environment, "SLURM_STEP_NUM_TASKS") or _number(environment, "SLURM_NTASKS")
    if count == 1:
        return None
    return Cluster("Slurm", "slurm", count, all_devices=_owns_devices(environment))


def _owns_devices(environment: Mapping[str, str]) -> bool:
    """Whether what a Slurm task sees is for it alone.

    JAX gives a task the one device of its local number: seven of eight GPUs would idle where a
    node runs one task, and a task that Slurm shows one GPU would look for another.
    """
    if {"SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_TASK_ID"} & set(environment):
        return True
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    alone = _tasks_here(environment) == 1
    return alone or (visible != "" and "," not in visible)


def _tasks_here(environment: Mapping[str, str]) -> int | None:
    """How many tasks of the step this node runs; Slurm writes `2(x3),1` for 2, 2, 2, 1."""
    written, node = environment.get("SLURM_STEP_TASKS_PER_NODE"), environment.get("SLURM_NODEID")
    if not written or not node:
        return None
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", written):
        counts += [int(count)] * int(times or 1)
    return counts[int(node)] if int(node) < len(counts) else None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name)
    if value is None:
        return None
    if not value.isdigit():
        raise ProcessError(f"{name}={value!r} in the environment: expected a number.")
    return int(value)


def _has_tpu() -> bool:
    """Whether JAX will compute on TPU chips of this machine.

    JAX looks for chips on the PCI bus when it is imported. Not public, but exactly what decides
    whether its own detection works; tests/test_cluster.py notices if it goes.
    """
    from jax._src import cloud_tpu_init

    # JAX_PLATFORMS=cpu on a TPU VM: a test, or a look at something.
    platforms = jax.config.values["jax_platforms"]
    return cloud_tpu_init.running_in_cloud_tpu_vm and (not platforms or "tpu" in platforms)


def _join(cluster: Cluster, timeout_seconds: int, lost_seconds: int) -> None:
    try:
        jax.distributed.initialize(
            num_processes=cluster.processes,
            process_id=cluster.process,
            cluster_detection_method=cluster.method,
            initialization_timeout=timeout_seconds,
            heartbeat_timeout_seconds=lost_seconds,
        )
    except (ValueError, OSError) as error:  # OSError: no metadata server answers
        raise NoClusterError(
            f"Several processes cannot be joined ({cluster.name}): {error} Start them by srun or "
            f"mpirun, or set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID for each process. --distributed=off runs alone."
        ) from error
    except RuntimeError as error:
        raise ProcessError(
            f"The processes of {cluster.name} did not all join within {timeout_seconds} s: "
            f"{first_line(error)} Is each one started, and can all reach the first one's "
            f"host? --distributed=off runs alone."
        ) from error
    if cluster.all_devices:
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")
