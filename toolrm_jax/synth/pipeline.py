"""The stages of a synthesis, in order; each reads what the one before it wrote.

1-examples    sources, read and checked
2-obfuscated  without what an evaluation set holds and near-duplicates; names replaced
3-answers     of endpoints, replayed files and corruptions: {"id", "answers"}, row for row as 2
4-judged      against the gold: {"id", "turn", "gold", "right", "wrong"}, row for row as 2
5-pairs       the rows that were selected, in the loader's form
dataset       ArrayRecord, Parquet and the data card

pipeline = Pipeline(config, workdir)
pipeline.run(("examples", "obfuscated"))
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from etils import epath
from ml_collections import ConfigDict

from toolrm_jax.assets import WHEELS
from toolrm_jax.examples import Example, Response
from toolrm_jax.output_folder import new_folder
from toolrm_jax.paths import as_path, is_remote
from toolrm_jax.row_source import file_digest, files_below, open_rows
from toolrm_jax.splits import digest
from toolrm_jax.synth import card, output, overlap, selection
from toolrm_jax.synth.answer import Answer, from_row, to_row
from toolrm_jax.synth.answer_cache import AnswerCache
from toolrm_jax.synth.generators import Pool
from toolrm_jax.synth.judging import judge_answers
from toolrm_jax.synth.obfuscation import Names, Obfuscation
from toolrm_jax.synth.source import Reject
from toolrm_jax.synth.sources import open_source
from toolrm_jax.synth.stage import (
    Row,
    Stage,
    Summary,
    Tally,
    Unit,
    in_order,
    read_shard,
    rejects_name,
)
from toolrm_jax.synth.synth_config import (
    STAGES,
    SynthError,
    check,
    selection_settings,
    source_list,
)

Source = dict[str, Any]


def example_row(example: Example) -> Row:
    """The example as JSON."""
    return {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}


def example_of(row: Row) -> Example:
    """The example that `example_row` wrote, whatever else the row holds."""
    return Example(**{f.name: row[f.name] for f in dataclasses.fields(Example)})


def _open(source: Source) -> Iterator[Example | Reject]:
    return open_source(source["format"], source["path"], **source["options"])


def source_digest(source: Source) -> str:
    """What tells a source's content from another's: of a folder, all its files."""
    if source["format"] == "bfcl" and source["path"] == "wheel":
        return f"bfcl-eval {WHEELS['bfcl-eval']}"
    path = as_path(source["path"])
    if path.is_dir():
        parts = [f"{name} {file_digest(file)}" for name, file in files_below(path).items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    where = {
        name: source["options"][name] for name in ("split", "subset") & source["options"].keys()
    }
    return open_rows(source["path"], **where).digest()


# Work of the stages: plain objects that a worker process gets -------------------------------------


@dataclasses.dataclass(frozen=True)
class _Read:
    """Stage 1: a unit is a source."""

    sources: Mapping[str, Source]
    seed: int
    longest_prompt: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        source = self.sources[unit.name]
        for found in _open(source):
            if isinstance(found, Reject):
                at = f"{found.file}, line {found.line}" if found.line else found.file
                tally.reject(found.reason, found.detail, at, source=source["name"])
                continue
            tally.count(f"read: {source['name']}")
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


@functools.cache
def _evaluation_sets(
    sources: str, similarity: float, drop_shared_tools: bool
) -> overlap.EvaluationSets | None:
    """Read once a process; `sources` is the list as JSON."""
    found = overlap.EvaluationSets(similarity, drop_shared_tools)
    listed = json.loads(sources)
    for source in listed:
        made = (e for e in _open(source) if not isinstance(e, Reject))
        if not found.add(source["name"], made):
            raise SynthError(f"config.overlap.evaluation: no example in {source['path']}.")
    return found if listed else None


@dataclasses.dataclass(frozen=True)
class _Thin:
    """Stage 2: a unit is a shard of examples."""

    folder: Path  # of the plan
    evaluation: str
    similarity: float
    drop_shared_tools: bool
    rates: Mapping[str, float]
    seed: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        plan = _read_plan(self.folder)[unit.name]
        for row, repeated in zip(read_shard(unit.inputs[0]), plan["repeats"], strict=True):
            example = example_of(row)
            found = self._overlap(example, tally)
            if found is not None:
                reason = f"overlaps {found[0]}: {found[1]}"
                tally.leave_out(reason, id=example.id, source=row["from"])
            elif repeated is not None:
                why = "the same id" if repeated == example.id else "near-duplicate"
                tally.leave_out(why, f"of {repeated}", id=example.id, source=row["from"])
            else:
                also = plan["also"].get(example.id)
                yield self._obfuscated(row, example, tally) | ({"also": also} if also else {})

    def _overlap(self, example: Example, tally: Tally) -> tuple[str, str] | None:
        sets = _evaluation_sets(self.evaluation, self.similarity, self.drop_shared_tools)
        if sets is None:
            return None
        turns = [m for m in example.messages if m.get("role") == "user"]
        request = [w for m in turns for w in overlap.words(str(m.get("content")))]
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


def _sketches(shard: Path, seed: int) -> tuple[overlap.Sketches, list[str], list[str]]:
    """Of a shard's examples: sketches, ids, and digests that are equal for the same task."""
    examples = [example_of(row) for row in read_shard(shard)]
    return (
        overlap.join(overlap.sketch(example, seed=seed) for example in examples),
        [example.id for example in examples],
        [digest(json.dumps([e.tools, e.messages, e.reference]))[:16] for e in examples],
    )


