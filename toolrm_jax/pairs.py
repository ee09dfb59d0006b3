"""Training and held-out rows: one right response and K wrong ones a prompt.

    examples --splits--> train | held-out --distractors, accepted forms--> tasks
    tasks --corruptions, judged--> choose K a task by
      1. the mix over error types (FC-RewardBench's, arXiv:2509.11963);
      2. what the form gives away: within an error type the right side is as often the longer as
         the shorter, and has more arguments as often as fewer; over all, a turn that calls nothing
         is as often the wrong side as the right one;
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.accepted_forms import in_some_form
from toolrm_jax.corruptions import KIND_WEIGHTS, corrupt
from toolrm_jax.distractors import with_distractors
from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example, Response
from toolrm_jax.files import write_text
from toolrm_jax.literals import read_json
from toolrm_jax.pair_report import PairReport, SideReport
from toolrm_jax.refusals import calls_nothing
from toolrm_jax.schema import ToolSchemaError, normalize_tools
from toolrm_jax.splits import check_disjoint, digest, join, split
from toolrm_jax.task_view import Corruption, argument_count, response_length
from toolrm_jax.tool_calls import ErrorType, canonical_calls, judge

Row = dict[str, Any]

# What may not tell right from wrong within an error type, as far as the type allows.
FEATURES: Mapping[str, Callable[[Response], int]] = {
    "length": response_length,
    "arguments": argument_count,
}

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
    no_call_share: float = 0.06,
    mix: Mapping[ErrorType, int] = MIX,
) -> tuple[list[Row], list[Row], PairReport]:
    """(train rows, held-out rows, report).

    At most no_call_share of a side's prompts are tasks in which nothing should be called; the rest
    of those is left out, and counted. At 0.06, three wrong calls each, they leave room in the mix
    for as many turns that call nothing and are wrong.
    """
    if wrong_per_task < 1:
        raise ValueError(f"wrong_per_task is {wrong_per_task}; expected at least 1")
    report, rows = PairReport(), []
    sides = _sides(examples, seed, heldout_share, no_call_share, report)
    for tasks, side in zip(sides, (report.train, report.heldout), strict=True):
        side.no_call_tasks = sum(not task.gold for task in tasks)
        pools = [_pool(task, seed, report) for task in tasks]
        rows.append(_Chooser(tasks, pools, wrong_per_task, mix, side).rows(seed))
    return rows[0], rows[1], report


def _sides(
    examples: Sequence[Example],
    seed: int,
    heldout_share: float,
    no_call_share: float,
    report: PairReport,
) -> list[list[Example]]:
    """Train and held-out tasks in hash order, with catalogues and right answers as they will be."""
    calling = [task for task in examples if task.gold]
    silent = [task for task in examples if not task.gold]
    if not calling:
        calling, silent = silent, []
    sides = list(split(calling, seed=seed, heldout_share=heldout_share))
    rooms = [round(len(side) * no_call_share / (1 - no_call_share)) for side in sides]
    for why, count in join(sides, silent, rooms, seed=seed).items():
        report.left_out[f"tasks that call nothing: {why}"] = count
    check_disjoint(*sides)
    sides = [sorted(side, key=lambda task: digest(seed, task.id)) for side in sides]
    sides = [with_distractors(side, seed=seed) for side in sides]
    check_disjoint(*sides)
    return [[in_some_form(task, seed=seed) for task in side] for side in sides]


Pool = dict[ErrorType, list[Corruption]]


def _pool(task: Example, seed: int, report: PairReport) -> Pool:
    """The task's distinct corruptions that the judge finds to be what they were made to be."""
    pool: Pool = {}
    seen: set[str] = set()
    for wrong in corrupt(task, seed=seed):
        response = wrong.response
        key = json.dumps(response, sort_keys=True)
        if key in seen:
            continue
        seen.add(key)
        report.made[wrong.kind] += 1
        if judge(response, task.reference, task.tools).error_type != wrong.error_type:
            report.discarded[wrong.kind] += 1
            continue
        if isinstance(response, list):
            response = canonical_calls(response, task.tools)
        pool.setdefault(wrong.error_type, []).append(
            Corruption(wrong.kind, wrong.error_type, response)
        )
    return pool


