"""The finished data set: a folder that the loader, TRL and `datasets.load_dataset` read as it is.

    DATASET/
      array_record/train-00000-of-00012.array_record   rows of `pairs`, one JSON object a record, in
                                                       an order by seed and id: shuffled
      parquet/train-00000-of-00012.parquet             one row a pair, for TRL's RewardTrainer
      rejects.jsonl.zst                                what all stages rejected or left out, and why
      README.md  card.json  plots/*.png                the data card
    card.json comes last: a folder that has it is complete.

A row of Parquet has `chosen` and `rejected` (message lists: the conversation and the answer),
`tools` (JSON text, as TRL takes it) and columns about the pair: what is wrong with the rejected
side, and whose the two are under which licence (`chosen_model` is null for the source's own gold).
Calls stand in the text of a message, as <tool_call> blocks: Arrow would give the arguments of every
call all names that any call has. In Qwen's templates this is, byte for byte, what they make of
`tool_calls`.

    python -m toolrm_jax.train --config.data.train=DATASET/array_record ...
    datasets.load_dataset("DATASET", split="train")
"""

import collections
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Message, Response
from toolrm_jax.paths import as_path, local_folder
from toolrm_jax.splits import digest
from toolrm_jax.synth.shards import Row
from toolrm_jax.synth.stage import Summary
from toolrm_jax.synth.workers import in_order
from toolrm_jax.task_view import response_length

MARKER = "card.json"
ARRAY_RECORD, PARQUET = "array_record", "parquet"


@dataclasses.dataclass
class Contents:
    """What a file, or all of them, hold: counts by whatever a card tells, and lengths."""

    rows: int = 0
    pairs: int = 0
    prompts_by: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    pairs_by: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)
    lengths: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def count(self, row: Row) -> None:
        """Adds a row of the loader's form."""
        self.rows += 1
        for name in ("source", "license", "turn"):
            self.prompts_by.setdefault(name, collections.Counter())[row[name]] += 1
        for wrong in row["rejected"]:
            self.pairs += 1
            about = {
                "source": row["source"],
                "license": row["license"],
                "turn type": row["turn"],
                "right side by": (row["chosen_by"] or {"model": "gold"})["model"],
                "model": wrong["model"],
                "model's licence": wrong["license"],
                "error type": wrong["error_type"],
                "kind": wrong["kind"],
            }
            for name, value in about.items():
                self.pairs_by.setdefault(name, collections.Counter())[value] += 1

    def add(self, other: "Contents") -> None:
        """Adds what another file holds."""
        self.rows += other.rows
        self.pairs += other.pairs
        for mine, theirs in (
            (self.prompts_by, other.prompts_by),
            (self.pairs_by, other.pairs_by),
        ):
            for name, counts in theirs.items():
                mine.setdefault(name, collections.Counter()).update(counts)
        for name, values in other.lengths.items():
            self.lengths[name] = np.concatenate([self.lengths.get(name, values[:0]), values])


def _lengths(row: Row) -> tuple[int, int, list[int]]:
    prompt = len(json.dumps(row["tools"], ensure_ascii=False))
    prompt += sum(len(str(message.get("content"))) for message in row["messages"])
    wrongs = [response_length(wrong["response"]) for wrong in row["rejected"]]
    return prompt, response_length(row["chosen"]), wrongs


# Files -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Part:
    """One file of each form, and the rows that were dealt to it."""

    folder: Path
    name: str
    dealt: Path


def write_files(
    pairs: Summary, folder: Path, *, rows_per_file: int, seed: int, workers: int
) -> Contents:
    """Writes the rows as ArrayRecord and Parquet, shuffled; counts them.

    Any first part of the rows is a sample of all; a file has about rows_per_file.
    """
    for form in (ARRAY_RECORD, PARQUET):
        (folder / form).mkdir()
    dealt = folder / "dealt"
    dealt.mkdir()
    files = _deal(pairs, dealt, -(-pairs.row_count // rows_per_file) or 1, seed)
    parts = [
        _Part(folder, f"train-{i:05}-of-{len(files):05}", file) for i, file in enumerate(files)
    ]
    contents = Contents()
    for found in in_order(_write_part, parts, workers):
        contents.add(found)
    shutil.rmtree(dealt)
    return contents


def _deal(pairs: Summary, folder: Path, count: int, seed: int) -> list[Path]:
    """Deals the rows to so many files, by a hash of seed and id, which precedes each row.

    What lies under one hash range goes to one file, so that files in order, each sorted, are all
    rows in the order of their hashes; no more than one file is ever held in memory.
    """
    paths = [folder / f"{i:05}" for i in range(count)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb", 1 << 16)) for path in paths]
        for row in pairs.rows():
            place = digest(seed, "place", row["id"])[:16]
            line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
            files[int(place, 16) * count >> 64].write(place.encode() + line + b"\n")
    return paths


def _dealt_rows(path: Path) -> Iterator[bytes]:
    """The rows of a dealt file, in the order of their hashes."""
    with path.open("rb") as file:
        lines = sorted(file)
    for line in lines:
        yield line[16:-1]


def _write_part(part: _Part) -> Contents:
    from array_record.python import array_record_module

    contents = Contents()
    path = part.folder / ARRAY_RECORD / f"{part.name}.array_record"
    # One record a group: any row can be read alone, as the loader does.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    try:
        with _ParquetFile(part.folder / PARQUET / f"{part.name}.parquet") as parquet:
            measured = []
            for line in _dealt_rows(part.dealt):
                row = json.loads(line)
                writer.write(line)
                parquet.add(row)
                contents.count(row)
                measured.append(_lengths(row))
    finally:
        writer.close()
    contents.lengths = {
        "prompt": np.array([m[0] for m in measured], np.int32),
        "right": np.array([m[1] for m in measured for _ in m[2]], np.int32),
        "wrong": np.array([size for m in measured for size in m[2]], np.int32),
    }
    return contents


class _ParquetFile:
    """Pairs as columns, written a thousand at a time."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        text = ["id", "tools", "source", "license", "turn", "error_type", "kind"]
        text += ["chosen_model", "chosen_license", "rejected_model", "rejected_license"]
        self._schema = pa.schema(
            [("chosen", pa.list_(message)), ("rejected", pa.list_(message))]
            + [(name, pa.string()) for name in text]
        )
        self._table = pa.Table
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Adds the row's pairs."""
        self._rows += preference_rows(row)
        if len(self._rows) >= 1000:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> "_ParquetFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()


# Preference rows, as TRL reads them --------------------------------------------------------------


def preference_rows(row: Row) -> Iterator[Row]:
    """A row of the loader's form as pairs of conversations."""
    prompt = [_plain_message(message) for message in row["messages"]]
    tools = json.dumps(
        [{"type": "function", "function": tool} for tool in row["tools"]], ensure_ascii=False
    )
    chosen_by = row["chosen_by"] or {"model": None, "license": None}
    for number, wrong in enumerate(row["rejected"]):
        yield {
            "chosen": [*prompt, assistant_turn(row["chosen"])],
            "rejected": [*prompt, assistant_turn(wrong["response"])],
            "id": row["id"] if len(row["rejected"]) == 1 else f"{row['id']}#{number}",
            "tools": tools,
            "source": row["source"],
            "license": row["license"],
            "turn": row["turn"],
            "error_type": wrong["error_type"],
            "kind": wrong["kind"],
            "chosen_model": chosen_by["model"],
            "chosen_license": chosen_by["license"],
            "rejected_model": wrong["model"],
            "rejected_license": wrong["license"],
        }


def assistant_turn(response: Response) -> Message:
    """A response as a message whose text holds its calls."""
    if isinstance(response, dict):
        return _plain_message({"role": "assistant", **response})
    return {
        "role": "assistant",
        "content": response if isinstance(response, str) else _text(response),
    }


def _plain_message(message: Message) -> Message:
    """Role and text alone; calls made earlier go into the text."""
    parts = [str(message.get("content") or "")]
    if message.get("tool_calls"):
        parts.append(_text([call.get("function", call) for call in message["tool_calls"]]))
    return {"role": message["role"], "content": "\n".join(part for part in parts if part)}


def _text(calls: Sequence[Call]) -> str:
    """Calls as Qwen's templates write them."""
    return "\n".join(
        '<tool_call>\n{"name": "'
        + call["name"]
        + '", "arguments": '
        + json.dumps(call["arguments"], ensure_ascii=False)
        + "}\n</tool_call>"
        for call in calls
    )


# Reading it back ---------------------------------------------------------------------------------


def array_record_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The ArrayRecord files of a data set, or of its folder array_record, in order; of a bucket's,
    copies on this machine."""
    at = as_path(folder)
    inner = at / ARRAY_RECORD
    found = inner if inner.is_dir() else at
    if not found.is_dir():
        return []
    return sorted(local_folder(found, (".array_record",)).glob("*.array_record"))


def dataset_rows(folder: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The rows of a data set, in order. Raises InputError where there is none."""
    from array_record.python import array_record_module

    files = array_record_files(folder)
    if not files:
        raise InputError(f"No data set at {folder}: expected array_record/*.array_record in it.")
    for path in files:
        reader = array_record_module.ArrayRecordReader(str(path))
        try:
            for index in range(reader.num_records()):
                yield json.loads(reader.read([index])[0])
        finally:
            reader.close()
