"""A run of an evaluation, in a folder: what was found, and what it was found from.

    OUT/result.json    what, command, versions, data with its hash, what was scored beside it, seed,
                       models' cards, figures of every scorer
    OUT/scores.jsonl   a case a line: candidates, what is right, and every scorer's scores
    OUT/rejects.jsonl  rows that are no case: {"line", "reason"}

The folder appears whole. `read_run` gives it back, for `compare` and `report`.
"""

import collections
import dataclasses
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Candidate, Case, Cases
from toolrm_jax.output_folder import check_output, new_folder
from toolrm_jax.paths import as_path
from toolrm_jax.versions import versions

RESULT, SCORES, REJECTS = "result.json", "scores.jsonl", "rejects.jsonl"
OVERLAP = "OVERLAP:"  # in a note: tasks were scored that a model was trained on


@dataclasses.dataclass(frozen=True)
class Run:
    """What a folder holds."""

    path: str
    result: dict[str, Any]
    cases: list[Case]
    scores: dict[str, list[np.ndarray]]  # by scorer: [candidates] of each case

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def mark(self) -> str:
        """What titles of its figures end in: " (OVERLAP with training)" where tasks were scored
        that a model was trained on (`options.usable` notes it)."""
        overlaps = any(OVERLAP in note for note in self.result.get("notes", ()))
        return " (OVERLAP with training)" if overlaps else ""


def made_by(seed: int) -> dict[str, Any]:
    """What every result says of its making, beside its data: the command, versions (PyTorch's where
    it was imported), the seed."""
    more = ("torch",) if "torch" in sys.modules else ()
    return {
        "command": shlex.join(["python", "-m", "toolrm_jax.evaluate", *sys.argv[1:]]),
        "versions": versions("jax", "numpy", "scipy", "transformers", *more),
        "seed": seed,
    }


def check_run(folder: str | os.PathLike[str]) -> None:
    """Raises FileExistsError where `write_run` would; to be called before scoring."""
    check_output(folder, _is_run, replace=True, last=RESULT, what="result")


def _is_run(folder: epath.Path) -> bool:
    return (folder / RESULT).exists()


def write_run(
    folder: str | os.PathLike[str],
    what: str,
    data: Cases,
    scores: Mapping[str, Sequence[np.ndarray]],
    figures: Mapping[str, Any],
    seed: int,
    more_rows: Mapping[str, Iterable[dict[str, Any]]] | None = None,
    *,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    beside: Mapping[str, Cases] | None = None,
) -> dict[str, Any]:
    """Writes the folder, in the place of an earlier run's; gives what result.json holds.

    Args:
      scores: of the data's cases and, after them, of those beside.
      more_rows: further files of JSON lines, by name.
      models: the card of every scorer that is a model.
      beside: cases that were scored too and are none of the data's, by what they are: written
        among the others, counted apart.
    """
    beside = beside or {}
    result = {
        "what": what,
        **made_by(seed),
        "data": _counted(data),
        **(
            {"beside": {name: _counted_by(part) for name, part in beside.items()}} if beside else {}
        ),
        "models": models or {},
        **figures,
    }
    with new_folder(folder, _is_run, last=RESULT, what="result") as made:
        everything = itertools.chain(data.cases, *(part.cases for part in beside.values()))
        cases = (
            _case_row(case, {name: s[number] for name, s in scores.items()})
            for number, case in enumerate(everything)
        )
        rejects = [dataclasses.asdict(one) for one in data.rejects]
        for name, part in beside.items():
            rejects += [{"line": r.line, "reason": f"{name}: {r.reason}"} for r in part.rejects]
        for name, rows in {SCORES: cases, REJECTS: rejects, **(more_rows or {})}.items():
            with (made / name).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        text = json.dumps(result, indent=1, allow_nan=False)
        (made / RESULT).write_text(text + "\n", encoding="utf-8")
    return result


def _counted(data: Cases) -> dict[str, Any]:
    reasons = collections.Counter(reject.reason for reject in data.rejects)
    return {
        "path": data.name,
        "sha256": data.digest,
        "cases": len(data.cases),
        "tasks": len(set(data.tasks)),
        "rejected": dict(reasons.most_common()),
    }


def _counted_by(data: Cases) -> dict[str, Any]:
    return _counted(data) | {
        "by category": dict(collections.Counter(c.category for c in data.cases))
    }


def _case_row(case: Case, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    row = dataclasses.asdict(case)
    row["scores"] = {
        name: [None if np.isnan(score) else float(score) for score in values]
        for name, values in scores.items()
    }
    return row


def read_run(folder: str | os.PathLike[str]) -> Run:
    """What `write_run` wrote; of a run whose figures are of one category, the cases of that one.

    Raises InputError where it is no such folder.
    """
    path = as_path(folder)
    try:
        result = json.loads((path / RESULT).read_text())
        if missing := _missing(result):
            raise ValueError(f"{RESULT} says nothing of its {missing[0]}")
        # Not splitlines, for which text may hold other ends of lines.
        text = (path / SCORES).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
        cases, scores = _cases_of(lines, result.get("category"))
    # A line of another form: no object, other fields, fewer of them.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{os.fspath(folder)}: no run of an evaluation ({type(error).__name__}: {error}). "
            f"Expected a folder that `python -m toolrm_jax.evaluate ... --output` wrote."
        ) from None
    return Run(os.fspath(folder), result, cases, scores)


def _missing(result: dict[str, Any]) -> list[str]:
    """What `write_run` writes of every run and is not there."""
    wanted = {"what", "command", "versions", "seed", "data"}
    data = {"path", "sha256", "cases", "tasks", "rejected"}
    return sorted(wanted - result.keys()) or sorted(data - result["data"].keys())


def _cases_of(
    lines: Iterable[dict[str, Any]], only: str | None
) -> tuple[list[Case], dict[str, list[np.ndarray]]]:
    """(the cases of the category, the scores of each scorer); of all, where `only` is None."""
    cases: list[Case] = []
    scores: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    for number, line in enumerate(lines, 1):
        if only is not None and line["category"] != only:
            continue
        candidates = [Candidate(**candidate) for candidate in line.pop("candidates")]
        for name, values in line.pop("scores").items():
            found = np.array([np.nan if v is None else v for v in values], float)
            if len(found) != len(candidates) or len(scores[name]) != len(cases):
                raise ValueError(f"line {number} of {SCORES}: {name!r} has not scored all")
            scores[name].append(found)
        cases.append(Case(candidates=candidates, **line))
    if any(len(found) != len(cases) for found in scores.values()):
        raise ValueError(f"not all lines of {SCORES} have the same scorers")
    return cases, dict(scores)
