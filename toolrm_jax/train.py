"""Trains a reward model: `python -m toolrm_jax.train --config configs/quickstart.py --workdir DIR`.

    open model, tokenizer -> index data -> parameters, optimizer -> (restore) -> steps
        -> evaluate -> export

Any field of the config can be set on the command line: `--config.train.steps=50`. Running the same
command again continues from the newest sound checkpoint, and ends bit-equal to a run that was never
interrupted. In the workdir: checkpoints/, metrics.jsonl, tensorboard/, rejects-*.jsonl,
heldout_scores.jsonl, evaluation.json, tokenizer/, export/.

Exit codes: 0, finished; 1, an error that the message explains; 75, asked to stop (SIGTERM, a
preemption notice, Ctrl-C), and saved; 76, broken off (a process was lost, or a step hung); 134
(SIGABRT), broken off by JAX for the same reasons. After 75, 76 and 134 the same command continues:
docs/train.md.

Several processes are one run if a TPU pod, GKE or Slurm's srun started them, which is seen without
a flag, or if each has JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID in
its environment (cluster.py); the workdir is then on a file system that all of them share, or gs://.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from toolrm_jax import evaluate
from toolrm_jax.batch import Batch
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.checkpoint import Checkpoints, Score, config_to_json
from toolrm_jax.cluster import MODES, start_processes
from toolrm_jax.compilation_cache import use_compilation_cache
from toolrm_jax.errors import reported
from toolrm_jax.files import write_text
from toolrm_jax.huggingface import (
    ParamTensors,
    RewardTensors,
    load_params,
    save_directory,
    truncate,
)
from toolrm_jax.interruption import Stopped, StopRequest, break_off
from toolrm_jax.loader import (
    Index,
    Loader,
    PreferenceRows,
    RowTokenizer,
    build_index,
    open_row_file,
    row_share,
    to_device,
    write_rejects,
)
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.model import Compute, Forward, Params, abstract_params
from toolrm_jax.model_card import model_card
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.orbax_folder import TOKENIZER, about_run, open_orbax
from toolrm_jax.output_folder import new_folder
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.processes import Exchange, LostProcessError, keeps_service
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import row_shards
from toolrm_jax.start_up import StartUp
from toolrm_jax.step_trace import StepTrace
from toolrm_jax.tensors import Tensors
from toolrm_jax.throughput import Throughput, line
from toolrm_jax.train_config import (
    TrainingError,
    refuse_differing,
    refuse_other_run,
    refuse_unshared,
    run_folder,
    section,
    unpack,
)
from toolrm_jax.train_step import TrainState, abstract_state, make_train_step, new_state
from toolrm_jax.watchdog import Watchdog

EMBEDDED_PAIRS = "embedded:bfcl"
_PARTING_SECONDS = 3


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> evaluate.Report:
    """Runs a training config to its end; see the module's docstring."""
    parts = unpack(config)
    with contextlib.ExitStack() as opened:
        watchdog = Watchdog(config.train.hang_minutes, config.train.patient_minutes)
        opened.enter_context(contextlib.closing(watchdog))
        opened.push(_unless_broken_off)
        return _train(config, run_folder(workdir), parts, watchdog)


