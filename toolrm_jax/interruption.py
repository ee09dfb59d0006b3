"""How a run ends before its end: asked to stop, or broken off; and the exit codes of both.

    SIGTERM, a TPU's preemption notice, Ctrl-C -> at the next step that all processes agree on:
        save, wait, exit with 75 (STOPPED). The same command continues.
    a lost process, a step that hangs          -> exit with 76 (BROKEN_OFF), nothing is saved.
        The same command continues from the newest checkpoint.

No handler saves. Where JAX's processes were joined (on a TPU VM, one alone as well), the notice
goes to JAX's preemption service, which makes all of them stop after the same step, whichever of
them was told, and which knows of notices from before the first step; else a handler sets a flag.

    with StopRequest() as stop:
        for step in range(1, 1 + steps):
            ...
            if stop.reached(step): save, then raise Stopped(...)
"""

import os
import re
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from toolrm_jax.processes import LostProcessError

STOPPED = 75  # EX_TEMPFAIL: try again
BROKEN_OFF = 76


class Stopped(SystemExit):
    """The run was asked to stop, and did; the state is saved. Exits with STOPPED."""

    def __init__(self, message: str):
        super().__init__(STOPPED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """While open, requests to stop end no process; `reached` says when to.

    The second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._handle(signal.SIGINT, self._interrupted)
            if not jax.distributed.is_initialized():  # where it is, JAX's service handles it
                self._handle(signal.SIGTERM, self._terminated)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, handler) -> None:
        self._before[number] = signal.signal(number, handler)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked = True
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # what JAX's service waits for

    def reached(self, step: int) -> bool:
        """Whether to stop after this step; to be asked at every step, by all processes."""
        if not jax.distributed.is_initialized():
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)


# Codes of JAX's errors that the same command would meet again.
_OUR_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
# INTERNAL is what compilers and kernels fail with, and what GPUs and TPUs report a lost peer as:
# "NCCL operation async_err failed: remote process exited or there was a network error"
# (jax-ml/jax#19307), "Core halted unexpectedly" (jax-ml/jax#9642, which may be a fault of ours).
_OF_PEERS = re.compile(r"NCCL|Gloo|halted|connection|socket|heartbeat", re.IGNORECASE)


def is_loss(error: BaseException) -> bool:
    """Whether an error, in one of several processes, says that another one was lost."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return isinstance(error, LostProcessError)
    text = str(error)
    if text.startswith("INTERNAL"):
        return bool(_OF_PEERS.search(text))
    return not text.startswith(_OUR_OWN)


def break_off(message: str) -> None:
    """Ends this process at once.

    A process of several that went through Python's own exit would wait there for the others, which
    wait for it in a step.
    """
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(BROKEN_OFF)
