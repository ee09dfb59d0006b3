"""Training and held-out rows: one right response and K wrong ones a prompt.

    examples --splits--> train | held-out --corruptions, judged--> choose K a task by
      1. the mix over error types (FC-RewardBench's, arXiv:2509.11963);
      2. length: within an error type the right side is as often the longer as the shorter;
      3. the weight of each kind.

    {"id": "bfcl/simple_python_0", "source": "bfcl/simple_python", "license": "Apache-2.0",
     "tools": [...], "messages": [...], "chosen": <response>,
     "rejected": [{"response": <response>, "error_type": "Parameter value error",
                   "kind": "near_number"}, ...]}

What is built depends on the seed and the task ids alone, not on the order of the examples.

    train, heldout, report = build(examples, seed=0)
    print(report.table())
"""

import collections
import json
import os
import pathlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.corruptions import KIND_WEIGHTS, corrupt
from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example, Response
from toolrm_jax.pair_report import PairReport, SideReport
from toolrm_jax.refusals import calls_nothing
from toolrm_jax.schema import ToolSchemaError, normalize_tools
from toolrm_jax.splits import digest, split
from toolrm_jax.task_view import Corruption, response_length
from toolrm_jax.tool_calls import ErrorType, canonical_calls, judge

Row = dict[str, Any]

# FC-RewardBench's error mix, of 1,500 pairs.
MIX: Mapping[ErrorType, int] = {
    ErrorType.VALUE: 650,
    ErrorType.FUNCTION_NAME: 403,
    ErrorType.CALL_COUNT: 245,
    ErrorType.MISSING_OPTIONAL: 78,
    ErrorType.MISSING_REQUIRED: 45,
    ErrorType.VALUE_TYPE: 43,
    ErrorType.UNEXPECTED: 21,
    ErrorType.PARSING: 15,
}


class PairsError(InputError, ValueError):
    """A row of a preference file that is not in its form; the message names file and line."""


def build(
    examples: Sequence[Example],
    *,
    seed: int,
    wrong_per_task: int = 3,
    heldout_share: float = 0.2,
    no_call_share: float = 0.12,
    mix: Mapping[ErrorType, int] = MIX,
) -> tuple[list[Row], list[Row], PairReport]:
    """(train rows, held-out rows, report).

    At most no_call_share of a side's prompts are tasks in which nothing should be called; the rest
    of those is left out, and counted.
    """
    if wrong_per_task < 1:
        raise ValueError(f"wrong_per_task is {wrong_per_task}; expected at least 1")
    made: collections.Counter[str] = collections.Counter()
    discarded: collections.Counter[str] = collections.Counter()
    sides = []
    for tasks in split(examples, seed=seed, heldout_share=heldout_share):
        report = SideReport()
        kept = _limit_no_call(tasks, seed, no_call_share, report)
        pools = [_pool(task, seed, made, discarded) for task in kept]
        sides.append((_Chooser(kept, pools, wrong_per_task, mix, report).rows(seed), report))
    (train, train_report), (heldout, heldout_report) = sides
    return train, heldout, PairReport(train_report, heldout_report, made, discarded)


def _limit_no_call(
    tasks: Sequence[Example], seed: int, share: float, report: SideReport
) -> list[Example]:
    """The tasks in hash order, those without a right call cut down to the share."""
    ordered = sorted(tasks, key=lambda task: digest(seed, task.id))
    calling = sum(bool(task.gold) for task in ordered)
    room = round(calling * share / (1 - share)) if calling else len(ordered)
    kept = []
    for task in ordered:
        room -= not task.gold
        if task.gold or room >= 0:
            kept.append(task)
    report.no_call_tasks = sum(not task.gold for task in kept)
    if len(kept) < len(tasks):
        report.left_out["tasks that call nothing, beyond their share"] = len(tasks) - len(kept)
    return kept


Pool = dict[ErrorType, list[Corruption]]


