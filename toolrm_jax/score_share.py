"""Which of a job's shards are this process's, where several were started without a word of shards.

    who started it     its number              how many there are
    the user           JAX_PROCESS_ID          JAX_NUM_PROCESSES
    Open MPI           OMPI_COMM_WORLD_RANK    OMPI_COMM_WORLD_SIZE
    Slurm (srun)       SLURM_PROCID            SLURM_STEP_NUM_TASKS, or else SLURM_NTASKS
    the TPU runtime    jax.process_index()     jax.process_count()

The first that says so is believed. Open MPI is asked before Slurm, whose numbers its processes
inherit from the one that started them. In a shell that salloc or sbatch opened, Slurm counts the
tasks that srun may start there, and the shell is alone (`cluster` takes it so too).

    >>> process_shard({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"})
    Shard(index=1, of=2)
"""

from collections.abc import Mapping

from toolrm_jax.job_files import JobError, Shard

_JAX = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_PROCID", "SLURM_NTASKS")


def process_shard(environment: Mapping[str, str]) -> Shard:
    """The share of the process with this environment; raises JobError where it is unknown."""
    given = [name for name in _JAX if name in environment]
    if len(given) == 1:
        (other,) = set(_JAX) - set(given)
        raise JobError(
            f"{given[0]} is set and {other} is not, so that this process's share is unknown: set "
            f"both, or give --shard i/n (0/1: all of it)."
        )
    slurm = () if _is_batch_shell(environment) else _SLURM
    for names in (_JAX, _OPEN_MPI, *slurm):
        if all(name in environment for name in names):
            return _read(environment, names)
    import jax

    return Shard(jax.process_index(), jax.process_count())


def _is_batch_shell(environment: Mapping[str, str]) -> bool:
    """Of a job of Slurm's, but no task of a step: every task that srun starts has its step."""
    return "SLURM_JOB_ID" in environment and "SLURM_STEP_NODELIST" not in environment


def _read(environment: Mapping[str, str], names: tuple[str, str]) -> Shard:
    try:
        index, of = (int(environment[name]) for name in names)
        return Shard(index, of)
    except ValueError as error:
        found = ", ".join(f"{name}={environment[name]!r}" for name in names)
        raise JobError(
            f"{found} in the environment say no share of the job ({error}): correct them, or give "
            f"--shard i/n (0/1: all of it)."
        ) from None
