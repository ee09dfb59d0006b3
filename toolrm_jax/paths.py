"""Paths of this machine and of object stores, one type for both: `etils.epath`.

    runs/mine            files
    gs://bucket/runs/1   objects, through fsspec's gcsfs (extra: gcs)

An object is written whole or not at all, and cannot be appended to or renamed; a folder of objects
is there where one of them is. What needs a file of this machine (a tokenizer, rows that are read
again and again) works on a copy, in $TOOLRM_CACHE_DIR/copies or ~/.cache/toolrm_jax/copies, kept
under the identity of what was copied: a changed object is copied anew, and the folder may be
deleted at any time between runs.

    >>> is_remote("gs://bucket/model"), is_remote("/models/x")
    (True, False)
"""

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from etils import epath

from toolrm_jax.errors import InputError

# In a folder of objects that is being stored, or was when its writer ended.
PARTIAL = ".partial"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")


class PathError(InputError, ValueError):
    """A path of a kind that cannot be used; the message says which can."""


class ShortFile(Exception):
    """A file that ends before the bytes that were asked for."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is an object's, or a folder's of objects."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike[str]) -> epath.Path:
    """The path, ready for use.

    Raises:
      PathError: an object store that is not known, or whose client is not installed.
    """
    text = os.fspath(path)
    found = _SCHEME.match(text)
    if found is None:
        return epath.Path(text).expanduser()
    scheme = found[1]
    if scheme != "gs":
        raise PathError(f"{text}: expected a path of this machine, or gs://bucket/folder.")
    if not found[2]:
        raise PathError(f"{text}: a slash is missing (pathlib drops it): gs://bucket/folder.")
    if importlib.util.find_spec("gcsfs") is None:
        raise PathError(f"{text}: gcsfs is not installed. Run: pip install 'toolrm_jax[gcs]'")
    # Listings are asked for anew each time: other processes write there too.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """`as_path`, from the root on."""
    found = as_path(path)
    return found if is_remote(found) else epath.Path(os.path.abspath(found))


def read_range(path: epath.Path, start: int, stop: int) -> np.ndarray:
    """Bytes [start, stop), and no others: uint8. Safe to call from several threads.

    Raises ShortFile.
    """
    if is_remote(path):
        data = np.frombuffer(_store().cat_file(str(path), start, stop), np.uint8)
        if len(data) != stop - start:
            raise ShortFile(path)
        return data
    data = np.empty(stop - start, np.uint8)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _fill(descriptor, data, start, path)
    finally:
        os.close(descriptor)
    return data


def _fill(descriptor: int, data: np.ndarray, offset: int, path: epath.Path) -> None:
    done = 0
    while done < len(data):
        count = os.preadv(descriptor, [data[done:].data], offset + done)
        if not count:
            raise ShortFile(path)
        done += count


def _store() -> Any:
    """The client of the store: the one that epath uses."""
    return fsspec.filesystem("gcs", finalize_on_close=True)


# --- copies ---------------------------------------------------------------------------------------


def local_file(path: str | os.PathLike[str]) -> Path:
    """The file itself, or a copy of the object on this machine."""
    found = as_path(path)
    if not is_remote(found):
        return Path(found)
    return _copied([found]) / found.name


def local_folder(path: str | os.PathLike[str], endings: tuple[str, ...]) -> Path:
    """The folder itself, or a copy of those of its files that have one of these endings."""
    found = as_path(path)
    if not is_remote(found):
        return Path(found)
    return _copied(sorted(file for file in found.iterdir() if file.name.endswith(endings)))


def _copied(objects: list[epath.Path]) -> Path:
    """A folder of this machine with these objects, fetched unless the same ones are there."""
    store = _store()
    identity = " ".join(f"{file} {store.ukey(str(file))}" for file in objects)
    target = cache_folder("copies") / hashlib.sha256(identity.encode()).hexdigest()[:24]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        for file in objects:
            store.get_file(str(file), str(partial / file.name))
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process of this machine was quicker
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def cache_folder(name: str) -> Path:
    """Where this machine keeps what can be had again: $TOOLRM_CACHE_DIR or ~/.cache/toolrm_jax."""
    root = os.environ.get("TOOLRM_CACHE_DIR") or Path.home() / ".cache/toolrm_jax"
    return Path(root) / name


def upload(folder: Path, path: epath.Path, last: str | None = None) -> None:
    """Makes `path` hold what a local folder holds, and nothing else.

    The object `last` (its path in the folder) goes first and comes last, so that it stands for a
    complete folder. In between there is an object PARTIAL, which says whose the rest is.
    """
    store, files = _store(), [file for file in folder.rglob("*") if file.is_file()]
    store.pipe_file(str(path / PARTIAL), b"")
    if last is not None:
        (path / last).unlink(missing_ok=True)
    wanted = {str(path / str(file.relative_to(folder))): file for file in files}
    for name in (f"gs://{found}" for found in store.find(str(path))):
        if name not in wanted and name != str(path / PARTIAL):
            store.rm_file(name)
    for name, file in sorted(
        wanted.items(), key=lambda item: str(item[1].relative_to(folder)) == last
    ):
        store.put_file(str(file), name)
    (path / PARTIAL).unlink()
