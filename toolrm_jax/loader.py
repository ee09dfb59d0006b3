"""Feeds training and evaluation: preference rows on disk -> batches of tokens, through Grain.

    rows (JSON lines) --index--> lengths, rejects --batch_plan--> steps --Grain--> Batch [k, B, ...]
                  workers tokenise                              workers tokenise and pack

The index is made once, of every row, so that all processes plan alike. The loader's whole state is
the number of the next global step: `batches(start, stop)` begins there, on any number of processes.

    rows = RowFile("train.jsonl")
    index = build_index(rows, tokenize, plan.shapes)
    for batch in Loader(rows, index, tokenize, plan).batches(0, 10): ...
"""

import bisect
import collections
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from tqdm import tqdm

from toolrm_jax import batch_plan
from toolrm_jax.batch import Batch, RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.batch_plan import Lengths, PlanConfig, Step
from toolrm_jax.errors import InputError
from toolrm_jax.files import write_text
from toolrm_jax.pairs import parse_row
from toolrm_jax.paths import as_path, local_file, local_folder
from toolrm_jax.rendering import Rendered, Renderer, RenderError
from toolrm_jax.sharding import logical_to_spec, row_shards
from toolrm_jax.splits import request_key

Row = dict[str, Any]


class LoaderError(InputError, ValueError):
    """Data from which no batch can be made; the message says why."""


class RowFile:
    """A preference file read by row number; only the rows' offsets are held in memory.

    One in an object store is read from a copy on this machine: rows are asked for one by one, in an
    order of their own, and a request takes as long as a thousand of them from a disk. Blank lines
    are no rows. Every error names the file and the line.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = as_path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path} not found: expected a preference file (JSON lines).")
        self._file = local_file(self.path)
        starts, lines, at = [], [], 0
        digest = hashlib.sha256()
        with self._file.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                if line.strip():
                    starts.append(at)
                    lines.append(number)
                at += len(line)
        if not starts:
            raise LoaderError(f"{path} is empty: expected one row (a JSON object) a line.")
        self.sha256 = digest.hexdigest()
        self._starts, self._lines = np.asarray(starts, np.int64), np.asarray(lines, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self._file.open("rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        return _checked_row(line, f"{self.path}, line {self._lines[index]}")


class ArrayRecordRows:
    """The rows of a folder of ArrayRecord files, in the order of their names: a row is a record.

    Nothing is read but what is asked for, save once for the digest. A folder in an object store is
    read from a copy on this machine.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = as_path(path)
        folder = local_folder(self.path, (ARRAY_RECORD,))
        self._files = sorted(file for file in folder.iterdir() if file.name.endswith(ARRAY_RECORD))
        if not self._files:
            raise LoaderError(f"{path} has no file *{ARRAY_RECORD}: expected at least one.")
        self._source = grain.sources.ArrayRecordDataSource(list(map(str, self._files)))
        if not len(self._source):
            raise LoaderError(f"{path} is empty: expected one row (a JSON object) a record.")
        digest = hashlib.sha256()
        for file in self._files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Row:
        return _checked_row(self._source[int(index)], f"{self.path}, record {index}")


ARRAY_RECORD = ".array_record"
PreferenceRows = RowFile | ArrayRecordRows


def open_row_file(path: str | os.PathLike[str]) -> PreferenceRows:
    """JSON lines, or a folder of ArrayRecord files (as `toolrm_jax.synth` writes them)."""
    return ArrayRecordRows(path) if as_path(path).is_dir() else RowFile(path)


def _checked_row(line: bytes, at: str) -> Row:
    """A row from its JSON; every error says where it stands."""
    try:
        row = parse_row(line.decode(), at)
    except UnicodeDecodeError as error:
        raise LoaderError(f"{at}: expected UTF-8, found {error}.") from None
    for number, wrong in enumerate(row["rejected"]):
        margin = wrong.get("margin", 0.0)
        if type(margin) not in (int, float) or not math.isfinite(margin):  # bool is an int
            raise LoaderError(
                f"{at}: rejected[{number}] has the margin {margin!r}; expected a finite number."
            )
    return row


