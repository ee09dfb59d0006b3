"""Answers that someone already has, found again by the id of their example.

    a row of an answer     {"id", "model", "license", "calls" | "text", "right", "count"}
    a row of an example    {"id", ..., "meta": {...}, "answers": [{"model", "permissive",
                            "calls" | null, "raw", "right", "error"}, ...]}

In both, `right` is the upstream's own verdict, where there is one; it decides. The second kind's
rows are examples as well, which a source reads; some of its fields say when not to trust a row, and
`ReplaySettings` says what is made of them. Rows that are neither kind are rejected with file and
line. The answers wait in a temporary file on disk, not in memory.

    with Replay([ReplaySettings("replay.jsonl.gz")], seed=0, reject=print) as replay:
        answers = list(replay.answers("ste/17"))
"""

import collections
import dataclasses
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Set
from typing import Any, Self

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Response
from toolrm_jax.literals import read_json
from toolrm_jax.row_source import open_rows
from toolrm_jax.splits import digest
from toolrm_jax.synth.answer import Answer, from_row, to_row
from toolrm_jax.synth.chat_request import read_message
from toolrm_jax.synth.doubt import Doubts
from toolrm_jax.synth.model_license import is_permissive
from toolrm_jax.tool_calls import attempts_call, parse_calls

Reject = Callable[[str, str, str], None]  # reason, detail, where: "file:line"


@dataclasses.dataclass(frozen=True)
class ReplaySettings:
    """One file of answers, and what to make of what its rows say about themselves.

    Args:
      path: JSON lines (also .gz, .zst), Parquet, gs:// or a hub's id.
      license: of the models whose rows name none.
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
    license: str = "unknown"
    sound_gold: bool = True
    min_right_rate: float = 0.5
    before_first_error: bool = True
    rows_a_group: int | None = 4
    no_call_share: float = 0.25
    own_form: bool = False

    def __post_init__(self) -> None:
        for field in ("min_right_rate", "no_call_share"):
            if not 0 <= getattr(self, field) <= 1:
                raise InputError(
                    f"Replay of {self.path}: {field}={getattr(self, field)!r}; expected 0 to 1."
                )
        if self.rows_a_group is not None and self.rows_a_group < 1:
            raise InputError(
                f"Replay of {self.path}: rows_a_group={self.rows_a_group}; expected at least 1, or "
                "None for all."
            )


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
        for line, content in open_rows(settings.path):
            self.rows += 1
            try:
                row = content if isinstance(content, dict) else _row(content)
                self._keep(number, settings, row)
            except ValueError as error:
                self.counts["rejected"] += 1
                self._reject("not a row of answers", str(error), f"{settings.path}:{line}")
        self._thin_out(number, settings)

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
            return
        self._add(number, example, list(self._trusted(example, row, settings)))
        if (kin := _meta(row).get("group")) is not None:
            member = (number, str(kin), digest(self._seed, example), example)
            self._table.execute("INSERT INTO members VALUES (?, ?, ?, ?)", member)

    def _trusted(
        self, example: str, row: dict[str, Any], settings: ReplaySettings
    ) -> Iterator[Answer]:
        if not isinstance(row["answers"], list):
            raise ValueError("answers is not a list")
        drawn = int(digest(self._seed, "no call", example)[:8], 16) / 16**8
        for made in row["answers"]:
            if _own_form(made) and not settings.own_form:
                self.counts["left out: a call in a form of the upstream's own"] += 1
                continue
            if _is_harness_error(made):
                self.counts["left out: an error of the upstream's own program"] += 1
                continue
            answer = _row_answer(example, made, row, settings)
            silent = made.get("calls") == [] and row.get("gold_calls") and not answer.right
            if silent and drawn >= settings.no_call_share:
                self.counts["left out: calls nothing, beyond the share"] += 1
                continue
            yield answer

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
        for (example,) in surplus:
            self._table.execute(
                "DELETE FROM answers WHERE file = ? AND example = ?", (number, example)
            )
            self.counts["rows left out: beyond those of their group"] += 1


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


def _row_answer(example: str, made: Any, row: dict[str, Any], settings: ReplaySettings) -> Answer:
    """An answer that stands in its example's row."""
    if not isinstance(made, dict):
        raise ValueError("an answer is not an object")
    if made.get("calls") is None:
        return _answer(example, made, _text(made.get("raw")), settings)
    calls = _calls(made["calls"])
    return _answer(example, made, calls or _words(made.get("raw"), row), settings)


def _own_form(made: Any) -> bool:
    """Is it a call in the form that the upstream's prompt asked for, which nobody else reads?"""
    if not isinstance(made, dict) or made.get("calls") is not None:
        return False
    return isinstance(made.get("raw"), str) and bool(re.search(r"\bAction( Input)?:", made["raw"]))


_HARNESS_ERROR = re.compile(
    r"Unable to get response|Unexpected last message type|the JSON object must be str|Traceback \("
)


def _is_harness_error(made: Any) -> bool:
    """Is it no answer, but what the program that asked the model said when it failed?"""
    raw = made.get("raw") if isinstance(made, dict) and not made.get("calls") else None
    return isinstance(raw, str) and bool(_HARNESS_ERROR.match(raw.lstrip()))


def _words(raw: Any, row: dict[str, Any]) -> str:
    """What was said where nothing is called; "" where that is a form of the upstream's own."""
    text = raw if isinstance(raw, str) else ""
    tools = [tool for tool in row.get("tools") or [] if isinstance(tool, dict) and "name" in tool]
    own = "Action:" in text or text.lstrip()[:1] in ("{", "[")
    return "" if own or attempts_call(text, tools) else text


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
    if permissive is None:
        permissive = is_permissive(str(license))
    elif license == "unknown":
        license = f"{'permissive' if permissive else 'not permissive'}, says its file"
    return Answer(example, model, str(license), bool(permissive), response, right, count)


def _calls(made: Any) -> Response:
    calls = parse_calls(made) if isinstance(made, list) else None
    if calls is None:
        raise ValueError("calls are not a list of objects with name and arguments")
    return calls


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("an answer has neither calls nor text")
    return raw