def _plan_thinning(
    folder: Path,
    _: Tally,
    examples: Summary,
    similarity: float,
    seed: int,
    near: bool,
    workers: int,
) -> dict[str, Any]:
    """Finds what repeats another example: by shard, a list of ids, or None where it does not.

    An example keeps the ids of its exact repeats: what was answered to them was answered to it.
    """
    sketch = functools.partial(_sketches, seed=seed)
    parts = in_order(sketch, examples.shards, workers)
    sketches = overlap.concatenate([part[0] for part in parts])
    ids = [example_id for part in parts for example_id in part[1]]
    tasks = [task for part in parts for task in part[2]]
    repeats: list[str | None] = [None] * len(ids)
    also: dict[str, list[str]] = {}
    if near:
        found = overlap.near_duplicates(sketches, similarity).tolist()
        repeats = [None if kept < 0 else ids[kept] for kept in found]
        for index, kept in enumerate(found):
            if kept >= 0 and tasks[kept] == tasks[index] and ids[kept] != ids[index]:
                also.setdefault(ids[kept], []).append(ids[index])
    first: dict[str, int] = {}
    for index, example_id in enumerate(ids):
        if first.setdefault(example_id, index) != index and repeats[index] is None:
            repeats[index] = example_id
    plan: dict[str, Any] = {}
    at = 0
    for shard, part in zip(examples.shards, parts, strict=True):
        here = {example_id: also[example_id] for example_id in part[1] if example_id in also}
        plan[_unit_name(shard)] = {"repeats": repeats[at : at + len(part[1])], "also": here}
        at += len(part[1])
    packed = zstandard.ZstdCompressor().compress(json.dumps(plan).encode())
    _write_bytes(folder / "plan.json.zst", packed)
    return {}


def _write_bytes(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)


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
        for what, number in self.pool.given().items():
            if number > before.get(what, 0):
                tally.count(what, number - before.get(what, 0))


@dataclasses.dataclass(frozen=True)
class _Answer:
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
        """Opens the pool once, for what it rejects and counts as it does."""
        self.close()
        pool = self.opened(tally).pool
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


_open_pools: dict[_Answer, _OpenPool] = {}  # of this process; one at most


class _Silent(Tally):
    """What a worker's pool rejects as it opens was told by the plan already."""

    def __init__(self) -> None:
        self.counts, self.rejected = collections.Counter(), collections.Counter()

    def reject(self, reason: str, detail: str = "", at: str = "", **more: Any) -> None:
        """Nothing."""


