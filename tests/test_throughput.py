"""A run's rates, shares and time left, against counts by hand and delays made on purpose."""

import dataclasses
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toolrm_jax import throughput
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import Lengths, Step
from toolrm_jax.loader import Index
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.throughput import Throughput, input_wait, line, memory_bytes, train_flops

MODEL = ModelConfig("llama", 64, 32, 64, 2, 4, 2, 8)
# Two rows of 100 tokens, three examples in them.
STEP = Step(RowShape(100, 8), (((0, 1), (2,)),))


@pytest.fixture
def index():
    """Three prompts of 40, 30 and 50 tokens with 1, 2 and 1 wrong responses."""
    return Index(
        ids=["a", "b", "c"],
        lengths=Lengths(np.array([40, 30, 50]), np.array([2, 3, 2])),
        keys=np.array([500, 300, 700]),
        kept=[(0,), (0, 1), (0,)],
        usable=np.ones(3, bool),
        rejects=[],
        digests=["", "", ""],
        requests=["", "", ""],
    )


@pytest.fixture
def clock(monkeypatch):
    """The time, which stands still unless it is set."""
    now = types.SimpleNamespace(seconds=100.0)
    fake = types.SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr(throughput, "time", fake)
    return now


def metered(index, devices=None, steps=10, start=0):
    loader = types.SimpleNamespace(index=index)
    return Throughput(loader, MODEL, devices or jax.devices()[:1], steps, start)


def test_rates_count_distinct_tokens_and_pairs_over_the_time_since_the_last_line(index, clock):
    meter = metered(index)
    for _ in range(2):
        meter.dispatched(STEP, jnp.zeros(()))
    clock.seconds += 4.0
    rates = meter.rates(done=2)
    assert rates["pairs_per_second"] == 2 * 4 / 4.0
    assert rates["tokens_per_second"] == 2 * 120 / 4.0
    assert rates["padding_share"] == pytest.approx(1 - 120 / 200)
    assert rates["flops_per_second"] == train_flops(MODEL, 240, 3000) / 4.0
    assert "mfu" not in rates  # a CPU has no peak in the table
    meter.dispatched(STEP, jnp.zeros(()))
    clock.seconds += 1.0
    assert meter.rates(done=3)["tokens_per_second"] == 120 / 1.0
    meter.close()


def test_useful_flops_are_three_forward_passes_of_projections_and_attended_keys():
    q, kv, width, mlp = 4 * 8, 2 * 8, 32, 64
    projections = 2 * (width * (2 * q + 2 * kv) + 3 * width * mlp)
    attention = 2 * 2 * q  # scores and weighted sum, a multiply-add is two
    assert train_flops(MODEL, 7, 11) == 3 * 2 * (7 * projections + 11 * attention)


def test_mfu_is_of_all_chips_peak(index, clock):
    chips = [types.SimpleNamespace(device_kind="TPU v5p", process_index=1)] * 16
    meter = metered(index, devices=chips)
    meter.dispatched(STEP, jnp.zeros(()))
    clock.seconds += 2.0
    rates = meter.rates(done=1)
    assert rates["mfu"] == pytest.approx(rates["flops_per_second"] / (16 * 459e12))
    means = dict.fromkeys(
        ("loss", "accuracy", "margin", "reward_mean", "reward_std", "gradient_norm"), 0.5
    )
    assert "MFU 25.0%" in line(1, 10, means, rates | {"mfu": 0.25})
    meter.close()


def test_the_time_left_forgets_compilation_and_evaluation(index, clock):
    meter = metered(index, steps=10, start=2)

    def step(done, seconds):
        meter.dispatched(STEP, jnp.zeros(()))
        clock.seconds += seconds
        return meter.rates(done)["eta_seconds"]

    assert step(3, 60.0) == pytest.approx(60.0 * 7)  # all that is known so far
    assert step(4, 2.0) == pytest.approx(2.0 * 6)
    clock.seconds += 500.0
    meter.skip()
    assert step(5, 4.0) == pytest.approx(3.0 * 5)
    meter.close()


def test_waiting_counts_only_while_the_device_is_idle():
    waits = [(1.0, 3.0), (4.0, 6.0), (7.0, 8.0)]
    assert input_wait(waits, [0.0, 5.5, 9.0]) == 2.0 + 0.5 + 0.0


@pytest.mark.parametrize(
    ("device", "loader", "low", "high"),
    [(0.0, 0.05, 0.8, 1.0), (0.12, 0.04, 0.0, 0.2), (0.05, 0.1, 0.3, 0.7)],
    ids=["the loader alone", "hidden behind the device", "in part"],
)
def test_input_wait_of_a_slow_loader_and_a_slow_device(index, device, loader, low, high):
    """Steps that take `device` seconds on a device of their own, inputs that take `loader`."""

    class Queue:
        """A device: works off its steps one after the other."""

        free = 0.0

        def dispatch(self):
            Queue.free = max(Queue.free, time.perf_counter()) + device
            return types.SimpleNamespace(
                block_until_ready=lambda end=Queue.free: time.sleep(
                    max(0.0, end - time.perf_counter())
                )
            )

    def batches():
        for number in range(6):
            time.sleep(loader)
            yield number

    meter, queue = metered(index), Queue()
    results = []
    for _ in meter.inputs(batches()):
        results.append(queue.dispatch())
        meter.dispatched(STEP, results[-1])
    for result in results:
        result.block_until_ready()
    assert low <= meter.rates(done=6)["input_wait_share"] <= high
    meter.close()


def test_a_result_that_fails_does_not_end_the_watch(index, clock):
    class Failed:
        def block_until_ready(self):
            raise RuntimeError("a step failed")

    meter = metered(index)
    list(meter.inputs([1, 2]))
    meter.dispatched(STEP, Failed())
    meter.dispatched(STEP, jnp.zeros(()))
    clock.seconds += 1.0
    assert meter.rates(done=2)["input_wait_share"] == 0.0
    meter.close()


def test_memory_is_the_fullest_devices_peak_or_the_process():
    @dataclasses.dataclass
    class Device:
        peak: int
        process_index: int = 0

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak} if self.peak else None

    assert memory_bytes([Device(5), Device(9), Device(99, process_index=1)]) == 9
    own = memory_bytes([Device(0)])
    assert 2**26 < own < 2**40


@pytest.mark.parametrize(("seconds", "text"), [(5, "ETA 0:05"), (3725, "ETA 1:02:05")])
def test_the_time_left_is_written_as_a_clock(seconds, text):
    names = ("loss", "accuracy", "margin", "reward_mean", "reward_std", "gradient_norm")
    rates = ("pairs_per_second", "tokens_per_second", "flops_per_second", "padding_share")
    values = dict.fromkeys((*names, *rates, "input_wait_share", "memory_bytes"), 0.0)
    assert line(1, 2, values, values | {"eta_seconds": seconds}).endswith(text)
