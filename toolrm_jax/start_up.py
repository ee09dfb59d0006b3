"""Where the time goes until a run's first step is done, by phase.

    start-up 320 s: devices 8, model 3, index 9, weights 95, compile 180, first step 25

A phase is what `phase` was open for. From `steps_begin` to `first_step_done`, the time in which JAX
traced, lowered, compiled, or loaded a compiled program is "compile", and the rest "first step":
the first batch and the step itself. What no phase covers is "other".

    with StartUp() as start_up:
        with start_up.phase("weights"): ...
        start_up.steps_begin()
        ...
        start_up.first_step_done()
    print(start_up.line())
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax.monitoring

# What JAX reports as it goes: tracing, lowering, and compiling or loading. Some lie within others.
_COMPILE_EVENTS = "/jax/core/compile/"


class StartUp:
    """Seconds by phase, from its making on."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._began = clock()
        self._total = 0.0
        self._steps_began: float | None = None
        self._compiling: list[tuple[float, float]] = []
        self._phases: dict[str, float] = {}

    def __enter__(self) -> "StartUp":
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_: str | int) -> None:
        if self._steps_began is not None and event.startswith(_COMPILE_EVENTS):
            now = self._clock()
            self._compiling.append((now - duration_secs, now))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block's time under a name; several blocks may have the same."""
        began = self._clock()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + self._clock() - began

    def steps_begin(self) -> None:
        """To be called just before the first batch is asked for."""
        self._steps_began = self._clock()

    def first_step_done(self) -> None:
        """To be called when the first step's results are there."""
        assert self._steps_began is not None
        now = self._clock()
        compiling = _length(self._compiling, self._steps_began)
        self._phases |= {"compile": compiling, "first step": now - self._steps_began - compiling}
        self._total = now - self._began
        self._steps_began = None

    def seconds(self) -> dict[str, float]:
        """By phase, in the order they came; and "total", their sum."""
        other = self._total - sum(self._phases.values())
        return self._phases | {"other": other, "total": self._total}

    def line(self) -> str:
        """For the console; phases that take less than a second are left out."""
        seconds = self.seconds()
        total = seconds.pop("total")
        digits = 0 if total >= 20 else 1
        shown = [f"{name} {s:.{digits}f}" for name, s in seconds.items() if s >= 10**-digits]
        return f"start-up {total:.{digits}f} s: {', '.join(shown)}"


def _length(spans: list[tuple[float, float]], begin: float) -> float:
    """How much time the spans cover together from `begin` on."""
    covered, end = 0.0, begin
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered
