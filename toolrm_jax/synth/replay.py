"""Answers that someone already has, found again by the id of their example.

    a row of an answer     {"id", "model", "license", "calls" | "text", "right", "count"}
    a row of an example    {"id", ..., "meta": {...}, "answers": [{"model", "permissive",
                            "calls" | null, "raw", "right", "error"}, ...]}
    a published pair       as `sources.preferences` reads it (`format`): its rejected side is an
                           answer, and wrong

In the first two, `right` is the upstream's own verdict, where there is one; it decides. The second
kind's rows are examples as well, which a source reads; some of its fields say when not to trust a
row, and `ReplaySettings` says what is made of them. Where the upstream found no calls in an answer,
what the model said is read again: it may be calls in another dialect, which have no verdict then.
Rows of no kind are rejected with file and line. The answers wait in a temporary file on disk, not
in memory.

What is counted as left out adds up: "read" is all answers, in whatever rows they stand.

    with Replay([ReplaySettings("replay.jsonl.gz")], seed=0, reject=print) as replay:
        answers = list(replay.answers("ste/17"))
"""

import ast
import collections
import dataclasses
import json
import re
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Set
from typing import Any, NoReturn, Self

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Response
from toolrm_jax.literals import read_json
from toolrm_jax.row_source import open_rows
from toolrm_jax.splits import digest
from toolrm_jax.synth.answer import Answer, from_row, to_row
from toolrm_jax.synth.chat_request import read_message
from toolrm_jax.synth.doubt import Doubts
from toolrm_jax.synth.model_license import is_permissive
from toolrm_jax.synth.source import Reject as RejectedRow
from toolrm_jax.synth.sources import fc_reward_bench, toolrm_pairs
from toolrm_jax.tool_calls import parse_calls

Reject = Callable[[str, str, str], None]  # reason, detail, where: "file:line"
_PAIRS = {"toolrm_pairs": toolrm_pairs.answers, "fc_reward_bench": fc_reward_bench.answers}


@dataclasses.dataclass(frozen=True)
class ReplaySettings:
    """One file of answers, and what to make of what its rows say about themselves.

    Args:
      path: JSON lines (also .gz, .zst), Parquet, gs:// or a hub's id.
      revision: of a hub's data set: a commit, branch or tag; None: its newest.
      format: "answers" (the first two kinds of rows), or "toolrm_pairs" or "fc_reward_bench".
      license: of the models whose rows name none; published pairs name models, not licences.
      sound_gold, min_right_rate, before_first_error: which rows are left out; see `Doubts`. The
        normalised source has the same options: a row's examples and its answers go together.
      rows_a_group: of rows with the same meta.group at most these, chosen by seed and id: they are
        one task in several settings. None: all.
      no_call_share: in this share of the rows, chosen by seed and id, answers are kept that call
        nothing where a call was wanted; more of them would teach that calling is right.
      own_form: keeps texts with calls in the form that the upstream's prompt asked for ("Action:"),
        which tell nothing about a model that is asked in another.
    """

    path: str
    format: str = "answers"
    license: str = "unknown"
    sound_gold: bool = True
    min_right_rate: float = 0.5
    before_first_error: bool = True
    rows_a_group: int | None = 4
    no_call_share: float = 0.25
    own_form: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        for field in ("path", "license"):
            if not getattr(self, field) or not isinstance(getattr(self, field), str):
                self._bad(field, "a name")
        if not isinstance(self.revision, str | None):
            self._bad("revision", "a commit, branch or tag, or None")
        if self.format not in ("answers", *_PAIRS):
            self._bad("format", f"one of answers, {', '.join(_PAIRS)}")
        for field in ("min_right_rate", "no_call_share"):
            share = getattr(self, field)
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                self._bad(field, "0 to 1")
        rows = self.rows_a_group
        if rows is not None and (not isinstance(rows, int) or rows < 1):
            self._bad("rows_a_group", "a whole number, at least 1, or None for all")
        for field in ("sound_gold", "before_first_error", "own_form"):
            if not isinstance(getattr(self, field), bool):
                self._bad(field, "True or False")

    def _bad(self, field: str, expected: str) -> NoReturn:
        found = getattr(self, field)
        raise InputError(f"Replay of {self.path}: {field}={found!r}; expected {expected}.")


class Replay:
    """The answers of several files, by example. `counts` says what was left out and why."""

    def __init__(self, files: list[ReplaySettings], *, seed: int, reject: Reject):
        self.counts: collections.Counter[str] = collections.Counter()
        self.rows = 0  # of all files
        self._seed, self._reject = seed, reject
        self._table = sqlite3.connect("", check_same_thread=False)  # on disk, gone when closed
        self._table.executescript(_TABLES)
        try:
            for number, settings in enumerate(files):
                self._read_file(number, settings)
        except BaseException:
            self.close()
            raise

    def answers(self, example_id: str) -> Iterator[Answer]:
        """The answers to one example, in the order of the files."""
        found = self._table.execute(
            "SELECT line FROM answers WHERE example = ? ORDER BY file, number", (example_id,)
        ).fetchall()
        for (line,) in found:
            yield from_row(json.loads(line))

    def count_beside(self, examples: Set[str]) -> int:
        """How many answers are to other examples than these."""
        counts = self._table.execute("SELECT example, COUNT(*) FROM answers GROUP BY example")
        return sum(count for example, count in counts if example not in examples)

    def close(self) -> None:
        self._table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading --------------------------------------------------------------------------------------

    def _read_file(self, number: int, settings: ReplaySettings) -> None:
        if settings.format in _PAIRS:
            self._read_pairs(number, settings)
            return
        for line, content in open_rows(settings.path, revision=settings.revision):
            self.rows += 1
            try:
                row = content if isinstance(content, dict) else _row(content)
                self._keep(number, settings, row)
            except ValueError as error:
                self.counts["rejected"] += 1
                self._reject("not a row of answers", str(error), f"{settings.path}:{line}")
        self._thin_out(number, settings)

    def _read_pairs(self, number: int, settings: ReplaySettings) -> None:
        for found in _PAIRS[settings.format](settings.path, revision=settings.revision):
            if isinstance(found, RejectedRow):
                self.rows += 1
                self.counts["rejected"] += 1
                self._reject(found.reason, found.detail, f"{found.file}:{found.line}")
            elif found.right:  # the gold of the example
                self.rows += 1
            else:
                permissive = is_permissive(settings.license)
                wrong = dataclasses.replace(found, license=settings.license, permissive=permissive)
                self._add(number, found.example_id, [wrong])

    def _keep(self, number: int, settings: ReplaySettings, row: dict[str, Any]) -> None:
        example = row.get("id")
        if not isinstance(example, str) or not example:
            raise ValueError(f"id is {example!r}, expected a string")
        if "answers" not in row:
            self._add(number, example, [_plain_answer(example, row, settings)])
            return
        doubts = Doubts(settings.sound_gold, settings.min_right_rate, settings.before_first_error)
        if doubt := doubts.about(_meta(row)):
            self.counts[f"rows left out: {doubt}"] += 1
            self._leave_out(f"with its row: {doubt}", len(_answers(row)))
            return
        self._add(number, example, list(self._trusted(example, row, settings)))
        if (kin := _meta(row).get("group")) is not None:
            member = (number, str(kin), digest(self._seed, example), example)
            self._table.execute("INSERT INTO members VALUES (?, ?, ?, ?)", member)

    def _trusted(
        self, example: str, row: dict[str, Any], settings: ReplaySettings
    ) -> Iterator[Answer]:
        drawn = int(digest(self._seed, "no call", example)[:8], 16) / 16**8
        for made in _answers(row):
            if _own_form(made) and not settings.own_form:
                self._leave_out("a call in a form of the upstream's own")
                continue
            if _is_harness_error(made):
                self._leave_out("an error of the upstream's own program")
                continue
            answer = _row_answer(example, made, settings)
            silent = isinstance(answer.response, str) and made.get("calls") == []
            wrongly = silent and row.get("gold_calls") and not answer.right
            if wrongly and drawn >= settings.no_call_share:
                self._leave_out("calls nothing, beyond the share")
                continue
            yield answer

    def _leave_out(self, why: str, answers: int = 1) -> None:
        self.counts["read"] += answers
        self.counts[f"left out: {why}"] += answers

    def _add(self, file: int, example: str, answers: list[Answer]) -> None:
        for answer in answers:
            self.counts["read"] += 1
            line = (file, example, self.counts["read"], json.dumps(to_row(answer)))
            self._table.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", line)

    def _thin_out(self, number: int, settings: ReplaySettings) -> None:
        """Leaves of each group the rows of the lowest rank."""
        if settings.rows_a_group is None:
            return
        surplus = self._table.execute(_SURPLUS, (number, settings.rows_a_group)).fetchall()
        beyond = "beyond those of their group"
        for (example,) in surplus:
            deleted = self._table.execute(
                "DELETE FROM answers WHERE file = ? AND example = ?", (number, example)
            )
            self.counts[f"rows left out: {beyond}"] += 1
            self.counts[f"left out: with its row: {beyond}"] += deleted.rowcount


_TABLES = """
CREATE TABLE answers (file INT, example TEXT, number INT, line TEXT);
CREATE INDEX by_example ON answers (example);
CREATE TABLE members (file INT, kin TEXT, rank TEXT, example TEXT);
"""
_SURPLUS = """
SELECT example FROM (
  SELECT example, ROW_NUMBER() OVER (PARTITION BY kin ORDER BY rank) AS place
  FROM members WHERE file = ?
) WHERE place > ?
"""


def _row(content: bytes) -> dict[str, Any]:
    value = read_json(content.decode("utf-8-sig"))
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    return value


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says of itself."""
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise ValueError("meta is not an object")
    return meta


def _answers(row: dict[str, Any]) -> list[Any]:
    if not isinstance(row["answers"], list):
        raise ValueError("answers is not a list")
    return row["answers"]


def _row_answer(example: str, made: Any, settings: ReplaySettings) -> Answer:
    """An answer that stands in its example's row."""
    if not isinstance(made, dict):
        raise ValueError("an answer is not an object")
    if made.get("calls") is None:
        return _answer(example, made, _text(made.get("raw")), settings)
    said = _calls(made["calls"]) or _said(made)
    if isinstance(said, list) and not made["calls"]:
        made = made | {"right": None}  # the upstream's verdict is on a turn without calls
    return _answer(example, made, said, settings)


def _own_form(made: Any) -> bool:
    """Is it a call in the form that the upstream's prompt asked for, which nobody else reads?"""
    if not isinstance(made, dict) or made.get("calls"):
        return False
    spoken = _spoken(made)
    return spoken is None or bool(re.search(r"\bAction( Input)?:", spoken))


def _said(made: dict[str, Any]) -> Response:
    """What an answer says in which the upstream found no calls: calls, if it can be read as such;
    "" where it is JSON of another form, with which a prompt had nothing called."""
    said = read_message({"content": _spoken(made) or ""})
    return "" if isinstance(said, str) and said.lstrip()[:1] in ("{", "[") else said


def _spoken(made: dict[str, Any]) -> str | None:
    """The text of an answer; of a program's record of a run, what the model said at its end, and
    None where the record is cut off."""
    raw = made.get("raw")
    text = raw if isinstance(raw, str) else ""
    if not text.startswith("{'input':"):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a backslash in the text might mean
            return str(ast.literal_eval(text)["output"])
    except (ValueError, SyntaxError, KeyError, RecursionError, MemoryError):
        return None


_HARNESS_ERROR = re.compile(
    r"Unable to get response|Unexpected last message type|the JSON object must be str|Traceback \("
)


def _is_harness_error(made: Any) -> bool:
    """Is it no answer, but what the program that asked the model said when it failed?"""
    raw = made.get("raw") if isinstance(made, dict) and not made.get("calls") else None
    return isinstance(raw, str) and bool(_HARNESS_ERROR.match(raw.lstrip()))


def _plain_answer(example: str, row: dict[str, Any], settings: ReplaySettings) -> Answer:
    """An answer that is a row of its own."""
    if row.get("calls") is not None:
        response: Response = _calls(row["calls"])
    else:
        response = read_message({"content": _text(row.get("text", row.get("raw")))})
    return _answer(example, row, response, settings)


def _answer(
    example: str, made: dict[str, Any], response: Response, settings: ReplaySettings
) -> Answer:
    model, right, count = made.get("model"), made.get("right"), made.get("count", 1)
    license = made.get("license") or made.get("licence") or settings.license
    if not isinstance(model, str) or not model:
        raise ValueError(f"model is {model!r}, expected a string")
    if not isinstance(right, bool | None):
        raise ValueError(f"right is {right!r}, expected true, false or null")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count is {count!r}, expected a number from 1")
    permissive = made.get("permissive")
    if not isinstance(permissive, bool | None):
        raise ValueError(f"permissive is {permissive!r}, expected true, false or null")
    if permissive is None:
        permissive = is_permissive(str(license))
    elif license == "unknown":
        license = f"not named (marked as {'permissive' if permissive else 'not permissive'})"
    return Answer(example, model, str(license), permissive, response, right, count)


def _calls(made: Any) -> Response:
    calls = parse_calls(made) if isinstance(made, list) else None
    if calls is None:
        raise ValueError("calls are not a list of objects with name and arguments")
    return calls


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("an answer has neither calls nor text")
    return raw
