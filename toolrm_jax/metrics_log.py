"""Writes a run's metrics to JSON lines and to TensorBoard.

workdir/metrics.jsonl   {"step": 5, "split": "train", "loss": 0.69, ...}
workdir/tensorboard/    the same, by split
"""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsLog:
    """One writer per run; a continued run first drops the lines after the step it continues from."""

    def __init__(self, workdir: str | Path, start: int, enabled: bool = True):
        self.enabled = enabled
        if not enabled:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        self._forget_after(start)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start + 1)

    def _forget_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text().splitlines(keepends=True)
        # A killed run may have left half a line at the end.
        whole = [line for line in lines if line.endswith("\n")]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))
        partial.rename(self._path)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Records the values of one step."""
        if not self.enabled:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name.replace(' ', '_')}", value, step)

    def close(self) -> None:
        """Flushes both."""
        if self.enabled:
            self._file.close()
            self._board.close()
