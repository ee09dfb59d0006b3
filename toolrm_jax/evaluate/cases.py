"""What reward models are held against: prompts with answers of which it is known what is right.

    FC-RewardBench, chosen/rejected rows  --read_pairs-->  Case with a right and wrong candidates
    pools of candidates                   --read_pools-->  Case with all of them

    pool row  {"id" | "test_id", "tools", "messages" | "conversation", "test_category",
               "candidates": [{"calls" | null, "raw", "correct", "error_type", "model_name",
                               "n_samples", "greedy"}]}

A row that is neither is rejected with its line and a reason, and the others go on. So is one whose
messages, tools or answers are in no form that is known here (`turns`), or that calls one answer
both right and wrong; a wrong answer's calls may be broken. Two rows of one id (FC-RewardBench has
several pairs of a task) are two cases; the id is the task, by which intervals are clustered. Of a
pool's candidates, those with the same answer are one; where one calls nothing, its answer is the
words under "raw", if there are any.

    found = read_pairs("fc_reward_bench.jsonl")
    found.cases, found.rejects
"""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.turns import plain_answer, plain_message
from toolrm_jax.examples import Message, Response, Tool
from toolrm_jax.literals import read_json
from toolrm_jax.row_source import open_rows
from toolrm_jax.schema import ToolSchemaError, normalize_tools
from toolrm_jax.score_request import Request, RequestError, request_of
from toolrm_jax.splits import request_key
from toolrm_jax.tool_calls import check_json, parse_calls

Row = dict[str, Any]
MOST_SAMPLES = 10**9 - 1  # of a pool: more are too many for NumPy's multivariate_hypergeometric
_NUMBERED = re.compile(r"#\d+$")  # as synthesis names the pairs of a prompt


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One answer, and what is known about it."""

    response: Response
    right: bool
    error_type: str = ""  # of a wrong one, in the data's own spelling
    model: str = ""  # that gave it, where the data says
    count: int = 1  # how often it was sampled
    greedy: bool = False  # the model's answer without sampling


@dataclasses.dataclass(frozen=True)
class Case:
    """A prompt and candidates for its answer."""

    task: str  # cases of one task hang together
    tools: list[Tool]
    messages: list[Message]
    candidates: list[Candidate]
    category: str = ""

    def request(self) -> Request:
        """What a scorer is asked."""
        responses = [candidate.response for candidate in self.candidates]
        return Request(self.tools, self.messages, responses, self.task)

    def row(self) -> Row:
        """Tools and messages under the names that the rules know."""
        return {"tools": self.tools, "messages": self.messages}


@dataclasses.dataclass(frozen=True)
class Reject:
    """A row that is no case."""

    line: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases of a file, in order; and what tells the file from another."""

    name: str
    digest: str
    cases: list[Case]
    rejects: list[Reject]

    @property
    def tasks(self) -> list[str]:
        return [case.task for case in self.cases]

    def only(self, wanted: Callable[[Case], bool]) -> "Cases":
        """Those that are wanted, and no others."""
        return dataclasses.replace(self, cases=[case for case in self.cases if wanted(case)])


def read_pairs(path: str | os.PathLike[str], *, split: str = "train", subset: str = "") -> Cases:
    """The pairs of a file or a hub's data set: FC-RewardBench's rows, or any chosen/rejected."""
    return _read(path, _pair, split, subset)


def read_pools(path: str | os.PathLike[str], *, split: str = "train", subset: str = "") -> Cases:
    """The pools of a file or a hub's data set."""
    return _read(path, _pool, split, subset)


