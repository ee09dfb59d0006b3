"""Rows from wherever they lie: JSON lines (plain, .gz, .zst), Parquet, a bucket, a hub's data set.

    rows.jsonl   rows.jsonl.gz   rows.jsonl.zst   rows.parquet   gs://bucket/rows.jsonl   org/name

A row is (its line or row number from 1, its JSON as bytes, or the object itself). Blank lines are
no rows. Rows from Arrow tables (Parquet, hubs) lose fields that are null: Arrow gives every object
of a column all fields that any of them has.

    >>> for number, row in open_rows("rows.jsonl.gz"): ...
"""

import contextlib
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard
from etils import epath

from toolrm_jax.errors import InputError
from toolrm_jax.score_request import without_nulls

NumberedRow = tuple[int, bytes | dict[str, Any]]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Of a large file this many blocks are read for its digest, spread evenly: seconds, not minutes.
_BLOCKS, _BLOCK = 64, 1 << 20


class RowSourceError(InputError):
    """An input that cannot be read; the message says which and why."""


class Rows:
    """A sequence of rows that is read from the start; see `open_rows`."""

    def __init__(self, name: str):
        self.name = name

    def __iter__(self) -> Iterator[NumberedRow]:
        raise NotImplementedError

    def count(self) -> int | None:
        """How many rows there are, where that can be found out cheaply."""
        return None

    def digest(self) -> str:
        """What tells this input from another."""
        raise NotImplementedError


class LineRows(Rows):
    """JSON lines, plain or compressed by gzip or Zstandard."""

    def __iter__(self) -> Iterator[NumberedRow]:
        number = 0
        try:
            with self._opened() as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise RowSourceError(
                f"{self.name} is damaged after line {number}: {error}. Nothing after it was read."
            ) from error

    def count(self) -> int | None:
        return sum(1 for _ in self)

    def digest(self) -> str:
        return file_digest(self.name)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with epath.Path(self.name).open("rb") as file:
            if self.name.endswith(".gz"):
                with gzip.open(file) as lines:
                    yield lines
            elif self.name.endswith(".zst"):
                reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
                yield io.BufferedReader(reader, 1 << 20)
            else:
                yield file


class ParquetRows(Rows):
    """The rows of a Parquet file."""

    def __iter__(self) -> Iterator[NumberedRow]:
        number = 0
        with self._opened() as table:
            for batch in table.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield number, without_nulls(row)

    def count(self) -> int | None:
        with self._opened() as table:
            return table.metadata.num_rows

    def digest(self) -> str:
        return file_digest(self.name)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        with epath.Path(self.name).open("rb") as file:
            try:
                yield pyarrow.parquet.ParquetFile(file)
            except pyarrow.ArrowInvalid as error:
                raise RowSourceError(
                    f"{self.name} is not a readable Parquet file: {error}"
                ) from error


class HubRows(Rows):
    """A split of a data set on the Hugging Face hub, or of a local folder in its form; streamed."""

    def __init__(self, name: str, split: str, subset: str | None):
        super().__init__(name)
        self.split, self.subset = split, subset
        self._data = self._load()

    def __iter__(self) -> Iterator[NumberedRow]:
        for number, row in enumerate(self._data, 1):
            yield number, without_nulls(row)

    def count(self) -> int | None:
        known = (self._data.info.splits or {}).get(self.split)
        return known.num_examples or None if known else None

    def digest(self) -> str:
        # Its files are named with the revision they are of.
        files = sorted(map(str, self._data.info.download_checksums or {}))
        about = [self.name, str(self.subset), self.split, str(self._data.info.version), *files]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def _load(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(
                self.name, name=self.subset, split=self.split, streaming=True
            )
        except Exception as error:  # whatever a hub, a proxy or a data set's files may do wrong
            raise RowSourceError(
                f"{self.name!r} is no local file, and as a hub's data set (split {self.split!r}) "
                f"it cannot be opened: {' '.join(str(error).split())[:300]}"
            ) from error


def open_rows(name: str, *, split: str = "train", subset: str | None = None) -> Rows:
    """The rows that `name` stands for (see the module's list); a path that exists wins over a hub
    id. Raises RowSourceError."""
    path = epath.Path(name)
    if path.is_dir():
        return HubRows(name, split, subset)
    if path.exists():
        return ParquetRows(name) if name.endswith(".parquet") else LineRows(name)
    if _HUB_ID.fullmatch(name) and not name.endswith((".jsonl", ".gz", ".zst", ".parquet")):
        return HubRows(name, split, subset)
    raise RowSourceError(
        f"No input at {name!r}: expected a file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), a "
        f"gs:// path, or a hub's data set (org/name)."
    )


def file_digest(name: str | epath.Path) -> str:
    """A digest of a file's size and content; of a large file, of blocks spread all over it."""
    path = epath.Path(name)
    size = path.stat().length
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _BLOCKS * _BLOCK:
            digest.update(file.read())
        else:
            for i in range(_BLOCKS):
                file.seek(i * (size - _BLOCK) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]
