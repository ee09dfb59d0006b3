"""A stage of a synthesis: rows in, shards of rows out; run, stopped, resumed and inspected alone.

    WORKDIR/4-judged/
      settings.json            what is being made: settings, digests of what goes in and of the code
      00017.jsonl.zst          the rows of one unit of work (a source's: 00-xlam-00000, ...)
      00017.rejects.jsonl.zst  what could not be used: {"reason", "detail", "at", ...}
      00017.json               the unit's commit marker: its files with size and SHA-256, its counts
      summary.json             the stage's commit marker, written last
    WORKDIR/rejects-judged.jsonl.zst

Every file is written under a temporary name and renamed. A stage that finds its summary for the
same settings, inputs and code does nothing; one that was killed does the units that are missing,
and ends with the same bytes. Other settings, inputs or code start it anew. Where units left more
open (a server was down) than the share `most_open` of what was read, it is not complete, and the
next run does them again. That share is no part of the settings: what one run accepts, another need
not.

    stage = Stage(workdir, 4, "judged", settings={"seed": 0}, inputs=[examples, answers])
    summary = stage.run(units, work, workers=2)       # work(unit, tally) yields rows
    for row in summary.rows(): ...
"""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toolrm_jax.errors import InputError
from toolrm_jax.files import write_text
from toolrm_jax.synth.shards import Row, ShardWriter, read_shard
from toolrm_jax.synth.units import (
    Tally,
    Unit,
    Work,
    about_unit,
    do_unit,
    has_size,
    unit_made,
    unit_name,
)
from toolrm_jax.synth.workers import in_processes


class StageError(InputError):
    """A stage that cannot be run or whose result cannot be used; the message says why."""


