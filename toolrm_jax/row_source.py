"""Rows from wherever they lie: JSON lines (plain, .gz, .zst), Parquet, a bucket, a hub's data set.

    rows.jsonl   rows.jsonl.gz   rows.jsonl.zst   rows.parquet   gs://bucket/rows.jsonl   org/name

A row is (its line or row number from 1, its JSON as bytes, or the object itself). Blank lines are
no rows. Rows from Arrow tables (Parquet, hubs) lose fields that are null: Arrow gives every object
of a column all fields that any of them has.

An input is told from another by its whole content, a hub's by its commit, which is then read. A
file that changes meanwhile is noticed (`check_unchanged`), and one that is cut short is an error.

    >>> for number, row in open_rows("rows.jsonl.gz"): ...
"""

import contextlib
import gzip
import hashlib
import io
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import zstandard
from etils import epath
from tqdm import tqdm

from toolrm_jax.checkpoint_files import by_name
from toolrm_jax.errors import InputError
from toolrm_jax.paths import PathError, as_path, is_remote
from toolrm_jax.score_request import without_nulls

NumberedRow = tuple[int, bytes | dict[str, Any]]
T = TypeVar("T")

_BOM = b"\xef\xbb\xbf"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# The first line of one value over many lines, or of all rows in one list.
_ONE_VALUE = re.compile(rb"\s*(\{\s*$|\[\s*(\{|$))")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_ENDS = (".jsonl", ".gz", ".zst", ".parquet")
# What is read at a time: of a file for its digest, and of a .zst, whose blocks grow many times.
_DIGEST_BLOCK, _ZST_BLOCK = 1 << 20, 1 << 16
# A hub or a bucket that has not answered by then is said to be out of reach; its clients' own
# retries take minutes.
_ANSWER_SECONDS = 30.0


class RowSourceError(InputError):
    """An input that cannot be read; the message says which and why."""


class Rows:
    """A sequence of rows that is read from the start, several times; see `open_rows`.

    Attributes:
      commit: of a hub's data set; None of all others.
    """

    commit: str | None = None

    def __init__(self, name: str):
        self.name = name
        self._seen: object = None

    def __iter__(self) -> Iterator[NumberedRow]:
        raise NotImplementedError

    def count(self) -> int | None:
        """How many rows there are, or None where nobody knows before the end; what is damaged is
        found."""
        return None

    def digest(self) -> str:
        """What tells this input from another; `check_unchanged` compares with this moment."""
        self._seen = self._state()  # before the content is read: a change while it is, is one
        return self._digest()

    def check_unchanged(self) -> None:
        """Raises RowSourceError if the input is no longer what `digest` was taken of."""
        try:
            same = self._seen is None or self._state() == self._seen
        except OSError:
            same = False
        if not same:
            raise RowSourceError(
                f"{self.name} changed while it was being scored. What was committed before is of "
                f"the input as it was; give the command an input that stays as it is."
            )

    def check_count(self, rows: int, counted: int | None) -> None:
        """Raises RowSourceError if other rows were read than `count` counted; of a hub, whose count
        is what the data set's card says, nothing is held against it."""

    def _digest(self) -> str:
        raise NotImplementedError

    def _state(self) -> object:
        """What is bound to differ once the input is written to; cheap."""
        return None


class _FileRows(Rows):
    """The rows of one file."""

    def check_count(self, rows: int, counted: int | None) -> None:
        if rows != counted:
            raise RowSourceError(
                f"{self.name} had {counted} rows when they were counted, and {rows} when they were "
                f"scored: give a file that stays as it is."
            )

    def _digest(self) -> str:
        return file_digest(self.name)

    def _state(self) -> object:
        return _file_state(epath.Path(self.name))