def _train(
    config: ConfigDict,
    folder: epath.Path,
    parts: tuple[jax.sharding.Mesh, PlanConfig, OptimizerConfig, Compute],
    watchdog: Watchdog,
) -> evaluate.Report:
    lead = jax.process_index() == 0
    say = _say if lead else lambda *_: None
    mesh, plan, optimizer_config, compute = parts
    watchdog.feed("starting", patient=True)
    folder.mkdir(parents=True, exist_ok=True)
    refuse_unshared(folder)
    # Several machines have no other folder in common.
    shared = folder / "compiled" if jax.process_count() > 1 else None
    use_compilation_cache(config.train.compilation_cache, shared)
    start_up = StartUp()

    # --- Model and data ------------------------------------------------------------------------
    with start_up.phase("model"):
        pretrained = open_pretrained(config.model.source)
    with section("model"):
        source = truncate(pretrained.source, config.model.num_layers)
    tokenize = RowTokenizer(Renderer(pretrained.tokenizer), config.data.blind)
    watchdog.feed("indexing the data", patient=True)
    with start_up.phase("index"):
        train_rows, heldout_rows = _row_files(config, folder, lead)
        loader = _loader(config, train_rows, tokenize, plan, "train", mesh, folder, say)
        heldout = _loader(config, heldout_rows, tokenize, plan, "held-out", mesh, folder, say)
    meta = _meta(config, source.config, loader, heldout.index)
    if lead:  # with the checkpoints, so that they can be exported wherever they are taken
        last = "tokenizer_config.json"
        with new_folder(folder / TOKENIZER, is_ours=lambda _: True, last=last) as partial:
            pretrained.tokenizer.save_pretrained(partial)
    steps = config.train.steps or _steps_of(loader, config.train.epochs)
    refuse_differing(meta, steps)
    step_tokens = plan.micro_batches * max(plan.rows(shape) * shape.tokens for shape in plan.shapes)
    for shape in plan.shapes:
        if plan.rows(shape) * shape.tokens > config.data.batch_tokens:
            say(
                f"note: {plan.rows(shape)} rows of {shape.tokens} tokens a micro-batch, more than "
                f"data.batch_tokens={config.data.batch_tokens} asks for: each of the "
                f"{row_shards(mesh)} shards of rows takes one. The learning rate may want to "
                f"follow; mesh.tensor and mesh.sequence make fewer shards."
            )
    say(
        f"{config.model.source}: {source.config.num_layers} layers, "
        f"{source.config.num_parameters / 1e6:.1f}M parameters; {steps} steps of up to "
        f"{step_tokens} tokens, {100 * loader.padding_share():.1f}% padding"
    )

    with jax.set_mesh(mesh), contextlib.ExitStack() as opened:
        # --- State -----------------------------------------------------------------------------
        optimizer = make_optimizer(dataclasses.replace(optimizer_config, steps=steps))
        with section("mesh"):
            forward = Forward(source.config, compute)
        train_step = make_train_step(forward, optimizer, config.loss.eta)
        rewards_of = _watched(evaluate.make_reward_function(forward), watchdog)
        # Closed whatever happens, so that a checkpoint that is being written gets complete.
        checkpoints = opened.enter_context(
            contextlib.closing(
                Checkpoints(
                    folder,
                    config.train.keep_checkpoints,
                    keep_best=config.train.keep_best,
                    checksums=config.train.checksums,
                    say=say,
                )
            )
        )
        watchdog.feed("loading", patient=True)
        if checkpoints.latest() is None:
            if not source.has_head:
                say(f"a fresh reward head, drawn with seed {config.seed}")
            with start_up.phase("weights"):
                state = new_state(load_params(source, mesh, config.seed), optimizer)
        else:
            like = abstract_state(abstract_params(source.config, mesh), optimizer, mesh)
            with start_up.phase("restore"):
                state, _ = checkpoints.restore(
                    like, accept=lambda saved: refuse_other_run(saved, meta, folder)
                )
            say(f"continuing at step {int(state.step)} from {folder / 'checkpoints'}")
        start = int(state.step)
        log = opened.enter_context(contextlib.closing(MetricsLog(folder, start, steps, lead)))

        # --- Steps -----------------------------------------------------------------------------
        devices = list(mesh.devices.flat)
        meter = opened.enter_context(
            contextlib.closing(Throughput(loader, source.config, devices, steps, start))
        )
        trace = opened.enter_context(
            contextlib.closing(StepTrace(folder / "profile", start, config.profile_steps, lead))
        )
        opened.enter_context(start_up)
        start_up.steps_begin()
        due = _SaveTimes(config.train.checkpoint_every, config.train.checkpoint_minutes, steps)
        stop = opened.enter_context(StopRequest())
        opened.push(_unless_broken_off)  # before anything is closed
        pending: list[tuple[int, dict[str, jax.Array]]] = []
        compiled = set()
        for number, batches in enumerate(meter.inputs(loader.batches(start, steps)), start):
            step, done = loader.locate(number), number + 1
            watchdog.feed(f"step {done}", patient=step.shape not in compiled)
            compiled.add(step.shape)
            with trace.step(number):
                state, metrics = train_step(state, to_device(batches, mesh))
            meter.dispatched(step, metrics["loss"])
            if number == start:
                jax.block_until_ready(metrics)
                start_up.first_step_done()
                say(start_up.line())
                log.write(start, "start-up", start_up.seconds())
            if pending:  # one step computes while the next is prepared, and no more are queued
                jax.block_until_ready(pending[-1][1])
            pending.append((number, metrics))
            if trace.dispatched(number, metrics):
                say(f"trace of steps until {done} in {folder / 'profile'}: docs/train.md")
            stopping = stop.reached(done)
            logging_now = done % config.train.log_every == 0
            evaluating = config.train.eval_every and done % config.train.eval_every == 0
            saving = due(done, ask=logging_now) or stopping
            if logging_now or saving or evaluating:
                means = _fetch(pending, folder)
                rates = meter.rates(done)
                pending = []
                log.write(done, "train", means | rates)
                say(line(done, steps, means, rates))
            # Before saving: a run that goes on from this step has evaluated it.
            score: Score | None = None
            if evaluating and done < steps:
                part = heldout.first(config.train.eval_rows)
                scores = evaluate.score(rewards_of, state.params, part, mesh)
                found = evaluate.report(scores, config.loss.eta)
                log.write(done, "heldout", _scalars(found))
                say(f"step {done}: held-out accuracy {found.accuracy} on {found.accuracy.n} pairs")
                meter.skip()
                score = (found.accuracy.mean, -found.loss)
            if saving or (score and checkpoints.improves(score)):
                watchdog.feed(f"saving step {done}", patient=True)
                log.share()
                about = meta | {"loader": {"next_step": done}, "heldout": score and list(score)}
                checkpoints.save(state, about, score)
                due.saved()
                if stopping or done == steps:
                    _save_for_certain(checkpoints, state, about, score)
            _tell_failures(checkpoints, log, say)
            if stopping:
                raise Stopped(_stopping(checkpoints, done))

        best = checkpoints.best()
        if best is not None:
            say(
                f"best evaluation during training: accuracy {100 * best[1][0]:.1f} at step "
                f"{best[0]}, in {checkpoints.folder / str(best[0])}"
            )

        # --- Evaluation and export -------------------------------------------------------------
        steps_on = itertools.count(steps + 1)

        def rewards_unless_stopped(params: Params, batch: Batch) -> jax.Array:
            if stop.reached(next(steps_on)):
                raise Stopped(_stopping(checkpoints, steps))
            return rewards_of(params, batch)

        scores = evaluate.score(rewards_unless_stopped, state.params, heldout, mesh)
        found = evaluate.report(scores, config.loss.eta)
        watchdog.feed("export", patient=True)
        log.write(steps, "heldout", _scalars(found))
        summary = _summary(loader, heldout, steps, source.config, meta, found)
        say(
            f"{summary['layers']} layers, {summary['parameters']:,} parameters, "
            f"{summary['pairs_seen']:,} pairs seen; held-out accuracy {found.accuracy} on "
            f"{found.accuracy.n:,} pairs, {found.ties} ties"
        )
        with _waited_for(watchdog, lead):
            if lead:
                evaluate.write_scores(folder / "heldout_scores.jsonl", scores)
                if config.train.export:
                    tensors = _tensors(state.params, source.config, checkpoints, steps)
                    path = _export(folder, pretrained, source.config, tensors, steps, meta, found)
                    say(f"exported to {path}")
                # Last, so that it stands for a finished run.
                write_text(folder / "evaluation.json", json.dumps(summary, indent=2) + "\n")
    return found


