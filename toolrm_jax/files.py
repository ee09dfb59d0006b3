"""Writes files whole: under a temporary name, then renamed, so that no reader meets half of one.

An object of a store appears when it is complete, and needs no other name.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from etils import epath

from toolrm_jax.paths import as_path, is_remote


def write_text(path: str | os.PathLike[str], parts: str | Iterable[str]) -> None:
    """Replaces the file, in UTF-8; an interrupted write leaves the old one as it was."""
    if is_remote(path):
        # Joined first: a store's client would complete the object if `parts` failed on the way.
        as_path(path).write_text("".join(parts))
        return
    with _renamed(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines([parts] if isinstance(parts, str) else parts)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """The same for bytes."""
    if is_remote(path):
        as_path(path).write_bytes(content)
        return
    with _renamed(Path(path)) as partial:
        partial.write_bytes(content)


def write_durably(path: epath.Path | Path, text: str) -> None:
    """Writes a small file, in a folder that gets its name later, and waits until the disk has it (a
    store has an object once it is closed)."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        if not is_remote(path):
            os.fsync(file.fileno())


@contextlib.contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary name, whose file gets the name `path` unless something is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
