"""Stage 2 of a synthesis: without what an evaluation set holds, and without near-duplicates; names
replaced at the rate of each source.

    plan_thinning(folder, ...)     once: which example repeats which, into plan.json.zst
    Thin(folder, ...)(unit, tally) a shard of examples -> those that stay, some of them obfuscated
"""

import collections
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from toolrm_jax.examples import Example
from toolrm_jax.files import write_bytes
from toolrm_jax.splits import digest, words
from toolrm_jax.synth import overlap
from toolrm_jax.synth.obfuscation import Obfuscation
from toolrm_jax.synth.reading import example_of, example_row, open_found
from toolrm_jax.synth.shards import Row, read_shard
from toolrm_jax.synth.source import Reject
from toolrm_jax.synth.stage import StageError, Summary
from toolrm_jax.synth.units import Tally, Unit, unit_name
from toolrm_jax.synth.workers import in_order


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation sets that training must not hold: how they are read and compared."""

    sources: str  # the list as JSON
    similarity: float
    drop_shared_tools: bool


@functools.cache
def _sets(evaluation: Evaluation) -> tuple[overlap.EvaluationSets, dict[str, int]]:
    """(the sets, how many rows of each say too little to be compared); read once a process.

    A row that is no sound example here may be one for whoever evaluates on it: where its messages
    and tools can be read, they are compared as well.
    """
    found = overlap.EvaluationSets(evaluation.similarity, evaluation.drop_shared_tools)
    unread: dict[str, int] = {}
    for source in json.loads(evaluation.sources):
        made = [_as_example(row) for row in open_found(source)]
        if not found.add(source["name"], (e for e in made if e is not None)):
            raise StageError(f"config.overlap.evaluation: no example in {source['path']}.")
        unread[source["name"]] = made.count(None)
    return found, unread


def _as_example(found: Example | Reject) -> Example | None:
    """An example with the messages and tools of a reject; None where it has no user's turn."""
    if isinstance(found, Example):
        return found
    draft = found.draft
    if draft is None:
        return None
    messages = _objects(draft.messages)
    if not any(m.get("role") == "user" for m in messages):
        return None
    plain = _objects([tool.get("function", tool) for tool in _objects(draft.tools)])
    tools = [tool for tool in plain if isinstance(tool.get("name"), str)]
    return Example(draft.id, found.source, "", tools, messages, [], [])


def _objects(value: Any) -> list[dict[str, Any]]:
    """What is an object in a field that should be a list of them; nothing of it is checked yet."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclasses.dataclass(frozen=True)
class Thin:
    """Stage 2: a unit is a shard of examples."""

    folder: Path  # of the plan
    evaluation: Evaluation
    rates: Mapping[str, float]
    seed: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        plan = _read_plan(self.folder)[unit.name]
        for row, planned in zip(read_shard(unit.inputs[0]), plan, strict=True):
            example = example_of(row)
            found = self._overlap(example, tally)
            if found is not None:
                reason = f"overlaps {found[0]}: {found[1]}"
                tally.leave_out(reason, id=example.id, source=row["from"])
            elif planned and "repeats" in planned:
                repeated = planned["repeats"]
                why = "the same id" if repeated == example.id else "near-duplicate"
                tally.leave_out(why, f"of {repeated}", id=example.id, source=row["from"])
            else:
                more = planned or {}
                if "id" in more:
                    tally.count("named by their source: several have one id")
                    example = dataclasses.replace(example, id=more["id"])
                yield self._obfuscated(row, example, tally) | more

    def _overlap(self, example: Example, tally: Tally) -> tuple[str, str] | None:
        if self.evaluation.sources == "[]":
            return None
        sets, _ = _sets(self.evaluation)
        turns = [m for m in example.messages if m.get("role") == "user"]
        request = [w for m in turns for w in words(str(m.get("content")))]
        if sets.shares_tool(example):
            tally.count("examples that share a tool's name with an evaluation set")
        return sets.overlap(example, overlap.minima_of(request))

    def _obfuscated(self, row: Row, example: Example, tally: Tally) -> Row:
        hide = Obfuscation(seed=self.seed, default=self.rates[row["from"]])
        hidden, names = hide(example)
        if names is None:
            return row
        tally.count("obfuscated")
        return example_row(hidden) | {"from": row["from"], "names": names.to_json()}


def _read_plan(folder: Path) -> dict[str, Any]:
    return _cached_plan(folder, (folder / "plan.json.zst").stat().st_mtime_ns)


@functools.lru_cache(1)
def _cached_plan(folder: Path, _: int) -> dict[str, Any]:
    packed = (folder / "plan.json.zst").read_bytes()
    return json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of an example, beside its sketch."""

    id: str
    task: str  # a digest that is equal for the same task
    source: str  # by its name in the config


