"""Units of work: rows in, and out come shards, rejects, and a marker once they are whole.

    00017.jsonl.zst          the rows, in one file; or 00-xlam-00000.jsonl.zst, ... of so many each
    00017.rejects.jsonl.zst  what could not be used: {"reason", "detail", "at", ...}
    00017.json               written last: files with size and SHA-256, counts, what was left open

A unit is done by one process, as a stream: memory does not grow with the number of rows.

    about = do_unit(folder, Unit("00017"), work=work, shard_rows=0)  # work(unit, tally) yields rows
    unit_made(folder, "00017")                                       # the same, from the marker
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from toolrm_jax.files import write_text
from toolrm_jax.synth.shards import Row, ShardWriter


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work: its name is its files', `inputs` are the shards (or whatever) it reads."""

    name: str
    inputs: tuple[str, ...] = ()


class Tally:
    """What a unit counts, and what it rejects."""

    def __init__(self, rejects: ShardWriter):
        self.counts: collections.Counter[str] = collections.Counter()
        self.rejected: collections.Counter[str] = collections.Counter()
        self.left_open: collections.Counter[str] = collections.Counter()
        self.read: int | None = None
        self._rejects = rejects

    def count(self, what: str, number: int = 1) -> None:
        """Adds to a counter of the stage's summary."""
        self.counts[what] += number

    def has_read(self, number: int = 1) -> None:
        """Counts what was read, of which rejects are a share; without it, rows and rejects are."""
        self.read = (self.read or 0) + number

    def leave_open(self, what: str, detail: str = "", at: str = "") -> None:
        """Lists something that another run may have more luck with: the unit is to be done again,
        unless the stage is told that so much may be missing."""
        self.left_open[what] += 1
        self._rejects.write({"reason": what, "detail": detail[:2000], "at": at})

    def reject(self, reason: str, detail: str = "", at: str = "", **more: Any) -> None:
        """Lists something that cannot be used: why, and the file and line that it stood in."""
        self.rejected[reason] += 1
        self._rejects.write({"reason": reason, "detail": detail[:2000], "at": at, **more})

    def leave_out(self, reason: str, detail: str = "", **more: Any) -> None:
        """Lists something that is sound but not wanted; it counts as no fault of the input."""
        self.counts[f"left out: {reason}"] += 1
        self._rejects.write({"reason": reason, "detail": detail[:2000], **more})


Work = Callable[[Unit, Tally], Iterator[Row]]


def _marker(folder: Path, unit: str) -> Path:
    return folder / f"{unit}.json"


def do_unit(folder: Path, unit: Unit, *, work: Work, shard_rows: int) -> dict[str, Any]:
    """Writes a unit's shards and rejects, then its marker; gives what the marker holds."""
    rejects = ShardWriter(folder / f"{unit.name}.rejects.jsonl.zst")
    tally, writers = Tally(rejects), [rejects]
    try:
        shards = list(_write_rows(folder, unit, work, tally, shard_rows, writers))
        rejects.close()
    except BaseException:
        for writer in writers:
            writer.discard()
        raise
    about = about_unit(shards, rejects, tally)
    write_text(_marker(folder, unit.name), json.dumps(about))
    return about


def about_unit(shards: list[dict[str, Any]], rejects: ShardWriter, tally: Tally) -> dict[str, Any]:
    """What a marker holds."""
    read = tally.read
    if read is None:
        read = sum(shard["rows"] for shard in shards) + tally.rejected.total()
    return {
        "shards": shards,
        "rejects": rejects.about(),
        "counts": dict(tally.counts),
        "rejected": dict(tally.rejected),
        "left_open": dict(tally.left_open),
        "read": read,
    }


def _write_rows(
    folder: Path,
    unit: Unit,
    work: Work,
    tally: Tally,
    shard_rows: int,
    writers: list[ShardWriter],
) -> Iterator[dict[str, Any]]:
    """Writes a unit's rows, `shard_rows` a file (0: all in one); yields what each file holds."""
    number, writer = 0, None
    for row in work(unit, tally):
        if writer is None:
            name = f"{unit.name}-{number:05}" if shard_rows else unit.name
            writer = ShardWriter(folder / f"{name}.jsonl.zst")
            writers.append(writer)
        writer.write(row)
        if writer.rows == shard_rows:
            writer.close()
            writers.remove(writer)  # a compressor holds 2 MB, a source may have hundreds of shards
            yield writer.about()
            number, writer = number + 1, None
    if writer is None and not shard_rows:  # so that a unit has its shard, be it empty
        writer = ShardWriter(folder / f"{unit.name}.jsonl.zst")
        writers.append(writer)
    if writer is not None:
        writer.close()
        yield writer.about()


def unit_made(folder: Path, unit: str) -> dict[str, Any] | None:
    """What a unit's marker holds; None where it is not done, left something open or lost a file."""
    try:
        about = json.loads(_marker(folder, unit).read_text())
    except (OSError, ValueError):
        return None
    if about["left_open"]:
        return None
    files = [*about["shards"], about["rejects"]]
    return about if all(has_size(folder, file) for file in files) else None


def has_size(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether a file that a marker or a summary names is there, as long as it was."""
    try:
        return (folder / about["name"]).stat().st_size == about["bytes"]
    except OSError:
        return False


def unit_name(shard: Path) -> str:
    """The name of the unit whose rows a shard holds."""
    return shard.name.removesuffix(".jsonl.zst")
