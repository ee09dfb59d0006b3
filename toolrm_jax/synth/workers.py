"""Worker processes: a function over items, several at a time, and none outlives its parent.

A Ctrl-C reaches all processes of a terminal. The workers let it pass, so that the parent alone
tells of it; it ends them at once, whatever they are at.

parts = in_order(sketches, shards, workers=2)
"""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def _begin() -> None:
    """A worker whose parent was killed must not go on writing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupt_held() -> Iterator[None]:
    """Holds Ctrl-C back: processes begun meanwhile get none while they import, before `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int
) -> Iterator[tuple[int, Any]]:
    """(index, function(item)) of all items as they are done, in so many processes (0: in this one).

    Forked processes would inherit JAX's threads where a test or a notebook has started them.
    """
    if not workers or len(items) < 2:
        yield from ((index, function(item)) for index, item in enumerate(items))
        return
    context = multiprocessing.get_context("forkserver")
    others = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_begin
    ) as pool:
        try:
            with _interrupt_held():
                tasks = {pool.submit(function, item): index for index, item in enumerate(items)}
            for task in concurrent.futures.as_completed(tasks):
                yield tasks.pop(task), task.result()
        except Exception:
            pool.shutdown(wait=True, cancel_futures=True)  # what is under way is finished
            raise
        except BaseException:
            for worker in set(multiprocessing.active_children()) - set(others):
                worker.kill()  # also one that only begins: it would miss what it shares with us
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def in_order(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """function(item) of all items, in their order."""
    found = dict(in_processes(function, items, workers))
    return [found[index] for index in range(len(items))]
