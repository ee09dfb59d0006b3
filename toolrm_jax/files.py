"""Writes files whole: under a temporary name, then renamed, so that no reader meets half of one."""

from pathlib import Path


def write_text(path: str | Path, text: str) -> None:
    """Replaces the file; an interrupted write leaves the old one as it was."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)
