"""How fast a run trains, where the time and the tokens go, and the line that says so.

    dispatch   step 1     step 2            step 3        the loop runs ahead of the device
    next()          [----]      [-----------]
    device     [ step 1 ........... ]        [ step 3     idle from step 2's end to step 3's start
                                     [ 2 . ][~~~]
    input wait                              [~~~]         what is counted: the loop waits for the
                                                          loader, and the device has nothing to do

Steps are dispatched without waiting for them, so time in the loader matters only once the device
has run dry. A thread waits for each step's result and notes when it came; the loop never does.

    meter = Throughput(loader, model, devices, steps, start)
    for batches in meter.inputs(loader.batches(start, steps)):
        state, metrics = train_step(state, batches)
        meter.dispatched(step, metrics["loss"])
        print(line(done, steps, means, meter.rates(done)))

FLOPs are the useful ones: of tokens that are not padding, each prompt's once, three times the
forward pass. What is computed again (remat), and padding, count for nothing; nor do the embedding,
the reward head, norms and the optimizer.
"""

import contextlib
import queue
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from toolrm_jax.batch_plan import Step
from toolrm_jax.chips import chip_of
from toolrm_jax.loader import Loader
from toolrm_jax.model_config import ModelConfig

T = TypeVar("T")


class Throughput:
    """Rates since the last log line, and the time left; close it to end its thread."""

    def __init__(
        self,
        loader: Loader,
        model: ModelConfig,
        devices: Sequence[jax.Device],
        steps: int,
        start: int,
    ):
        self.loader, self.model, self.devices = loader, model, devices
        self.steps, self.start = steps, start
        self._last = self._began = time.perf_counter()
        self._counted_from = start
        self._window: list[Step] = []
        self._waits: list[tuple[float, float]] = []
        self._finished = _FinishTimes()
        self._before = 0.0  # when the step before the window's first was computed

    def inputs(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; takes down when each was asked for, and when it came."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self._waits.append((asked, time.perf_counter()))
            yield batch

    def dispatched(self, step: Step, result: jax.Array) -> None:
        """Takes down a step that was handed to the device, by any of its results."""
        self._window.append(step)
        self._finished.watch(result)

    def skip(self) -> None:
        """Forgets the time since the last line (an evaluation's)."""
        now = time.perf_counter()
        self._began += now - self._last
        self._last = now

    def rates(self, done: int) -> dict[str, float]:
        """Of the steps since the last call; all of them must have been computed."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        values = self._work(seconds)
        values["input_wait_share"] = input_wait(self._waits, self._finish_times()) / seconds
        values["memory_bytes"] = memory_bytes(self.devices)
        values["eta_seconds"] = self._seconds_per_step(done, now) * (self.steps - done)
        self._window, self._waits = [], []
        return values

    def _work(self, seconds: float) -> dict[str, float]:
        index = self.loader.index
        examples = [i for step in self._window for i in step.examples()]
        tokens = int(index.lengths.tokens[examples].sum())
        computed = sum(
            step.shape.tokens * sum(map(len, step.micro_batches)) for step in self._window
        )
        flops = train_flops(self.model, tokens, int(index.keys[examples].sum())) / seconds
        values = {
            "pairs_per_second": sum(len(index.kept[i]) for i in examples) / seconds,
            "tokens_per_second": tokens / seconds,
            "flops_per_second": flops,
            "padding_share": 1 - tokens / max(computed, 1),
        }
        chip = chip_of(self.devices[0].device_kind)
        if chip is not None:
            values["mfu"] = flops / (chip.peak_flops * len(self.devices))
        return values

    def _finish_times(self) -> list[float]:
        """When the step before each wait was computed."""
        ends = [self._before, *self._finished.take()]
        self._before = ends[-1]
        return ends[: len(self._waits)]

    def _seconds_per_step(self, done: int, now: float) -> float:
        """The mean so far, without what came before the first line: it holds the compilation."""
        mean = (now - self._began) / (done - self._counted_from)
        if self._counted_from == self.start:
            self._began, self._counted_from = now, done
        return mean

    def close(self) -> None:
        """Ends the thread."""
        self._finished.close()


class _FinishTimes:
    """When results were computed, in order; a thread waits for them."""

    def __init__(self) -> None:
        self._results: queue.Queue[jax.Array | None] = queue.Queue()
        self._times: list[float] = []
        self._thread = threading.Thread(target=self._wait, name="finish times", daemon=True)
        self._thread.start()

    def watch(self, result: jax.Array) -> None:
        self._results.put(result)

    def take(self) -> list[float]:
        """Those of the results handed in since the last call; waits for them."""
        self._results.join()
        taken, self._times = self._times, []
        return taken

    def _wait(self) -> None:
        while (result := self._results.get()) is not None:
            # The loop meets the same error where it fetches the metrics.
            with contextlib.suppress(Exception):
                result.block_until_ready()
            self._times.append(time.perf_counter())
            self._results.task_done()

    def close(self) -> None:
        self._results.put(None)
        self._thread.join(timeout=1)  # not for ever: a step may hang


def input_wait(waits: Sequence[tuple[float, float]], idle_from: Sequence[float]) -> float:
    """Seconds in which the loop waited (asked, came) with the device idle since `idle_from`.

    >>> input_wait([(1.0, 3.0), (4.0, 6.0), (7.0, 8.0)], [0.0, 5.5, 9.0])
    2.5
    """
    return sum(
        max(0.0, came - max(asked, idle))
        for (asked, came), idle in zip(waits, idle_from, strict=True)
    )


def train_flops(model: ModelConfig, tokens: int, keys: int) -> float:
    """Useful FLOPs of training on so many tokens that attend to so many keys in all."""
    plain = model.flops_per_token(0)
    return 3 * (tokens * plain + keys * (model.flops_per_token(1) - plain))


def memory_bytes(devices: Sequence[Any]) -> int:
    """The peak so far: of this process's fullest device, or where none tells, of this process."""
    stats = [
        device.memory_stats() or {}
        for device in devices
        if device.process_index == jax.process_index()
    ]
    peak = max((s.get("peak_bytes_in_use", 0) for s in stats), default=0)
    return peak or _peak_rss()


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def line(done: int, steps: int, m: dict[str, float], rates: dict[str, float]) -> str:
    """What the console says of the steps since the last such line."""
    arithmetic = (
        f"MFU {100 * rates['mfu']:.1f}%"
        if "mfu" in rates
        else f"{rates['flops_per_second'] / 1e9:,.0f} GFLOP/s"
    )
    return (
        f"step {done}/{steps}  loss {m['loss']:.4f}  accuracy {100 * m['accuracy']:.1f}%"
        f"  margin {m['margin']:+.3f}  reward {m['reward_mean']:+.2f}±{m['reward_std']:.2f}"
        f"  |g| {m['gradient_norm']:.2f}  {rates['pairs_per_second']:.1f} pairs/s"
        f"  {rates['tokens_per_second']:.0f} tok/s  {arithmetic}"
        f"  padding {100 * rates['padding_share']:.1f}%"
        f"  input wait {100 * rates['input_wait_share']:.1f}%"
        f"  memory {rates['memory_bytes'] / 2**30:.1f} GiB  ETA {_clock(rates['eta_seconds'])}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
