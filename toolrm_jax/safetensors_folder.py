"""Folders of safetensors files: read by rows, written as a stream, in shards with an index.

    model-00001-of-00002.safetensors    8 bytes: length of the header
    model-00002-of-00002.safetensors    header: {name: {"dtype", "shape", "data_offsets"}}
    model.safetensors.index.json        the tensors, one after the other
    tensor_sha256.json                  {name: SHA-256 of the tensor's bytes}  (ours)

The header comes first and says where each tensor lies, so tensors can be written in any order, by
several threads, a piece at a time; the `safetensors` package itself wants whole files in memory.
Reading leaves the check of a header to that package, and takes byte ranges alone, of files or of
objects (gs://). Format: https://huggingface.co/docs/safetensors

    >>> folder = SafetensorsFolder("path/to/checkpoint")
    >>> folder.rows("model.embed_tokens.weight", 0, 10).shape
    (10, 576)
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from toolrm_jax.files import write_durably
from toolrm_jax.paths import ShortFile, as_path, is_remote, read_range
from toolrm_jax.tensors import DTYPES, CheckpointError, Spec, Tensors, transfer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CHECKSUMS = "tensor_sha256.json"
DEFAULT_SHARD_BYTES = 5 * 10**9

# No header is longer, by the format's own limit.
_HEADER_BYTES = 100_000_000

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    file: epath.Path
    offset: int
    spec: Spec


def read_json(path: Path | epath.Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected an object.")
    return content


# --- reading --------------------------------------------------------------------------------------


class SafetensorsFolder(Tensors):
    """The tensors of a directory of safetensors files.

    Raises:
      CheckpointError: naming every file that is absent or unreadable, every tensor that is not
        where the index says, and every type that is not supported.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = as_path(folder)
        problems: list[str] = []
        self._places: dict[str, _Place] = {}
        for file, names in self._files(problems).items():
            self._add(file, names, problems)
        if problems:
            raise CheckpointError(f"{self.folder}: " + "; ".join(problems) + ". Fetch it again.")
        stated = self.folder / CHECKSUMS
        self._stated = read_json(stated) if stated.exists() else {}

    def _files(self, problems: list[str]) -> dict[epath.Path, set[str] | None]:
        """Every file, and the tensors that it holds by the index (None: there is no index)."""
        index = self.folder / INDEX
        if not index.exists():
            return {self._single(): None}
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
            raise CheckpointError(
                f"{index} has no usable weight_map: expected an object from tensor names to names "
                f"of files beside it. Fetch it again."
            )
        absent = sorted({f for f in weight_map.values() if not (self.folder / f).exists()})
        if absent:
            problems.append(f"{INDEX} names files that are not there: {', '.join(absent)}")
        files = sorted(set(weight_map.values()) - set(absent))
        return {
            self.folder / file: {name for name, f in weight_map.items() if f == file}
            for file in files
        }

    def _single(self) -> epath.Path:
        single = self.folder / SINGLE
        if not single.exists():
            pickles = sorted(
                path.name
                for end in ("bin", "pt", "pth", "ckpt")
                for path in self.folder.glob(f"*.{end}")
            )
            raise CheckpointError(
                f"{self.folder} has no {SINGLE} and no {INDEX}."
                + (
                    f" Its pickle files are not read, as reading a pickle runs code: save "
                    f"{', '.join(pickles)} again as safetensors, with "
                    f"model.save_pretrained(folder) in a current transformers."
                    if pickles
                    else ""
                )
            )
        return single

    def _add(self, file: epath.Path, names: set[str] | None, problems: list[str]) -> None:
        try:
            header, start = _read_header(file)
        except (SafetensorError, ShortFile, OSError, ValueError) as error:
            problems.append(
                f"{file.name} is not a readable safetensors file ({error}): truncated or damaged"
            )
            return
        for name in sorted(names - set(header)) if names is not None else ():
            problems.append(f"{file.name}: {name} cannot be read: {INDEX} places it there in vain")
        for name in set(header) if names is None else sorted(names & set(header)):
            entry = header[name]
            if entry["dtype"] not in DTYPES:
                problems.append(
                    f"{name} is stored as {entry['dtype']}; supported: {', '.join(DTYPES)}"
                )
                continue
            spec = Spec(tuple(entry["shape"]), DTYPES[entry["dtype"]])
            self._places[name] = _Place(file, start + entry["data_offsets"][0], spec)

    def spec(self, name: str) -> Spec:
        return self._places[name].spec

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        place = self._places[name]
        first = place.offset + start * place.spec.row_bytes
        try:
            data = read_range(place.file, first, first + (stop - start) * place.spec.row_bytes)
        except ShortFile as error:
            raise CheckpointError(f"{place.file} has become shorter while it was read.") from error
        return data.view(place.spec.dtype).reshape(stop - start, *place.spec.shape[1:])

    def stated_sha256(self, name: str) -> str | None:
        return self._stated.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _is_file_name(name: Any) -> bool:
    # An index comes from somewhere else: it must not lead out of its folder.
    return isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")


