"""Trains a reward model: `python -m toolrm_jax.train --config configs/quickstart.py --workdir DIR`.

    open model, tokenizer -> index data -> parameters, optimizer -> (restore) -> steps
        -> evaluate -> export

Any field of the config can be set on the command line: `--config.train.steps=50`. Running the same
command again continues from the newest sound checkpoint, and ends bit-equal to a run that was never
interrupted. In the workdir: checkpoints/, metrics.jsonl, tensorboard/, index/, rejects-*.jsonl,
heldout_scores.jsonl, evaluation.json, tokenizer/, export/, compiled/ (of several processes).

Exit codes: 0, finished; 1, an error that the message explains; 75, asked to stop (SIGTERM, a
preemption notice, Ctrl-C), and saved; 76, broken off (a process was lost, or a step hung); 134
(SIGABRT), broken off by JAX for the same reasons; 143 (SIGTERM), asked to stop during start-up:
nothing to save yet. After 75, 76, 134 and 143 the same command continues: docs/train.md.

Several processes are one run if a TPU pod, GKE or Slurm's srun started them, which is seen without
a flag, or if each has JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID in
its environment (cluster.py); the workdir is then on a file system that all of them share, or gs://.
"""

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import optax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from toolrm_jax import pair_scores
from toolrm_jax.batch import Batch
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.checkpoint import Checkpoints
from toolrm_jax.cluster import MODES, start_processes
from toolrm_jax.command_line import run_command
from toolrm_jax.compilation_cache import use_compilation_cache
from toolrm_jax.errors import reported
from toolrm_jax.huggingface import load_params
from toolrm_jax.interruption import Stopped, StopRequest, break_off, is_loss
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.model import Compute, Forward, Params, abstract_params
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.processes import keeps_service
from toolrm_jax.run_inputs import Inputs, Say, open_inputs
from toolrm_jax.start_up import StartUp
from toolrm_jax.step_trace import StepTrace
from toolrm_jax.throughput import Throughput
from toolrm_jax.train_config import (
    check_numbers,
    refuse_other_run,
    refuse_unshared,
    run_folder,
    section,
    unpack,
)
from toolrm_jax.train_step import TrainState, abstract_state, make_train_step, new_state
from toolrm_jax.training_run import TrainingRun
from toolrm_jax.watchdog import Watchdog

_PARTING_SECONDS = 3


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> pair_scores.Report:
    """Runs a training config to its end; see the module's docstring."""
    start_up = StartUp()
    check_numbers(config)  # again in unpack, but the watchdog takes two of them
    with contextlib.ExitStack() as opened:
        watchdog = Watchdog(config.train.hang_minutes, config.train.patient_minutes)
        opened.enter_context(contextlib.closing(watchdog))
        opened.push(_unless_broken_off)
        watchdog.feed("starting the devices", patient=True)
        with start_up.phase("devices"):
            parts = unpack(config)
        return _train(config, run_folder(workdir), parts, watchdog, start_up)


def _train(
    config: ConfigDict,
    folder: epath.Path,
    parts: tuple[jax.sharding.Mesh, PlanConfig, OptimizerConfig, Compute],
    watchdog: Watchdog,
    start_up: StartUp,
) -> pair_scores.Report:
    lead = jax.process_index() == 0
    say: Say = _say if lead else lambda _: None
    mesh, plan, optimizer_config, compute = parts
    watchdog.feed("starting", patient=True)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_unshared(folder)
    # Several machines have no other folder in common.
    shared = folder / "compiled" if jax.process_count() > 1 else None
    use_compilation_cache(config.train.compilation_cache, shared)
    inputs = open_inputs(config, folder, mesh, plan, watchdog, start_up, say)
    source, steps = inputs.source, inputs.steps

    with jax.set_mesh(mesh), contextlib.ExitStack() as opened:

        def closed(part: Any) -> Any:
            """The part, which is closed whatever happens, before those that were opened before."""
            return opened.enter_context(contextlib.closing(part))

        optimizer = make_optimizer(dataclasses.replace(optimizer_config, steps=steps))
        with section("mesh"):
            forward = Forward(source.config, compute)
        checkpoints = closed(_checkpoints(config, folder, say))
        watchdog.feed("loading", patient=True)
        state = _first_state(config, inputs, mesh, optimizer, checkpoints, start_up, say)
        start = int(state.step)
        log = closed(MetricsLog(folder, start, steps, lead))
        devices = list(mesh.devices.flat)
        meter = closed(Throughput(inputs.loader, source.config, devices, steps, start))
        trace = closed(StepTrace(folder / "profile", start, config.profile_steps, lead))
        opened.enter_context(start_up)
        start_up.steps_begin()
        stop = opened.enter_context(StopRequest())
        opened.push(_unless_broken_off)  # before anything is closed
        run = TrainingRun(
            config=config,
            workdir=folder,
            inputs=inputs,
            mesh=mesh,
            watchdog=watchdog,
            say=say,
            checkpoints=checkpoints,
            log=log,
            meter=meter,
            trace=trace,
            stop=stop,
            rewards_of=_watched(pair_scores.make_reward_function(forward), watchdog),
        )
        state = run.train(state, make_train_step(forward, optimizer, config.loss.eta), start_up)
        return run.finish(state)


