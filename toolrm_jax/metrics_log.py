"""Writes a run's metrics to JSON lines and to TensorBoard.

workdir/metrics.jsonl   {"step": 5, "split": "train", "loss": 0.69, ...}
workdir/tensorboard/    the same, by split

Where the workdir is in an object store, which appends to nothing, both are written on this machine
and stored anew when `share` is called, when they are closed, and once a minute in between. A store
that fails meanwhile does not end the run: it is said, and tried again.
"""

import contextlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from toolrm_jax.output_folder import is_full_disk
from toolrm_jax.paths import as_path, is_remote

_SHARE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class MetricsLog:
    """One writer per run; a continued run first drops the lines that it will write again."""

    def __init__(
        self, workdir: str | os.PathLike[str], start: int, steps: int, enabled: bool = True
    ):
        """Goes on after step `start` of `steps`; `enabled` on one process of a run."""
        self.enabled = enabled
        if not enabled:
            return
        self._workdir, self._shared = as_path(workdir), time.monotonic()
        self._scratch: tempfile.TemporaryDirectory | None = None
        folder = Path(workdir)
        if is_remote(self._workdir):
            self._scratch = tempfile.TemporaryDirectory(prefix="toolrm-metrics-")
            folder = Path(self._scratch.name)
            if (earlier := self._workdir / "metrics.jsonl").exists():
                (folder / "metrics.jsonl").write_text(earlier.read_text())
        self._folder, self._path = folder, folder / "metrics.jsonl"
        self._forget_after(start, steps)
        self._file = self._path.open("a")
        self._board = _Board(folder / "tensorboard", start)

    def _forget_after(self, start: int, steps: int) -> None:
        if not self._path.exists():
            return

        def keep(line: str) -> bool:
            # A killed run may have left half a line at the end.
            if not line.endswith("\n"):
                return False
            values = json.loads(line)
            # A finished run that is started again evaluates its last step again, nothing else.
            evaluated_again = values["step"] == steps and values["split"] == "heldout"
            return values["step"] <= start and not evaluated_again

        kept = [line for line in self._path.read_text().splitlines(keepends=True) if keep(line)]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.rename(self._path)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Records the values of one step."""
        if not self.enabled:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        try:
            self._file.flush()
        except OSError as error:
            if not is_full_disk(error):
                raise
            # The line waits in memory for the next flush: a checkpoint may hold the room just now.
        self._board.write(
            step, {f"{split}/{name.replace(' ', '_')}": x for name, x in values.items()}
        )
        if time.monotonic() - self._shared > _SHARE_SECONDS:
            self.share()

    def share(self) -> None:
        """Stores what was written where the workdir is in an object store."""
        if not self.enabled or self._scratch is None:
            return
        try:
            self._store()
        except Exception as error:  # clients of stores have errors of their own
            logger.warning("%s: metrics could not be stored now: %s", self._workdir, error)
        self._shared = time.monotonic()

    def _store(self) -> None:
        for file in (path for path in self._folder.rglob("*") if path.is_file()):
            name = str(file.relative_to(self._folder))
            (self._workdir / name).write_bytes(file.read_bytes())

    def close(self) -> None:
        """Flushes both."""
        if self.enabled:
            self._file.close()
            self._board.close()
            self.share()
            if self._scratch is not None:
                self._scratch.cleanup()


class _Board:
    """TensorBoard's event files, on disk when `write` returns.

    tensorboardX's SummaryWriter writes in a thread, which ends where the disk is full; what then
    adds to its queue waits for ever. Here such values are left out (metrics.jsonl has them), and
    the next ones go to a new file.
    """

    def __init__(self, folder: Path, start: int):
        self._folder, self._number = folder, 0
        self._file: EventsWriter | None = None
        # Not shown any longer is what an earlier run wrote of the steps from here on.
        begin = SessionLog(status=SessionLog.START)
        self._waiting = [Event(step=start + 1, session_log=begin)]
        self._write()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds the values of a step."""
        summary = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._waiting.append(Event(step=step, summary=Summary(value=summary)))
        self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                # A name of its own, so that nothing that is there is overwritten.
                suffix = f".{os.getpid()}.{self._number}"
                self._file = EventsWriter(str(self._folder / "events"), suffix)
                self._number += 1
            for event in self._waiting:
                event.wall_time = time.time()
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            self.close()
            if not is_full_disk(error):
                raise
            self._waiting = [event for event in self._waiting if event.HasField("session_log")]
        else:
            self._waiting = []

    def close(self) -> None:
        """What is not on disk by now is left out."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