def _sketches(shard: Path, seed: int) -> tuple[overlap.Sketches, list[_Known]]:
    """Of a shard's examples."""
    rows = list(read_shard(shard))
    examples = list(map(example_of, rows))
    known = [
        _Known(
            e.id,
            digest(json.dumps([e.tools, e.messages, e.reference]))[:16],
            sys.intern(row["from"]),
        )
        for e, row in zip(examples, rows, strict=True)
    ]
    return overlap.join(overlap.sketch(example, seed=seed) for example in examples), known


def plan_thinning(
    folder: Path,
    tally: Tally,
    examples: Summary,
    evaluation: Evaluation,
    seed: int,
    near: bool,
    workers: int,
) -> dict[str, Any]:
    """Says of each shard's examples, in order, what becomes of them; None: nothing.

    {"repeats": the id of one that is kept} or {"id": its new one, "also": ids}: an example keeps
    the ids of its exact repeats, for what was answered to them was answered to it.
    """
    for name, unread in _sets(evaluation)[1].items():
        if unread:
            tally.count(f"rows that could not be compared: of {name}", unread)
    sketch = functools.partial(_sketches, seed=seed)
    parts = in_order(sketch, examples.shards, workers)
    known = [one for part in parts for one in part[1]]
    repeats: list[int | None] = [None] * len(known)
    if near:
        sketches = overlap.concatenate([part[0] for part in parts])
        found = overlap.near_duplicates(sketches, evaluation.similarity).tolist()
        repeats = [None if kept < 0 else kept for kept in found]
    planned = _planned(known, repeats)
    plan: dict[str, Any] = {}
    for shard, part in zip(examples.shards, parts, strict=True):
        plan[unit_name(shard)] = [next(planned) for _ in part[1]]
    packed = zstandard.ZstdCompressor().compress(json.dumps(plan).encode())
    write_bytes(folder / "plan.json.zst", packed)
    return {}


def _planned(
    known: Sequence[_Known], near: Sequence[int | None]
) -> Iterator[dict[str, Any] | None]:
    """What becomes of each example, given which near-duplicate is kept instead of it."""
    repeats = list(near)
    first: dict[tuple[str, str], int] = {}
    for index, one in enumerate(known):
        same = first.setdefault((one.id, one.task), index)
        if same != index and repeats[index] is None:
            repeats[index] = same if repeats[same] is None else repeats[same]
    others: dict[int, dict[str, None]] = {}  # the other ids of a kept one's exact repeats
    for one, kept in zip(known, repeats, strict=True):
        if kept is not None and known[kept].task == one.task and known[kept].id != one.id:
            others.setdefault(kept, {})[one.id] = None
    kept_ones = [index for index, kept in enumerate(repeats) if kept is None]
    having = collections.Counter(known[index].id for index in kept_ones)
    having.update(name for names in others.values() for name in names)
    named = _named_apart(known, [index for index in kept_ones if having[known[index].id] > 1])
    for index, kept in enumerate(repeats):
        if kept is not None:
            yield {"repeats": known[kept].id}
            continue
        new = {"id": named[index]} if index in named else {}
        also = [name for name in others.get(index, ()) if having[name] == 1]
        yield new | ({"also": also} if also else {}) or None


def _named_apart(known: Sequence[_Known], kept: Sequence[int]) -> dict[int, str]:
    """New ids of examples that share theirs: the source's name goes before it.

    None of them keeps it: of what was answered to that id nobody knows which it was asked.
    """
    taken = {one.id for one in known}
    tried: collections.Counter[str] = collections.Counter()
    named = {}
    for index in kept:
        apart = name = f"{known[index].source}/{known[index].id}"
        while name in taken:
            tried[apart] += 1
            name = f"{apart}~{tried[apart] + 1}"
        taken.add(name)
        named[index] = name
    return named