_LEFT_OUT = "left out: "  # in the names of counts
Plan = Callable[[Path, Tally], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished stage made."""

    folder: Path
    content: dict[str, Any]

    @property
    def shards(self) -> list[Path]:
        """The files of rows, in order."""
        return [self.folder / shard["name"] for shard in self.content["shards"]]

    @property
    def digest(self) -> str:
        """Of all its rows."""
        return self.content["content"]

    @property
    def row_count(self) -> int:
        return self.content["rows"]

    @property
    def counts(self) -> dict[str, int]:
        return self.content["counts"]

    @property
    def left_out(self) -> dict[str, int]:
        """How much that is sound was not wanted, for each reason."""
        found = {what: n for what, n in self.counts.items() if _LEFT_OUT in what and n}
        return {what.replace(_LEFT_OUT, ""): n for what, n in found.items()}

    @property
    def rejected(self) -> dict[str, int]:
        """How many rejects there are for each reason."""
        return self.content["rejected"]

    @property
    def left_open(self) -> dict[str, int]:
        """What another run may have more luck with, of which no more was left than may be."""
        return self.content["left_open"]

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        for shard in self.shards:
            yield from read_shard(shard)

    def check_rejects(self, most: float) -> None:
        """Raises StageError where more than this share of what was read had to be rejected."""
        lost, read = sum(self.rejected.values()), self.content["read"]
        if lost > most * read:
            raise StageError(
                f"{self.folder}: {lost:,} of {read:,} that were read were rejected, "
                f"{lost / read:.1%}; at most {most:.1%} are accepted (config.most_rejects). They "
                f"are: {listed(self.rejected)}.{self.sample_reject()} See "
                f"{self._rejects}; the rows that are sound are kept."
            )

    @property
    def _rejects(self) -> Path:
        return self.folder.parent / rejects_name(self.content["stage"])

    def sample_reject(self, source: str | None = None) -> str:
        """One reject (of a source) in a sentence: where it stood, and what is wrong with it.

        Of a wrong format, a reason such as "not in the source's form" tells nothing by itself.
        """
        for row in read_shard(self._rejects):
            is_reject = row["reason"] in self.rejected and row.get("at")
            if is_reject and source in (None, row.get("source")):
                detail = f" ({' '.join(row['detail'].split())[:300]})" if row["detail"] else ""
                return f" For example {row['at']}: {row['reason']}{detail}."
        return ""


def listed(counts: Mapping[str, int]) -> str:
    """The five most frequent, in words, and how many others there are."""
    most = sorted(counts.items(), key=lambda item: -item[1])
    others = sum(number for _, number in most[5:])
    words = [f"{number:,} x {what}" for what, number in most[:5]]
    return ", ".join([*words, f"{others:,} others"] if others else words)


def rejects_name(stage: str) -> str:
    """The file of a stage's rejects, in the workdir."""
    return f"rejects-{stage}.jsonl.zst"


class Stage:
    """One step of a synthesis in its folder, WORKDIR/NUMBER-NAME."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        number: int,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[Summary] = (),
        *,
        code: str = "",  # the digest of what makes the rows
        most_open: float = 0.0,
    ):
        self.workdir, self.name, self._most_open = Path(workdir), name, most_open
        self.folder = self.workdir / f"{number}-{name}"
        self.about = {
            "stage": name,
            "code": code,
            "settings": json.loads(json.dumps(settings)),
            "inputs": [summary.digest for summary in inputs],
        }
        text = json.dumps(self.about, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def finished(self) -> Summary | None:
        """What an earlier run made with the same settings of the same inputs, if it is whole."""
        try:
            content = json.loads((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        if content.get("digest") != self.digest or self._too_open(content):
            return None
        summary = Summary(self.folder, content)
        whole = all(has_size(self.folder, shard) for shard in content["shards"])
        return summary if whole else None

    def run(
        self,
        units: Sequence[Unit],
        work: Work,
        *,
        workers: int = 0,
        shard_rows: int = 0,
        plan: Plan | None = None,
    ) -> Summary:
        """Does the units that are not done yet, in so many processes (0: in this one).

        `plan(folder, tally)` is for what has to be known of all rows before the first unit: it
        leaves files in the folder, and gives what the summary is to hold beside the counts.

        Raises StageError, at the end, where units left more open than the share of what they read
        that may be: the stage is not complete then, and the next run does those units again.
        """
        done = self.finished()
        if done is not None:
            return done
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._begin()
            planned, about = self._planned(plan)
            found = self._unit_results(units, work, workers, shard_rows)
            made = [about, *(found[unit.name] for unit in units)]
            self._join_rejects([one["rejects"]["name"] for one in made])
            return self._finish(made, planned)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Two runs must not write one stage; the system lets go of the lock of one killed."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise StageError(
                f"Another run is writing {self.folder} now: wait for it, or choose another workdir."
            ) from None
        finally:
            os.close(descriptor)

    def _begin(self) -> None:
        """Keeps what an earlier run left of the same stage; removes anything else."""
        settings = self.folder / "settings.json"
        (self.folder / "summary.json").unlink(missing_ok=True)
        try:
            same = json.loads(settings.read_text()) == self.about
        except (OSError, ValueError):
            same = False
        for file in self.folder.iterdir():
            if not same or file.name.endswith(".partial"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        for file in self.workdir.glob(f".{rejects_name(self.name)}.*.partial"):
            file.unlink()
        write_text(settings, json.dumps(self.about, indent=1) + "\n")

    def _planned(self, plan: Plan | None) -> tuple[Mapping[str, Any], dict[str, Any]]:
        """(what the plan gave, its counts and rejects as of a unit without rows)."""
        rejects = ShardWriter(self.folder / "plan.rejects.jsonl.zst")
        tally = Tally(rejects)
        try:
            given = plan(self.folder, tally) if plan else {}
            rejects.close()
        except BaseException:
            rejects.discard()
            raise
        return given, about_unit([], rejects, tally)

    def _unit_results(
        self, units: Sequence[Unit], work: Work, workers: int, shard_rows: int
    ) -> dict[str, dict[str, Any]]:
        found = {
            u.name: about for u in units if (about := unit_made(self.folder, u.name)) is not None
        }
        left = [unit for unit in units if unit.name not in found]
        if found:
            print(f"{self.name}: {len(found)} of {len(units)} units are done already", flush=True)
        bar = tqdm(total=len(units), initial=len(found), desc=self.name, unit="unit", disable=None)
        # Closed whatever happens: a Ctrl-C here must end the workers, too.
        with bar, contextlib.closing(self._done(left, work, workers, shard_rows)) as done:
            for name, made in done:
                found[name] = made
                bar.update()
        return found

    def _done(
        self, units: Sequence[Unit], work: Work, workers: int, shard_rows: int
    ) -> Generator[tuple[str, dict[str, Any]]]:
        do = functools.partial(do_unit, self.folder, work=work, shard_rows=shard_rows)
        for index, made in in_processes(do, units, workers):
            yield units[index].name, made

    def _finish(self, done: Sequence[dict[str, Any]], more: Mapping[str, Any]) -> Summary:
        """Joins the counts in the order of the units, and writes the summary."""
        shards = [shard for about in done for shard in about["shards"]]
        hashes = "\n".join(shard["sha256"] for shard in shards)
        content = {
            "digest": self.digest,
            **self.about,
            "rows": sum(shard["rows"] for shard in shards),
            "content": hashlib.sha256(hashes.encode()).hexdigest()[:16],
            "read": sum(about["read"] for about in done),
            "counts": _sums(done, "counts"),
            "rejected": _sums(done, "rejected"),
            "left_open": _sums(done, "left_open"),
            **more,
            "shards": shards,
        }
        self._check_open(content)
        write_text(self.folder / "summary.json", json.dumps(content, indent=1) + "\n")
        return Summary(self.folder, content)

    def _too_open(self, content: Mapping[str, Any]) -> bool:
        return sum(content["left_open"].values()) > self._most_open * content["read"]

    def _check_open(self, content: Mapping[str, Any]) -> None:
        if self._too_open(content):
            left = content["left_open"]
            raise StageError(
                f"{self.folder}: {sum(left.values()):,} of {content['read']:,} are still open: "
                f"{listed(left)}. The same command tries them again, and no others; where a "
                f"budget is used up, raise it. To go on without them, accept a share: "
                f"config.answers.most_open. See {self.workdir / rejects_name(self.name)}."
            )

    def _join_rejects(self, names: Sequence[str]) -> None:
        path = self.workdir / rejects_name(self.name)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            for name in names:
                file.write((self.folder / name).read_bytes())  # frames of one file may follow
        partial.replace(path)


def _sums(done: Sequence[dict[str, Any]], name: str) -> dict[str, int]:
    """The units' counters of this name, added and in order."""
    found: collections.Counter[str] = collections.Counter()
    for about in done:
        found.update(about[name])
    return dict(sorted(found.items()))


def units_of(*summaries: Summary) -> list[Unit]:
    """One unit for each shard; those of several stages lie side by side."""
    return [
        Unit(unit_name(shards[0]), tuple(map(str, shards)))
        for shards in zip(*(summary.shards for summary in summaries), strict=True)
    ]
