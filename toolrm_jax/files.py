"""Writes files whole: under a temporary name, then renamed, so that no reader meets half of one.

An object of a store appears when it is complete, and needs no other name.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from toolrm_jax.paths import as_path, is_remote


def write_text(path: str | os.PathLike[str], parts: str | Iterable[str]) -> None:
    """Replaces the file, in UTF-8; an interrupted write leaves the old one as it was."""
    if is_remote(path):
        # Joined first: a store's client would complete the object if `parts` failed on the way.
        as_path(path).write_text("".join(parts))
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines([parts] if isinstance(parts, str) else parts)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
