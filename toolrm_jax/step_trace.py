"""Traces a few steps of a run with JAX's profiler, for XProf to open.

--config.profile_steps='(10, 3)'     of this start of the run, skip 10 steps, then trace 3
workdir/profile/plugins/profile/<time>/<host>.xplane.pb

with contextlib.closing(StepTrace(folder / "profile", start, (10, 3))) as trace:
    with trace.step(number):
        state, metrics = train_step(state, batches)
    trace.dispatched(number, metrics)
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax


class StepTrace:
    """Starts the profiler before the first step wanted, and stops it after the last."""

    def __init__(
        self, folder: str | os.PathLike[str], start: int, steps: tuple[int, int], on: bool = True
    ):
        """`steps`: (how many to skip after step `start`, how many to trace; 0: none)."""
        skipped, count = steps
        self.folder = folder
        self._first = start + skipped
        self._end = self._first + (count if on else 0)
        self._running = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the dispatch of a step; XProf groups what the device does by it."""
        if number == self._first < self._end:
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def dispatched(self, number: int, result: Any) -> bool:
        """Whether this was the last step traced: it is waited for, and the trace is written."""
        if not self._running or number + 1 < self._end:
            return False
        jax.block_until_ready(result)
        self.close()
        return True

    def close(self) -> None:
        """Writes a trace that is still running, as where a run ends early."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
