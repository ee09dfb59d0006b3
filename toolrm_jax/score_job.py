"""A long scoring job on disk: cut into chunks that commit whole, so that a kill costs one chunk.

    input rows   | chunk 0 | chunk 1 | chunk 2 | chunk 3 | ...      chunk_rows rows each
    shard 0 of 2   mine                mine
    shard 1 of 2             mine                mine

    chunk-00000002.part   {"scored": 511, "rejected": {...}, ...}   a line of counts, then the rows:
                          +{"id": "1024", "rewards": [...], ...}    scored,
                          -{"line": 1031, "reason": ...}            rejected

A chunk is one file (`job_files` names them all), so it is there whole or not at all. Batches and
shared prefixes never cross a chunk, so a chunk's rows do not depend on which run computed them. A
run continues where the parts end, if model, input and settings are the same, and refuses otherwise.
A chunk is committed only while the input is still the one that the job is of. At the end output,
rejects and summary are put together from the parts, which are then deleted, job.json last.
"""

import collections
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from toolrm_jax.ahead import OrderedPool
from toolrm_jax.job_files import (
    JobError,
    JobFiles,
    Shard,
    locked,
    publish,
    remove_orphans,
    remove_parts,
)
from toolrm_jax.request_tokens import ChunkTokenizer, Line, LineTokenizer, Tokenized
from toolrm_jax.row_source import NumberedRow, Rows
from toolrm_jax.score_plan import Work
from toolrm_jax.score_request import Rejected
from toolrm_jax.score_summary import Counts, Summary, read_job, read_summary, refuse_other
from toolrm_jax.scorer import Scored, Scorer


def finished(files: JobFiles, job: dict[str, Any]) -> Summary | None:
    """The summary of an output that is there already, complete, as it was written, and of this job.

    Raises:
      JobError: the output is there, but of another job, or of nobody knows which.
    """
    if not epath.Path(files.summary).exists():
        foreign = [path for path in (files.output, files.rejects) if epath.Path(path).exists()]
        if foreign and not files.job.exists():
            raise JobError(
                f"{foreign[0]} exists and is not this command's: choose another --output, or "
                f"delete it."
            )
        return None
    summary = read_summary(files.summary)
    refuse_other(summary.job, job, f"{files.output} is there already, but was made", files)
    differences = summary.differences(files)
    if differences:
        print(f"{'; '.join(differences)}: making it again.", file=sys.stderr)
        return None
    if files.parts.exists():  # of a run that was killed while it cleaned up
        with locked(files):
            remove_parts(files)
    return summary


def run(
    scorer: Scorer,
    rows: Rows,
    files: JobFiles,
    job: dict[str, Any],
    *,
    chunk_rows: int,
    shard: Shard,
    workers: int = 0,
) -> Summary:
    """Scores what is left of the job and puts the output together.

    Raises:
      JobError: the parts that are there are of another job, or another process works on them.
      RowSourceError: the input cannot be read to its end, or changes. What was committed by then
        is kept.
    """
    files.parts.mkdir(parents=True, exist_ok=True)
    with locked(files):
        _begin(files, job)
        reader = _ChunkReader(rows, files, chunk_rows, shard)
        pool = OrderedPool(ChunkTokenizer(LineTokenizer(scorer.tokenize)), workers)
        total = rows.count()  # to the end: what is damaged is refused before anything is scored
        _say_idle_shards(total, chunk_rows, shard)
        progress = _Progress(reader, total)
        try:
            _score(scorer, reader, pool, files, progress)
        finally:
            pool.close()
            progress.close()
        rows.check_unchanged()
        rows.check_count(reader.read, total)
        summary = _assemble(files, job, reader, shard)
        remove_parts(files)
    return summary


def _begin(files: JobFiles, job: dict[str, Any]) -> None:
    """Makes the parts this job's, or finds that they are; a job without any may be another."""
    if files.job.exists():
        found = read_job(files.job)
        if files.committed():
            refuse_other(found, job, f"{files.parts} holds an unfinished job", files)
            _say_other_versions(found, job)
            return
    remove_orphans(files)
    publish(files.job, [json.dumps(job, indent=2).encode()])


