"""Compiled programs kept on disk: the first run compiles, later ones load what it compiled.

use_compilation_cache()                 # where JAX is told to, or the default folder
use_compilation_cache("gs://b/cache")   # for all machines of a pod together
use_compilation_cache("none")           # nowhere
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from toolrm_jax.errors import InputError
from toolrm_jax.paths import cache_folder, is_remote

NONE = "none"


class CacheFolderError(InputError):
    """A folder for compiled programs that cannot be written to."""


def use_compilation_cache(
    folder: str | os.PathLike[str] | None = None, default: str | os.PathLike[str] | None = None
) -> None:
    """Keeps compiled programs in `folder` ("none": not at all), or where JAX is already told to
    (JAX_COMPILATION_CACHE_DIR), or in `default`, or in $TOOLRM_CACHE_DIR/compiled, or in
    ~/.cache/toolrm_jax/compiled.

    Where a folder that nobody named here cannot be written to, a line says so, and none are kept.

    Raises:
      CacheFolderError: `folder` cannot be written to.
    """
    if folder == NONE:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    told = jax.config.values["jax_compilation_cache_dir"]
    chosen = os.fspath(folder or told or default or cache_folder("compiled"))
    if problem := "" if is_remote(chosen) else _unusable(chosen):
        if folder:
            raise CacheFolderError(f'{problem}: name another folder, or "{NONE}" to keep none.')
        logging.warning("%s: every start compiles anew.", problem)
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", chosen)
    if is_remote(chosen):  # XLA's own caches, on GPUs, would be put into a local folder "gs:"
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def keeps_programs() -> bool:
    """Whether what is compiled now is kept."""
    return jax.config.values["jax_compilation_cache_dir"] is not None


def _unusable(folder: str) -> str:
    """What keeps programs out of a folder, which is made; "" if nothing does. JAX itself would give
    a warning for each program."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"Compiled programs cannot be kept in {folder!r} ({error.strerror})"


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
