"""Writes a run's metrics to JSON lines and to TensorBoard.

workdir/metrics.jsonl   {"step": 5, "split": "train", "loss": 0.69, ...}
workdir/tensorboard/    the same, by split
"""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from toolrm_jax.output_folder import is_full_disk


class MetricsLog:
    """One writer per run; a continued run first drops the lines that it will write again."""

    def __init__(self, workdir: str | Path, start: int, steps: int, enabled: bool = True):
        """Goes on after step `start` of `steps`; `enabled` on one process of a run."""
        self.enabled = enabled
        if not enabled:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        self._forget_after(start, steps)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start + 1)

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
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name.replace(' ', '_')}", value, step)

    def close(self) -> None:
        """Flushes both."""
        if self.enabled:
            self._file.close()
            self._board.close()