def _offers(pool: Pool) -> list[ErrorType]:
    """The error types that the task can be counted on for; silence is rationed, see `_may`."""
    return [error for error, wrongs in pool.items() if any(w.kind != "no_call" for w in wrongs)]


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
        self.chances = collections.Counter(error for pool in pools for error in _offers(pool))
        # Per error type and feature: how often the right side had more of it, less how often less.
        self.excess: collections.Counter[tuple[ErrorType, str]] = collections.Counter()
        self.excess_silent = 0

    def rows(self, seed: int) -> list[Row]:
        """One row a task that has a wrong response to offer, in the order of the tasks."""
        rows = []
        for task, pool in zip(self.tasks, self.pools, strict=True):
            self.chances.subtract(_offers(pool))
            chosen: Response = task.gold
            if not task.gold:
                words = str(task.messages[-1].get("content", "")) if task.messages else ""
                chosen = calls_nothing(random.Random(f"{seed}/right/{task.id}"), words)
            rejected = self._choose(pool, chosen)
            if not rejected:
                self.report.left_out["tasks without a wrong response"] += 1
                continue
            self.report.task_ids.append(task.id)
            rows.append(_row(task, chosen, rejected))
        return rows

    def _choose(self, pool: Pool, right: Response) -> list[Corruption]:
        left = {error: list(wrongs) for error, wrongs in pool.items()}
        chosen: list[Corruption] = []
        while len(chosen) < self.wrong_per_task:
            offered = {e: [w for w in wrongs if self._may(w)] for e, wrongs in left.items()}
            offered = {e: wrongs for e, wrongs in offered.items() if wrongs}
            if not offered:
                break
            error = max(offered, key=lambda e: self._need(e, offered[e], right, chosen))
            wrong = self._pick(offered[error], right, {c.kind for c in chosen})
            left[error].remove(wrong)
            self._count(wrong, right)
            chosen.append(wrong)
        return chosen

    def _may(self, wrong: Corruption) -> bool:
        """A turn that calls nothing is wrong only until it has been so as often as right."""
        return self.excess_silent > 0 or wrong.kind != "no_call"

    def _need(
        self,
        error: ErrorType,
        wrongs: Sequence[Corruption],
        right: Response,
        chosen: Sequence[Corruption],
    ) -> tuple[bool, float]:
        """How much the type is wanted, per chance left to meet it; a third of a type comes last.

        A task whose lengths would tip the type's balance further is less welcome.
        """
        fresh = sum(wrong.error_type == error for wrong in chosen) < 2
        need = self.missing.get(error, 0.0) / (self.chances[error] + 1)
        pull = min(self._pull(wrong, right, ("length",)) for wrong in wrongs)
        return fresh, need * 10.0**-pull if need > 0 else need

    def _pull(self, wrong: Corruption, right: Response, features: Iterable[str] = FEATURES) -> int:
        """Above 0: away from the balance, below: towards it. Small excesses are left alone."""
        pull = 0
        for feature in features:
            excess = self.excess[wrong.error_type, feature]
            if abs(excess) > 1:
                pull += _sign(excess) * _more(feature, right, wrong.response)
        return pull

    def _pick(self, wrongs: Sequence[Corruption], right: Response, used: set[str]) -> Corruption:
        """The wrong response that the balance needs most and, among those, of the rarest kind."""

        def cost(wrong: Corruption) -> tuple[int, bool, float]:
            rare = self.report.kinds[wrong.kind] / KIND_WEIGHTS.get(wrong.kind, 1.0)
            return self._pull(wrong, right), wrong.kind in used, rare

        return min(wrongs, key=cost)

    def _count(self, wrong: Corruption, right: Response) -> None:
        error = wrong.error_type
        for feature in FEATURES:
            self.excess[error, feature] += _more(feature, right, wrong.response)
        if error == ErrorType.CALL_COUNT:
            self.excess_silent += isinstance(right, str) - isinstance(wrong.response, str)
        self.missing[error] = self.missing.get(error, 0.0) - 1
        self.report.count(wrong.kind, error, right, wrong.response)


def _more(feature: str, right: Response, wrong: Response) -> int:
    """1: the right side has more of it, -1: less, 0: as much."""
    return _sign(FEATURES[feature](right) - FEATURES[feature](wrong))


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
    """Writes JSON lines; the file appears whole."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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
        row = read_json(line)
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
