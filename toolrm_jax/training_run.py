"""A training run under way: its steps, saves and evaluations, and its end.

    run = TrainingRun(config=config, workdir=workdir, inputs=inputs, ...)
    state = run.train(state, train_step, start_up)
    report = run.finish(state)            # evaluation, export

In the workdir: what `checkpoints` and `log` write, heldout_scores.jsonl, export/, and, last,
evaluation.json.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from toolrm_jax import pair_scores
from toolrm_jax.batch import Batch
from toolrm_jax.checkpoint import Checkpoints, Score
from toolrm_jax.files import write_text
from toolrm_jax.huggingface import ParamTensors, RewardTensors, save_directory
from toolrm_jax.interruption import Stopped, StopRequest
from toolrm_jax.loader import to_device
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.model import Params
from toolrm_jax.model_card import model_card
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.orbax_folder import about_run, open_orbax
from toolrm_jax.processes import Exchange
from toolrm_jax.run_inputs import Inputs, Say
from toolrm_jax.start_up import StartUp
from toolrm_jax.step_trace import StepTrace
from toolrm_jax.tensors import Tensors
from toolrm_jax.throughput import Throughput, line
from toolrm_jax.train_config import TrainingError
from toolrm_jax.train_step import TrainState
from toolrm_jax.watchdog import Watchdog

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """What steps, saves, evaluations and the end of a run have in common.

    Every process has one, and calls the same of it in the same order.
    """

    config: ConfigDict
    workdir: epath.Path
    inputs: Inputs
    mesh: jax.sharding.Mesh
    watchdog: Watchdog
    say: Say
    checkpoints: Checkpoints
    log: MetricsLog
    meter: Throughput
    trace: StepTrace
    stop: StopRequest
    rewards_of: pair_scores.RewardFunction

    def train(
        self,
        state: TrainState,
        train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
        start_up: StartUp,
    ) -> TrainState:
        """Takes the steps that the state has not seen yet.

        Raises:
          Stopped: it was asked to, and has saved.
          TrainingError: a loss or a gradient is not finite.
        """
        loader, steps, start = self.inputs.loader, self.inputs.steps, int(state.step)
        times = self.config.train
        due = _SaveTimes(times.checkpoint_every, times.checkpoint_minutes, steps)
        pending: list[tuple[int, Metrics]] = []
        compiled = set()
        for number, batches in enumerate(self.meter.inputs(loader.batches(start, steps)), start):
            step, done = loader.locate(number), number + 1
            self.watchdog.feed(f"step {done}", patient=step.shape not in compiled)
            compiled.add(step.shape)
            with self.trace.step(number):
                state, metrics = train_step(state, to_device(batches, self.mesh))
            self.meter.dispatched(step, metrics["loss"])
            if number == start:
                self._first_step_done(metrics, start, start_up)
            if pending:  # one step computes while the next is prepared, and no more are queued
                jax.block_until_ready(pending[-1][1])
            pending.append((number, metrics))
            if self.trace.dispatched(number, metrics):
                self.say(
                    f"trace of steps until {done} in {self.workdir / 'profile'}: docs/train.md"
                )
            stopping = self.stop.reached(done)
            logging_now = done % times.log_every == 0
            evaluating = times.eval_every and done % times.eval_every == 0
            saving = due(done, ask=logging_now) or stopping
            if logging_now or saving or evaluating:
                self._tell(done, pending)
                pending = []
            # Before saving: a run that goes on from this step has evaluated it.
            score = self._evaluate(state, done) if evaluating and done < steps else None
            if saving or (score and self.checkpoints.improves(score)):
                self._save(state, done, score, for_certain=stopping or done == steps)
                due.saved()
            self._tell_failures()
            if stopping:
                raise Stopped(_stopping(self.checkpoints, done))
        return state

    def _first_step_done(self, metrics: Metrics, start: int, start_up: StartUp) -> None:
        jax.block_until_ready(metrics)
        start_up.first_step_done()
        self.say(start_up.line())
        self.log.write(start, "start-up", start_up.seconds())

    def _tell(self, done: int, pending: list[tuple[int, Metrics]]) -> None:
        """The line of the console and of the log about the steps since the last one."""
        means = _fetch(pending, self.workdir)
        rates = self.meter.rates(done)
        self.log.write(done, "train", means | rates)
        self.say(line(done, self.inputs.steps, means, rates))

    def _evaluate(self, state: TrainState, done: int) -> Score:
        part = self.inputs.heldout.first(self.config.train.eval_rows)
        scores = pair_scores.score(self.rewards_of, state.params, part, self.mesh)
        found = pair_scores.report(scores, self.config.loss.eta)
        self.log.write(done, "heldout", _scalars(found))
        self.say(f"step {done}: held-out accuracy {found.accuracy} on {found.accuracy.n} pairs")
        self.meter.skip()
        return found.accuracy.mean, -found.loss

    def _save(self, state: TrainState, done: int, score: Score | None, for_certain: bool) -> None:
        self.watchdog.feed(f"saving step {done}", patient=True)
        self.log.share()
        about = self.inputs.meta | {
            "loader": {"next_step": done},
            "heldout": score and list(score),
        }
        self.checkpoints.save(state, about, score)
        if for_certain:  # there will be no other
            self.checkpoints.wait()
            self.checkpoints.save(state, about, score)  # does nothing if it is there
            self.checkpoints.wait()

    def _tell_failures(self) -> None:
        for saved in self.checkpoints.ended():
            if saved.error:
                self.log.write(saved.step, "checkpoint", {"failures": self.checkpoints.failures})
                self.say(
                    f"error: step {saved.step} could not be saved ({saved.error}). Training goes "
                    f"on; {_last_saved(self.checkpoints)}. The next save will be tried as usual."
                )

    # --- The end ----------------------------------------------------------------------------------

    def finish(self, state: TrainState) -> pair_scores.Report:
        """Evaluates on all held-out rows, and exports.

        Raises:
          Stopped: it was asked to; everything is saved.
          InputError: there is no room for the export, say.
        """
        best = self.checkpoints.best()
        if best is not None:
            self.say(
                f"best evaluation during training: accuracy {100 * best[1][0]:.1f} at step "
                f"{best[0]}, in {self.checkpoints.folder / str(best[0])}"
            )
        scores = pair_scores.score(
            self._unless_stopped(), state.params, self.inputs.heldout, self.mesh
        )
        found = pair_scores.report(scores, self.config.loss.eta)
        self.watchdog.feed("export", patient=True)
        self.log.write(self.inputs.steps, "heldout", _scalars(found))
        summary = _summary(self.inputs, found)
        self.say(
            f"{summary['layers']} layers, {summary['parameters']:,} parameters, "
            f"{summary['pairs_seen']:,} pairs seen; held-out accuracy {found.accuracy} on "
            f"{found.accuracy.n:,} pairs, {found.ties} ties"
        )
        lead = jax.process_index() == 0
        with _waited_for(self.watchdog, lead):
            if lead:
                pair_scores.write_scores(self.workdir / "heldout_scores.jsonl", scores)
                if self.config.train.export:
                    self.say(f"exported to {self._export(state.params, found)}")
                # Last, so that it stands for a finished run.
                text = json.dumps(summary, indent=2) + "\n"
                write_text(self.workdir / "evaluation.json", text)
        return found

    def _unless_stopped(self) -> pair_scores.RewardFunction:
        """The rewards, batch by batch, until the run is asked to stop."""
        steps_on = itertools.count(self.inputs.steps + 1)

        def rewards(params: Params, batch: Batch) -> jax.Array:
            if self.stop.reached(next(steps_on)):
                raise Stopped(_stopping(self.checkpoints, self.inputs.steps))
            return self.rewards_of(params, batch)

        return rewards

    def _export(self, params: Params, found: pair_scores.Report) -> epath.Path:
        """The Hugging Face directory, with what a later evaluation needs to know of its origin."""
        model, steps = self.inputs.source.config, self.inputs.steps
        about = about_run(self.inputs.meta, steps, found.to_json())
        files = {
            "toolrm.json": json.dumps(about, indent=2) + "\n",
            "README.md": model_card(self.workdir.name, model, about, "float32"),
        }
        weights = _tensors(params, model, self.checkpoints, steps)
        tokenizer = self.inputs.pretrained.tokenizer
        with _ExportBar(weights, self.watchdog) as bar:
            return save_directory(self.workdir / "export", model, weights, tokenizer, files, bar)


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


def _stopping(checkpoints: Checkpoints, done: int) -> str:
    return (
        f"stopped after step {done}, as asked; {_last_saved(checkpoints)}. The same command "
        f"continues from there."
    )


def _last_saved(checkpoints: Checkpoints) -> str:
    latest = checkpoints.latest()
    return "nothing is saved yet" if latest is None else f"saved until step {latest}"


def _scalars(report: pair_scores.Report) -> dict[str, float]:
    named = {f"accuracy/{name}": found.mean for name, found in report.by_error_type.items()}
    accuracy = {
        "accuracy": report.accuracy.mean,
        "accuracy_low": report.accuracy.low,
        "accuracy_high": report.accuracy.high,
    }
    rest = ("loss", "ties", "margin", "reward_mean", "reward_std")
    return accuracy | named | {name: getattr(report, name) for name in rest}


def _summary(inputs: Inputs, found: pair_scores.Report) -> dict[str, Any]:
    """evaluation.json: what was trained, on how much, and what evaluation found."""
    loader, heldout, model = inputs.loader, inputs.heldout, inputs.source.config
    seen = [i for step in range(inputs.steps) for i in loader.locate(step).examples()]
    return {
        "config": inputs.meta["config"],
        "layers": model.num_layers,
        "parameters": model.num_parameters,
        "steps": inputs.steps,
        "prompts_seen": len(seen),
        "pairs_seen": sum(len(loader.index.kept[i]) for i in seen),
        "rows_sha256": {"train": loader.rows.sha256, "heldout": heldout.rows.sha256},
        "heldout_prompts": int(heldout.index.usable.sum()),
        "heldout": found.to_json(),
    }


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


class _ExportBar(tqdm):
    """Of the bytes that an export writes and reads back; each piece feeds the watchdog."""

    def __init__(self, weights: Tensors, watchdog: Watchdog):
        self._watchdog = watchdog
        nbytes = 2 * sum(weights.spec(name).nbytes for name in weights)
        super().__init__(desc="exporting", total=nbytes, unit="B", unit_scale=True, delay=3)

    def update(self, n: float | None = 1) -> bool | None:
        """A piece more is done."""
        self._watchdog.feed("export", patient=True)
        return super().update(n)


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
