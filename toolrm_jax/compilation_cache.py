"""Compiled programs kept on disk: the first run compiles, later ones load what it compiled.

use_compilation_cache()                 # where JAX is told to, or the default folder
use_compilation_cache("gs://b/cache")   # for all machines of a pod together
"""

import contextlib
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from toolrm_jax.paths import cache_folder, is_remote

NONE = "none"


def use_compilation_cache(
    folder: str | os.PathLike[str] | None = None, default: str | os.PathLike[str] | None = None
) -> None:
    """Keeps compiled programs in `folder` ("none": not at all), or where JAX is already told to
    (JAX_COMPILATION_CACHE_DIR), or in `default`, or in $TOOLRM_CACHE_DIR/compiled, or in
    ~/.cache/toolrm_jax/compiled."""
    if folder == NONE:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    told = jax.config.values["jax_compilation_cache_dir"]
    chosen = os.fspath(folder or told or default or cache_folder("compiled"))
    jax.config.update("jax_compilation_cache_dir", chosen)
    if is_remote(chosen):  # XLA's own caches, on GPUs, would be put into a local folder "gs:"
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


@contextlib.contextmanager
def compilation_cache_off() -> Iterator[None]:
    """No cache meanwhile: programs for devices that are not there are written to it, and then
    cannot be read from it."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