def _row_files(
    config: ConfigDict, workdir: epath.Path, lead: bool
) -> tuple[PreferenceRows, PreferenceRows]:
    paths = {"train": config.data.train, "heldout": config.data.heldout}
    if EMBEDDED_PAIRS in paths.values():
        if not lead:  # one process builds them, the others find them built
            multihost_utils.sync_global_devices("pairs")
        files = ensure_pairs(
            workdir / "pairs", seed=config.seed, wrong_per_task=config.data.wrong_per_task
        )
        if lead:
            multihost_utils.sync_global_devices("pairs")
        built = {"train": files.train, "heldout": files.heldout}
        paths = {
            side: built[side] if path == EMBEDDED_PAIRS else path for side, path in paths.items()
        }
    return open_row_file(paths["train"]), open_row_file(paths["heldout"])


def _loader(
    config: ConfigDict,
    rows: PreferenceRows,
    tokenize: RowTokenizer,
    plan: PlanConfig,
    side: str,
    mesh: jax.sharding.Mesh,
    workdir: epath.Path,
    say,
) -> Loader:
    """Indexes one side of the data; says, and writes down, what had to be left out."""
    workers, training = config.data.workers, side == "train"
    index = build_index(rows, tokenize, plan.shapes, workers, side, config.data.max_tokens)
    if jax.process_index() == 0:
        path = workdir / f"rejects-{side}.jsonl"
        write_rejects(path, index)
        used = f"{side}: {int(index.usable.sum())} of {len(rows)} prompts used"
        reasons = ", ".join(f"{n} {reason}" for reason, n in index.counts().items())
        say(f"{used}; left out: {reasons} ({path})" if reasons else used)
    if not training:
        plan = dataclasses.replace(plan, micro_batches=1)
    return Loader(rows, index, tokenize, plan, config.seed, training, workers, row_share(mesh))