def _without_id(answer: Answer) -> Row:
    row = to_row(answer)
    del row["example_id"]
    return row


@dataclasses.dataclass(frozen=True)
class _Judge:
    """Stage 4: a unit is a shard of examples and one of answers, row for row."""

    seed: int

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        examples, answers = map(read_shard, unit.inputs)
        for row, given in zip(examples, answers, strict=True):
            assert row["id"] == given["id"], (row["id"], given["id"])
            found = [from_row({"example_id": row["id"], **a}) for a in given["answers"]]
            yield judge_answers(example_of(row), found, tally.counts, seed=self.seed)


def _candidates(shard: Path, seed: int) -> selection.Candidates:
    return selection.candidates_of(read_shard(shard), seed)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Stage 5: a unit is a shard of examples and one of judged answers, row for row."""

    folder: Path  # of the plan
    seed: int
    k_way: bool

    def __call__(self, unit: Unit, tally: Tally) -> Iterator[Row]:
        chosen = np.load(self.folder / f"{unit.name}.chosen.npy")
        examples, judged = map(read_shard, unit.inputs)
        at = 0
        for example, row in zip(examples, judged, strict=True):
            mine = chosen[at : at + len(row["wrong"])]
            at += len(row["wrong"])
            if not row["wrong"]:
                tally.count("left out: examples without a wrong answer")
            elif not mine.any():
                tally.count("left out: examples of which no wrong answer was chosen")
            yield from selection.pair_rows(
                example, row, mine.tolist(), seed=self.seed, k_way=self.k_way
            )


def _plan_selection(
    folder: Path, _: Tally, judged: Summary, settings: selection.SelectionSettings, workers: int
) -> dict[str, Any]:
    """Chooses among all candidates; leaves what was chosen beside each shard's rows."""
    read = functools.partial(_candidates, seed=settings.seed)
    parts = in_order(read, judged.shards, workers)
    chosen, report = selection.select(selection.merge(parts), settings)
    at = 0
    for shard, part in zip(judged.shards, parts, strict=True):
        name = folder / f"{_unit_name(shard)}.chosen.npy"
        partial = name.with_name(f".{name.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, chosen[at : at + len(part.table)])
        partial.replace(name)
        at += len(part.table)
    return {"selection": report}


def _unit_name(shard: Path) -> str:
    return shard.name.removesuffix(".jsonl.zst")


def _units(*summaries: Summary) -> list[Unit]:
    """One unit for each shard; those of several stages lie side by side."""
    return [
        Unit(_unit_name(shards[0]), tuple(map(str, shards)))
        for shards in zip(*(summary.shards for summary in summaries), strict=True)
    ]


# The pipeline ------------------------------------------------------------------------------------


# How a member is reached; nothing that it answers depends on it.
_HOW = (
    "url",
    "key_variable",
    "concurrency",
    "timeout",
    "tries",
    "first_pause",
    "longest_pause",
    "give_up_after",
    "budget_requests",
    "budget_tokens",
    "retry_refused",
)


def _said_of(entry: Row) -> Row:
    """What a pool member's answers depend on; of a file, its content."""
    kept = {name: value for name, value in entry.items() if name not in _HOW}
    if "path" in kept:
        kept["path"] = open_rows(kept["path"]).digest()
    return kept


class Pipeline:
    """The stages of one config in one workdir."""

    def __init__(self, config: ConfigDict, workdir: str | os.PathLike[str]):
        if is_remote(workdir):
            raise SynthError(
                f"--workdir={workdir}: the stages need a folder of this machine; the finished data "
                f"set may go to a bucket: --config.output.folder=gs://..."
            )
        check(config)
        self.config, self.workdir = config, Path(workdir)
        self.seed, self.workers = config.seed, config.workers
        self._done: dict[str, Summary] = {}

    def run(self, stages: Sequence[str] = STAGES) -> None:
        """Runs these stages; what they read must be there, or among them."""
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown:
            raise SynthError(f"--stages: no stage {unknown[0]!r}; there are {', '.join(STAGES)}.")
        self.workdir.mkdir(parents=True, exist_ok=True)
        for name in STAGES:
            if name in stages:
                getattr(self, f"_run_{name}")()

    def _summary(self, name: str) -> Summary:
        """A stage's result: of this run, or of an earlier one with the same settings."""
        if name not in self._done:
            found = getattr(self, f"_stage_{name}")().finished()
            if found is None:
                raise SynthError(
                    f"Stage {name!r} is not complete for these settings in {self.workdir}: run it "
                    f"first (--stages={name}, or no --stages for all)."
                )
            self._done[name] = found
        return self._done[name]

    def _run(self, name: str, units: Sequence[Unit], work: Any, **options: Any) -> None:
        stage: Stage = getattr(self, f"_stage_{name}")()
        options.setdefault("workers", self.workers)
        summary = self._done[name] = stage.run(units, work, **options)
        print(f"{name}: {summary.row_count:,} rows{_rejected(summary)}", flush=True)
        summary.check_rejects(self.config.most_rejects)

    # 1 ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _sources(self) -> dict[str, Source]:
        found = source_list(self.config, "sources")
        names = [re.sub(r"[^\w.-]+", "-", source["name"]) for source in found]
        return {
            f"{i:02}-{name}": source
            for i, (name, source) in enumerate(zip(names, found, strict=True))
        }

    @functools.cached_property
    def _source_digests(self) -> list[str]:
        return [source_digest(source) for source in self._sources.values()]

    def _stage_examples(self) -> Stage:
        names = ("name", "format", "options", "keep")
        sources = [{n: s[n] for n in names} for s in self._sources.values()]
        settings = {
            "sources": sources,
            "digests": self._source_digests,
            "shard_rows": self.config.shard_rows,
            "longest_prompt": self.config.longest_prompt,
            "seed": self.seed,
        }
        return Stage(self.workdir, 1, "examples", settings)

    def _run_examples(self) -> None:
        units = [Unit(name) for name in self._sources]
        work = _Read(self._sources, self.seed, self.config.longest_prompt)
        self._run("examples", units, work, shard_rows=self.config.shard_rows)

    # 2 ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _evaluation(self) -> list[Source]:
        return source_list(self.config, "overlap.evaluation")

    def _rates(self) -> dict[str, float]:
        return {source["name"]: source["obfuscate"] for source in self._sources.values()}

    def _stage_obfuscated(self) -> Stage:
        settings = {
            "overlap": {**self.config.overlap.to_dict(), "evaluation": ""},
            "evaluation": [[source["name"], source_digest(source)] for source in self._evaluation],
            "rates": self._rates(),
            "seed": self.seed,
        }
        return Stage(self.workdir, 2, "obfuscated", settings, [self._summary("examples")])

    def _run_obfuscated(self) -> None:
        examples, options = self._summary("examples"), self.config.overlap
        work = _Thin(
            self._stage_obfuscated().folder,
            json.dumps(self._evaluation),
            options.similarity,
            options.drop_shared_tools,
            self._rates(),
            self.seed,
        )
        plan = functools.partial(
            _plan_thinning,
            examples=examples,
            similarity=options.similarity,
            seed=self.seed,
            near=options.near_duplicates,
            workers=self.workers,
        )
        self._run("obfuscated", _units(examples), work, plan=plan)

    # 3 ---------------------------------------------------------------------------------------

    def _stage_answers(self) -> Stage:
        settings = {
            "seed": self.seed,
            "pool": [_said_of(dict(entry)) for entry in self.config.answers.pool],
            "permissive_only": self.config.answers.permissive_only,
        }
        return Stage(self.workdir, 3, "answers", settings, [self._summary("obfuscated")])

    def _run_answers(self) -> None:
        options = self.config.answers
        work = _Answer(
            json.dumps([dict(entry) for entry in options.pool]),
            self.seed,
            str(self._cache),
            options.permissive_only,
            tuple(map(str, self._summary("obfuscated").shards)),
        )
        # Endpoints are asked by one process: budgets and concurrency are of the whole run.
        asks = any(entry["kind"] == "endpoint" for entry in options.pool)
        workers = 0 if asks else self.workers
        try:
            units = _units(self._summary("obfuscated"))
            self._run("answers", units, work, plan=work.plan, workers=workers)
        finally:
            work.close()

    @property
    def _cache(self) -> Path:
        return Path(self.config.answers.cache or self.workdir / "answers.sqlite")

    def _noted(self) -> dict[str, dict[str, int]]:
        """What the questions to each model took, over all runs with the same cache."""
        models = [e["model"] for e in self.config.answers.pool if e["kind"] == "endpoint"]
        if not models or not self._cache.exists():
            return {}
        with AnswerCache(self._cache) as cache:
            return {model: cache.noted(model) for model in models}

    # 4 ---------------------------------------------------------------------------------------

    def _stage_judged(self) -> Stage:
        inputs = [self._summary("obfuscated"), self._summary("answers")]
        return Stage(self.workdir, 4, "judged", {"seed": self.seed}, inputs)

    def _run_judged(self) -> None:
        units = _units(self._summary("obfuscated"), self._summary("answers"))
        self._run("judged", units, _Judge(self.seed))

    # 5 ---------------------------------------------------------------------------------------

    def _stage_pairs(self) -> Stage:
        settings = {
            "selection": dataclasses.asdict(selection_settings(self.config)),
            "form": self.config.output.form,
        }
        inputs = [self._summary("obfuscated"), self._summary("judged")]
        return Stage(self.workdir, 5, "pairs", settings, inputs)

    def _run_pairs(self) -> None:
        judged, settings = self._summary("judged"), selection_settings(self.config)
        work = _Pair(self._stage_pairs().folder, self.seed, self.config.output.form == "k-way")
        plan = functools.partial(
            _plan_selection, judged=judged, settings=settings, workers=self.workers
        )
        self._run("pairs", _units(self._summary("obfuscated"), judged), work, plan=plan)

    # The data set ----------------------------------------------------------------------------

    @property
    def output(self) -> epath.Path:
        """Where the data set goes."""
        return as_path(self.config.output.folder or self.workdir / "dataset")

    def _run_dataset(self) -> None:
        pairs = self._summary("pairs")
        about = [pairs.digest, self.config.output.rows_per_file, self.seed, "shuffled"]
        made_of = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        marker = self.output / output.MARKER
        if marker.exists() and json.loads(marker.read_text()).get("digest") == made_of:
            print(f"dataset: complete already, {self.output}", flush=True)
            return
        with new_folder(
            self.output,
            is_ours=lambda folder: (folder / output.MARKER).exists(),
            last=output.MARKER,
        ) as folder:
            self._write_dataset(folder, pairs, made_of)
        print(f"dataset: {self.output}", flush=True)

    def _write_dataset(self, folder: Path, pairs: Summary, made_of: str) -> None:
        rows = self.config.output.rows_per_file
        contents = output.write_files(
            pairs, folder, rows_per_file=rows, seed=self.seed, workers=self.workers
        )
        stages = [self._summary(name) for name in STAGES[:-1]]
        with (folder / "rejects.jsonl.zst").open("wb") as rejects:
            for name in STAGES[:-1]:
                path = self.workdir / rejects_name(name)
                if path.exists():
                    rejects.write(path.read_bytes())
        config = json.loads(self.config.to_json_best_effort())
        made = card.make_card(config, stages, contents, made_of, self._noted())
        card.write_card(folder, made, contents.lengths)


def _rejected(summary: Summary) -> str:
    found: collections.Counter[str] = collections.Counter(summary.rejected)
    words = ", ".join(f"{n:,} x {why}" for why, n in found.most_common(4))
    return f"; {found.total():,} rejected ({words})" if found else ""
