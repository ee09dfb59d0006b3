"""A folder that appears under its name complete, or not at all.

out.partial/   while it is being written; locked, so that two runs cannot write one
out.replaced/  for a moment, what was there before
out/           complete

>>> with new_folder("out", is_ours=lambda folder: (folder / "config.json").exists()) as folder:
...     (folder / "config.json").write_text("{}")
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


class OutputError(OSError):
    """An output folder that cannot be written; the message says why and what to do."""


@contextlib.contextmanager
def new_folder(
    path: str | Path, is_ours: Callable[[Path], bool], *, replace: bool = True, nbytes: int = 0
) -> Iterator[Path]:
    """Yields an empty folder, which gets its name where the block ends without an error.

    A folder of that name is replaced whole if `replace` is set and `is_ours` says that it is one.
    What an earlier run left unfinished is removed; so is what this one leaves, if it can.

    Raises:
      FileExistsError: something of that name is there, and not to be replaced.
      OutputError: another run writes it, or the disk has less room than `nbytes`, or gets full.
    """
    path = Path(path).absolute()
    check_output(path, is_ours, replace=replace)
    partial, replaced = (path.with_name(path.name + end) for end in (".partial", ".replaced"))
    partial.mkdir(parents=True, exist_ok=True)
    with _locked(partial, path):
        _empty(partial)
        _check_room(partial, path, nbytes)
        try:
            yield partial
            _sync_folders(partial)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if is_full_disk(error):
                raise _no_room(path, nbytes) from error
            raise
        shutil.rmtree(replaced, ignore_errors=True)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        _sync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def check_output(path: str | Path, is_ours: Callable[[Path], bool], *, replace: bool) -> None:
    """Raises FileExistsError where `new_folder` would; to be called before long work."""
    path = Path(path).absolute()
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir() or not is_ours(path):
        raise FileExistsError(
            f"{path} holds files but no config.json, so it is no checkpoint to be replaced: "
            f"choose another directory, or empty this one."
        )
    if not replace:
        raise FileExistsError(
            f"{path} is a checkpoint already: choose another output, or replace it with "
            f"--overwrite."
        )


def is_full_disk(error: BaseException) -> bool:
    """Whether an error is that of a full disk, or quota, or a limit on the size of files."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # TensorStore has its own errors, with the system's words.
    words = ("No space left on device", "Disk quota exceeded", "File too large")
    return getattr(error, "errno", None) in full or any(w in str(error) for w in words)


def _check_room(partial: Path, path: Path, nbytes: int) -> None:
    if nbytes > shutil.disk_usage(partial).free:
        shutil.rmtree(partial, ignore_errors=True)
        raise _no_room(path, nbytes)


def _no_room(path: Path, nbytes: int) -> OutputError:
    free = shutil.disk_usage(path.parent).free
    needed = f"{nbytes / 1e9:,.2f} GB are needed" if nbytes else "more is needed"
    return OutputError(
        f"No space left for {path}: {needed}, {free / 1e9:,.2f} GB are free there. Free some, or "
        f"choose an output on another disk. Nothing was left behind."
    )


@contextlib.contextmanager
def _locked(partial: Path, path: Path) -> Iterator[None]:
    """Holds the folder against other runs; the system lets go of it if this one is killed."""
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another run is writing {path} now (it holds {partial}): wait for it, or choose "
                f"another output."
            ) from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_folders(folder: Path) -> None:
    """Puts every file, and the names of all, on the disk."""
    for parent, _, files in os.walk(folder):
        for file in files:
            _sync(Path(parent) / file)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
