"""Traces of a few steps: written where they are wanted, and only then."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from toolrm_jax.step_trace import StepTrace


def run(folder, steps, count, start=3, **options):
    """Numbers of the steps after which a trace was written."""
    work = jax.jit(lambda x: x @ x)
    ended = []
    with contextlib.closing(StepTrace(folder, start, steps, **options)) as trace:
        for number in range(start, start + count):
            with trace.step(number):
                result = work(jnp.ones((8, 8)))
            if trace.dispatched(number, result):
                ended.append(number)
    return ended


def test_the_steps_asked_for_are_traced(tmp_path):
    assert run(tmp_path, (1, 2), count=5) == [5]
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    written = trace.read_bytes()
    assert b"train" in written  # the steps' annotation
    assert b"step_num" in written


def test_a_run_that_ends_first_leaves_the_trace_so_far(tmp_path):
    assert run(tmp_path, (1, 9), count=3) == []
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size


@pytest.mark.parametrize(("steps", "on"), [((0, 0), True), ((1, 2), False), ((7, 2), True)])
def test_nothing_is_traced_otherwise(tmp_path, steps, on):
    assert run(tmp_path, steps, count=4, on=on) == []
    assert not list(tmp_path.iterdir())
