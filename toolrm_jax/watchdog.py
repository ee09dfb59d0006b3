"""Ends a run that hangs: a thread that wants to hear from the training loop.

    feed("step 7") ... feed("step 8") ... silence for `minutes` -> where all threads stand, a
                                                                   message, exit code 76

A collective waits for ever for a process that does not take part. Where something is compiled,
loaded, saved or evaluated for the first time, the patient limit holds.
"""

import faulthandler
import sys
import threading
import time

from toolrm_jax.interruption import break_off


class Watchdog:
    """Watches from the first `feed` until it is closed; a limit of 0 minutes means none."""

    def __init__(self, minutes: float, patient_minutes: float):
        self._limits = {False: 60 * minutes, True: 60 * patient_minutes}
        self._fed: tuple[float, str, float] | None = None  # when, what for, within how long
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def feed(self, doing: str, patient: bool = False) -> None:
        """Says what is done now; the time for it begins."""
        self._fed = (time.monotonic(), doing, self._limits[patient])

    def rest(self) -> None:
        """Watches nothing until it is fed again."""
        self._fed = None

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            fed = self._fed
            if fed is None:
                continue
            since, doing, limit = fed
            if limit and time.monotonic() - since > limit:
                self._bark(doing, limit)

    def _bark(self, doing: str, limit: float) -> None:
        print("Where the threads of this process stand:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        break_off(
            f"error: nothing has moved for {limit:g} seconds in: {doing}. Another process may have "
            f"been lost, or waits elsewhere: see its output. The run ends here; the same command "
            f"continues from the newest checkpoint. Where this much time is normal, raise "
            f"--config.train.hang_minutes (steps) or --config.train.patient_minutes (the first of "
            f"a shape, with its compilation; loading, saving)."
        )
