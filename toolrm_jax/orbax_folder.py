"""Our checkpoints as tensors: Orbax folders, read and written by rows.

    out/state/        Orbax: params/blocks/q [L, D, N*H] ...; a training run's has moments besides
    out/meta/metadata JSON: the model, where it came from
    out/tokenizer/    with the chat template; a training run has it beside checkpoints/

A run's workdir, its checkpoints/ (both: the newest step), one step, and what `convert from-hf`
writes are all opened alike. Parameters are stacked over layers and transposed with respect to
Hugging Face's tensors; this module reads a slice of the stack as the tensor that it is, so that a
model is never whole in memory.

What we write is plain Zarr, uncompressed. A chunk is some rows of one layer's Hugging Face tensor,
in Fortran order: its bytes in the file are those of the tensor, and nothing has to be transposed on
the way. `orbax.checkpoint` restores it like any other.

    >>> folder = open_orbax("runs/mine")
    >>> folder.source.tensors.spec("model.embed_tokens.weight").shape
    (49152, 576)
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from tqdm import tqdm

from toolrm_jax.checkpoint import config_from_json, config_to_json
from toolrm_jax.checkpoint_files import DamagedError, refuse_incomplete
from toolrm_jax.errors import first_line
from toolrm_jax.files import write_durably
from toolrm_jax.huggingface import Entry, RewardTensors, Source, entries, placed, refuse_misfits
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.paths import absolute, is_remote
from toolrm_jax.safetensors_folder import read_json, refuse
from toolrm_jax.tensors import DTYPES, CheckpointError, Spec, Tensors, piece_rows, transfer

logger = logging.getLogger(__name__)

_STATE, _META, TOKENIZER = "state", Path("meta/metadata"), "tokenizer"


@dataclasses.dataclass(frozen=True)
class OrbaxFolder:
    """One of our checkpoints: its tensors, what is said about it, and its tokenizer's folder."""

    step_folder: epath.Path
    source: Source
    meta: dict[str, Any]

    @property
    def workdir(self) -> epath.Path | None:
        """The folder of the run that wrote it, or None where it was converted."""
        checkpoints = self.step_folder.parent
        return checkpoints.parent if checkpoints.name == "checkpoints" else None

    @property
    def tokenizer(self) -> epath.Path | None:
        """The folder of its tokenizer, or None where there is none."""
        folder = (self.workdir or self.step_folder) / TOKENIZER
        return folder if folder.is_dir() else None

    @property
    def about(self) -> dict[str, Any]:
        """What an export says about where the weights come from: toolrm.json."""
        if self.workdir is None:
            return dict(self.meta.get("about") or {})
        return about_run(self.meta, int(self.step_folder.name), self._heldout())

    def _heldout(self) -> dict[str, Any] | None:
        """What evaluation found, if the run ended with this step."""
        path = (self.workdir or self.step_folder) / "evaluation.json"
        found = read_json(path) if path.exists() else {}
        same = (found.get("steps"), found.get("config")) == (
            int(self.step_folder.name),
            self.meta.get("config"),
        )
        return found.get("heldout") if same else None


def about_run(meta: dict[str, Any], step: int, heldout: dict[str, Any] | None) -> dict[str, Any]:
    """toolrm.json of a training run: what a later evaluation needs to know about its origin."""
    listed = ("config", "train_tasks", "train_requests", "heldout_tasks")
    about = {key: meta[key] for key in listed if key in meta}
    return about | {"step": step, "heldout": heldout}


def find_step(path: str | os.PathLike[str]) -> epath.Path | None:
    """The folder that holds `state` and `meta`: `path` itself, or the newest step below it."""
    root = absolute(path)
    for folder in (root, *_newest_first(root), *_newest_first(root / "checkpoints")):
        if (folder / _STATE).is_dir() and (folder / _META).is_file() and _is_whole(folder):
            return folder
    return None


def _is_whole(folder: epath.Path) -> bool:
    """Whether it was written to its end. Of what `convert` wrote, the metadata say so; of a step of
    a run, the list of its files, all of which must be there in their sizes (training, which may
    choose an earlier step, compares checksums as well)."""
    if folder.parent.name != "checkpoints" or not folder.name.isdigit():
        return True
    try:
        refuse_incomplete(folder)
    except DamagedError as error:
        logger.warning("checkpoint %s is damaged and is passed over: %s", folder, error)
        return False
    return True


def _newest_first(folder: epath.Path) -> list[epath.Path]:
    steps = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in steps if p.name.isdigit()), key=lambda p: -int(p.name))


