"""Feeds training and evaluation: preference rows on disk -> batches of tokens, through Grain.

    rows (JSON lines) --index--> token lengths, rejects --batch_plan--> steps --Grain--> Batch [k, B, ...]
                       workers tokenise                                workers tokenise and pack

The index is made once, of every row, so that all processes plan alike. The loader's whole state is the number of
the next global step: `batches(start)` begins there, on any number of processes.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from toolrm_jax import batch_plan
from toolrm_jax.batch import Batch, RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.batch_plan import Lengths, PlanConfig, Step
from toolrm_jax.pairs import parse_row
from toolrm_jax.rendering import Renderer, RenderError
from toolrm_jax.sharding import logical_to_spec

Row = dict[str, Any]


class LoaderError(ValueError):
    """Data from which no batch can be made; the message says why."""


class RowFile:
    """A preference file read by row number; only the rows' offsets are held in memory."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{path} not found: expected a preference file (JSON lines).")
        with self.path.open("rb") as file:
            ends = np.cumsum([len(line) for line in file], dtype=np.int64)
        if not len(ends):
            raise LoaderError(f"{path} is empty: expected one row a line.")
        self._starts = np.concatenate([[0], ends[:-1]])

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return parse_row(file.readline().decode(), f"{self.path}, line {index + 1}")


@dataclasses.dataclass(frozen=True)
class RowTokenizer:
    """Turns a preference row into tokens; with `blind`, without its tools and conversation."""

    renderer: Renderer
    blind: bool = False

    def __call__(self, row: Row) -> tuple[TokenizedPrompt, tuple[int, ...]]:
        """The row's tokens, right response first, and the numbers of the wrong responses kept: those
        that render to the same tokens as the right one, or as an earlier wrong one, are left out."""
        tools, messages = ([], []) if self.blind else (row["tools"], row["messages"])
        wrongs = [wrong["response"] for wrong in row["rejected"]]
        rendered = self.renderer.render(tools, messages, [row["chosen"], *wrongs])
        seen, kept = {rendered.responses[0].tobytes()}, []
        for number, tokens in enumerate(rendered.responses[1:]):
            if tokens.tobytes() not in seen:
                seen.add(tokens.tobytes())
                kept.append(number)
        responses = [rendered.responses[0], *(rendered.responses[1 + number] for number in kept)]
        margins = [0.0, *(float(row["rejected"][number].get("margin", 0.0)) for number in kept)]
        right = [True] + [False] * len(kept)
        return TokenizedPrompt(rendered.prompt, responses, right, margins), tuple(kept)


@dataclasses.dataclass(frozen=True)
class Index:
    """What one pass over the rows found out: lengths of each, which wrong responses count, rejects."""

    ids: list[str]
    lengths: Lengths
    kept: list[tuple[int, ...]]  # per row, the numbers of its distinct wrong responses
    usable: np.ndarray  # [n] rows that can be trained on
    rejects: list[dict[str, str]]  # {"id", "reason", "detail"}

    def counts(self) -> dict[str, int]:
        """How many rejects there are for each reason."""
        return dict(collections.Counter(reject["reason"] for reject in self.rejects))


def build_index(
    rows: RowFile,
    tokenize: RowTokenizer,
    shapes: Sequence[RowShape],
    workers: int = 0,
    label: str = "rows",
) -> Index:
    """Tokenises every row once, for its lengths. Rows without a usable pair, or over-long ones, are rejected by name."""
    measure = _Measure(tokenize)
    found = tqdm(
        _stream(rows, measure, workers),
        total=len(rows),
        desc=f"indexing {label}",
        unit="row",
        leave=False,
    )
    ids, numbers, kept, rejects = [], [], [], []
    for row_id, lengths, row_kept, problems in found:
        ids.append(row_id)
        numbers.append(lengths)
        kept.append(row_kept)
        rejects += problems
    lengths = Lengths(*np.asarray(numbers, np.int64).T)
    usable = np.array([bool(k) for k in kept])
    for i in batch_plan.too_long(lengths, shapes):
        if usable[i]:
            usable[i] = False
            detail = f"{lengths.tokens[i]} tokens, {lengths.responses[i]} responses"
            rejects.append(
                {"id": ids[i], "reason": "too long for every row shape", "detail": detail}
            )
    if not usable.any():
        raise LoaderError(f"No row of {rows.path} can be used: {_by_reason(rejects)}.")
    return Index(ids, lengths, kept, usable, rejects)


def write_rejects(path: str | Path, index: Index) -> None:
    """Every reject as a JSON line; the file is written whole or not at all."""
    path = Path(path)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(reject) + "\n" for reject in index.rejects))
    partial.rename(path)


