"""The files of a scoring job: which there are, and how one is written, listed and locked.

    out.jsonl.parts/job.json              the job: digests of model and input, settings
                    chunk-00000002.part   a chunk that is committed
                    lock                  held by the process that works on the output
    out.jsonl                             at the end: all scored rows, in order,
    out.rejects.jsonl                     the rejected ones, if any,
    out.summary.json                      and what the job was and found, with the size and SHA-256
                                          of both files

A file has its name once it is whole: it is written under a temporary one, synced and renamed. In a
bucket, where an object appears whole when it is closed and a rename is a copy, it is written in
place. A shard's files are those of an output of its own.

    >>> JobFiles(Shard(2, 8).output("out.jsonl")).rejects
    'out.shard-00002-of-00008.rejects.jsonl'
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from toolrm_jax.errors import InputError
from toolrm_jax.paths import is_remote
from toolrm_jax.row_source import file_sha256

_JOB, _LOCK = "job.json", "lock"
_PART = re.compile(r"chunk-(\d+)\.part")
_PARTIAL = re.compile(r"\.(job\.json|chunk-\d+\.part)\.partial")  # left by a kill


class JobError(InputError):
    """A job that cannot be begun, continued or merged; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which of the chunks are this run's: those whose number leaves `index` modulo `of`."""

    index: int = 0
    of: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.of:
            raise ValueError(f"shard {self.index}/{self.of}: use i/n with 0 <= i < n.")

    def output(self, path: str) -> str:
        """Where this shard's rows go: out.shard-00002-of-00008.jsonl, for out.jsonl."""
        if self.of == 1:
            return path
        stem, suffix = split_name(path)
        return f"{stem}.shard-{self.index:05}-of-{self.of:05}{suffix}"


@dataclasses.dataclass(frozen=True)
class JobFiles:
    """The files of one output."""

    output: str

    @property
    def rejects(self) -> str:
        return "{}.rejects{}".format(*split_name(self.output))

    @property
    def summary(self) -> str:
        # Without the ending where the output has none: "out" and "out.jsonl" would share one.
        stem, suffix = split_name(self.output)
        return f"{stem}.summary{'.json' if suffix else ''}"

    @property
    def parts(self) -> epath.Path:
        return epath.Path(f"{self.output}.parts")

    @property
    def job(self) -> epath.Path:
        """What the parts are of: parts without one are nobody's."""
        return self.parts / _JOB

    def part(self, chunk: int) -> epath.Path:
        return self.parts / f"chunk-{chunk:08}.part"

    def committed(self) -> set[int]:
        """The chunks whose parts are there."""
        names = [path.name for path in listed(self.parts)]
        return {int(found[1]) for name in names if (found := _PART.fullmatch(name))}


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds."""

    bytes: int
    sha256: str

    def difference(self, path: str) -> str:
        """What is wrong with a file that should hold this, with its name; "" if nothing is."""
        try:
            found = epath.Path(path).stat().length
        except FileNotFoundError:
            return f"{path} is gone"
        if found != self.bytes:  # known without reading it
            return f"{path} has {found:,} bytes where its summary says {self.bytes:,}"
        same = file_sha256(path) == self.sha256
        return "" if same else f"{path} has other content than its summary says"


class _Measured:
    """Pieces of bytes, and the content that those add up to which were taken."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces, self._size, self._sum = pieces, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self._size += len(piece)
            self._sum.update(piece)
            yield piece

    @property
    def content(self) -> Content:
        return Content(self._size, self._sum.hexdigest())


def publish(path: epath.Path, pieces: Iterable[bytes]) -> Content:
    """Writes a file such that nobody ever sees half of it; what it then holds."""
    measured = _Measured(pieces)
    if is_remote(path):
        _publish_object(path, measured)
    else:
        _publish_file(path, measured)
    return measured.content


def _publish_file(path: epath.Path, pieces: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(path).with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _publish_object(path: epath.Path, pieces: Iterable[bytes]) -> None:
    """The same in a bucket, where an object appears when it is closed."""
    # On this machine first: closing an object whose pieces fail half-way would complete it.
    with tempfile.TemporaryFile() as whole:
        whole.writelines(pieces)
        whole.seek(0)
        with path.open("wb") as file:
            shutil.copyfileobj(whole, file, 1 << 22)


@contextlib.contextmanager
def locked(files: JobFiles) -> Iterator[None]:
    """Keeps a second process on this machine off the same output; a killed one holds no lock."""
    if is_remote(files.parts):
        yield
        return
    with open(files.parts / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(
                f"Another process is working on {files.output}: wait for it, or choose another "
                f"--output."
            ) from None
        yield


def remove_orphans(files: JobFiles) -> None:
    """Parts of a job that nothing is known of; the lock stays, as this process holds it."""
    for path in _own(files):
        if path.name != _LOCK:
            path.unlink()


def remove_parts(files: JobFiles) -> None:
    """Of an output that is complete; what cannot be removed now is by the next run. What is not a
    job's stays, and the folder with it."""
    with contextlib.suppress(OSError):
        last = [_JOB, _LOCK]
        for path in sorted(_own(files), key=lambda path: path.name in last):
            path.unlink()
        if not is_remote(files.parts):
            os.rmdir(files.parts)


def _own(files: JobFiles) -> list[epath.Path]:
    """The files that a job makes in its folder."""
    return [
        path
        for path in listed(files.parts)
        if path.name in (_JOB, _LOCK) or _PART.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
    ]


def listed(folder: epath.Path) -> list[epath.Path]:
    """What is in a folder; in a bucket one without objects is not there."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []


def split_name(path: str) -> tuple[str, str]:
    """("out", ".jsonl") of "out.jsonl"; with any other ending, which may be all that tells two
    outputs apart, ("out.scores", "")."""
    stem, suffix = os.path.splitext(path)
    return (stem, suffix) if suffix == ".jsonl" else (path, "")
