"""The door between a config (`ml_collections`) and the frozen dataclasses inside: checked once.

Every error names the field, its value and what it may be, before a model is opened. And what the
processes of a run must agree on, and a run that is continued with what it was.

    mesh, plan, optimizer, compute = unpack(config)
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.errors import InputError
from toolrm_jax.model import Compute
from toolrm_jax.optimizer import OptimizerConfig
from toolrm_jax.paths import PathError, absolute
from toolrm_jax.processes import Exchange
from toolrm_jax.sharding import make_mesh, row_shards


class TrainingError(InputError, RuntimeError):
    """A run that cannot start or go on; the message says why."""


def run_folder(path: str | os.PathLike[str]) -> epath.Path:
    """The folder of a run: of a file system that all of its processes share, or gs://."""
    try:
        return absolute(path)
    except PathError as error:
        raise TrainingError(f"--workdir={error}") from error


def refuse_unshared(folder: epath.Path) -> None:
    """Raises where the processes of the run do not see the same folder: their checkpoints would
    never be complete. All processes must take part."""
    probe = folder / f".seen-by-all-{uuid.uuid4().hex}"
    if jax.process_count() == 1:
        return
    if jax.process_index() == 0:
        probe.write_text("")
    exchange = Exchange("workdir")
    name = exchange.from_first(probe.name)
    seen = exchange.gather(str((folder / name).exists()))
    blind = [process for process, answer in enumerate(seen) if answer != str(True)]
    if jax.process_index() == 0:
        probe.unlink()
    if blind:
        raise TrainingError(
            f"--workdir={folder}: what process 0 writes there, the processes {blind} do not see. "
            f"Give a folder of a file system that all machines share, or gs://bucket/folder."
        )


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Turns an error about a value into one that says in which part of the config it is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise TrainingError(f"config.{name}: {error}") from error


def unpack(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> tuple[jax.sharding.Mesh, PlanConfig, OptimizerConfig, Compute]:
    """Everything that can be checked before a model is opened: seconds, not minutes, to a typo.

    `devices` are those of the mesh; by default all that there are.
    """
    check_numbers(config)
    with section("mesh"):
        mesh = make_mesh(**config.mesh, devices=devices)
    with section("data"):
        plan = _plan(config.data, row_shards(mesh), mesh.shape["sequence"])
    with section("optimizer"):
        optimizer = OptimizerConfig(steps=max(config.train.steps, 1), **config.optimizer)
    with section("model"):
        compute = Compute(config.model.dtype, config.model.remat, config.model.attention)
    return mesh, plan, optimizer, compute


def check_numbers(config: ConfigDict) -> None:
    """Refuses a number that is missing or below the least that has a meaning."""
    least = {
        "seed": 0,
        "model.num_layers": 0,
        "data.wrong_per_task": 1,
        "data.max_tokens": 0,
        "data.workers": 0,
        "loss.eta": 0,
        "train.steps": 0,
        "train.log_every": 1,
        "train.eval_every": 0,
        "train.eval_rows": 1,
        "train.checkpoint_every": 0,
        "train.checkpoint_minutes": 0,
        "train.keep_checkpoints": 1,
        "train.hang_minutes": 0,
        "train.patient_minutes": 0,
        "train.lost_seconds": 5,
    }
    fields = _flat(config.to_dict())
    for name, low in least.items():
        if name not in fields:
            raise TrainingError(
                f"config.{name} is missing: toolrm_jax/default_config.py has every field, with "
                f"its meaning; start from it."
            )
        if not fields[name] >= low:
            raise TrainingError(f"config.{name}={fields[name]}: it must be {low} or more.")
    profile = config.profile_steps
    if len(profile) != 2 or not all(isinstance(n, int) and n >= 0 for n in profile):
        raise TrainingError(
            f"config.profile_steps={profile!r}: expected (steps to skip, steps to trace), as "
            f"(10, 3); (0, 0) traces none."
        )
    if not config.train.steps and not config.train.epochs > 0:
        raise TrainingError(
            f"config.train.epochs={config.train.epochs}: with train.steps=0 it says how long to "
            f"train, so it must be more than 0."
        )


def _plan(data: ConfigDict, shards: int, sequence: int) -> PlanConfig:
    for shape in data.row_shapes:
        sizes = shape if isinstance(shape, tuple | list) else ()
        if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"row_shapes has {shape!r}; expected (tokens, responses), both > 0.")
        if shape[0] % sequence:
            raise ValueError(
                f"row_shapes has {shape[0]} tokens, which mesh.sequence={sequence} devices cannot "
                f"share alike: choose a multiple."
            )
        if shape[0] > data.batch_tokens:
            raise ValueError(
                f"batch_tokens={data.batch_tokens} is less than one row of {shape[0]} tokens: "
                f"raise it, or choose shorter row_shapes."
            )
    shapes = tuple(RowShape(*shape) for shape in data.row_shapes)
    return PlanConfig(shapes, data.batch_tokens, data.micro_batches, row_multiple=shards)


