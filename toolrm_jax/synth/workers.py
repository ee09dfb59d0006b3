"""Worker processes: a function over items, several at a time, and none outlives its parent.

parts = in_order(sketches, shards, workers=2)
"""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(items)), mp_context=context, initializer=_end_with_parent
    ) as pool:
        tasks = {pool.submit(function, item): index for index, item in enumerate(items)}
        try:
            for task in concurrent.futures.as_completed(tasks):
                yield tasks.pop(task), task.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def in_order(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    """function(item) of all items, in their order."""
    found = dict(in_processes(function, items, workers))
    return [found[index] for index in range(len(items))]
