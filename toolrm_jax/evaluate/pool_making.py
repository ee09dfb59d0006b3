"""Pools of candidates made now: a model behind an endpoint answers the tasks of an evaluation set.

    source --endpoint, n samples each--> answers --judge, by the set's reference--> pool rows

    POOLS.jsonl           a pool a line
    POOLS.rejects.jsonl   {"id", "at", "reason", "detail"}: rows of the source that are no task, and
                          answers that there are not: refused by the server for good, or cut off
    POOLS.about.json      command, versions, seed, model, data with its hash, how many were left out

Every answer is judged by the reference of its source: the full sequence of calls, with the values
that the set accepts. Equal answers are one candidate with their count. So are calls in another
order; words that call nothing are candidates of their own, for a scorer reads the words.

    write_pools("pools.jsonl", {"format": "bfcl", "path": "wheel", "options": {}}, entry)
"""

import collections
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.results import made_by
from toolrm_jax.examples import Example
from toolrm_jax.files import write_text
from toolrm_jax.row_source import file_digest
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.generators import Pool
from toolrm_jax.synth.judging import same_key
from toolrm_jax.synth.reading import Source, open_found, source_digest
from toolrm_jax.tool_calls import judge, parse_calls, words_of

Row = dict[str, Any]


def write_pools(
    output: str | os.PathLike[str], source: Source, entry: Mapping[str, Any], seed: int = 0
) -> Row:
    """Asks the model, and writes the module's three files; gives what POOLS.about.json holds.

    Args:
      source: {"format", "path", "options"} of the tasks, as synthesis has them.
      entry: the model, as an endpoint of synthesis's pool; its answers are kept in POOLS.sqlite.
    """
    output, digest = Path(output), source_digest(source)
    examples, rejects = read_tasks(source)
    rows = pool_rows(examples, entry, output.with_suffix(".sqlite"), seed, rejects)
    write_text(output, _lines(tqdm(rows, "pools", len(examples), unit="task", disable=None)))
    about = {
        "what": "pools",
        **made_by(seed),
        "model": {name: entry[name] for name in entry if name not in ("kind", "key_variable")},
        "data": {"path": source["path"], "sha256": digest, "tasks": len(examples)},
        "sha256": file_digest(output),
        "rejected": dict(collections.Counter(row["reason"] for row in rejects).most_common()),
    }
    write_text(output.with_suffix(".rejects.jsonl"), _lines(rejects))
    write_text(output.with_suffix(".about.json"), json.dumps(about, indent=1) + "\n")
    return about


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_tasks(source: Source) -> tuple[list[Example], list[Row]]:
    """(the tasks of a source, its rows that are none)."""
    examples: dict[str, Example] = {}
    rejects = []
    for found in open_found(source):
        if not isinstance(found, Example):
            at = f"{found.file}, line {found.line}" if found.line else found.file
            id_ = found.draft.id if found.draft else None
            rejects.append(_reject(id_, at, found.reason, found.detail))
        elif found.id in examples:
            rejects.append(_reject(found.id, "", "an id that another task has", ""))
        elif found.by_outcome:
            rejects.append(_reject(found.id, "", "right by what the calls bring about", ""))
        else:
            examples[found.id] = found
    return list(examples.values()), rejects


def _reject(id_: str | None, at: str, reason: str, detail: str) -> Row:
    return {"id": id_, "at": at, "reason": str(reason), "detail": detail}


def pool_rows(
    examples: Sequence[Example],
    entry: Mapping[str, Any],
    cache: str | os.PathLike[str],
    seed: int = 0,
    rejects: list[Row] | None = None,
) -> Iterator[Row]:
    """A row for each example that got answers, in order.

    Answers that the server refused for good, or cut off, are left out; `rejects` gets a row of
    each. Raises InputError where a question got no answer that another try may bring (time-outs,
    errors of the server): what was answered is in the cache, and the same call asks for the rest.
    """
    left_out: list[Row] = [] if rejects is None else rejects
    missing: collections.Counter[str] = collections.Counter()
    why: list[str] = []

    def refused(reason: str, detail: str, where: str) -> None:  # "MODEL, sample 3 of ID"
        id_ = where.removeprefix(f"{entry['model']}, sample ").partition(" of ")[2]
        reason = reason.removeprefix(f"{entry['model']}: ")  # it is in `where`
        left_out.append(_reject(id_, where, reason, detail))

    def left_open(reason: str, detail: str, _: str) -> None:
        missing[reason] += 1
        why.append(detail)

    known = {example.id: example for example in examples}
    made = 0
    with Pool(
        [entry],
        seed=seed,
        cache=cache,
        permissive_only=False,
        reject=refused,
        leave_open=left_open,
    ) as pool:
        answers = pool.answers(examples)
        for name, group in itertools.groupby(answers, key=lambda answer: answer.example_id):
            made += 1
            yield _row(known[name], list(group))
    if missing:
        words = ", ".join(f"{number:,} x {reason}" for reason, number in missing.items())
        raise InputError(
            f"Questions without an answer: {words}; the last: {why[-1]}. Those that were answered "
            f"are in {cache}; the same command asks for the rest."
        )
    if not made:
        last = f"; the last, {left_out[-1]['reason']}: {left_out[-1]['detail']}" if left_out else ""
        raise InputError(f"No task got an answer: {len(left_out):,} were left out{last}")


def _row(example: Example, answers: Sequence[Answer]) -> Row:
    merged: dict[str, Row] = {}
    for answer in answers:
        calls = parse_calls(answer.response)
        words = words_of(answer.response)
        key = same_key(calls, words)
        if key not in merged:
            verdict = judge(answer.response, example.reference, example.tools)
            merged[key] = {
                "model_name": answer.model,
                "calls": calls,
                "raw": words,
                "correct": verdict.right,
                "error_type": None if verdict.right else str(verdict.error_type),
                "n_samples": 0,
            }
        merged[key]["n_samples"] += answer.count
    return {
        "id": example.id,
        "source": example.source,
        "license": example.license,
        "tools": example.tools,
        "messages": example.messages,
        "gold": example.gold,
        "candidates": list(merged.values()),
    }