@dataclasses.dataclass(frozen=True)
class RowTokenizer:
    """Turns a preference row into tokens; with `blind`, without its tools and conversation."""

    renderer: Renderer
    blind: bool = False

    def __call__(self, row: Row) -> tuple[TokenizedPrompt, tuple[int, ...]]:
        """The row's tokens, right response first, and the numbers of the wrong responses kept.

        Left out are those that render to the same tokens as the right one, or an earlier wrong one.
        """
        rendered = self.render(row)
        kept = [number for number, twin in enumerate(_twins(rendered)) if twin is None]
        responses = [rendered.responses[0], *(rendered.responses[1 + number] for number in kept)]
        margins = [0.0, *(float(row["rejected"][number].get("margin", 0.0)) for number in kept)]
        right = [True] + [False] * len(kept)
        return TokenizedPrompt(rendered.prompt, responses, right, margins), tuple(kept)

    def render(self, row: Row) -> Rendered:
        """All of the row's responses, the right one first."""
        tools, messages = ([], []) if self.blind else (row["tools"], row["messages"])
        wrongs = [wrong["response"] for wrong in row["rejected"]]
        return self.renderer.render(tools, messages, [row["chosen"], *wrongs])


def _twins(rendered: Rendered) -> list[int | None]:
    """For each wrong response, the first earlier one with the same tokens (0: the right one)."""
    seen: dict[bytes, int] = {}
    first = [seen.setdefault(r.tobytes(), number) for number, r in enumerate(rendered.responses)]
    return [twin if twin < number else None for number, twin in enumerate(first)][1:]


@dataclasses.dataclass(frozen=True)
class Index:
    """What one pass over the rows found out: lengths, the wrong responses that count, rejects."""

    ids: list[str]
    lengths: Lengths
    keys: np.ndarray  # [n] to how many keys a row's tokens attend in all: what attention costs
    kept: list[tuple[int, ...]]  # per row, the numbers of its distinct wrong responses
    usable: np.ndarray  # [n] rows that can be trained on
    rejects: list[dict[str, str]]  # {"id", "reason", "detail"}
    digests: list[str]  # of each row's tokens and margins
    requests: list[str]  # `request_key` of each row

    def used_ids(self) -> list[str]:
        """Ids of the usable rows."""
        return [row_id for row_id, used in zip(self.ids, self.usable, strict=True) if used]

    def used_requests(self) -> list[str]:
        """The distinct requests of the usable rows; of those that are too short to tell, none."""
        used = zip(self.requests, self.usable, strict=True)
        return sorted({request for request, usable in used if usable and request})

    def fingerprint(self) -> str:
        """A digest of what batches depend on: ids, tokens, margins, the rows used."""
        parts = (self.ids, self.digests, self.usable.tolist())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def counts(self) -> dict[str, int]:
        """How many rejects there are for each reason."""
        return dict(collections.Counter(reject["reason"] for reject in self.rejects))


class Measured(NamedTuple):
    """What the index needs to know of a row; a function of the row and its tokenizer alone."""

    id: str
    sizes: tuple[int, int, int, int]  # tokens; responses; tokens with tools and conversation; keys
    kept: tuple[int, ...]
    problems: list[dict[str, str]]
    digest: str
    request: str


def measure_rows(
    rows: PreferenceRows,
    tokenize: RowTokenizer,
    workers: int = 0,
    label: str = "rows",
    numbers: Sequence[int] | None = None,
) -> Iterator[Measured]:
    """Tokenises the rows with these numbers (default: all), once, in order."""
    chosen = rows if numbers is None else _Chosen(rows, numbers)
    bar = tqdm(total=len(chosen), desc=f"indexing {label}", unit="row", leave=False, disable=None)
    with bar:
        for measured in _stream(chosen, _Measure(tokenize), workers) if len(chosen) else ():
            bar.update()
            yield measured


@dataclasses.dataclass(frozen=True)
class _Chosen:
    rows: PreferenceRows
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Row:
        return self.rows[self.numbers[index]]