def _meta(config: ConfigDict, model: ModelConfig, loader: Loader, heldout: Index) -> dict[str, Any]:
    """What a checkpoint says about its run, as JSON."""
    train, plan = loader.index, loader.plan
    shared = sorted(set(train.used_ids()) & set(heldout.used_ids()))
    if shared:
        raise TrainingError(
            f"{len(shared)} ids are in both data.train and data.heldout (such as {shared[0]!r}): "
            f"an evaluation on training rows would mean nothing. Give them different rows."
        )
    meta = {
        "config": json.loads(config.to_json_best_effort()),
        "model": config_to_json(model),
        "rows": {str(shape.tokens): plan.rows(shape) for shape in plan.shapes},
        "data": {"train": train.fingerprint(), "heldout": heldout.fingerprint()},
        "train_tasks": train.used_ids(),
        "heldout_tasks": heldout.used_ids(),
    }
    return json.loads(json.dumps(meta))


def _summary(
    loader: Loader,
    heldout: Loader,
    steps: int,
    model: ModelConfig,
    meta: dict[str, Any],
    found: evaluate.Report,
) -> dict[str, Any]:
    """evaluation.json: what was trained, on how much, and what evaluation found."""
    seen = [i for step in range(steps) for i in loader.locate(step).examples()]
    return {
        "config": meta["config"],
        "layers": model.num_layers,
        "parameters": model.num_parameters,
        "steps": steps,
        "prompts_seen": len(seen),
        "pairs_seen": sum(len(loader.index.kept[i]) for i in seen),
        "rows_sha256": {"train": loader.rows.sha256, "heldout": heldout.rows.sha256},
        "heldout_prompts": int(heldout.index.usable.sum()),
        "heldout": found.to_json(),
    }


def _steps_of(loader: Loader, epochs: float) -> int:
    return max(1, round(epochs * len(loader.epoch(0))))


def _fetch(pending: list, workdir: epath.Path) -> dict[str, float]:
    """Means over the steps since the last log line; stops the run where one is not finite."""
    fetched = [(number, jax.device_get(metrics)) for number, metrics in pending]
    for number, metrics in fetched:
        if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
            raise TrainingError(
                f"Step {number + 1}: loss {metrics['loss']}, gradient norm "
                f"{metrics['gradient_norm']}: not finite. Checkpoints in {workdir} end before it. "
                f"Try a lower optimizer.learning_rate, or model.dtype=float32, in another "
                f"--workdir."
            )
    return {name: float(np.mean([m[name] for _, m in fetched])) for name in fetched[0][1]}


class _SaveTimes:
    """Says at which steps to save: every so many, every so many minutes, and the last."""

    def __init__(self, every: int, minutes: float, steps: int):
        self._every, self._seconds, self._steps = every, 60 * minutes, steps
        self._last = self.now()
        self._clock = Exchange("clock")

    now = staticmethod(time.monotonic)

    def __call__(self, done: int, ask: bool) -> bool:
        """All processes go by the clock of process 0, which they `ask` together."""
        if done == self._steps or (self._every and done % self._every == 0):
            return True
        if not self._seconds or not (ask or jax.process_count() == 1):
            return False
        late = self.now() - self._last >= self._seconds
        return self._clock.from_first(str(late)) == str(True)

    def saved(self) -> None:
        """Counts the minutes from now."""
        self._last = self.now()


def _save_for_certain(
    checkpoints: Checkpoints, state: TrainState, about: dict[str, Any], score: Score | None
) -> None:
    """Waits for a save, and tries again if it failed: there will be no other."""
    checkpoints.wait()
    checkpoints.save(state, about, score)  # does nothing if it is there
    checkpoints.wait()


def _tell_failures(checkpoints: Checkpoints, log: MetricsLog, say) -> None:
    for saved in checkpoints.ended():
        if saved.error:
            log.write(saved.step, "checkpoint", {"failures": checkpoints.failures})
            say(
                f"error: step {saved.step} could not be saved ({saved.error}). Training goes on; "
                f"{_last_saved(checkpoints)}. The next save will be tried as usual."
            )