def _checkpoints(config: ConfigDict, folder: epath.Path, say: Say) -> Checkpoints:
    return Checkpoints(
        folder,
        config.train.keep_checkpoints,
        keep_best=config.train.keep_best,
        checksums=config.train.checksums,
        say=say,
    )


def _first_state(
    config: ConfigDict,
    inputs: Inputs,
    mesh: jax.sharding.Mesh,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    start_up: StartUp,
    say: Say,
) -> TrainState:
    """The newest checkpoint's, or a new one from the model that the run starts from."""
    source = inputs.source
    if checkpoints.latest() is None:
        if not source.has_head:
            say(f"a fresh reward head, drawn with seed {config.seed}")
        with start_up.phase("weights"):
            return new_state(load_params(source, mesh, config.seed), optimizer)
    workdir = checkpoints.folder.parent
    like = abstract_state(abstract_params(source.config, mesh), optimizer, mesh)
    with start_up.phase("restore"):
        state, _ = checkpoints.restore(
            like, accept=lambda saved: refuse_other_run(saved, inputs.meta, workdir)
        )
    say(f"continuing at step {int(state.step)} from {checkpoints.folder}")
    return state


def _watched(
    rewards_of: pair_scores.RewardFunction, watchdog: Watchdog
) -> pair_scores.RewardFunction:
    """Feeds the watchdog with each batch; the first of a shape is compiled."""
    compiled = set()

    def rewards(params: Params, batch: Batch) -> jax.Array:
        watchdog.feed("evaluation", patient=batch.tokens.shape not in compiled)
        compiled.add(batch.tokens.shape)
        return rewards_of(params, batch)

    return rewards


def _unless_broken_off(kind: Any, error: BaseException | None, trace: Any) -> None:
    """Ends a process whose fellow is gone: what is left to be closed would wait for that one."""
    if error is not None and is_loss(error) and jax.process_count() > 1:
        traceback.print_exception(error)
        break_off(
            f"error: process {jax.process_index()} of {jax.process_count()} was broken off: "
            f"another process was lost, or the network between them. Nothing was saved just now; "
            f"the same command, started on all of them, continues from the newest checkpoint."
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Training config, for example configs/quickstart.py; it documents its fields. Each can be set "
    "as --config.train.steps=50, or --config.data.row_shapes='((2048, 64),)'.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://bucket/folder: checkpoints, metrics, export."
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    MODES,
    "Whether this is one of several processes. auto: if a TPU pod, GKE, Slurm or Open MPI started "
    "it as one, or JAX_COORDINATOR_ADDRESS is set. on: by any means that JAX knows. off: alone.",
)


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}; fields are set as --config.train.steps=50."
        )
    logging.set_verbosity(logging.WARNING)  # Orbax logs dozens of lines per save
    with _ended_alone(), reported():
        start_processes(_DISTRIBUTED.value, lost_seconds=_CONFIG.value.train.lost_seconds)
        train(_CONFIG.value, str(_WORKDIR.value))


@contextlib.contextmanager
def _ended_alone() -> Iterator[None]:
    """Where one of several processes fails, it ends at once: Python's own exit would wait for the
    others, which wait for it in a step. They then notice that it is gone."""
    try:
        yield
    except Stopped as stopped:  # all of them do
        _say(stopped.message)
        raise
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, SystemExit) and isinstance(error.code, str):
            print(error.code, file=sys.stderr, flush=True)
        else:
            traceback.print_exception(error)
        if keeps_service():  # an error of all of them: let them say it too
            time.sleep(_PARTING_SECONDS)
        os._exit(1)


def run() -> None:
    """Parses flags and trains."""
    run_command(main, _CONFIG, required=("config", "workdir"))


if __name__ == "__main__":
    run()