def build_index(
    rows: PreferenceRows,
    tokenize: RowTokenizer,
    shapes: Sequence[RowShape],
    workers: int = 0,
    label: str = "rows",
    max_tokens: int = 0,
    measure: Callable[..., Iterable[Measured]] = measure_rows,
) -> Index:
    """Tokenises every row once, for its lengths; or gets them by `measure`, with the arguments of
    `measure_rows`.

    Rows without a usable pair and over-long ones are rejected, each by name and with a reason.
    `max_tokens` (0: no limit) is of the whole row even where `tokenize` leaves its prompt out, so
    that a blind model trains on the same rows.

    Raises:
      LoaderError: no row is left.
    """
    measured = list(measure(rows, tokenize, workers, label))
    ids, kept = [row.id for row in measured], [row.kept for row in measured]
    rejects = [problem for row in measured for problem in row.problems]
    tokens, responses, whole, keys = np.asarray([row.sizes for row in measured], np.int64).T
    lengths = Lengths(tokens, responses)
    usable = np.array([bool(k) for k in kept])
    over_long = np.isin(np.arange(len(usable)), batch_plan.too_long(lengths, shapes))
    if max_tokens:
        over_long |= whole > max_tokens
    for i in np.flatnonzero(usable & over_long):
        detail = f"{whole[i]} tokens, {responses[i]} responses"
        rejects.append({"id": ids[i], "reason": "over-long", "detail": detail})
    usable &= ~over_long
    if not usable.any():
        raise LoaderError(f"No row of {rows.path} can be used: {_by_reason(rejects)}.")
    digests = [row.digest for row in measured]
    requests = [row.request for row in measured]
    return Index(ids, lengths, keys, kept, usable, rejects, digests, requests)


def write_rejects(path: str | os.PathLike[str], index: Index) -> None:
    """Every reject as a JSON line; the file is written whole or not at all."""
    write_text(path, "".join(json.dumps(reject) + "\n" for reject in index.rejects))


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Which of a micro-batch's equal blocks of rows (`shards`, ascending, of `of`) to read."""

    shards: tuple[int, ...] = (0,)
    of: int = 1

    def take(self, rows: Sequence[Any]) -> list[Any]:
        """Those of the rows."""
        blocks = (rows[batch_plan.process_rows(len(rows), shard, self.of)] for shard in self.shards)
        return [row for block in blocks for row in block]


def row_share(mesh: jax.sharding.Mesh, process: int | None = None) -> RowShare:
    """The blocks of rows that live on a process's devices (default: this process).

    Processes that hold different parts of the model for the same rows (mesh.tensor across
    processes) read the same rows; and the blocks need not be neighbours, as a mesh follows the
    wiring of its devices, not the numbers of its processes.
    """
    process = jax.process_index() if process is None else process
    shards = mesh.devices.reshape(row_shards(mesh), -1)
    mine = [i for i, devices in enumerate(shards) if process in {d.process_index for d in devices}]
    return RowShare(tuple(mine), len(shards))


class Loader:
    """Batches of one preference file for one process of a run."""

    def __init__(
        self,
        rows: PreferenceRows,
        index: Index,
        tokenize: RowTokenizer,
        plan: PlanConfig,
        seed: int = 0,
        shuffle: bool = True,
        workers: int = 0,
        share: RowShare = RowShare(),
    ):
        self.rows, self.index, self.tokenize, self.plan = rows, index, tokenize, plan
        self.seed, self.shuffle, self.workers, self.share = seed, shuffle, workers, share
        self._starts = [0]  # the global step at which each epoch begins, as far as known
        self._planned: collections.OrderedDict[int, list[Step]] = collections.OrderedDict()

    @functools.cached_property
    def _usable(self) -> np.ndarray:
        return np.flatnonzero(self.index.usable)

    @functools.cached_property
    def lengths(self) -> Lengths:
        """Lengths of the usable rows alone; the plan counts in these."""
        return self.index.lengths.take(self._usable)

    def epoch(self, number: int) -> list[Step]:
        """The steps of an epoch; ids are row numbers of the file."""
        if number not in self._planned:
            steps = batch_plan.plan_epoch(self.lengths, self.plan, self.seed, number, self.shuffle)
            self._planned[number] = [_renumbered(step, self._usable) for step in steps]
            while len(self._planned) > 2:
                self._planned.popitem(last=False)
        return self._planned[number]

    def locate(self, step: int) -> Step:
        """The global step with this number, in whichever epoch it falls."""
        while step >= self._starts[-1]:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts) - 1)))
        epoch = bisect.bisect_right(self._starts, step) - 1
        return self.epoch(epoch)[step - self._starts[epoch]]

    def padding_share(self) -> float:
        """The share of the first epoch's computed tokens that is padding."""
        return batch_plan.padding_share(self.epoch(0), self.index.lengths, self.plan)

    def first(self, count: int) -> "Loader":
        """A loader of the first `count` usable rows alone, for a quick evaluation."""
        usable = np.zeros_like(self.index.usable)
        usable[self._usable[:count]] = True
        index = dataclasses.replace(self.index, usable=usable)
        settings = (self.plan, self.seed, self.shuffle, self.workers, self.share)
        return Loader(self.rows, index, self.tokenize, *settings)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """This process's rows of steps start..stop-1: numpy, [k, B * share, ...] each."""
        steps = [self.locate(step) for step in range(start, stop)]
        return iter(_stream(steps, _Assemble(self.rows, self.tokenize, self.share), self.workers))


