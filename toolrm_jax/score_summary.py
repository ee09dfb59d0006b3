"""What a scoring job is and what it found: the files beside its output and parts that say so.

job.json            the model, the input (names and digests) and the settings: with the same
                    ones an interrupted job may be continued
out.summary.json    the job, how many rows were scored and rejected, each chunk's too, and what
                    the output and the rejects hold, so that they are never believed unread

>>> read_summary("out.summary.json").counts.words()
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from toolrm_jax.checkpoint_files import by_name
from toolrm_jax.job_files import Content, JobError, JobFiles, Shard
from toolrm_jax.orbax_folder import TOKENIZER, open_orbax
from toolrm_jax.row_source import Rows, file_digest
from toolrm_jax.score_plan import Work
from toolrm_jax.versions import versions

_MODEL_FILES = (".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model")


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the rows of a chunk, or of a whole job; they add up."""

    scored: int = 0
    rejected: dict[str, int] = dataclasses.field(default_factory=dict)  # by reason
    dropped_rows: int = 0  # scored, but with messages left out to make them fit
    dropped_messages: int = 0
    work: Work = dataclasses.field(default_factory=Work)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    def __add__(self, other: "Counts") -> "Counts":
        rejected = collections.Counter(self.rejected) + collections.Counter(other.rejected)
        return Counts(
            self.scored + other.scored,
            dict(sorted(rejected.items())),
            self.dropped_rows + other.dropped_rows,
            self.dropped_messages + other.dropped_messages,
            self.work + other.work,
        )

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> "Counts":
        """What `dataclasses.asdict` made of one."""
        return cls(**(data | {"work": Work(**data["work"])}))

    def words(self) -> str:
        """A few lines for the console."""
        work = self.work
        lines = [
            f"{_counted(self.scored, 'row')} scored, {_counted(work.responses, 'response')}; "
            f"shared prefixes saved {100 * work.prefix_share:.1f}% of the tokens, "
            f"{100 * work.padding_share:.1f}% of those computed were padding"
        ]
        if self.dropped_rows:
            lines.append(
                f"{_counted(self.dropped_messages, 'oldest message')} left out of "
                f"{_counted(self.dropped_rows, 'over-long row')}"
            )
        if self.rejected:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.rejected.items())
            lines.append(f"{_counted(self.num_rejected, 'row')} rejected: {reasons}")
        return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a job was and found."""

    job: dict[str, Any]
    shard: Shard
    rows: int  # of the whole input
    counts: Counts
    chunks: list[tuple[int, int]]  # (scored, rejected) rows of each of the shard's chunks
    output: Content | None = None  # None: not written yet
    rejects: Content | None = None  # None: there are none

    def differences(self, files: JobFiles) -> list[str]:
        """What is wrong with the files that this is the summary of; reads all of them."""
        wanted = ((files.output, self.output), (files.rejects, self.rejects))
        found = [content.difference(path) for path, content in wanted if content is not None]
        return [words for words in found if words]

    def to_json(self) -> dict[str, Any]:
        work = self.counts.work
        shares = {"saved_by_prefixes": work.prefix_share, "padding": work.padding_share}
        return dataclasses.asdict(self) | {"shares": {k: round(v, 6) for k, v in shares.items()}}


def describe(model: str, path: str | Path, rows: Rows, settings: dict[str, Any]) -> dict[str, Any]:
    """The job's identity: with the same one, an interrupted job may be continued."""
    about = {"name": rows.name, "digest": rows.digest()}
    return {
        "model": {"name": model, "digest": model_digest(path)},
        "input": about | ({"commit": rows.commit} if rows.commit else {}),
        "settings": settings,
        "versions": versions("jax", "jaxlib", "tokenizers", "transformers"),
    }


def commit_begun(files: JobFiles, name: str) -> str | None:
    """The commit of the data set `name` that an unfinished job reads: what was pushed since is not
    its input."""
    if not files.committed() or not files.job.exists():
        return None
    about = read_job(files.job)["input"]
    return about.get("commit") if about["name"] == name else None


def model_digest(path: str | Path) -> str:
    """A digest of a model's files: of a directory, a GGUF file, or one of our checkpoints with the
    tokenizer of its run."""
    root = epath.Path(path)
    if not root.is_dir():
        files = {root.name: root}
    elif (root / "config.json").exists():
        files = {p.name: p for p in root.iterdir() if p.suffix in _MODEL_FILES and p.is_file()}
    else:
        files = by_name(root)
        tokenizer = open_orbax(root).tokenizer
        if tokenizer is not None:
            below = by_name(epath.Path(tokenizer))
            files |= {f"{TOKENIZER}/{name}": file for name, file in below.items()}
    names = sorted(f"{name} {file_digest(file)}" for name, file in files.items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def read_summary(path: str | epath.Path) -> Summary:
    """What a job wrote beside its output.

    Raises:
      JobError: it is another program's, or damaged.
    """
    with _foreign_is_an_error(path):
        data = json.loads(epath.Path(path).read_text())
        chunks = [(scored, rejected) for scored, rejected in data["chunks"]]
        counts = Counts.of_json(data["counts"])
        job = _checked_job(data["job"])
        shard, output = Shard(**data["shard"]), Content(**data["output"])
        rejects = Content(**data["rejects"]) if counts.rejected else None
        return Summary(job, shard, int(data["rows"]), counts, chunks, output, rejects)


def read_job(path: epath.Path) -> dict[str, Any]:
    with _foreign_is_an_error(path):
        return _checked_job(json.loads(path.read_text()))


def _checked_job(job: Any) -> dict[str, Any]:
    """The job, if it is one: what `refuse_other` compares is there."""
    for part in ("model", "input"):
        str(job[part]["name"]), str(job[part]["digest"])
    dict(job["settings"])
    return job


@contextlib.contextmanager
def _foreign_is_an_error(path: str | epath.Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JobError(
            f"{path} is not this command's, is an earlier version's, or is damaged "
            f"({type(error).__name__}: {error}): choose another --output, or delete it and what "
            f"belongs to it."
        ) from None


def refuse_other(found: dict[str, Any], wanted: dict[str, Any], what: str, files: JobFiles) -> None:
    """JobError naming what differs: a job goes on only with the same model, input and settings."""
    differences = [
        f"another {part} ({found[part]['name']} {found[part]['digest']}, now "
        f"{wanted[part]['name']} {wanted[part]['digest']})"
        for part in ("model", "input")
        if found[part]["digest"] != wanted[part]["digest"]
    ]
    before, now = found["settings"], wanted["settings"]
    differences += [
        f"{name}={before.get(name)!r} (now {now.get(name)!r})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise JobError(
            f"{what} with {', '.join(differences)}. Choose another --output; or, to begin anew, "
            f"delete {files.output}, {files.summary} and {files.parts}."
        )
