"""What a training run works on: the model that it starts from, and the rows of both sides.

    inputs = open_inputs(config, workdir, mesh, plan, watchdog, start_up, say)
    inputs.loader.batches(0, inputs.steps)

In the workdir: pairs/ (of the BFCL wheel, where the config asks for them), index/ (what is known of
each row), rejects-*.jsonl (what is left out, and why), tokenizer/.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.checkpoint import config_to_json
from toolrm_jax.huggingface import Source, truncate
from toolrm_jax.index_cache import IndexCache
from toolrm_jax.loader import (
    Index,
    Loader,
    PreferenceRows,
    RowTokenizer,
    build_index,
    open_row_file,
    row_share,
    write_rejects,
)
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.orbax_folder import TOKENIZER
from toolrm_jax.output_folder import free_bytes, new_folder
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import row_shards
from toolrm_jax.start_up import StartUp
from toolrm_jax.train_config import TrainingError, refuse_differing, section
from toolrm_jax.watchdog import Watchdog

EMBEDDED_PAIRS = "embedded:bfcl"
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is the same from the first step to the last."""

    pretrained: Pretrained
    source: Source  # of the layers that are trained
    loader: Loader
    heldout: Loader
    meta: dict[str, Any]  # what a checkpoint says about the run, as JSON
    steps: int


def open_inputs(
    config: ConfigDict,
    workdir: epath.Path,
    mesh: jax.sharding.Mesh,
    plan: PlanConfig,
    watchdog: Watchdog,
    start_up: StartUp,
    say: Say,
) -> Inputs:
    """Opens the model and indexes the data; all processes must take part, and find the same.

    Raises:
      InputError: they cannot be used, or differ between the processes.
    """
    with start_up.phase("model"):
        pretrained = open_pretrained(config.model.source)
    with section("model"):
        source = truncate(pretrained.source, config.model.num_layers)
    tokenize = RowTokenizer(Renderer(pretrained.tokenizer), config.data.blind)
    indexing = functools.partial(watchdog.feed, "indexing the data", patient=True)
    indexing()
    cache = IndexCache(workdir / "index", indexing)
    with start_up.phase("index"):
        train_rows, heldout_rows = _row_files(config, workdir)
        loader = _loader(config, train_rows, tokenize, plan, "train", mesh, workdir, cache, say)
        heldout = _loader(
            config, heldout_rows, tokenize, plan, "held-out", mesh, workdir, cache, say
        )
    meta = _meta(config, source.config, loader, heldout.index)
    steps = config.train.steps or _steps_of(loader, config.train.epochs)
    refuse_differing(meta, steps)
    if jax.process_index() == 0:  # to be exported with a checkpoint, wherever that is taken
        last = "tokenizer_config.json"
        with new_folder(workdir / TOKENIZER, is_ours=lambda _: True, last=last) as partial:
            pretrained.tokenizer.save_pretrained(partial)
    _describe(config, source.config, loader, mesh, steps, say)
    if config.train.export:
        _note_room(source.config, workdir, say)
    return Inputs(pretrained, source, loader, heldout, meta, steps)


def _describe(
    config: ConfigDict,
    model: ModelConfig,
    loader: Loader,
    mesh: jax.sharding.Mesh,
    steps: int,
    say: Say,
) -> None:
    plan = loader.plan
    sizes = {shape.tokens: plan.rows(shape) for shape in plan.shapes}
    for tokens, rows in sizes.items():
        if rows * tokens > config.data.batch_tokens:
            say(
                f"note: {rows} rows of {tokens} tokens a micro-batch, more than "
                f"data.batch_tokens={config.data.batch_tokens} asks for: each of the "
                f"{row_shards(mesh)} shards of rows takes one. The learning rate may want to "
                f"follow; mesh.tensor and mesh.sequence make fewer shards."
            )
    step_tokens = plan.micro_batches * max(rows * tokens for tokens, rows in sizes.items())
    say(
        f"{config.model.source}: {model.num_layers} layers, "
        f"{model.num_parameters / 1e6:.1f}M parameters; {steps} steps of up to "
        f"{step_tokens} tokens, {100 * loader.padding_share():.1f}% padding"
    )


def _note_room(model: ModelConfig, workdir: epath.Path, say: Say) -> None:
    """Before hours of training, what would end it; others may make room until then."""
    needed = 4 * model.num_parameters
    free, where = free_bytes(workdir / "export")
    if needed > free:
        say(
            f"note: the export will take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            f"in {where}, where it is made. Make room, set TMPDIR (for a workdir at gs://), or "
            f"--config.train.export=False."
        )


def _row_files(config: ConfigDict, workdir: epath.Path) -> tuple[PreferenceRows, PreferenceRows]:
    lead = jax.process_index() == 0
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
    cache: IndexCache,
    say: Say,
) -> Loader:
    """Indexes one side of the data; says, and writes down, what had to be left out."""
    workers, training = config.data.workers, side == "train"
    index = build_index(
        rows,
        tokenize,
        plan.shapes,
        workers,
        side,
        config.data.max_tokens,
        cache.measure,
    )
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
        "train_requests": train.used_requests(),
        "heldout_tasks": heldout.used_ids(),
    }
    return json.loads(json.dumps(meta))


def _steps_of(loader: Loader, epochs: float) -> int:
    return max(1, round(epochs * len(loader.epoch(0))))