def _stopping(checkpoints: Checkpoints, done: int) -> str:
    return (
        f"stopped after step {done}, as asked; {_last_saved(checkpoints)}. The same command "
        f"continues from there."
    )


def _last_saved(checkpoints: Checkpoints) -> str:
    latest = checkpoints.latest()
    return "nothing is saved yet" if latest is None else f"saved until step {latest}"


def _watched(rewards_of: evaluate.RewardFunction, watchdog: Watchdog) -> evaluate.RewardFunction:
    """Feeds the watchdog with each batch; the first of a shape is compiled."""
    compiled = set()

    def rewards(params: Params, batch: Batch) -> jax.Array:
        watchdog.feed("evaluation", patient=batch.tokens.shape not in compiled)
        compiled.add(batch.tokens.shape)
        return rewards_of(params, batch)

    return rewards


def _unless_broken_off(kind: Any, error: BaseException | None, trace: Any) -> None:
    """Ends a process whose fellow is gone: what is left to be closed would wait for that one."""
    if error is not None and jax.process_count() > 1 and _is_loss(error):
        traceback.print_exception(error)
        break_off(
            f"error: process {jax.process_index()} of {jax.process_count()} was broken off: "
            f"another process was lost, or the network between them. Nothing was saved just now; "
            f"the same command, started on all of them, continues from the newest checkpoint."
        )


@contextlib.contextmanager
def _waited_for(watchdog: Watchdog, lead: bool) -> Iterator[None]:
    """What process 0 does alone at the end. The others wait for it here, as JAX ends processes that
    wait 5 minutes for another one's exit; if it fails, all of them say so."""
    end, problem = Exchange("end"), ""
    if not lead:
        watchdog.rest()
    try:
        yield
    except BaseException as error:
        problem = str(error) or type(error).__name__
        raise
    finally:
        problem = end.from_first(problem)
    if problem:
        raise TrainingError(f"Process 0 could not end the run: {problem}")


def _is_loss(error: BaseException) -> bool:
    ours = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # would be so next time
    foreign = isinstance(error, jax.errors.JaxRuntimeError)
    return isinstance(error, LostProcessError) or (foreign and not str(error).startswith(ours))


def _scalars(report: evaluate.Report) -> dict[str, float]:
    named = {f"accuracy/{name}": found.mean for name, found in report.by_error_type.items()}
    accuracy = {
        "accuracy": report.accuracy.mean,
        "accuracy_low": report.accuracy.low,
        "accuracy_high": report.accuracy.high,
    }
    rest = ("loss", "ties", "margin", "reward_mean", "reward_std")
    return accuracy | named | {name: getattr(report, name) for name in rest}


def _tensors(params: Params, model: ModelConfig, checkpoints: Checkpoints, step: int) -> Tensors:
    """The trained tensors, where this process can read them: with several processes that is the
    checkpoint, as none holds the whole model, nor has room for it."""
    if jax.process_count() == 1:
        return ParamTensors(model, params)
    if checkpoints.latest() != step:
        raise TrainingError(
            f"The last step, {step}, could not be saved (see above), so there is nothing to "
            f"export. Make room, and run the same command again: it continues from the newest "
            f"checkpoint."
        )
    return RewardTensors(open_orbax(checkpoints.folder / str(step)).source)


def _export(
    workdir: epath.Path,
    pretrained: Pretrained,
    model: ModelConfig,
    tensors: Tensors,
    steps: int,
    meta: dict[str, Any],
    found: evaluate.Report,
) -> epath.Path:
    """The Hugging Face directory, with what a later evaluation needs to know about its origin."""
    about = about_run(meta, steps, found.to_json())
    files = {
        "toolrm.json": json.dumps(about, indent=2) + "\n",
        "README.md": model_card(workdir.name, model, about, "float32"),
    }
    return save_directory(workdir / "export", model, tensors, pretrained.tokenizer, files)


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


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; a field that does not exist, and a config that does not load, get one line."""
    try:
        rest = app.parse_flags_with_usage(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.get("seed")  # a config that failed to load says so when it is used
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, KeyError):  # a mistyped field: ml_collections wraps its suggestion
            reason = f"no field {reason.args[0]}"
        raise SystemExit(f"error: --config: {' '.join(str(reason).split())}") from None
    return rest


def run() -> None:
    """Parses flags and trains."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