def _pool(
    task: Example,
    seed: int,
    made: collections.Counter[str],
    discarded: collections.Counter[str],
) -> Pool:
    """The task's distinct corruptions that the judge finds to be what they were made to be."""
    pool: Pool = {}
    seen: set[str] = set()
    for wrong in corrupt(task, seed=seed):
        response = wrong.response
        key = json.dumps(response, sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        made[wrong.kind] += 1
        if judge(response, task.reference, task.tools).error_type != wrong.error_type:
            discarded[wrong.kind] += 1
            continue
        if isinstance(response, list):
            response = canonical_calls(response, task.tools)
        pool.setdefault(wrong.error_type, []).append(
            Corruption(wrong.kind, wrong.error_type, response)
        )
    return pool


class _Chooser:
    """Chooses K wrong responses a task, keeping mix, length and kinds in balance as it goes."""

    def __init__(
        self,
        tasks: Sequence[Example],
        pools: Sequence[Pool],
        wrong_per_task: int,
        mix: Mapping[ErrorType, int],
        report: SideReport,
    ):
        self.tasks, self.pools, self.report = tasks, pools, report
        self.wrong_per_task = wrong_per_task
        total = sum(mix.values())
        report.wanted = {error: share / total for error, share in mix.items()}
        slots = sum(min(wrong_per_task, sum(map(len, pool.values()))) for pool in pools)
        self.missing = {error: share * slots for error, share in report.wanted.items()}
        # How many tasks not yet seen offer the error type.
        self.chances = collections.Counter(error for pool in pools for error in pool)
        self.excess_longer: collections.Counter[ErrorType] = collections.Counter()

    def rows(self, seed: int) -> list[Row]:
        """One row a task that has a wrong response to offer, in the order of the tasks."""
        rows = []
        for task, pool in zip(self.tasks, self.pools, strict=True):
            self.chances.subtract(pool.keys())
            chosen: Response = task.gold
            if not task.gold:
                words = str(task.messages[-1].get("content", "")) if task.messages else ""
                chosen = calls_nothing(random.Random(f"{seed}/right/{task.id}"), words)
            rejected = self._choose(pool, response_length(chosen))
            if not rejected:
                self.report.left_out["tasks without a wrong response"] += 1
                continue
            self.report.task_ids.append(task.id)
            rows.append(_row(task, chosen, rejected))
        return rows

    def _choose(self, pool: Pool, right_length: int) -> list[Corruption]:
        left = {error: list(wrongs) for error, wrongs in pool.items()}
        chosen: list[Corruption] = []
        while left and len(chosen) < self.wrong_per_task:
            error = max(left, key=lambda e: self._need(e, left[e], right_length, chosen))
            wrong = self._pick(left[error], right_length, {c.kind for c in chosen})
            left[error].remove(wrong)
            if not left[error]:
                del left[error]
            self._count(wrong, right_length)
            chosen.append(wrong)
        return chosen

    def _need(
        self,
        error: ErrorType,
        wrongs: Sequence[Corruption],
        right_length: int,
        chosen: Sequence[Corruption],
    ) -> tuple[bool, float]:
        """How much the type is wanted, per chance left to meet it; a third of a type comes last.

        A task whose lengths would tip the type's balance further is less welcome.
        """
        fresh = sum(wrong.error_type == error for wrong in chosen) < 2
        need = self.missing.get(error, 0.0) / (self.chances[error] + 1)
        pull = min(self._pull(wrong, right_length) for wrong in wrongs)
        return fresh, need * 1.5**-pull if need > 0 else need

    def _pull(self, wrong: Corruption, right_length: int) -> int:
        """1: away from the balance of lengths, -1: towards it. Small excesses are left alone."""
        excess = self.excess_longer[wrong.error_type]
        tips = _sign(right_length - response_length(wrong.response))
        return tips * _sign(excess) if abs(excess) > 2 else 0

    def _pick(self, wrongs: Sequence[Corruption], right_length: int, used: set[str]) -> Corruption:
        """The wrong response that lengths need most and, among those, of the rarest kind."""

        def cost(wrong: Corruption) -> tuple[int, bool, float]:
            rare = self.report.kinds[wrong.kind] / KIND_WEIGHTS.get(wrong.kind, 1.0)
            return self._pull(wrong, right_length), wrong.kind in used, rare

        return min(wrongs, key=cost)

    def _count(self, wrong: Corruption, right_length: int) -> None:
        sign = _sign(right_length - response_length(wrong.response))
        self.missing[wrong.error_type] = self.missing.get(wrong.error_type, 0.0) - 1
        self.excess_longer[wrong.error_type] += sign
        self.report.got[wrong.error_type] += 1
        self.report.kinds[wrong.kind] += 1
        self.report.right_longer[wrong.error_type] += (1 + sign) / 2


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _row(task: Example, chosen: Response, rejected: Iterable[Corruption]) -> Row:
    return {
        "id": task.id,
        "source": task.source,
        "license": task.license,
        "tools": task.tools,
        "messages": task.messages,
        "chosen": chosen,
        "rejected": [
            {"response": wrong.response, "error_type": str(wrong.error_type), "kind": wrong.kind}
            for wrong in rejected
        ],
    }


# Files -------------------------------------------------------------------------------------------


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Write JSON lines under a temporary name, then rename: a reader never sees half a file."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a preference file, tools in plain form; PairsError names file and line."""
    file = pathlib.Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} not found: expected a preference file (JSON lines)")
    with file.open(encoding="utf-8") as lines:
        rows = [
            parse_row(line, f"{file}, line {n}") for n, line in enumerate(lines, 1) if line.strip()
        ]
    if not rows:
        raise PairsError(f"{file}: expected at least one row, found none")
    return rows


_FIELDS: tuple[tuple[str, tuple[type, ...], str], ...] = (
    ("id", (str,), "a string"),
    ("tools", (list,), "a list of tools"),
    ("messages", (list,), "a list of messages"),
    ("chosen", (list, str, dict), "a list of calls, a text or an assistant message"),
    ("rejected", (list,), "a list of wrong responses"),
)


def parse_row(line: str, at: str) -> Row:
    """One line of a preference file; `at` says where it stands, for the error."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PairsError(f"{at}: expected one JSON object a line, found {error}") from None
    if not isinstance(row, dict):
        raise PairsError(f"{at}: expected an object, found {type(row).__name__}")
    for field, kinds, expected in _FIELDS:
        if not isinstance(row.get(field), kinds):
            raise PairsError(
                f"{at}: expected {expected} under {field!r}, found {row.get(field)!r:.80}"
            )
    if not row["messages"]:
        raise PairsError(f"{at}: expected at least one message, found an empty list")
    if not row["rejected"]:
        raise PairsError(f"{at}: 'rejected' is empty: a row needs at least one wrong response")
    for index, wrong in enumerate(row["rejected"]):
        if not isinstance(wrong, dict) or not isinstance(wrong.get("response"), list | str | dict):
            raise PairsError(
                f"{at}: expected {{'response', 'error_type', 'kind'}} under 'rejected[{index}]',"
                f" found {wrong!r:.80}"
            )
    try:
        return {**row, "tools": normalize_tools(row["tools"])}
    except ToolSchemaError as error:
        raise PairsError(f"{at}: {error}") from None


def pairs_of(rows: Iterable[Row]) -> Iterator[tuple[Row, Response, Response, str]]:
    """Every (row, right response, wrong response, error type): what evaluation compares."""
    for row in rows:
        for wrong in row["rejected"]:
            yield row, row["chosen"], wrong["response"], wrong.get("error_type", "")
