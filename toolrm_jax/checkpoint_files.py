"""Which files a checkpoint consists of, and whether they are still what was written.

checkpoints/{step}/files.json   {"files": {"state/...": [bytes, CRC-32 or null], ...}, ...}

Written last, so that a folder without it is half a checkpoint. Neither Orbax's array format nor its
compression notices a flipped bit in the numbers themselves: a checksum of each file does, and tells
a file that was cut off or is gone as well. It costs one more pass over the files when they are
written (they are still in the system's cache then, except in a bucket) and one before they are
read; all processes share the work.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Sequence
from typing import Any

from etils import epath

LISTING = "files.json"
# As many as keep a disk busy; zlib lets go of the interpreter's lock.
_THREADS = 8
_BLOCK = 4 << 20

Entry = list[int | None]  # bytes, CRC-32


class DamagedError(ValueError):
    """A checkpoint that is not what was written; the message says why."""


def files_below(folder: epath.Path) -> list[epath.Path]:
    """All files in a folder and the folders in it (epath has no `rglob`)."""
    found: list[epath.Path] = []
    for path in sorted(folder.iterdir()):
        found += files_below(path) if path.is_dir() else [path]
    return found


def by_name(root: epath.Path) -> dict[str, epath.Path]:
    """The same files by their path from `root`, in order."""
    return {path.relative_to(root).as_posix(): path for path in files_below(root)}


def describe(paths: Sequence[epath.Path], root: epath.Path, sums: bool) -> dict[str, Entry]:
    """The size and, if wanted, the checksum of files, by their path from `root`."""
    names = [path.relative_to(root).as_posix() for path in paths]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(lambda path: _entry(path, sums), paths))
    return dict(zip(names, found, strict=True))


def listing(files: dict[str, Entry], **more: Any) -> str:
    """The text of files.json; `more` is kept beside the list."""
    content = {"files": files, **more}
    return json.dumps({"content": content, "crc32": zlib.crc32(_canonical(content))}, indent=1)


def read_listing(folder: epath.Path) -> dict[str, Any]:
    """What `listing` was given.

    Raises:
      DamagedError: it is not there, or not as it was written.
    """
    try:
        data = json.loads((folder / LISTING).read_text())
        content, stated = data["content"], data["crc32"]
    except FileNotFoundError:
        raise DamagedError(f"{LISTING} is missing: it is half-written") from None
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{LISTING} is damaged ({type(error).__name__})") from None
    if zlib.crc32(_canonical(content)) != stated:
        raise DamagedError(f"{LISTING} is damaged (its checksum differs)")
    return content


def refuse_damage(folder: epath.Path, files: dict[str, Entry], names: Sequence[str]) -> None:
    """Compares some of the files with what the listing says.

    Raises:
      DamagedError: naming the first that is missing, of another size, or of other content.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda name: _difference(folder / name, files[name]), names)
        for name, difference in zip(names, found, strict=True):
            if difference:
                raise DamagedError(f"{name} {difference}")


def refuse_incomplete(folder: epath.Path) -> None:
    """Compares the sizes of all files with what the folder's listing says; reads none of them.

    Raises:
      DamagedError: naming the first that is missing or of another size, or the listing.
    """
    files = read_listing(folder)["files"]
    refuse_damage(folder, {name: [size, None] for name, (size, _) in files.items()}, list(files))


def share(files: dict[str, Entry], process: int, processes: int) -> list[str]:
    """The files that one process checks: every n-th, from the largest on."""
    by_size = sorted(files, key=lambda name: (-(files[name][0] or 0), name))
    return by_size[process::processes]


def _difference(path: epath.Path, expected: Entry) -> str:
    size, crc = expected
    try:
        found = _entry(path, sums=crc is not None)
    except FileNotFoundError:
        return "is missing"
    if found[0] != size:
        return f"has {found[0]} bytes, expected {size}"
    return "" if found[1] == crc else "has other content than was written (its checksum differs)"


def _entry(path: epath.Path, sums: bool) -> Entry:
    if not sums:
        return [path.stat().length, None]
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return [size, crc]


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
