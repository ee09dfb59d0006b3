"""Joins the outputs of a job's shards: each is every n-th chunk of the whole.

    out.shard-00000-of-00002.jsonl   | chunk 0 | chunk 2 | ...
    out.shard-00001-of-00002.jsonl   | chunk 1 | chunk 3 | ...
    out.jsonl                        | chunk 0 | chunk 1 | chunk 2 | chunk 3 | ...

The shards' summaries say how many rows each chunk has; the merged output has the bytes, and the
summary, of a job that was not cut. The shards' files stay.

    >>> merge("out.jsonl").counts.scored
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from toolrm_jax.job_files import JobError, JobFiles, Shard, listed, split_name
from toolrm_jax.score_job import finished, publish_output
from toolrm_jax.score_summary import Counts, Summary, read_summary, refuse_other


def merge(output: str) -> Summary:
    """Joins the outputs of all shards of a job, in the order of the input.

    Raises:
      JobError: a shard is missing, unfinished, not what its summary says, or of another job.
    """
    files, shards = JobFiles(output), _shards(output)
    summaries = [read_summary(shard.summary) for shard in shards]
    first = summaries[0]
    for shard, summary in zip(shards, summaries, strict=True):
        refuse_other(summary.job, first.job, f"{shard.output} was made", shard)
        if summary.rows != first.rows:
            raise JobError(
                f"{shards[0].output} saw {first.rows} rows of input, {shard.output} "
                f"{summary.rows}: the input changed. Score the shards again."
            )
    if (done := finished(files, first.job)) is not None:
        return done
    _refuse_damage(shards, summaries)
    chunks = _in_turn([summary.chunks for summary in summaries])
    counts = sum((summary.counts for summary in summaries), Counts())
    merged = Summary(first.job, Shard(), first.rows, counts, list(chunks))
    sizes = [[pair[side] for pair in merged.chunks] for side in (0, 1)]
    outputs = [shard.output for shard in shards]
    rejects = [shard.rejects for shard in shards]
    return publish_output(
        files, merged, _interleaved(outputs, sizes[0]), _interleaved(rejects, sizes[1])
    )


def _refuse_damage(shards: list[JobFiles], summaries: list[Summary]) -> None:
    """JobError naming what is not as it was written; read first, so that nothing is merged then."""
    for index, (shard, summary) in enumerate(zip(shards, summaries, strict=True)):
        if differences := summary.differences(shard):
            raise JobError(
                f"{'; '.join(differences)}. Score this shard again (its command with --shard "
                f"{index}/{len(shards)}), then merge."
            )


def _shards(output: str) -> list[JobFiles]:
    """The files of all shards of an output; JobError where one is missing."""
    stem, _ = split_name(output)
    folder, name = os.path.split(stem)
    ending = JobFiles(output).summary.removeprefix(stem)
    pattern = re.compile(re.escape(name) + r"\.shard-\d{5,}-of-(\d{5,})" + re.escape(ending))
    names = [path.name for path in listed(epath.Path(folder or "."))]
    of = {int(found[1]) for text in names if (found := pattern.fullmatch(text))}
    if not of:
        wanted = f"{name}.shard-*-of-*{ending}"
        raise JobError(f"No shard of {output} is finished: expected {wanted} beside it.")
    if len(of) > 1:
        raise JobError(f"{output}: there are shards of different cuts, {sorted(of)}: keep one.")
    shards = [JobFiles(Shard(i, *of).output(output)) for i in range(*of)]
    missing = [s.output for s in shards if not epath.Path(s.summary).exists()]
    if missing:
        raise JobError(
            f"{len(missing)} of {len(shards)} shards are not finished: {', '.join(missing[:8])}. "
            f"Run them (again), then merge."
        )
    return shards


def _in_turn(lists: list[list[Any]]) -> Iterator[Any]:
    """The first of each, the second of each, ..."""
    absent = object()
    for row in itertools.zip_longest(*lists, fillvalue=absent):
        yield from (item for item in row if item is not absent)


def _interleaved(paths: list[str], sizes: list[int]) -> Iterator[list[bytes]]:
    """Chunks of lines from the files in turn, to their ends; a file of which no line is wanted may
    be missing."""
    with contextlib.ExitStack() as opened:
        files: dict[str, Any] = {}
        for path, size in zip(itertools.cycle(paths), sizes, strict=False):
            if size and path not in files:
                files[path] = opened.enter_context(epath.Path(path).open("rb"))
            lines = list(itertools.islice(files[path], size)) if size else []
            if len(lines) != size:
                raise _other_rows(path, "fewer")
            yield lines
        for path, file in files.items():
            if file.readline():
                raise _other_rows(path, "more")


def _other_rows(path: str, what: str) -> JobError:
    return JobError(
        f"{path} has {what} rows than the chunks of its summary: the summary is damaged. Delete "
        f"both, score this shard again, then merge."
    )
