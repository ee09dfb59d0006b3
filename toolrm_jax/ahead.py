"""Work done ahead of its use, in order and bounded: in a thread, or in processes.

    items --OrderedPool.map--> results, computed by worker processes a little ahead
    items --Ahead-----------> the same items, the next one being made while this one is used

Nothing is started before the first item is asked for, and no more is read than is said here, so
both work on endless streams.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from toolrm_jax.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

# Items that travel to a worker together: a message costs about as much as tokenising one row.
_PART = 16
_PARTS_PER_WORKER = 4
_END: Any = object()


class WorkerDied(InputError):
    """A worker process ended by itself: killed, mostly for want of memory."""


class Ahead(Generic[T]):
    """Iterates over `items` in a thread of its own, one item ahead."""

    def __init__(self, items: Iterable[T]):
        self._asked: queue.SimpleQueue[concurrent.futures.Future | None] = queue.SimpleQueue()
        self._next = self._ask()
        # A daemon, and no executor's: Python waits for those at its exit, and a source may block.
        arguments = (iter(items), self._asked)
        threading.Thread(target=_make, args=arguments, name="ahead", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Would `next` return at once?"""
        return self._next.done()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._next.result()
        if item is _END:
            self.close()
            raise StopIteration
        self._next = self._ask()
        return item

    def close(self) -> None:
        """Asks for no more, and returns at once: the item that is being made may never be done."""
        self._asked.put(None)

    def _ask(self) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        self._asked.put(future)
        return future


def _make(
    items: Iterator[Any], asked: "queue.SimpleQueue[concurrent.futures.Future | None]"
) -> None:
    """Gives an item to each future that is asked for, until None is."""
    while (future := asked.get()) is not None:
        try:
            future.set_result(next(items, _END))
        except BaseException as error:  # it is raised where the item is taken
            future.set_exception(error)


class OrderedPool(Generic[T, R]):
    """Worker processes that apply a function; with no workers, it is applied where it is asked for.

    The function is sent to each worker once, when the first item is. Workers are fresh processes
    (spawned): they import the function's module, and nothing of this process's state; a script that
    uses them therefore needs the usual `if __name__ == "__main__":`. They end with this process,
    however that ends. Several threads may use one pool.
    """

    def __init__(self, function: Callable[[T], R], workers: int = 0):
        if workers < 0:
            raise ValueError(f"workers={workers}: use 0 (no extra processes) or more.")
        self.function, self.workers = function, workers
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._lock = threading.Lock()  # two threads that start at once would start two pools

    def map(self, items: Iterable[T]) -> Iterator[R]:
        """The results, in the order of the items. Raises WorkerDied."""
        if not self.workers:
            yield from map(self.function, items)
            return
        pool = self._started()
        running: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for part in parts(items, _PART):
                running.append(pool.submit(_apply, part))
                if len(running) >= _PARTS_PER_WORKER * self.workers:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        except BrokenProcessPool:
            self._end(pool)
            raise WorkerDied(
                f"One of the {self.workers} worker processes ended by itself; where memory is "
                f"short, the system kills them. Try again with fewer workers."
            ) from None
        finally:
            for future in running:
                future.cancel()

    def close(self) -> None:
        """Ends the workers; the pool starts new ones if it is used again."""
        if (pool := self._pool) is not None:
            self._end(pool)

    def _end(self, pool: concurrent.futures.ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is pool:  # and not one that another thread has started since
                self._pool = None
        pool.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> concurrent.futures.ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = concurrent.futures.ProcessPoolExecutor(
                    self.workers,
                    mp_context=multiprocessing.get_context("spawn"),
                    initializer=_keep,
                    initargs=(self.function,),
                )
            return self._pool


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items each; the last may be shorter."""
    left = iter(items)
    while part := list(itertools.islice(left, size)):
        yield part


_function: Callable[[Any], Any] | None = None  # a worker's own


def _keep(function: Callable[[Any], Any]) -> None:
    """Makes a process a worker."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: its siblings hold the pipe."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _apply(items: list[Any]) -> list[Any]:
    assert _function is not None
    return [_function(item) for item in items]
