"""The stages of a synthesis, in order; each reads what the one before it wrote.

1-examples    sources, read and checked
2-obfuscated  without what an evaluation set holds and near-duplicates; names replaced
3-answers     of endpoints, replayed files and corruptions: {"id", "answers"}, row for row as 2
4-judged      against the gold: {"id", "turn", "chosen", "right", "wrong"}, row for row as 2
5-pairs       the rows that were selected, in the loader's form
dataset       ArrayRecord, Parquet and the data card

pipeline = Pipeline(config, workdir)
pipeline.run(("examples", "obfuscated"))
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from toolrm_jax.errors import InputError
from toolrm_jax.output_folder import check_output, new_folder
from toolrm_jax.paths import as_path, is_remote
from toolrm_jax.row_source import open_rows
from toolrm_jax.synth import card, output
from toolrm_jax.synth.answer_cache import AnswerCache
from toolrm_jax.synth.answering import AnswerUnits
from toolrm_jax.synth.code_digest import code_digest
from toolrm_jax.synth.generators import check_asking
from toolrm_jax.synth.pairing import Judge, Pair, plan_selection
from toolrm_jax.synth.reading import Read, Source, check_readable, source_digest
from toolrm_jax.synth.shards import Row, read_shard
from toolrm_jax.synth.stage import Stage, Summary, listed, rejects_name, units_of
from toolrm_jax.synth.synth_config import (
    STAGES,
    SynthError,
    check,
    selection_settings,
    source_list,
)
from toolrm_jax.synth.thinning import Evaluation, Thin, plan_thinning
from toolrm_jax.synth.units import Unit

# Where the rows of a stage, or the files of the data set, are made.
_MADE_IN = {
    "examples": "reading",
    "obfuscated": "thinning",
    "answers": "answering",
    "judged": "pairing",
    "pairs": "pairing",
    "dataset": "card",
}
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
)


def _is_data_set(folder: epath.Path) -> bool:
    return (folder / output.MARKER).exists()


def _code_of(stage: str) -> str:
    return code_digest(f"toolrm_jax.synth.{_MADE_IN[stage]}")


def _read_as(sources: Sequence[Source]) -> list[Row]:
    """What is read of a source's files, whatever they hold: a digest tells of the files alone."""
    return [{name: source[name] for name in ("name", "format", "options")} for source in sources]