class LineRows(_FileRows):
    """JSON lines, plain or compressed by gzip or Zstandard."""

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        try:
            with self._opened() as file:
                for number, line in enumerate(file, 1):
                    if number == 1:  # Windows' editors mark UTF-8 so
                        line = line.removeprefix(_BOM)
                    if line.strip():
                        yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise RowSourceError(
                f"{self.name} is damaged after line {number}: {error}. Nothing after it was read."
            ) from error
        except Exception as error:  # whatever a bucket's client raises on the way
            raise _unreadable(self.name, f"after line {number}", error) from error

    def count(self) -> int | None:
        number = 0
        for number, (_, line) in enumerate(self, 1):
            if number == 1 and _ONE_VALUE.match(line):
                raise self._one_value(line)
        return number

    def _one_value(self, line: bytes) -> RowSourceError:
        """Said once, where each of its lines would be rejected."""
        parts = ".[]" if line.strip().startswith(b"[") else "."
        return RowSourceError(
            f"{self.name} begins with {line.strip()[:20].decode(errors='replace')!r}, as one JSON "
            f"value does that holds all rows or goes over many lines; expected is a row on each "
            f"line: jq -c '{parts}' makes them so."
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with epath.Path(self.name).open("rb") as file:
            name = self.name.lower()
            if not name.endswith((".gz", ".zst")):
                yield file
                return
            if not file.read(1):
                raise EOFError("the file is empty, and not even an empty archive is")
            file.seek(0)
            if name.endswith(".gz"):
                with gzip.open(file) as lines:
                    yield lines
            else:
                yield io.BufferedReader(_Blocks(_unpacked_zst(file)), 1 << 20)


def _unpacked_zst(file: Any) -> Iterator[bytes]:
    """What the frames of a .zst file hold. zstandard's own reader takes a cut one for complete."""
    frame, data = None, b""
    while data or (data := file.read(_ZST_BLOCK)):
        # The format's longest window (zstd --long=31), of which only what a frame needs is taken.
        frame = frame or zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        yield frame.decompress(data)
        data = frame.unused_data
        if frame.eof:
            frame = None
    if frame is not None:
        raise EOFError("the file ends inside a frame")


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file to be read."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = memoryview(block)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class ParquetRows(_FileRows):
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

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        with epath.Path(self.name).open("rb") as file:
            try:
                yield pyarrow.parquet.ParquetFile(file)
            except pyarrow.ArrowException as error:
                raise RowSourceError(
                    f"{self.name} is not a readable Parquet file: {error}"
                ) from error


class HubRows(Rows):
    """A split of a data set on the Hugging Face hub, at one commit (its newest, if no revision is
    given), or of a local folder in its form; streamed."""

    def __init__(self, name: str, split: str, subset: str | None, revision: str | None = None):
        super().__init__(name)
        self.split, self.subset = split, subset
        self._folder = epath.Path(name) if epath.Path(name).is_dir() else None
        self.commit = None if self._folder is not None else self._commit_of(revision)
        self._data = self._load()

    def __iter__(self) -> Iterator[NumberedRow]:
        number = 0
        try:
            for number, row in enumerate(self._data, 1):
                yield number, without_nulls(row)
        except Exception as error:  # of a hub, a proxy, or the data set's own files
            raise _unreadable(self.name, f"after row {number}", error) from error

    def count(self) -> int | None:
        known = (self._data.info.splits or {}).get(self.split)
        return known.num_examples or None if known else None

    def _digest(self) -> str:
        about = [self.name, str(self.subset), self.split, str(self.commit)]
        # A folder is what its files hold, wherever it lies.
        files = [f"{name} {file_digest(path)}" for name, path in self._files()]
        about = about if self._folder is None else [*about[1:], *files]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]

    def _state(self) -> object:
        return [(name, _file_state(path)) for name, path in self._files()]

    def _files(self) -> list[tuple[str, epath.Path]]:
        """The files of a local folder by their names in it; hidden ones are not data."""
        if self._folder is None:
            return []
        found = by_name(self._folder).items()
        return [pair for pair in found if not re.search(r"(^|/)\.", pair[0])]

    def _commit_of(self, revision: str | None) -> str | None:
        if revision and _COMMIT.fullmatch(revision):
            return revision
        from huggingface_hub import HfApi

        try:
            found = HfApi().dataset_info(self.name, revision=revision, timeout=_ANSWER_SECONDS)
            return found.sha
        except Exception as error:
            raise self._unopened(error) from error

    def _load(self) -> Any:
        import datasets

        options: dict[str, Any] = {"name": self.subset, "split": self.split, "streaming": True}
        try:
            return datasets.load_dataset(self.name, revision=self.commit, **options)
        except Exception as error:  # whatever a hub, a proxy or a data set's files may do wrong
            raise self._unopened(error) from error

    def _unopened(self, error: Exception) -> RowSourceError:
        if self._folder is not None:
            what = "is a folder, and as a data set"
        else:
            what = "is no local file, and as a hub's data set"
        return RowSourceError(
            f"{self.name!r} {what} (split {self.split!r}) it cannot be opened: "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        )


