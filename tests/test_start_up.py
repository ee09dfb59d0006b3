"""Time to the first step, by phase."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from fake_gcs import FakeGcs

from toolrm_jax.start_up import StartUp


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_are_summed_and_the_rest_is_other():
    clock = Clock()
    with StartUp(clock) as start_up:
        for seconds in (10, 2):
            with start_up.phase("index"):
                clock.now += seconds
        clock.now += 1
        with start_up.phase("weights"):
            clock.now += 95
        start_up.steps_begin()
        clock.now += 5
        # Tracing lies within compiling here; together they are 180 seconds.
        clock.now += 60
        jax.monitoring.record_event_duration_secs("/jax/core/compile/jaxpr_trace_duration", 60)
        clock.now += 120
        jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", 180)
        jax.monitoring.record_event_duration_secs("/jax/other", 50)
        clock.now += 20
        start_up.first_step_done()
    assert start_up.line() == (
        "start-up 313 s: index 12, weights 95, compile 180, first step 25, other 1"
    )
    assert start_up.seconds()["total"] == 313


def test_a_real_compilation_is_found():
    with StartUp() as start_up:
        start_up.steps_begin()
        step = jax.jit(lambda x: jnp.linalg.svd(jnp.outer(x, x) + jnp.eye(len(x)))[1].sum())
        step(jnp.arange(37.0)).block_until_ready()
        start_up.first_step_done()
    seconds = start_up.seconds()
    assert 0.5 * seconds["total"] < seconds["compile"] < seconds["total"]
    assert seconds["total"] == pytest.approx(sum(seconds.values()) / 2)


def test_what_compiles_before_and_after_does_not_count():
    with StartUp(clock := Clock()) as start_up:
        jax.monitoring.record_event_duration_secs("/jax/core/compile/x", 5)
        clock.now += 5
        start_up.steps_begin()
        clock.now += 3
        start_up.first_step_done()
        jax.monitoring.record_event_duration_secs("/jax/core/compile/x", 5)
    assert start_up.seconds()["compile"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "gs"])
def test_a_second_run_loads_what_the_first_compiled(tmp_path, kind):
    tiny.write_model(tmp_path / "model")
    tiny.write_data(tmp_path)
    cache = {"folder": str(tmp_path / "cache"), "gs": "gs://bucket/cache"}[kind]
    changes = {"train.steps": 1, "train.export": False, "train.compilation_cache": cache}
    compiling = []
    with FakeGcs() as store:
        for name in ("one", "two"):
            process = tiny.start(
                tiny.command(tmp_path, tmp_path / name, **changes),
                devices=1,
                **store.environment,
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            )
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            assert "start-up" in output
            (line,) = tiny.metrics(tmp_path / name, "start-up")
            compiling.append(line["compile"])
        kept = list(store.objects) or [path.name for path in (tmp_path / "cache").iterdir()]
    assert any("train_step" in name for name in kept)
    assert compiling[1] < 0.7 * compiling[0]