def _read(
    path: str | os.PathLike[str], case_of: Callable[[Row, str], Case], split: str, subset: str
) -> Cases:
    rows = open_rows(os.fspath(path), split=split, subset=subset or None)
    name, digest = rows.name.rpartition("/")[2], rows.digest()
    named = f"{name} ({digest[:8]})"  # another file may have the same name
    cases, rejects = [], []
    for line, content in rows:
        try:
            row = content if isinstance(content, dict) else read_json(content.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, found {type(row).__name__}")
            cases.append(case_of(row, f"line {line} of {named}"))
        except (ValueError, ToolSchemaError, RequestError) as error:
            rejects.append(Reject(line, str(error)[:300]))
        except RecursionError:
            rejects.append(Reject(line, "nested too deeply"))
    rows.check_unchanged()
    if not cases:
        why = collections.Counter(reject.reason for reject in rejects).most_common(1)
        raise InputError(
            f"{os.fspath(path)}: no row can be evaluated on"
            + (f"; {len(rejects):,} were rejected, the first kind: {why[0][0]}" if why else "")
        )
    return Cases(os.fspath(path), digest, cases, rejects)


def _pair(row: Row, unnamed: str) -> Case:
    request, right, wrong = _sides_of(row)
    about = row.get("rejected")
    kinds = [_error_of(about, n) or str(row.get("error_type") or "") for n in range(len(wrong))]
    names = ("model_name", "model", "rejected_model")
    model = next((str(row[name]) for name in names if row.get(name)), "")
    candidates = [Candidate(plain_answer(answer), True) for answer in right]
    candidates += [
        Candidate(plain_answer(answer), False, kind, model)
        for answer, kind in zip(wrong, kinds, strict=True)
    ]
    return _case(row, unnamed, request, candidates)


def _sides_of(row: Row) -> tuple[Request, list[Response], list[Response]]:
    """(the prompt, the right answers, the wrong ones).

    A side that is a list of texts is as many answers, as in RewardBench-2.
    """
    if row.get("responses") is not None and not (_RIGHT & row.keys()):
        raise ValueError(
            "the answers under 'responses' do not say which is right: expected 'chosen' and "
            "'rejected', or a pool with 'correct' of each of its 'candidates'"
        )
    row = {name: value for name, value in row.items() if name != "responses"}
    several = {side: row[side] for side in ("chosen", "rejected") if _are_texts(row.get(side))}
    read = {side: _side(row[side]) for side in _SIDES & row.keys()}
    request = request_of({**row, **read, **{side: texts[0] for side, texts in several.items()}})
    right, *wrong = request.responses
    return request, several.get("chosen", [right]), several.get("rejected", wrong)


def _are_texts(side: Any) -> bool:
    return isinstance(side, list) and bool(side) and all(isinstance(one, str) for one in side)


_SIDES = {"chosen_output", "rejected_output"}
_RIGHT = {"chosen", "chosen_output"}


def _side(value: Any) -> Any:
    """Calls that stand as JSON text, as lists; other text as it is."""
    calls = parse_calls(value) if isinstance(value, str) and value.lstrip()[:1] == "[" else None
    return value if calls is None else calls


def _error_of(rejected: Any, number: int) -> str:
    if not isinstance(rejected, list) or number >= len(rejected):
        return ""
    one = rejected[number]
    return str(one.get("error_type") or "") if isinstance(one, dict) else ""


def _pool(row: Row, unnamed: str) -> Case:
    given = row.get("candidates")
    if not isinstance(given, list) or not given:
        raise ValueError(
            f"expected a list under 'candidates' that is not empty, found {given!r:.80}"
        )
    candidates = _merged(_candidate(one, number) for number, one in enumerate(given))
    request = request_of({**row, "responses": [c.response for c in candidates]})
    return _case(row, unnamed, request, candidates)


def _merged(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The same answer twice is one that was sampled as often as both."""
    found: dict[str, Candidate] = {}
    for one in candidates:
        key = json.dumps([one.response, one.right], sort_keys=True)
        if same := found.get(key):
            count, greedy = same.count + one.count, same.greedy or one.greedy
            one = dataclasses.replace(same, count=count, greedy=greedy)
        found[key] = one
    _check_samples(sum(one.count for one in found.values()))
    return list(found.values())


def _check_samples(number: int) -> None:
    if number > MOST_SAMPLES:
        raise ValueError(
            f"expected at most {MOST_SAMPLES:,} under 'n_samples' of all 'candidates' together, "
            f"found {number:,}"
        )


def _candidate(one: Any, number: int) -> Candidate:
    at = f"candidates[{number}]"
    if not isinstance(one, dict):
        raise ValueError(f"{at}: expected an object, found {one!r:.80}")
    right, count = one.get("correct", one.get("right")), one.get("n_samples", one.get("count", 1))
    if not isinstance(right, bool):
        raise ValueError(f"{at}: expected true or false under 'correct', found {right!r:.80}")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{at}: expected a whole number from 1 under 'n_samples', found {count!r}")
    said, response = one.get("raw", one.get("response")), one.get("calls")
    has_words = isinstance(said, str) and said.strip() not in ("", "[]")
    if response is None or (response == [] and has_words):
        response = said
    if not isinstance(response, list | str | dict):
        raise ValueError(f"{at}: expected calls, or text under 'raw', found {response!r:.80}")
    model = str(one.get("model_name") or one.get("model") or "")
    error = "" if right else str(one.get("error_type") or "")
    return Candidate(plain_answer(response), right, error, model, count, bool(one.get("greedy")))


def _case(row: Row, unnamed: str, request: Request, candidates: list[Candidate]) -> Case:
    answers = {
        right: {json.dumps(c.response, sort_keys=True) for c in candidates if c.right == right}
        for right in (True, False)
    }
    if both := answers[True] & answers[False]:
        raise ValueError(f"the same answer is right and wrong: {min(both):.120}")
    made = Case(
        str(request.id) if request.id is not None else unnamed,
        [_described(tool) for tool in normalize_tools(request.tools)],
        [plain_message(message, index) for index, message in enumerate(request.messages)],
        candidates,
        str(row.get("test_category") or row.get("subset") or row.get("source") or ""),
    )
    # NaN, dates of Arrow, halves of surrogate pairs: nothing that a run's folder could not hold.
    said = [[c.response, c.error_type, c.model] for c in candidates]
    check_json([made.task, made.category, made.tools, made.messages, said])
    return made


def _described(tool: Tool) -> Tool:
    if not isinstance(tool["description"], str):
        raise ValueError(
            f"tool {tool['name']!r}: expected text as description, found "
            f"{tool['description']!r:.80}"
        )
    return tool


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a model was trained on, or a rule fitted on.

    Attributes:
      ids: of the rows.
      requests: the keys of what their users say (`splits.request_key`), where they are known.
    """

    ids: Sequence[str] = ()
    requests: Sequence[str] = ()

    @classmethod
    def of(cls, cases: Sequence[Case]) -> "Seen":
        """These cases."""
        keys = {request_key(case.messages) for case in cases} - {""}
        return cls(sorted({case.task for case in cases}), sorted(keys))

    def __bool__(self) -> bool:
        return bool(self.ids or self.requests)

    def tasks(self, cases: Iterable[Case]) -> set[str]:
        """The tasks among these cases that were seen: under the same id, source and number of the
        pair apart, or with the same request.

        >>> case = Case("simple_python_3", [], [], [])
        >>> Seen(["bfcl/simple_python_3"]).tasks([case])
        {'simple_python_3'}
        """
        ids, requests = set(map(_plain, self.ids)), set(self.requests)
        return {
            case.task
            for case in cases
            if _plain(case.task) in ids or request_key(case.messages) in requests
        }


def _plain(name: str) -> str:
    """The id without source and number of the pair; whole, where its last part is but a number."""
    name = _NUMBERED.sub("", name)
    last = name.rpartition("/")[2]
    return name if last.isdigit() else last