def open_rows(
    name: str, *, split: str = "train", subset: str | None = None, revision: str | None = None
) -> Rows:
    """The rows that `name` stands for (see the module's list); a path that exists wins over a hub
    id, which is read at this revision (a commit, branch or tag) or at its newest commit. Raises
    RowSourceError."""
    check_store(name)
    path = epath.Path(name)
    if revision is not None and path.exists():
        raise RowSourceError(
            f"A revision ({revision!r}) is of a hub's data set, and {name} is a path: leave it out."
        )
    if path.is_dir():
        if is_remote(name):
            raise RowSourceError(f"{name} is a folder of a bucket: name a file in it.")
        return HubRows(name, split, subset)
    if path.exists():
        # A pipe would be empty at its second reading, and so would the output.
        if not is_remote(name) and not os.path.isfile(path):
            raise RowSourceError(
                f"{name} is no regular file (a pipe, or a device), and an input is read more than "
                f"once: write the rows to a file, and give that."
            )
        return ParquetRows(name) if name.lower().endswith(".parquet") else LineRows(name)
    if _HUB_ID.fullmatch(name) and not name.lower().endswith(_FILE_ENDS):
        return HubRows(name, split, subset, revision)
    raise RowSourceError(
        f"No input at {name!r}: expected a file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), a "
        f"gs:// path, or a hub's data set (org/name)."
    )


def check_store(name: str) -> None:
    """Raises RowSourceError where `name` is an object's, and its store cannot be asked."""
    try:
        path = as_path(name)
    except PathError as error:
        raise RowSourceError(str(error)) from None
    if not is_remote(path):
        return
    try:
        _within(_ANSWER_SECONDS, path.exists)
    except TimeoutError:
        raise RowSourceError(
            f"{name}: the bucket did not answer within {_ANSWER_SECONDS:g} s. Is the network up?"
        ) from None
    except Exception as error:  # the store's client has many kinds
        raise RowSourceError(
            f"{name}: the bucket cannot be asked ({type(error).__name__}: {error}). Are its name "
            f"and the credentials right?"
        ) from error


def file_digest(name: str | os.PathLike[str]) -> str:
    """A digest of a file's whole content, short enough for a message; see `file_sha256`."""
    return file_sha256(name)[:16]


def file_sha256(name: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's whole content; a bar shows the progress where it takes seconds."""
    path = epath.Path(name)
    digest = hashlib.sha256()
    size = path.stat().length
    bar = tqdm(desc=f"reading {path.name}", total=size, unit="B", unit_scale=True, delay=3)
    with path.open("rb") as file, bar:
        while block := file.read(_DIGEST_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _file_state(path: epath.Path) -> tuple[int, ...]:
    if is_remote(path):
        found = path.stat()
        return found.length, found.mtime
    local = os.stat(path)
    return local.st_size, local.st_mtime_ns, local.st_ino


def _within(seconds: float, function: Callable[[], T]) -> T:
    """What the function gives, or raises; TimeoutError if it takes longer (it is left behind)."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.extend([True, function()])
        except Exception as error:
            found.extend([False, error])

    thread = threading.Thread(target=run, name="store", daemon=True)
    thread.start()
    thread.join(seconds)
    if len(found) < 2:
        raise TimeoutError
    if not found[0]:
        raise found[1]
    return found[1]


def _unreadable(name: str, where: str, error: Exception) -> RowSourceError:
    words = " ".join(str(error).split())[:300]
    return RowSourceError(
        f"{name} cannot be read any further {where} ({type(error).__name__}: {words}). "
        f"Try again: what is committed is kept."
    )