# What may change between two parts of a run: nothing that training computes depends on it.
_FREE = (
    "profile_steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_rows",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.checksums",
    "train.hang_minutes",
    "train.patient_minutes",
    "train.lost_seconds",
    "train.export",
    "train.compilation_cache",
    "data.workers",
    # They change in which order sums are rounded, as the mesh does.
    "model.remat",
    "model.attention",
    # Their content counts, which the fingerprints of data tell, not how the paths are spelled.
    "data.train",
    "data.heldout",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
)


def refuse_other_run(saved: dict[str, Any], meta: dict[str, Any], workdir: epath.Path) -> None:
    """A workdir belongs to one config: continued under another, it would be a run of neither."""
    old, new = _flat(saved["config"]), _flat(meta["config"])
    changes = [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in _FREE and old.get(name) != new.get(name)
    ]
    # The plan of batches depends on the mesh where a micro-batch cannot be split over its shards.
    for tokens, rows in meta["rows"].items():
        if saved["rows"].get(tokens, rows) != rows:
            changes.append(
                f"mesh: micro-batches of {saved['rows'][tokens]} rows of {tokens} tokens -> {rows}"
            )
    if saved["model"] != meta["model"]:
        changes.append("model.source: another model than before")
    for side, fingerprint in meta["data"].items():
        if saved["data"][side] != fingerprint:
            changes.append(f"data.{side}: other rows, or tokens, than before")
    if changes:
        raise TrainingError(
            f"{workdir} holds checkpoints of another run ({'; '.join(changes)}). Use another "
            f"--workdir, or go back to what it was."
        )


# What each process of a run may have for itself: where it finds things, and how it reads them.
_OWN = ("data.train", "data.heldout", "data.workers", "profile_steps", "train.compilation_cache")


def refuse_differing(meta: dict[str, Any], steps: int) -> None:
    """Raises where the processes of a run would not do the same, and wait for each other for ever;
    all must take part."""
    fields = {name: x for name, x in _flat(meta["config"]).items() if name not in _OWN}
    rest = json.dumps([meta | {"config": None}, steps], sort_keys=True)
    about = json.dumps([fields, hashlib.sha256(rest.encode()).hexdigest()])
    (first, digest), *others = map(json.loads, Exchange("run").gather(about))
    problems = []
    for process, (mine, digest_of_mine) in enumerate(others, 1):
        changes = [
            f"{name}={mine.get(name)!r} and not {first.get(name)!r}"
            for name in sorted(first.keys() | mine.keys())
            if first.get(name) != mine.get(name)
        ]
        if changes or digest_of_mine != digest:
            what = (
                ", ".join(changes) or "another model, or other rows in data.train or data.heldout"
            )
            problems.append(f"process {process} has {what}")
    if problems:
        raise TrainingError(
            f"The processes would not train the same: beside process 0, {'; '.join(problems)}. "
            f"Start all with the same command, and give files that are the same on all machines, "
            f"or gs://bucket/file."
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