def _said_of(entry: Row) -> Row:
    """What a pool member's answers depend on; of a file, its content."""
    kept = {name: value for name, value in entry.items() if name not in _HOW}
    if "path" in kept:
        kept["path"] = open_rows(kept["path"], revision=kept.get("revision")).digest()
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
        if not stages:
            raise SynthError(f"--stages names no stage; there are {', '.join(STAGES)}.")
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown:
            raise SynthError(f"--stages: no stage {unknown[0]!r}; there are {', '.join(STAGES)}.")
        self._check_files(stages)
        self.workdir.mkdir(parents=True, exist_ok=True)
        for name in STAGES:
            if name in stages:
                getattr(self, f"_run_{name}")()

    def _check_files(self, stages: Sequence[str]) -> None:
        """Raises InputError or OSError, before the first stage, for what a later one could not
        open, replace or ask."""
        last = max(map(STAGES.index, stages))
        needed = ("_source_digests", "_evaluation_digests", "_pool")
        for name in needed[: last + 1]:
            getattr(self, name)
        for source in [*self._sources.values(), *(self._evaluation if last else ())]:
            check_readable(source)
        if "dataset" in stages:
            _check_plots()
            check_output(
                self.output, _is_data_set, replace=True, last=output.MARKER, what="data set"
            )
        if "answers" in stages and not self._is_complete("answers"):
            options = self.config.answers
            check_asking(options.pool, cache=self._cache, permissive_only=options.permissive_only)

    def _is_complete(self, name: str) -> bool:
        try:
            self._summary(name)
        except InputError:
            return False
        return True

    def _summary(self, name: str) -> Summary:
        """A stage's result: of this run, or of an earlier one with the same settings."""
        if name not in self._done:
            found = getattr(self, f"_stage_{name}")().finished()
            if found is None:
                raise SynthError(
                    f"Stage {name!r} is not complete for these settings in {self.workdir}: run it "
                    f"first (--stages={name}, or no --stages for all)."
                )
            self._check(found)
            self._done[name] = found
        return self._done[name]

    def _stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[Summary] = (),
        most_open: float = 0.0,
    ) -> Stage:
        number, code = STAGES.index(name) + 1, _code_of(name)
        return Stage(self.workdir, number, name, settings, inputs, code=code, most_open=most_open)

    def _run(self, name: str, units: Sequence[Unit], work: Any, **options: Any) -> None:
        stage: Stage = getattr(self, f"_stage_{name}")()
        options.setdefault("workers", self.workers)
        already = "complete already, " if stage.finished() else ""
        summary = self._done[name] = stage.run(units, work, **options)
        print(f"{name}: {already}{summary.row_count:,} rows{_lost(summary)}", flush=True)
        self._check(summary)

    def _check(self, summary: Summary) -> None:
        """Raises StageError or SynthError where no later stage should take what a stage made."""
        most, name = self.config.most_rejects, summary.content["stage"]
        if name == "answers":
            for entry in self.config.answers.pool:
                if entry["kind"] == "endpoint":
                    questions = self._summary("obfuscated").row_count * entry.get("samples", 1)
                    _check_model(entry["model"], questions, summary, most)
        summary.check_rejects(most)
        if name == "examples":
            for source in self._sources.values():
                _check_source(source, summary, most)
        if name == "pairs" and not summary.row_count:
            stages = [*(self._summary(s) for s in STAGES[: STAGES.index(name)]), summary]
            made = [f"{s.content['stage']}: {s.row_count:,} rows{_lost(s)}" for s in stages]
            raise SynthError(
                f"No pair was chosen, so no data set is written; one that is there stays as it is. "
                f"What the stages made: {'. '.join(made)}."
            )

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
        sources = list(self._sources.values())
        settings = {
            "sources": _read_as(sources),
            "keep": [source["keep"] for source in sources],
            "digests": self._source_digests,
            "shard_rows": self.config.shard_rows,
            "longest_prompt": self.config.longest_prompt,
            "seed": self.seed,
        }
        return self._stage("examples", settings)

    def _run_examples(self) -> None:
        units = [Unit(name) for name in self._sources]
        work = Read(self._sources, self.seed, self.config.longest_prompt)
        self._run("examples", units, work, shard_rows=self.config.shard_rows)

    # 2 ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _evaluation(self) -> list[Source]:
        return source_list(self.config, "overlap.evaluation")

    @functools.cached_property
    def _evaluation_digests(self) -> list[str]:
        return [source_digest(source) for source in self._evaluation]

    def _rates(self) -> dict[str, float]:
        return {source["name"]: source["obfuscate"] for source in self._sources.values()}

    def _stage_obfuscated(self) -> Stage:
        settings = {
            "overlap": {**self.config.overlap.to_dict(), "evaluation": ""},
            "evaluation": _read_as(self._evaluation),
            "evaluation_digests": self._evaluation_digests,
            "rates": self._rates(),
            "seed": self.seed,
        }
        return self._stage("obfuscated", settings, [self._summary("examples")])

    def _run_obfuscated(self) -> None:
        examples, options = self._summary("examples"), self.config.overlap
        evaluation = Evaluation(
            json.dumps(self._evaluation), options.similarity, options.drop_shared_tools
        )
        work = Thin(self._stage_obfuscated().folder, evaluation, self._rates(), self.seed)
        plan = functools.partial(
            plan_thinning,
            examples=examples,
            evaluation=evaluation,
            seed=self.seed,
            near=options.near_duplicates,
            workers=self.workers,
        )
        self._run("obfuscated", units_of(examples), work, plan=plan)

    # 3 ---------------------------------------------------------------------------------------

    @functools.cached_property
    def _pool(self) -> list[Row]:
        return [_said_of(dict(entry)) for entry in self.config.answers.pool]

    def _stage_answers(self) -> Stage:
        settings = {
            "seed": self.seed,
            "pool": self._pool,
            "permissive_only": self.config.answers.permissive_only,
        }
        inputs, most_open = [self._summary("obfuscated")], self.config.answers.most_open
        return self._stage("answers", settings, inputs, most_open)

    def _run_answers(self) -> None:
        options = self.config.answers
        work = AnswerUnits(
            json.dumps([dict(entry) for entry in options.pool]),
            self.seed,
            self._cache,
            options.permissive_only,
            tuple(map(str, self._summary("obfuscated").shards)),
        )
        # Endpoints are asked by one process: budgets and concurrency are of the whole run.
        asks = any(entry["kind"] == "endpoint" for entry in options.pool)
        workers = 0 if asks else self.workers
        try:
            units = units_of(self._summary("obfuscated"))
            self._run("answers", units, work, plan=work.plan, workers=workers)
        finally:
            work.close()

    @property
    def _cache(self) -> str:
        own = self.config.answers.cache
        return os.path.expanduser(own) if own else str(self.workdir / "answers.sqlite")

    def _noted(self) -> dict[str, dict[str, int]]:
        """What the questions to each model took, over all runs with the same cache."""
        models = [e["model"] for e in self.config.answers.pool if e["kind"] == "endpoint"]
        if not models or not os.path.exists(self._cache):
            return {}
        with AnswerCache(self._cache) as cache:
            return {model: cache.noted(model) for model in models}

    # 4 ---------------------------------------------------------------------------------------

    def _stage_judged(self) -> Stage:
        inputs = [self._summary("obfuscated"), self._summary("answers")]
        return self._stage("judged", {"seed": self.seed}, inputs)

    def _run_judged(self) -> None:
        units = units_of(self._summary("obfuscated"), self._summary("answers"))
        self._run("judged", units, Judge(self.seed))

    # 5 ---------------------------------------------------------------------------------------

    def _stage_pairs(self) -> Stage:
        settings = {
            "selection": dataclasses.asdict(selection_settings(self.config)),
            "form": self.config.output.form,
        }
        inputs = [self._summary("obfuscated"), self._summary("judged")]
        return self._stage("pairs", settings, inputs)

    def _run_pairs(self) -> None:
        judged, settings = self._summary("judged"), selection_settings(self.config)
        work = Pair(self._stage_pairs().folder, self.config.output.form == "k-way")
        plan = functools.partial(
            plan_selection, judged=judged, settings=settings, workers=self.workers
        )
        self._run("pairs", units_of(self._summary("obfuscated"), judged), work, plan=plan)

    # The data set ----------------------------------------------------------------------------

    @property
    def output(self) -> epath.Path:
        """Where the data set goes."""
        return as_path(self.config.output.folder or self.workdir / "dataset")

    def _run_dataset(self) -> None:
        stages = [self._summary(name) for name in STAGES[:-1]]
        # All that the card tells of: with other counts of any stage it is another data set.
        config = json.loads(self.config.to_json_best_effort())
        about = [[stage.content for stage in stages], config, _code_of("dataset")]
        made_of = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        marker = self.output / output.MARKER
        if marker.exists() and json.loads(marker.read_text()).get("digest") == made_of:
            print(f"dataset: complete already, {self.output}", flush=True)
            return
        with new_folder(self.output, _is_data_set, last=output.MARKER, what="data set") as folder:
            self._write_dataset(folder, stages, config, made_of)
        print(f"dataset: {self.output}", flush=True)

    def _write_dataset(
        self, folder: Path, stages: Sequence[Summary], config: Row, made_of: str
    ) -> None:
        rows = self.config.output.rows_per_file
        contents = output.write_files(
            stages[-1], folder, rows_per_file=rows, seed=self.seed, workers=self.workers
        )
        with (folder / "rejects.jsonl.zst").open("wb") as rejects:
            for name in STAGES[:-1]:
                path = self.workdir / rejects_name(name)
                if path.exists():
                    rejects.write(path.read_bytes())
        made = card.make_card(config, stages, contents, made_of, self._noted())
        card.write_card(folder, made, contents.lengths)


