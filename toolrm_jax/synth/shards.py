"""Rows on disk: JSON lines, compressed by Zstandard, a file that appears whole.

writer = ShardWriter(Path("00017.jsonl.zst")); writer.write(row); writer.close()
for row in read_shard("00017.jsonl.zst"): ...
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

Row = dict[str, Any]

_LEVEL = 3


class ShardWriter:
    """JSON lines, compressed by Zstandard; the file appears under its name when it is closed."""

    def __init__(self, path: Path):
        self.path, self.rows = path, 0
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._file = self._partial.open("wb")
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(self._file)

    def write(self, row: Row) -> None:
        """Adds a row. A lone surrogate, which UTF-8 cannot carry, is written as an escape."""
        try:
            line = json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            line = json.dumps(row).encode()
        self._zstd.write(line + b"\n")
        self.rows += 1

    def close(self) -> None:
        """Completes the file and gives it its name."""
        self._zstd.close()
        self._file.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Leaves nothing behind."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def about(self) -> dict[str, Any]:
        """The file's name, rows, size and SHA-256."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = self.path.stat().st_size
        return {"name": self.path.name, "rows": self.rows, "bytes": size, "sha256": digest}


def read_shard(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of one shard."""
    with Path(path).open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        for line in io.BufferedReader(reader, 1 << 20):
            yield json.loads(line)