class Loader:
    """Batches of one preference file for one process of a run."""

    def __init__(
        self,
        rows: RowFile,
        index: Index,
        tokenize: RowTokenizer,
        plan: PlanConfig,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.rows, self.index, self.tokenize, self.plan = rows, index, tokenize, plan
        self.seed, self.shuffle, self.workers = seed, shuffle, workers
        self.process, self.processes = process, processes

    @functools.cached_property
    def _usable(self) -> np.ndarray:
        return np.flatnonzero(self.index.usable)

    @functools.cached_property
    def lengths(self) -> Lengths:
        """Lengths of the usable rows alone; the plan counts in these."""
        return self.index.lengths.take(self._usable)

    @functools.lru_cache(maxsize=4)  # noqa: B019 (a loader lives as long as its run)
    def epoch(self, number: int) -> list[Step]:
        """The steps of an epoch; ids are row numbers of the file."""
        steps = batch_plan.plan_epoch(self.lengths, self.plan, self.seed, number, self.shuffle)
        return [_renumbered(step, self._usable) for step in steps]

    def locate(self, step: int) -> Step:
        """The global step with this number, in whichever epoch it falls."""
        epoch = 0
        while step >= len(self.epoch(epoch)):
            step -= len(self.epoch(epoch))
            epoch += 1
        return self.epoch(epoch)[step]

    def padding_share(self) -> float:
        """The share of the first epoch's computed tokens that is padding."""
        steps = batch_plan.plan_epoch(self.lengths, self.plan, self.seed, 0, self.shuffle)
        return batch_plan.padding_share(steps, self.lengths, self.plan)

    def first(self, count: int) -> "Loader":
        """A loader of the first `count` usable rows alone, for a quick evaluation."""
        usable = np.zeros_like(self.index.usable)
        usable[self._usable[:count]] = True
        index = dataclasses.replace(self.index, usable=usable)
        return Loader(
            self.rows,
            index,
            self.tokenize,
            self.plan,
            self.seed,
            self.shuffle,
            self.workers,
            self.process,
            self.processes,
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This process's share of the batches of steps start..stop-1, each [k, B / processes, ...] numpy."""
        steps = [self.locate(step) for step in range(start, stop)]
        assemble = _Assemble(self.rows, self.tokenize, self.process, self.processes)
        return iter(_stream(steps, assemble, self.workers))


def to_device(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """A process's numpy share -> the global arrays, rows split over the mesh."""
    sharding = jax.sharding.NamedSharding(mesh, logical_to_spec(("micro", "rows")))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


@dataclasses.dataclass(frozen=True)
class _Measure(grain.transforms.Map):
    tokenize: RowTokenizer

    def map(self, row: Row):
        try:
            item, kept = self.tokenize(row)
        except RenderError as error:
            problem = {"id": row["id"], "reason": "cannot be rendered", "detail": str(error)}
            return row["id"], (0, 0), (), [problem]
        problems = []
        for number in sorted(set(range(len(row["rejected"]))) - set(kept)):
            detail = f"rejected[{number}]"
            problems.append(
                {"id": row["id"], "reason": "both sides render alike", "detail": detail}
            )
        return row["id"], (item.tokens, len(item.responses)), kept, problems


@dataclasses.dataclass(frozen=True)
class _Assemble(grain.transforms.Map):
    rows: RowFile
    tokenize: RowTokenizer
    process: int
    processes: int

    def map(self, step: Step) -> Batch:
        micro_batches = [self._fill(step.shape, rows) for rows in step.micro_batches]
        return jax.tree.map(lambda *parts: np.stack(parts), *micro_batches)

    def _fill(self, shape: RowShape, rows: Sequence[tuple[int, ...]]) -> Batch:
        mine = rows[batch_plan.process_rows(len(rows), self.process, self.processes)]
        batch = empty_batch(len(mine), shape)
        for number, ids in enumerate(mine):
            place(batch, number, [self.tokenize(self.rows[i])[0] for i in ids])
        return batch


def _stream(source: Any, transform: grain.transforms.Map, workers: int):
    """source[i] -> transform, in order: in worker processes, or (0) in threads of this one."""
    threads = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    data = grain.MapDataset.source(source).map(transform).to_iter_dataset(threads)
    if workers:
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
        )
    return data


def _renumbered(step: Step, ids: np.ndarray) -> Step:
    batches = tuple(
        tuple(tuple(int(ids[i]) for i in row) for row in rows) for rows in step.micro_batches
    )
    return Step(step.shape, batches)


def _by_reason(rejects: list[dict[str, str]]) -> str:
    return ", ".join(
        f"{n} x {r}" for r, n in collections.Counter(x["reason"] for x in rejects).items()
    )