def open_orbax(path: str | os.PathLike[str]) -> OrbaxFolder:
    """Opens one of our checkpoints.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it cannot be read.
    """
    folder = find_step(path)
    if folder is None:
        raise FileNotFoundError(
            f"{path} has no checkpoint: expected state/ and meta/, or checkpoints/STEP/ with both."
        )
    meta = read_json(folder / _META)
    try:
        config = config_from_json(meta["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / _META} does not describe a model ({type(error).__name__}: {error}). It was "
            f"written by another program, or is damaged: convert or train again."
        ) from error
    tensors = OrbaxTensors(folder / _STATE, config, meta.get("sha256") or {})
    return OrbaxFolder(folder, Source(config, tensors, str(path)), meta)


# --- reading --------------------------------------------------------------------------------------


class OrbaxTensors(Tensors):
    """The parameters of an Orbax checkpoint under their Hugging Face names and in their shapes."""

    def __init__(self, state: epath.Path, config: ModelConfig, stated: dict[str, str]):
        self._placed, self._stated, self._state = placed(config), stated, state
        self._arrays: dict[tuple[str, ...], ts.TensorStore] = {}
        ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(state)
        problems = []
        for entry, _ in entries(config):
            name = "params." + ".".join(entry.path)
            try:
                self._arrays[entry.path] = _open_array(state, name, ocdbt)
            except ValueError as error:  # all that TensorStore raises
                problems.append(f"{name} ({_told(error)})")
        if problems:
            raise CheckpointError(
                f"{state} lacks, or cannot read: {'; '.join(problems)}. The checkpoint is not "
                f"complete, or damaged: take another step, or write it again."
            )

    def spec(self, name: str) -> Spec:
        entry, _ = self._placed[name]
        view = self._view(name)
        shape = (1, *view.shape) if entry.form == "one row" else view.shape
        return Spec(shape, view.dtype.numpy_dtype)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        entry, _ = self._placed[name]
        view = self._view(name)
        try:
            if entry.form == "one row":
                return view.read().result()[None][start:stop]
            return view[start:stop].read(order="C").result()
        except ValueError as error:
            raise CheckpointError(
                f"{self._state}: {name} cannot be read: {_told(error)}. The checkpoint is "
                f"not complete, or damaged: take another step, or write it again."
            ) from error

    def row_step(self, name: str) -> int:
        chunk: Any = self._view(name).chunk_layout.read_chunk.shape
        return max(1, min(chunk[0], self.spec(name).shape[0]))

    def stated_sha256(self, name: str) -> str | None:
        return self._stated.get(name)

    def _view(self, name: str) -> ts.TensorStore:
        entry, layer = self._placed[name]
        array = self._arrays[entry.path]
        view = array[layer] if entry.stacked else array
        return view.T if entry.form == "transposed" else view

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)


def _open_array(state: epath.Path, name: str, ocdbt: bool) -> ts.TensorStore:
    store: str | dict[str, Any] = {"driver": "file", "path": f"{state}/{name}/"}
    base = f"file://{state}/"
    if is_remote(state):
        base = f"{state}/"
        store = f"{base}{name}/"
    if ocdbt:
        store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    spec = {"driver": "zarr", "kvstore": store, "fill_missing_data_reads": False}
    return ts.open(spec, read=True, open=True).result()


def _told(error: BaseException) -> str:
    text = first_line(error)
    return text if len(text) < 300 else f"{text[:300]}..."


# --- writing --------------------------------------------------------------------------------------