def _say_other_versions(found: dict[str, Any], job: dict[str, Any]) -> None:
    before, now = found.get("versions", {}), job["versions"]
    changed = [f"{k} {v} (now {now.get(k)})" for k, v in before.items() if v != now.get(k)]
    if changed:
        print(
            f"What is committed was scored with {', '.join(changed)}; the last digits of what "
            f"follows may be others than they would have been.",
            file=sys.stderr,
        )


def _say_idle_shards(rows: int | None, chunk_rows: int, shard: Shard) -> None:
    chunks, fewer = -(-(rows or 0) // chunk_rows), max((rows or 0) // shard.of, 1)
    if 0 < chunks < shard.of and fewer < chunk_rows:
        print(
            f"Only {chunks} of {shard.of} shards have work: --chunk-rows {fewer} gives more of "
            f"them some (the same for all shards).",
            file=sys.stderr,
        )


# --- Scoring --------------------------------------------------------------------------------------


class _ChunkReader:
    """(chunk, row) of all rows that are this shard's and not yet committed; counts all rows."""

    def __init__(self, rows: Rows, files: JobFiles, chunk_rows: int, shard: Shard):
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows={chunk_rows}: use at least 1.")
        self.rows, self.files, self.chunk_rows, self.shard = rows, files, chunk_rows, shard
        self.read = 0
        self.committed = files.committed()

    def __iter__(self) -> Iterator[tuple[int, NumberedRow]]:
        for index, row in enumerate(self.rows):
            self.read = index + 1
            chunk = index // self.chunk_rows
            if self.is_mine(chunk) and chunk not in self.committed:
                yield chunk, row

    def is_mine(self, chunk: int) -> bool:
        return chunk % self.shard.of == self.shard.index

    def mine(self, rows: int) -> list[int]:
        """All chunks of this shard, in an input of so many rows."""
        return [k for k in range(-(-rows // self.chunk_rows)) if self.is_mine(k)]

    def rows_of(self, chunks: Iterable[int], rows: int) -> int:
        """Rows of these chunks."""
        return sum(min(self.chunk_rows, rows - k * self.chunk_rows) for k in chunks)


def _score(
    scorer: Scorer,
    reader: _ChunkReader,
    pool: OrderedPool,
    files: JobFiles,
    progress: "_Progress",
) -> None:
    """Scores and commits chunk by chunk."""
    waiting: collections.deque[tuple[int, list[Line]]] = collections.deque()

    def windows() -> Iterator[list[Any]]:
        for chunk, group in itertools.groupby(pool.map(reader), key=lambda pair: pair[0]):
            lines = [line for _, line in group]
            waiting.append((chunk, lines))
            yield [line.outcome for line in lines]

    def fetched(work: Work) -> None:
        progress.add_batch(work, waiting[0][1])

    policy = scorer.tokenize.over_long
    for outcomes, work in scorer.score_tokenized(windows(), fetched=fetched):
        chunk, lines = waiting.popleft()
        counts, body = _part(lines, outcomes, work, policy)
        reader.rows.check_unchanged()  # these rows were read before, so they are the job's own
        publish(files.part(chunk), [json.dumps(dataclasses.asdict(counts)).encode() + b"\n", *body])
        progress.add_chunk(counts)


def _part(
    lines: list[Line], outcomes: list[Scored | Rejected], work: Work, policy: str
) -> tuple[Counts, list[bytes]]:
    """A chunk's counts, and its rows, each with a sign and a newline."""
    body = []
    found: dict[str, Any]
    rejected: collections.Counter[str] = collections.Counter()
    dropped = []
    for line, outcome in zip(lines, outcomes, strict=True):
        if isinstance(outcome, Rejected):
            rejected[outcome.reason] += 1
            about = {"reason": outcome.reason, "detail": outcome.detail}
            found = {"line": line.number, "id": line.id} | about
        else:
            found = {"id": line.id}
            if line.id is None:
                found["line"] = line.number
            found["rewards"] = [shortest(reward) for reward in outcome.rewards]
            found["tokens"] = outcome.tokens.tolist()
            if policy != "reject":
                found["dropped_messages"] = outcome.dropped_messages
            dropped.append(outcome.dropped_messages)
        sign = b"-" if isinstance(outcome, Rejected) else b"+"
        body.append(sign + json.dumps(found).encode() + b"\n")
    dropped_rows = sum(n > 0 for n in dropped)
    return Counts(len(dropped), dict(rejected), dropped_rows, sum(dropped), work), body


def shortest(reward: np.float32) -> float:
    """The number of the fewest digits that is this float32: 0.1, not 0.10000000149011612."""
    return float(str(np.float32(reward)))


class _Progress:
    """The bar: rows done, responses/s, tokens/s, what sharing saved, padding, time left."""

    def __init__(self, reader: _ChunkReader, rows: int | None):
        total = reader.rows_of(reader.mine(rows), rows) if rows is not None else None
        mine = [k for k in reader.committed if reader.is_mine(k)]
        done = reader.rows_of(mine, rows) if rows is not None else len(mine) * reader.chunk_rows
        self.work = Work()
        self.rejected = 0
        self._committed, self._responses = done, 0  # rows; responses of the chunk that runs
        # In a log file, a line every half minute rather than ten a second.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            desc="scoring", total=total, initial=done, unit="row", mininterval=interval, miniters=0
        )

    def add_batch(self, work: Work, lines: list[Line]) -> None:
        """A batch of the chunk that these lines are is done: so many of its rows, about."""
        self.work += work
        self._responses += work.responses
        found = [line.outcome for line in lines if isinstance(line.outcome, Tokenized)]
        share = self._responses / max(sum(len(each.lengths) for each in found), 1)
        self._show(self._committed + int(share * len(lines)))

    def add_chunk(self, counts: Counts) -> None:
        """A chunk is committed."""
        self.rejected += counts.num_rejected
        self._committed, self._responses = self._committed + counts.scored + counts.num_rejected, 0
        self._show(self._committed)

    def _show(self, rows: int) -> None:
        seconds = max(self.bar.format_dict["elapsed"], 1e-9)
        self.bar.set_postfix_str(
            f"{self.work.responses / seconds:.1f} responses/s, "
            f"{self.work.sequence_tokens / seconds:.0f} tokens/s, "
            f"{100 * self.work.prefix_share:.0f}% saved by prefixes, "
            f"{100 * self.work.padding_share:.1f}% padding, {self.rejected} rejected",
            refresh=False,
        )
        self.bar.update(rows - self.bar.n)

    def close(self) -> None:
        self.bar.close()


# --- Putting it together --------------------------------------------------------------------------


def _assemble(files: JobFiles, job: dict[str, Any], reader: _ChunkReader, shard: Shard) -> Summary:
    """Output, rejects and summary from the parts."""
    parts = [files.part(chunk) for chunk in reader.mine(reader.read)]
    counts = [_counts(part) for part in parts]
    chunks = [(count.scored, count.num_rejected) for count in counts]
    summary = Summary(job, shard, reader.read, sum(counts, Counts()), chunks)
    return publish_output(files, summary, _bodies(parts, b"+"), _bodies(parts, b"-"))


def _counts(part: epath.Path) -> Counts:
    with part.open("rb") as file:
        return Counts.of_json(json.loads(file.readline()))


def _bodies(parts: Iterable[epath.Path], sign: bytes) -> Iterator[list[bytes]]:
    """The rows with this sign, part by part."""
    for part in parts:
        with part.open("rb") as file:
            yield [line[1:] for line in file if line.startswith(sign)]


def publish_output(
    files: JobFiles,
    summary: Summary,
    scored: Iterable[Iterable[bytes]],
    rejected: Iterable[Iterable[bytes]],
) -> Summary:
    """The rows of all chunks, in order. The summary is last, and stands for the whole; it is given
    back with what the files hold."""
    output = publish(epath.Path(files.output), itertools.chain.from_iterable(scored))
    rejects = None
    if summary.counts.rejected:
        rejects = publish(epath.Path(files.rejects), itertools.chain.from_iterable(rejected))
    else:  # of an earlier job of that name
        epath.Path(files.rejects).unlink(missing_ok=True)
    summary = dataclasses.replace(summary, output=output, rejects=rejects)
    text = json.dumps(summary.to_json(), indent=2) + "\n"
    publish(epath.Path(files.summary), [text.encode()])
    return summary
