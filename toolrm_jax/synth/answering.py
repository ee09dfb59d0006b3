"""Stage 3 of a synthesis: the answers of the pool to each example, in the examples' order.

A process opens its pool once, for all units that it works on.
"""

import collections
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolrm_jax.examples import Example, Response
from toolrm_jax.synth.answer import Answer, to_row
from toolrm_jax.synth.generators import Pool
from toolrm_jax.synth.obfuscation import Names
from toolrm_jax.synth.reading import example_of
from toolrm_jax.synth.shards import Row, read_shard
from toolrm_jax.synth.units import Tally, Unit


class _OpenPool:
    """A pool that stays open for all units of a process, and tells each what it counted."""

    def __init__(self, pool: str, seed: int, cache: str, permissive_only: bool, tally: Tally):
        self.tally, self.names = tally, dict[str, Names]()
        self.repeats = dict[str, list[str]]()
        self.pool = Pool(
            json.loads(pool),
            seed=seed,
            cache=cache,
            permissive_only=permissive_only,
            translate=self._translate,
            repeats=lambda example: self.repeats.get(example.id, ()),
            reject=lambda reason, detail, at: self.tally.reject(reason, detail, at),
            leave_open=lambda reason, detail, at: self.tally.leave_open(reason, detail, at),
        )

    def _translate(self, example: Example, response: Response) -> Response:
        names = self.names.get(example.id)
        return names.hide_answer(response, example.id) if names else response

    def answers(self, rows: Sequence[Row], tally: Tally) -> Iterator[Answer]:
        """The answers to the examples of these rows, in their order."""
        self.tally, before = tally, self.pool.given()
        self.names = {r["id"]: Names.from_json(r["names"]) for r in rows if "names" in r}
        self.repeats = {r["id"]: r["also"] for r in rows if "also" in r}
        yield from self.pool.answers(map(example_of, rows))
        tally.has_read(len(rows) * self.pool.samples)
        for what, number in self.pool.given().items():
            if number > before.get(what, 0):
                tally.count(what, number - before.get(what, 0))


@dataclasses.dataclass(frozen=True)
class AnswerUnits:
    """Stage 3: a unit is a shard of examples."""

    pool: str  # the members, as JSON
    seed: int
    cache: str
    permissive_only: bool
    shards: tuple[str, ...]  # of the examples

    def opened(self, tally: Tally) -> _OpenPool:
        """This process's pool; what it rejects while it opens goes to the tally."""
        if self not in _open_pools:
            while _open_pools:  # of another config, in one process
                _open_pools.popitem()[1].pool.close()
            _open_pools[self] = _OpenPool(
                self.pool, self.seed, self.cache, self.permissive_only, tally
            )
        return _open_pools[self]

    def plan(self, _: Path, tally: Tally) -> dict[str, Any]:
        """Opens the pool once, for what it rejects and counts; says which models are left out."""
        self.close()
        pool = self.opened(tally).pool
        for model, why in pool.not_asked.items():
            print(f"answers: {model} is not asked: {why}", flush=True)
        tally.has_read(pool.replayed_rows)
        for what, number in pool.given().items():
            tally.count(what, number)
        if any(entry["kind"] == "replay" for entry in json.loads(self.pool)):
            rows = (row for shard in self.shards for row in read_shard(shard))
            ids = {name for row in rows for name in (row["id"], *row.get("also", ()))}
            beside = "replay: left out: to examples that were left out, or are of no source"
            tally.count(beside, pool.unused(ids))
        return {}

    def close(self) -> None:
        """Closes this process's pool."""
        opened = _open_pools.pop(self, None)
        if opened is not None:
            for what, number in sorted(opened.pool.asked().items()):
                print(f"  {what}: {number:,}", flush=True)
            opened.pool.close()

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        rows = list(read_shard(unit.inputs[0]))
        opened = self.opened(_Silent())
        stream = opened.answers(rows, tally)
        groups = itertools.groupby(stream, key=lambda answer: answer.example_id)
        following = next(groups, None)
        for row in rows:
            given: list[Row] = []
            if following is not None and following[0] == row["id"]:
                given = [_without_id(answer) for answer in following[1]]
                following = next(groups, None)
            yield {"id": row["id"], "answers": given}
        assert following is None, following


_open_pools: dict[AnswerUnits, _OpenPool] = {}  # of this process; one at most


class _Silent(Tally):
    """What a worker's pool rejects as it opens was told by the plan already."""

    def __init__(self) -> None:
        self.counts = collections.Counter()

    def reject(self, reason: str, detail: str = "", at: str = "", **more: Any) -> None:
        """Nothing."""


def _without_id(answer: Answer) -> Row:
    row = to_row(answer)
    del row["example_id"]
    return row