def write_orbax(
    folder: Path,
    config: ModelConfig,
    tensors: Tensors,
    meta: dict[str, Any],
    tokenizer: Any,
    bar: tqdm | None = None,
) -> dict[str, str]:
    """Fills an empty folder with a checkpoint, as a stream, and reads it back.

    Memory: a few pieces. Returns the SHA-256 of each (Hugging Face) tensor, which the metadata hold
    too.

    Raises:
      CheckpointError: what was read is not finite, or not what its source states; or what was
        written reads back differently.
    """
    bar = bar if bar is not None else tqdm(disable=True)
    tokenizer.save_pretrained(folder / TOKENIZER)
    sink = _Sink(tensors, bar)
    registry = ocp.type_handlers.create_type_handler_registry((_Stack, sink))
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder / _STATE, args=ocp.args.PyTreeSave({"params": _tree(_stacks(config, tensors))})
        )
    meta = {"model": config_to_json(config)} | meta | {"sha256": dict(sorted(sink.sha256.items()))}
    (folder / _META).parent.mkdir()
    write_durably(folder / _META, json.dumps(meta, indent=2) + "\n")
    # It reads back against the checksums just written.
    written = open_orbax(folder).source
    refuse_misfits(written)
    refuse(transfer(RewardTensors(written), None, bar).problems)
    return sink.sha256


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A parameter to be written: where in the tree, and how it is laid out."""

    entry: Entry
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]


def _stacks(config: ModelConfig, tensors: Tensors) -> list[_Stack]:
    stacks = []
    for entry, count in entries(config):
        specs = [tensors.spec(entry.name.format(layer)) for layer in range(count)]
        found = {spec.dtype for spec in specs}
        # Layers of several types share the one that holds them all exactly.
        dtype = found.pop() if len(found) == 1 else DTYPES["F32"]
        one = Spec(specs[0].shape, dtype)
        shape = entry.to_ours(np.broadcast_to(np.int8(0), one.shape)).shape
        chunk = _chunk(entry, one, shape)
        if entry.stacked:
            # Vectors are small: those of all layers are one chunk.
            chunk = (count if len(shape) == 1 else 1, *chunk)
            shape = (count, *shape)
        stacks.append(_Stack(entry, shape, dtype, chunk))
    return stacks


def _chunk(entry: Entry, spec: Spec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """As many rows of the Hugging Face tensor as a piece has, so that a piece is one chunk."""
    if len(shape) < 2:
        return shape
    step = piece_rows(spec)
    return (shape[0], step) if entry.form == "transposed" else (step, shape[1])


def _tree(stacks: list[_Stack]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for stack in stacks:
        holder = tree
        for key in stack.entry.path[:-1]:
            holder = holder.setdefault(key, {})
        holder[stack.entry.path[-1]] = stack
    return tree


class _Sink(ocp.type_handlers.TypeHandler):
    """Writes _Stacks for Orbax, by passing all tensors through memory in pieces, once."""

    def __init__(self, tensors: Tensors, bar: tqdm):
        self._tensors, self._bar = tensors, bar
        self._arrays: dict[tuple[str, ...], ts.TensorStore] = {}
        self._vectors: dict[tuple[str, ...], np.ndarray] = {}
        self._placed: dict[str, tuple[_Stack, int]] = {}
        self.sha256: dict[str, str] = {}

    def typestr(self) -> str:
        return "jax.Array"  # who restores it: Orbax's handler of JAX arrays

    async def serialize(self, values: Sequence[_Stack], infos, args=None) -> list[Any]:
        for stack, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            self._create(stack, f"{info.parent_dir}/{info.name}/")
        found = transfer(_Chunked(self._tensors, self._placed), self._write, self._bar)
        refuse(found.problems)
        for path, vector in self._vectors.items():
            self._arrays[path].write(vector).result()
        self.sha256 = found.sha256
        return []

    def _create(self, stack: _Stack, path: str) -> None:
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": path},
            "dtype": stack.dtype.name,
            "metadata": {
                "shape": stack.shape,
                "chunks": stack.chunk,
                "order": "F" if stack.entry.form == "transposed" else "C",
                "compressor": None,
            },
            # Zeros are written too, so that what is missing is known to be missing.
            "store_data_equal_to_fill_value": True,
        }
        self._arrays[stack.entry.path] = ts.open(spec, create=True, open=False).result()
        for layer in range(stack.shape[0] if stack.entry.stacked else 1):
            self._placed[stack.entry.name.format(layer)] = stack, layer
        if stack.chunk == stack.shape:
            self._vectors[stack.entry.path] = np.empty(stack.shape, stack.dtype)

    def _write(self, name: str, row: int, piece: np.ndarray) -> None:
        stack, layer = self._placed[name]
        entry = stack.entry
        if entry.path in self._vectors:
            whole = self._vectors[entry.path]
            part = entry.to_theirs(whole[layer] if entry.stacked else whole)
            part[row : row + len(piece)] = piece
            return
        array = self._arrays[entry.path]
        view = array[layer] if entry.stacked else array
        view = view.T if entry.form == "transposed" else view
        piece = piece.astype(stack.dtype, copy=False)
        view[row : row + len(piece)].write(piece).result()

    async def metadata(self, infos):
        raise NotImplementedError("only writes")

    async def deserialize(self, infos, args=None):
        raise NotImplementedError("only writes")


class _Chunked(Tensors):
    """The same tensors, in pieces that are whole chunks and in the types that are written."""

    def __init__(self, tensors: Tensors, placed: dict[str, tuple[_Stack, int]]):
        self._tensors, self._placed = tensors, placed

    def spec(self, name: str) -> Spec:
        return dataclasses.replace(self._tensors.spec(name), dtype=self._placed[name][0].dtype)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._tensors.rows(name, start, stop).astype(self.spec(name).dtype, copy=False)

    def row_step(self, name: str) -> int:
        stack, _ = self._placed[name]
        if stack.entry.form == "transposed":
            return stack.chunk[-1]
        return stack.chunk[0] if not stack.entry.stacked else 1

    def stated_sha256(self, name: str) -> str | None:
        same = self._tensors.spec(name).dtype == self.spec(name).dtype
        return self._tensors.stated_sha256(name) if same else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
