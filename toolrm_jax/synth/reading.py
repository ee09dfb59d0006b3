"""Stage 1 of a synthesis: the examples of the sources, read and checked.

    source = {"name", "format", "path", "options", "keep", ...}   a row of the config's `sources`
    rows   = Read({"00-xlam": source}, seed=0, longest_prompt=0)(Unit("00-xlam"), tally)

A row is an example as JSON, and "from": the source's name.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.assets import WHEELS
from toolrm_jax.checkpoint_files import by_name
from toolrm_jax.examples import Example
from toolrm_jax.paths import as_path
from toolrm_jax.row_source import file_digest, open_rows
from toolrm_jax.splits import digest
from toolrm_jax.synth.shards import Row
from toolrm_jax.synth.source import Reason, Reject
from toolrm_jax.synth.sources import open_source
from toolrm_jax.synth.sources.nexusraven import SUBSETS
from toolrm_jax.synth.sources.sealtools import catalogue_beside
from toolrm_jax.synth.units import Tally, Unit

Source = dict[str, Any]


def example_row(example: Example) -> Row:
    """The example as JSON."""
    return {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}


def example_of(row: Row) -> Example:
    """The example that `example_row` wrote, whatever else the row holds."""
    return Example(**{f.name: row[f.name] for f in dataclasses.fields(Example)})


def open_found(source: Source) -> Iterator[Example | Reject]:
    return open_source(source["format"], source["path"], **source["options"])


def check_readable(source: Source) -> None:
    """Reads a source's first example. Raises InputError or OSError: the digest of a folder, say,
    does not tell that nothing in it can be read."""
    next(open_found(source), None)


def source_digest(source: Source) -> str:
    """What tells a source's content from another's: of a folder, all its files; with the files that
    its options name, or that are read beside it."""
    if source["format"] == "bfcl" and source["path"] == "wheel":
        return f"bfcl-eval {WHEELS['bfcl-eval']}"
    path = as_path(source["path"])
    if path.is_dir():
        parts = [f"{name} {file_digest(file)}" for name, file in by_name(path).items()]
        return _together(parts)
    options = source["options"]
    beside = [str(options[name]) for name in ("catalogue", "functions") if options.get(name)]
    if source["format"] == "sealtools" and not beside:
        beside = [catalogue_beside(source["path"])]
    of_raven = source["format"] == "nexusraven" and not beside
    subsets = SUBSETS if of_raven else (options.get("subset"),)
    split = options.get("split", "train")
    opened = (
        open_rows(source["path"], split=split, subset=subset, revision=options.get("revision"))
        for subset in subsets
    )
    parts = [*(rows.digest() for rows in opened), *map(file_digest, beside)]
    return parts[0] if len(parts) == 1 else _together(parts)


def _together(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Read:
    """Stage 1: a unit is a source."""

    sources: Mapping[str, Source]
    seed: int
    longest_prompt: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        source = self.sources[unit.name]
        for found in open_found(source):
            tally.has_read()
            tally.count(f"read: {source['name']}")
            if isinstance(found, Reject):
                at = f"{found.file}, line {found.line}" if found.line else found.file
                about = {"at": at, "source": source["name"]}
                if found.reason == Reason.DOUBTED:
                    tally.leave_out(found.detail, **about)
                else:
                    tally.reject(found.reason, found.detail, **about)
                    tally.count(f"rejected: {source['name']}")
                continue
            tally.count(f"examples: {source['name']}")
            if 0 < self.longest_prompt < _prompt_length(found):
                tally.count(f"left out: beyond longest_prompt of {source['name']}")
                continue
            if source["keep"] < 1 and _share(self.seed, "keep", found.id) >= source["keep"]:
                tally.count(f"left out: beyond the share to keep of {source['name']}")
                continue
            yield example_row(found) | {"from": source["name"]}


def _prompt_length(example: Example) -> int:
    """In characters; a token is three to four of them."""
    return len(json.dumps([example.tools, example.messages], ensure_ascii=False))


def _share(*parts: object) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return int(digest(*parts)[:13], 16) / 16**13
