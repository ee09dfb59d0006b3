"""A folder that appears under its name complete, or not at all.

out.partial/   while it is being written; locked, so that two runs cannot write one
out.replaced/  for a moment, what was there before
out/           complete

In an object store (gs://), where nothing can be renamed, the folder is made on this machine (in
$TMPDIR, which must have room for it) and stored when it is complete: its config.json last, which is
what makes it a checkpoint, and an earlier one's is removed first. A store that fails on the way
leaves an object .partial there, by which the next run knows that it may write the folder anew.

>>> with new_folder("out", is_ours=lambda folder: (folder / "config.json").exists()) as folder:
...     (folder / "config.json").write_text("{}")
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from toolrm_jax.paths import PARTIAL, absolute, is_remote, upload


class OutputError(OSError):
    """An output folder that cannot be written; the message says why and what to do."""


@contextlib.contextmanager
def new_folder(
    path: str | os.PathLike[str],
    is_ours: Callable[[epath.Path], bool],
    *,
    replace: bool = True,
    nbytes: int = 0,
    last: str = "config.json",
    what: str = "checkpoint",
) -> Iterator[Path]:
    """Yields an empty folder, which gets its name where the block ends without an error.

    A folder of that name is replaced whole if `replace` is set and `is_ours` says that it is one.
    What an earlier run left unfinished is removed; so is what this one leaves, if it can. In an
    object store, the file `last` is what makes it complete. `what` it is called in errors.

    Raises:
      FileExistsError: something of that name is there, and not to be replaced.
      OutputError: another run writes it, or the disk has less room than `nbytes`, or gets full.
    """
    check_output(path, is_ours, replace=replace, last=last, what=what)
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="toolrm-") as scratch:
            yield from _made_here(Path(scratch), absolute(path), nbytes, last)
        return
    path = Path(path).absolute()
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


def _made_here(scratch: Path, path: epath.Path, nbytes: int, last: str) -> Iterator[Path]:
    """A local folder, stored under `path` where its use ends without an error."""
    if nbytes > shutil.disk_usage(scratch).free:
        raise _no_room(scratch / path.name, nbytes)
    folder = scratch / path.name
    folder.mkdir()
    try:
        yield folder
    except OSError as error:
        if is_full_disk(error):
            raise _no_room(folder, nbytes) from error
        raise
    upload(folder, path, last)


def free_bytes(path: str | os.PathLike[str]) -> tuple[int, Path]:
    """How much room there is where `new_folder` makes a folder, and where that is."""
    if is_remote(path):
        where = Path(tempfile.gettempdir())
    else:
        where = Path(path).absolute().parent
    return shutil.disk_usage(where).free, where


def check_output(
    path: str | os.PathLike[str],
    is_ours: Callable[[epath.Path], bool],
    *,
    replace: bool,
    last: str = "config.json",
    what: str = "checkpoint",
) -> None:
    """Raises FileExistsError where `new_folder` would; to be called before long work."""
    found = absolute(path)
    if not found.exists() or (found.is_dir() and not any(found.iterdir())):
        return
    if is_remote(found) and (found / PARTIAL).exists():
        return  # what an earlier run left unfinished
    if not found.is_dir() or not is_ours(found):
        raise FileExistsError(
            f"{found} holds files but no {last}, so it is no {what} to be replaced: "
            f"choose another directory, or empty this one."
        )
    if not replace:
        raise FileExistsError(
            f"{found} is a {what} already: choose another output, or replace it with --overwrite."
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