def _read_header(path: epath.Path) -> tuple[dict[str, Any], int]:
    """The header of a file, which the safetensors package finds sound, and where its data begin."""
    size = path.stat().length
    if size < 8:
        raise ValueError("no header")
    length = int.from_bytes(read_range(path, 0, 8).tobytes(), "little")
    if length > min(size - 8, _HEADER_BYTES):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    text = read_range(path, 8, 8 + length).tobytes()
    with _as_file(path, text, size) as file, safe_open(file, framework="numpy"):
        header = json.loads(text)
    header.pop("__metadata__", None)
    return header, 8 + length


@contextlib.contextmanager
def _as_file(path: epath.Path, header: bytes, size: int) -> Iterator[str]:
    """The file itself; for an object, a file of its header and size that takes no more room."""
    if not is_remote(path):
        yield str(path)
        return
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(size)
        file.flush()
        yield file.name


# --- writing --------------------------------------------------------------------------------------


def write_safetensors(
    folder: Path,
    tensors: Tensors,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    bar: tqdm | None = None,
) -> dict[str, str]:
    """Writes the tensors to an existing folder, in the order they come, and reads them back.

    Memory: a few pieces. One file `model.safetensors` if all fit in `max_shard_bytes`, else shards
    and an index; and `tensor_sha256.json`. Every file is on the disk when this returns.

    Returns the SHA-256 of each tensor.

    Raises:
      CheckpointError: what was read is not finite, or not what its source states; or what was
        written reads back differently.
    """
    bar = bar if bar is not None else tqdm(disable=True)
    shards = _plan(tensors, max_shard_bytes)
    with _Files(folder, shards, tensors) as files:
        found = transfer(tensors, files.write, bar)
        refuse(found.problems)
    total = sum(tensors.spec(name).nbytes for name in tensors)
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_durably(folder / INDEX, json.dumps(index, indent=2) + "\n")
    checksums = dict(sorted(found.sha256.items()))
    write_durably(folder / CHECKSUMS, json.dumps(checksums, indent=2) + "\n")
    # It reads back against the checksums just written.
    refuse(transfer(SafetensorsFolder(folder), None, bar).problems)
    return found.sha256


def refuse(problems: list[str]) -> None:
    """One error for all problems of a pass over the tensors, if there are any."""
    if problems:
        raise CheckpointError(
            "; ".join(problems) + ". Nothing was written; fetch or train the checkpoint again."
        )


def _plan(tensors: Tensors, max_bytes: int) -> dict[str, list[str]]:
    """File name -> tensors. A shard is full where the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name in tensors:
        size = tensors.spec(name).nbytes
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names
        for i, names in enumerate(shards)
    }


class _Files:
    """The shards, open for writing at any place."""

    def __init__(self, folder: Path, shards: Mapping[str, list[str]], tensors: Tensors):
        self._places: dict[str, tuple[int, int, int]] = {}
        self._descriptors: list[int] = []
        try:
            for file, names in shards.items():
                self._create(folder / file, names, tensors)
        except BaseException:
            self._close()
            raise

    def _create(self, path: Path, names: list[str], tensors: Tensors) -> None:
        header, size = _header({name: tensors.spec(name) for name in names})
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        self._descriptors.append(descriptor)
        # All of the space now: a full disk shows before an hour of work.
        os.posix_fallocate(descriptor, 0, len(header) + size)
        _write_from(descriptor, np.frombuffer(header, np.uint8), 0)
        offset = len(header)
        for name in _aligned(names, tensors):
            spec = tensors.spec(name)
            self._places[name] = descriptor, offset, spec.row_bytes
            offset += spec.nbytes

    def write(self, name: str, row: int, piece: np.ndarray) -> None:
        descriptor, offset, row_bytes = self._places[name]
        data = piece.reshape(-1).view(np.uint8)
        _write_from(descriptor, data, offset + row * row_bytes)

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def __enter__(self) -> "_Files":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                for descriptor in self._descriptors:
                    os.fsync(descriptor)
        finally:
            self._close()


def _aligned(names: list[str], tensors: Tensors) -> list[str]:
    """Wider types first, so that every tensor begins at a multiple of its number's size."""
    return sorted(names, key=lambda name: -tensors.spec(name).dtype.itemsize)


def _header(specs: dict[str, Spec]) -> tuple[bytes, int]:
    """The length and header of a file, as bytes, and the size of its data."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(specs, key=lambda name: -specs[name].dtype.itemsize):
        spec = specs[name]
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text, offset


def _write_from(descriptor: int, data: np.ndarray, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:].data, offset + done)
