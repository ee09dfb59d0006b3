"""Trains a reward model: `python -m toolrm_jax.train --config configs/quickstart.py --workdir DIR`.

    open model, tokenizer -> index data -> mesh, parameters, optimizer -> (restore) -> steps -> evaluate -> export

Running the same command again continues from the newest checkpoint, and ends bit-equal to a run that was never
interrupted. In the workdir: checkpoints/, metrics.jsonl, tensorboard/, rejects-*.jsonl, evaluation.json, export/.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from toolrm_jax import evaluate
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig, Step
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.checkpoint import Checkpoints, config_to_json
from toolrm_jax.huggingface import load_params, save_directory, truncate
from toolrm_jax.loader import (
    Index,
    Loader,
    RowFile,
    RowTokenizer,
    build_index,
    to_device,
    write_rejects,
)
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.model import Compute, Forward
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh, row_shards
from toolrm_jax.train_step import TrainState, make_train_step, new_state

EMBEDDED_PAIRS = "embedded:bfcl"


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a finished run leaves in memory, for what comes after it."""

    evaluation: evaluate.Report
    scores: evaluate.PairScores
    export: Path | None
    layers: int
    parameters: int
    pairs_seen: int
    steps: int


def train(config: ConfigDict, workdir: str | Path) -> Trained:
    """Runs a training config to its end; see the module's docstring."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    lead = jax.process_index() == 0
    say = _say if lead else lambda *_: None

    # --- Model and data ------------------------------------------------------------------------
    pretrained = open_pretrained(config.model.source)
    source = truncate(pretrained.source, config.model.num_layers)
    mesh = make_mesh(**config.mesh)
    plan = _plan_config(config.data, row_shards(mesh))
    tokenize = RowTokenizer(Renderer(pretrained.tokenizer), config.data.blind)
    train_rows, heldout_rows = _row_files(config, workdir)
    loader = _loader(config, train_rows, tokenize, plan, "train", workdir, say)
    heldout = _loader(config, heldout_rows, tokenize, plan, "held-out", workdir, say)
    steps = config.train.steps or _steps_of(loader, config.train.epochs)
    say(
        f"{config.model.source}: {source.config.num_layers} layers, "
        f"{source.config.num_parameters / 1e6:.1f}M parameters; {steps} steps of up to "
        f"{plan.batch_tokens * plan.micro_batches} tokens, {100 * loader.padding_share():.1f}% padding"
    )

    with jax.set_mesh(mesh):
        # --- State -----------------------------------------------------------------------------
        optimizer = make_optimizer(OptimizerConfig(steps=steps, **config.optimizer))
        forward = Forward(source.config, Compute(config.model.dtype, config.model.remat))
        train_step = make_train_step(forward, optimizer, config.loss.eta)
        rewards_of = evaluate.make_reward_function(forward)
        state = new_state(load_params(source, mesh, config.seed), optimizer)
        checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
        meta = {
            "config": json.loads(config.to_json_best_effort()),
            "model": config_to_json(source.config),
            "train_tasks": _ids(loader.index),
            "heldout_tasks": _ids(heldout.index),
        }
        if checkpoints.latest() is not None:
            _refuse_other_run(checkpoints.meta(), meta, workdir)
            state, _ = checkpoints.restore(state)
            say(f"continuing at step {int(state.step)} from {workdir / 'checkpoints'}")
        start = int(state.step)
        log = MetricsLog(workdir, start, enabled=lead)

        # --- Steps -----------------------------------------------------------------------------
        clock = _Clock(steps, start)
        pending: list[tuple[int, Step, dict[str, jax.Array]]] = []
        for number, batches in enumerate(loader.batches(start, steps), start):
            state, metrics = train_step(state, to_device(batches, mesh))
            pending.append((number, loader.locate(number), metrics))
            done = number + 1
            saving = done % config.train.checkpoint_every == 0 or done == steps
            evaluating = config.train.eval_every and done % config.train.eval_every == 0
            if done % config.train.log_every == 0 or saving or evaluating:
                means = _fetch(pending, workdir)
                rates = clock.rates(done, pending, loader)
                pending = []
                log.write(done, "train", means | rates)
                say(_line(done, steps, means, rates))
            if saving:
                checkpoints.save(state, meta | {"loader": {"next_step": done}})
            if evaluating and done < steps:
                part = heldout.first(config.train.eval_rows)
                found = evaluate.report(evaluate.score(rewards_of, state.params, part, mesh))
                log.write(done, "heldout", _scalars(found))
                say(f"step {done}: held-out accuracy {found.accuracy} on {found.accuracy.n} pairs")
                clock.skip()
        checkpoints.wait()

        # --- Evaluation and export -------------------------------------------------------------
        scores = evaluate.score(rewards_of, state.params, heldout, mesh)
        found = evaluate.report(scores, config.loss.eta)
        log.write(steps, "heldout", _scalars(found))
        log.close()
        checkpoints.close()
        say(f"held-out accuracy {found.accuracy} on {found.accuracy.n} pairs, {found.ties} ties")
        pairs_seen = sum(
            len(loader.index.kept[i]) for s in range(steps) for i in loader.locate(s).examples()
        )
        export = None
        if lead:
            (workdir / "evaluation.json").write_text(json.dumps(found.to_json(), indent=2) + "\n")
            if config.train.export:
                export = _export(workdir, pretrained, source.config, state, meta, found)
                say(f"exported to {export}")
    return Trained(
        found,
        scores,
        export,
        source.config.num_layers,
        source.config.num_parameters,
        pairs_seen,
        steps,
    )


def _plan_config(data: ConfigDict, shards: int) -> PlanConfig:
    shapes = tuple(RowShape(*shape) for shape in data.row_shapes)
    # Rows must divide among the mesh's shards, and among processes, which each hold whole shards.
    return PlanConfig(shapes, data.batch_tokens, data.micro_batches, row_multiple=shards)


def _row_files(config: ConfigDict, workdir: Path) -> tuple[RowFile, RowFile]:
    paths = {"train": config.data.train, "heldout": config.data.heldout}
    if EMBEDDED_PAIRS in paths.values():
        files = ensure_pairs(
            workdir / "pairs", seed=config.seed, wrong_per_task=config.data.wrong_per_task
        )
        built = {"train": files.train, "heldout": files.heldout}
        paths = {
            side: built[side] if path == EMBEDDED_PAIRS else path for side, path in paths.items()
        }
    return RowFile(paths["train"]), RowFile(paths["heldout"])


def _loader(
    config, rows: RowFile, tokenize: RowTokenizer, plan: PlanConfig, side: str, workdir: Path, say
) -> Loader:
    """Indexes one side of the data; says, and writes down, what had to be left out."""
    index = build_index(rows, tokenize, plan.shapes, config.data.workers, side)
    if index.rejects:
        path = workdir / f"rejects-{side}.jsonl"
        write_rejects(path, index)
        reasons = ", ".join(f"{n} {reason}" for reason, n in index.counts().items())
        say(
            f"{side}: {int(index.usable.sum())} of {len(rows)} prompts used; left out: {reasons} ({path})"
        )
    training = side == "train"
    if not training:
        plan = dataclasses.replace(plan, micro_batches=1)
    return Loader(
        rows,
        index,
        tokenize,
        plan,
        config.seed,
        training,
        config.data.workers,
        jax.process_index(),
        jax.process_count(),
    )


def _steps_of(loader: Loader, epochs: float) -> int:
    return max(1, round(epochs * len(loader.epoch(0))))


def _ids(index: Index) -> list[str]:
    return [row_id for row_id, used in zip(index.ids, index.usable, strict=True) if used]


def _refuse_other_run(saved: dict[str, Any], meta: dict[str, Any], workdir: Path) -> None:
    """A workdir belongs to one config: continuing it under another would give a run that nobody asked for."""
    free = ("train.log_every", "train.eval_every", "train.eval_rows", "train.keep_checkpoints", "train.export",
            "train.checkpoint_every", "data.workers", "mesh.data", "mesh.fsdp", "mesh.tensor")  # fmt: skip
    old, new = _flat(saved["config"]), _flat(meta["config"])
    differing = [
        f for f in sorted(old.keys() | new.keys()) if f not in free and old.get(f) != new.get(f)
    ]
    if differing:
        changes = ", ".join(f"{f}: {old.get(f)!r} -> {new.get(f)!r}" for f in differing)
        raise TrainingError(
            f"{workdir} holds checkpoints of another config ({changes}). Use another --workdir, or "
            f"go back to the old values."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _fetch(pending: list, workdir: Path) -> dict[str, float]:
    """Means over the steps since the last log line; stops the run at the first loss that is not finite."""
    fetched = [(number, jax.device_get(metrics)) for number, _, metrics in pending]
    for number, metrics in fetched:
        if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
            raise TrainingError(
                f"Step {number + 1}: loss {metrics['loss']}, gradient norm {metrics['gradient_norm']}: not "
                f"finite. Nothing after the last checkpoint in {workdir} is kept. Try a lower "
                f"optimizer.learning_rate, or model.dtype=float32."
            )
    return {name: float(np.mean([m[name] for _, m in fetched])) for name in fetched[0][1]}


class _Clock:
    """Rates since the last log line, and the time left. Compilation counts: it is waited for too."""

    def __init__(self, steps: int, start: int):
        self.steps, self.start = steps, start
        self.began = self.last = time.perf_counter()
        self.skipped = 0.0

    def skip(self) -> None:
        """Forgets the time since the last line (an evaluation's)."""
        now = time.perf_counter()
        self.skipped += now - self.last
        self.last = now

    def rates(self, done: int, pending: list, loader: Loader) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        examples = [i for _, step, _ in pending for i in step.examples()]
        pairs = sum(len(loader.index.kept[i]) for i in examples)
        tokens = int(loader.index.lengths.tokens[examples].sum())
        per_step = (now - self.began - self.skipped) / (done - self.start)
        return {
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "eta_seconds": per_step * (self.steps - done),
        }


def _line(done: int, steps: int, m: dict[str, float], rates: dict[str, float]) -> str:
    minutes, seconds = divmod(round(rates["eta_seconds"]), 60)
    return (
        f"step {done}/{steps}  loss {m['loss']:.4f}  accuracy {100 * m['accuracy']:.1f}%  margin {m['margin']:+.3f}"
        f"  reward {m['reward_mean']:+.2f}±{m['reward_std']:.2f}  |g| {m['gradient_norm']:.2f}"
        f"  {rates['pairs_per_second']:.1f} pairs/s  {rates['tokens_per_second']:.0f} tok/s  ETA {minutes}:{seconds:02d}"
    )


def _scalars(report: evaluate.Report) -> dict[str, float]:
    named = {f"accuracy/{name}": found.mean for name, found in report.by_error_type.items()}
    accuracy = {
        "accuracy": report.accuracy.mean,
        "accuracy_low": report.accuracy.low,
        "accuracy_high": report.accuracy.high,
    }
    rest = ("loss", "ties", "margin", "reward_mean", "reward_std")
    return accuracy | named | {name: getattr(report, name) for name in rest}


def _export(
    workdir: Path, pretrained: Pretrained, model, state: TrainState, meta, found: evaluate.Report
) -> Path:
    """The Hugging Face directory, with what a later evaluation needs to know about its origin."""
    about = {key: meta[key] for key in ("config", "train_tasks", "heldout_tasks")}
    about |= {"step": int(state.step), "heldout": found.to_json()}
    files = {"toolrm.json": json.dumps(about, indent=2) + "\n"}
    return save_directory(workdir / "export", model, state.params, pretrained.tokenizer, files)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Training config, for example configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics, export.")


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}; fields are set as --config.train.steps=50."
        )
    logging.set_verbosity(logging.WARNING)  # Orbax logs dozens of lines per save
    train(_CONFIG.value, _WORKDIR.value)


def run() -> None:
    """Parses flags and trains."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    run()