def to_device(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """A process's share (numpy, [k, rows, ...]) -> the global arrays, rows split over the mesh."""
    share = row_share(mesh)
    sharding = jax.sharding.NamedSharding(mesh, logical_to_spec(("micro", "rows")))

    def put(x: np.ndarray) -> jax.Array:
        block = x.shape[1] // len(share.shards)
        shape = (x.shape[0], block * share.of, *x.shape[2:])

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[1].indices(shape[1])
            at = share.shards.index(start // block) * block
            return x[:, at : at + stop - start]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, batch)


@dataclasses.dataclass(frozen=True)
class _Measure(grain.transforms.Map):
    tokenize: RowTokenizer

    def map(self, row: Row) -> Measured:
        try:
            item, kept = self.tokenize(row)
            whole = item
            if self.tokenize.blind:
                whole, _ = dataclasses.replace(self.tokenize, blind=False)(row)
        except RenderError as error:
            problem = _reject(row, "cannot be rendered", str(error))
            return Measured(row["id"], (0, 0, 0, 0), (), [problem], "", "")
        problems = [] if len(kept) == len(row["rejected"]) else self._left_out(row)
        sizes = (item.tokens, len(item.responses), whole.tokens, _attended(item))
        request = request_key(row["messages"])
        return Measured(row["id"], sizes, kept, problems, _digest(item), request)

    def _left_out(self, row: Row) -> list[dict[str, str]]:
        problems = []
        for number, twin in enumerate(_twins(self.tokenize.render(row))):
            if twin == 0:
                problems.append(_reject(row, "both sides render alike", f"rejected[{number}]"))
            elif twin is not None:
                detail = f"rejected[{number}] is rejected[{twin - 1}]"
                problems.append(_reject(row, "the same wrong response twice", detail))
        return problems


def _attended(item: TokenizedPrompt) -> int:
    """Keys that its tokens attend to: every one to itself and those before it, siblings apart."""
    prompt = len(item.prompt)
    own = [prompt, *map(len, item.responses)]
    return sum(n * (n + 1) // 2 for n in own) + prompt * sum(own[1:])


def _digest(item: TokenizedPrompt) -> str:
    digest = hashlib.sha256(np.asarray(item.margins, np.float32).tobytes())
    for tokens in (item.prompt, *item.responses):
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
    return digest.hexdigest()[:16]


def _reject(row: Row, reason: str, detail: str) -> dict[str, str]:
    return {"id": row["id"], "reason": reason, "detail": detail}


@dataclasses.dataclass(frozen=True)
class _Assemble(grain.transforms.Map):
    rows: PreferenceRows
    tokenize: RowTokenizer
    share: RowShare

    def map(self, step: Step) -> Batch:
        micro_batches = [self._fill(step.shape, rows) for rows in step.micro_batches]
        return jax.tree.map(lambda *parts: np.stack(parts), *micro_batches)

    def _fill(self, shape: RowShape, rows: Sequence[tuple[int, ...]]) -> Batch:
        mine = self.share.take(rows)
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
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4),
            worker_init_fn=_as_worker,
        )
    return data


def _as_worker(number: int, count: int) -> None:
    """A worker ends with its process, and not before: schedulers and Ctrl-C signal the whole group,
    and the run needs its workers until it has reached the step at which it stops."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(
        target=_end_with, args=(multiprocessing.parent_process(),), daemon=True
    ).start()


def _end_with(process: Any) -> None:
    process.join()
    os._exit(0)


def _renumbered(step: Step, ids: np.ndarray) -> Step:
    batches = tuple(
        tuple(tuple(int(ids[i]) for i in row) for row in rows) for rows in step.micro_batches
    )
    return Step(step.shape, batches)


def _by_reason(rejects: list[dict[str, str]]) -> str:
    return ", ".join(
        f"{n} x {r}" for r, n in collections.Counter(x["reason"] for x in rejects).items()
    )
