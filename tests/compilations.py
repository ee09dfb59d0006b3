"""Compiled programs that tests, and the processes they start, keep for each other."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def shared_compilations(folder: Path) -> Iterator[None]:
    """While open, this process and those it starts keep what they compile in a folder."""
    wanted = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    environment = {name.upper(): os.environ.get(name.upper()) for name in wanted}
    _tell(wanted, {name.upper(): str(value) for name, value in wanted.items()})
    try:
        yield
    finally:
        _tell(before, environment)


def _tell(settings: dict, environment: dict[str, str | None]) -> None:
    """This process, and those it starts."""
    for name, value in settings.items():
        jax.config.update(name, value)
    for name, text in environment.items():
        os.environ.pop(name, None)
        if text is not None:
            os.environ[name] = text
    compilation_cache.reset_cache()