def _check_plots() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise SynthError(
            "The data card's plots need matplotlib. Run: pip install 'toolrm_jax[synth]'"
        )


def _check_source(source: Source, examples: Summary, most: float) -> None:
    """Raises SynthError where a source gave nothing, or was rejected beyond its share."""
    name, counts = source["name"], examples.counts
    read, rejected = (counts.get(f"{what}: {name}", 0) for what in ("read", "rejected"))
    at = examples.folder.parent / rejects_name("examples")
    if not counts.get(f"examples: {name}"):
        raise SynthError(
            f"Source {name!r} has no example: {read:,} were read of {source['path']}, of which "
            f"{rejected:,} were rejected.{examples.sample_reject(name)} See {at}; mend the source, "
            "or take it out of the config."
        )
    if rejected > most * read:
        raise SynthError(
            f"Source {name!r}: {rejected:,} of {read:,} that were read were rejected, "
            f"{rejected / read:.1%}; at most {most:.1%} are accepted of each source "
            f"(config.most_rejects).{examples.sample_reject(name)} See {at}; the rows that are "
            "sound are kept."
        )


def _check_model(model: str, questions: int, answers: Summary, most: float) -> None:
    """Raises SynthError where a model's questions brought too little; it quotes the first."""
    lost = {what: n for what, n in answers.rejected.items() if what.startswith(f"{model}: ")}
    number = sum(lost.values())
    if number <= most * questions:
        return
    at = answers.folder.parent / rejects_name("answers")
    first = next((f"{r['detail']}" for r in read_shard(at) if r["reason"] in lost), "")
    raise SynthError(
        f"Model {model!r}: {number:,} of {questions:,} questions brought nothing that can be used, "
        f"{number / questions:.1%}: {listed(lost)} (the first: {first}). At most {most:.1%} are "
        f"accepted of each model (config.most_rejects); see {at}. The answers are kept. Mend the "
        f"server and set retry_refused in the model's entry to ask again what was refused, or "
        f"keep_cut to use what was cut off; or take the model out of the config."
    )


def _lost(summary: Summary) -> str:
    """What a stage rejected and left out, by reason."""
    rejected = sum(summary.rejected.values())
    found = {f"{rejected:,} rejected": summary.rejected, "left out": summary.left_out}
    return "".join(f"; {what}: {listed(counts)}" for what, counts in found.items() if counts)
