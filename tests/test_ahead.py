"""Work done ahead keeps its order, stays bounded, and passes errors on."""

import contextlib
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest

from toolrm_jax.ahead import Ahead, OrderedPool, parts


def test_items_come_in_order_one_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    ahead = Ahead(items())
    for i, item in enumerate(ahead):
        assert item == i
        while not ahead.ready:
            time.sleep(0.001)
        assert len(made) == min(i + 2, 5)


def test_an_error_in_the_thread_reaches_the_reader():
    def items():
        yield 1
        raise KeyError("gone")

    ahead = Ahead(items())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="gone"):
        next(ahead)


def test_closing_asks_for_no_more():
    made = []
    ahead = Ahead(made.append(i) or i for i in range(100))
    next(ahead)
    ahead.close()
    assert len(made) <= 2


def test_closing_does_not_wait_for_a_source_that_blocks():
    source = queue.SimpleQueue()
    source.put("first")
    ahead = Ahead(source.get() for _ in range(3))
    assert next(ahead) == "first"
    closing = threading.Thread(target=ahead.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    source.put("second")  # or its thread would stay for as long as the tests run


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_keeps_the_order(workers):
    pool = OrderedPool(str, workers)
    try:
        assert list(pool.map(range(100))) == [str(i) for i in range(100)]
        assert list(pool.map([])) == []
    finally:
        pool.close()


def test_threads_that_start_at_once_share_the_workers():
    """Of two pools one would be forgotten, and its processes stay."""
    pool, together = OrderedPool(str, 1), threading.Barrier(6)
    found: list[list[str]] = []

    def use():
        together.wait()
        found.append(list(pool.map(range(20))))

    before = set(multiprocessing.active_children())
    threads = [threading.Thread(target=use) for _ in range(6)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(multiprocessing.active_children()) - before) == 1
        assert found == [[str(i) for i in range(20)]] * 6
    finally:
        pool.close()
    assert set(multiprocessing.active_children()) <= before


def test_a_pool_reads_a_bounded_number_ahead():
    read = []
    pool = OrderedPool(str, 1)
    try:
        results = pool.map(read.append(i) or i for i in range(10_000))
        assert next(results) == "0"
        assert len(read) <= 4 * 16
        results.close()
    finally:
        pool.close()


def test_an_error_in_a_worker_reaches_the_caller():
    pool = OrderedPool(int, 1)
    try:
        with pytest.raises(ValueError, match="invalid literal"):
            list(pool.map(["1", "x"]))
    finally:
        pool.close()


KILLED = """
import os, signal
from toolrm_jax.ahead import OrderedPool
if __name__ == "__main__":
    list(OrderedPool(str, 2).map(range(100)))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_parent_that_is_killed():
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        process.communicate(timeout=60)  # to the end of its output, which workers hold open
        assert process.returncode == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_negative_number_of_workers_is_refused():
    with pytest.raises(ValueError, match="workers=-1"):
        OrderedPool(str, -1)


def test_parts_lose_nothing():
    assert list(parts(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
