"""Answers against the gold: right ones, wrong ones by type of error, equal ones merged.

    example, [Answer, ...] --> {"id", "turn", "chosen", "chosen_by": {"model", "license"} |
                                 null, "right": [Judged, ...], "wrong": [Judged, ...]}

    Judged {"response": calls in canonical form | text, "count": 3, "models": {"Qwen3-4B": 2, ...},
            "license", "error_type", "kind", "detail"}                 the last three of wrong ones

The judge is `tool_calls.judge`. Where the upstream has its own verdict (`Answer.right`), that
decides; its wrong answers are named by the judge, and one that the judge finds right is left out,
as is one that the upstream calls both. So is a model's answer that only words its texts differently
("Tokyo" for "Tokyo, Japan"), unless its verdict came from what the calls did: whether it is wrong
is open. Where calls are right by what they bring about, answers without a verdict are left out.
What does not parse and is no plain words has the error "Parsing error". A corruption that is not
what it was made to be is left out.

A right answer of a model is an example of what is right, so it must be beyond doubt: it is left out
if its tools' schemas reject it, if it calls more than the gold, if it is the gold but for signs
between digits ("2024-1-11" for "2024-11-1", which BFCL's rule takes for equal), and, where nothing
should be called and nobody judged the words, if they neither decline nor ask.

"chosen" is the right side that the example's pairs show: the gold, or a right answer of a model,
one as often as the other, so that who wrote an answer does not tell whether it is right;
"chosen_by" is the model, or null. Beside a model's answer, the wrong ones are judged against that
answer: their types of error are named anew, and corruptions, which were made from the gold, are
left out if their type is another then.

All of this is counted.

Answers are the same if they differ in the order of calls and arguments alone.

>>> from toolrm_jax.synth.answer import Answer
>>> tools = [{"name": "f", "description": "", "parameters": {"type": "object",
...           "properties": {"x": {"type": "integer"}}, "required": ["x"]}}]
>>> gold = [{"name": "f", "arguments": {"x": 1}}]
>>> example = Example("q", "s", "MIT", tools, [{"role": "user", "content": "1"}],
...                   [{"name": "f", "arguments": {"x": [1]}}], gold)
>>> wrong = [{"name": "f", "arguments": {"x": 2}}]
>>> judged = judge_answers(example, [Answer("q", "m", "MIT", True, wrong)], collections.Counter())
>>> judged["wrong"][0]["error_type"]
'Parameter value error'
"""

import collections
import dataclasses
import json
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from toolrm_jax.corruptions import GENERATORS
from toolrm_jax.examples import Call, Example, Response
from toolrm_jax.refusals import calls_nothing, declines_or_asks
from toolrm_jax.schema import call_is_valid
from toolrm_jax.splits import digest
from toolrm_jax.synth.answer import Answer, main_model
from toolrm_jax.synth.turn_type import turn_type
from toolrm_jax.tool_calls import (
    ErrorType,
    Verdict,
    canonical_calls,
    exact_reference,
    judge,
    parse_calls,
    words_of,
)

Row = dict[str, Any]

# The error that each kind of corruption is made to have.
MADE_TO_BE: dict[str, ErrorType] = {
    generate.__name__: error for error, kinds in GENERATORS.items() for generate in kinds
} | {"invented_call": ErrorType.CALL_COUNT}


def same_key(calls: list[Call] | None, words: str) -> str:
    """Equal for answers that differ in the order of calls and of arguments alone."""
    if calls is None:
        return "words " + words.strip()
    return "calls " + json.dumps(sorted(json.dumps(call, sort_keys=True) for call in calls))


@dataclasses.dataclass
class _Merged:
    """The answers that are the same."""

    response: str | list[Call]
    licenses: dict[str, str] = dataclasses.field(default_factory=dict)  # by model
    models: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    verdicts: set[bool] = dataclasses.field(default_factory=set)
    kind: str | None = None

    def to_row(self, **more: Any) -> Row:
        models = dict(sorted(self.models.items()))
        return {
            "response": self.response,
            "count": self.models.total(),
            "models": models,
            "license": self.licenses[main_model(models)],
            **more,
        }


def judge_answers(
    example: Example, answers: Iterable[Answer], counts: collections.Counter[str], *, seed: int = 0
) -> Row:
    """The example's right and wrong answers, each once; what was left out goes to the counts.

    "right" are those of models, without the gold.
    """
    right, wrong = [], []
    gold = same_key(example.gold, "")
    for key, answer in _merged(example, answers, counts).items():
        verdict = judge(answer.response, example.reference, example.tools)
        if example.by_outcome and not answer.verdicts:
            counts["left out: without a verdict on what it brings about"] += 1
        elif len(answer.verdicts) == 2:
            counts["left out: the upstream calls the answer both right and wrong"] += 1
        elif True in answer.verdicts or (verdict.right and False not in answer.verdicts):
            if answer.kind is not None:
                counts[f"corruptions discarded: {answer.kind}"] += 1
                continue
            if key != gold and (why := _why_not_shown(answer, example)):
                counts[f"left out: right, but {why}"] += 1
                continue
            counts["right"] += 1
            if key != gold:
                right.append(answer.to_row())
        elif verdict.right:
            counts["left out: right by the gold, wrong by the upstream"] += 1
        elif (
            verdict.error_type is ErrorType.VALUE
            and not (answer.kind or example.by_outcome)
            and is_reworded(answer.response, example.gold)
        ):
            counts["left out: the gold in other words"] += 1
        else:
            wrong.append(answer.to_row(kind=answer.kind or "answer", **_error(verdict)))
    wrong = [row for row in wrong if _is_as_made(row, counts)]
    number = int(digest(seed, "right", example.id)[:8], 16)
    chosen_by = None
    if right and number % 2:
        taken = right[number // 2 % len(right)]
        chosen = taken["response"]
        chosen_by = {"model": main_model(taken["models"]), "license": taken["license"]}
        wrong = list(_beside(chosen, wrong, example, counts))
    else:
        chosen = example.gold or _silence(example, seed)
    counts["wrong"] += len(wrong)
    return {
        "id": example.id,
        "turn": turn_type(example),
        "chosen": chosen,
        "chosen_by": chosen_by,
        "right": right,
        "wrong": wrong,
    }


def _why_not_shown(answer: _Merged, example: Example) -> str | None:
    """Why a right answer, which is not the gold, is no example of what is right; None if it is."""
    response = answer.response
    if isinstance(response, str):
        # A verdict on what was brought about says nothing of the words.
        judged = answer.verdicts and not example.by_outcome
        sure = judged or not response.strip() or declines_or_asks(response)
        return None if sure else "it neither declines nor asks"
    if not all(call_is_valid(call, example.tools) for call in response):
        return "its tools' schemas reject it"
    if len(response) > len(example.gold):
        return "it calls more than the gold"
    if answer.verdicts:
        return None
    apart = [{**call, "arguments": _digits_apart(call["arguments"])} for call in response]
    reference = [
        {**want, "arguments": _digits_apart(want["arguments"])} for want in example.reference
    ]
    if not judge(apart, reference, example.tools).right:
        return "with other signs between digits"
    return None


def _digits_apart(value: Any) -> Any:
    """The value with what stands between digits, and a minus before them, as signs that count.

    >>> _digits_apart(["2024-1-11", "2024/1/11", "-12.5", "New-York 3"])
    ['2024|1|11', '2024|1|11', '~12|5', 'New-York 3']
    """
    if isinstance(value, dict):
        return {name: _digits_apart(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_digits_apart(inner) for inner in value]
    if not isinstance(value, str):
        return value
    text = re.sub(r"(?<=\d)[ ,./\-_*^]+(?=\d)", "|", value)
    return re.sub(r"(?<!\w)-(?=\.?\d)", "~", text)


def _error(verdict: Verdict) -> Row:
    return {"error_type": str(verdict.error_type), "detail": verdict.detail[:200]}


def _beside(
    chosen: Response, wrong: list[Row], example: Example, counts: collections.Counter[str]
) -> Iterator[Row]:
    """The wrong answers as they are beside a right one that is not the gold."""
    reference = exact_reference(parse_calls(chosen) or [])
    for row in wrong:
        verdict = judge(row["response"], reference, example.tools)
        same = not verdict.right and str(verdict.error_type) == row["error_type"]
        if verdict.right:
            counts["left out: no worse than the right answer of its pair"] += 1
        elif row["kind"] != "answer" and not same:
            counts["left out: corruptions of another error beside their pair's right answer"] += 1
        else:
            yield {**row, **_error(verdict)}


# Words, numbers, and characters of Chinese and Japanese, each a word of its own.
_WORD = re.compile(r"[^\W\d_\u3040-\u9fff]+|\d+|[\u3040-\u9fff]")
_LITTLE = {
    *("a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "or", "that", "the"),
    *("to", "what", "which", "with"),
}


def is_reworded(response: Response, gold: list[Call]) -> bool:
    """Whether calls give other texts than the gold, but of much the same words, and nothing else;
    their order does not count.

    >>> f = lambda text: [{"name": "f", "arguments": {"place": text}}]
    >>> is_reworded(f("Tokyo"), f("Tokyo, Japan")), is_reworded(f("2 June"), f("3 June"))
    (True, False)
    >>> is_reworded(f("Oslo") + f("Tokyo"), f("Tokyo, Japan") + f("Oslo"))
    True
    """
    if not isinstance(response, list) or len(response) != len(gold):
        return False
    left = list(gold)
    # Equal ones first: they must not be taken for another one's other words.
    for call in sorted(response, key=lambda call: call not in gold):
        near = [want for want in left if call == want] or [w for w in left if _is_near(call, w)]
        if not near:
            return False
        left.remove(near[0])
    return True


def _is_near(call: Call, want: Call) -> bool:
    mine, theirs = call["arguments"], want["arguments"]
    return (
        call["name"] == want["name"]
        and mine.keys() == theirs.keys()
        and all(mine[name] == x or _alike(mine[name], x) for name, x in theirs.items())
    )


def _alike(a: Any, b: Any) -> bool:
    """Two texts with the same numbers, one's words among the other's, or half of them in both."""
    if not (isinstance(a, str) and isinstance(b, str)):
        return False
    mine, theirs = (set(_WORD.findall(text.lower())) - _LITTLE for text in (a, b))
    if {w for w in mine if w.isdigit()} != {w for w in theirs if w.isdigit()}:
        return False
    both = mine & theirs
    return bool(both) and (both in (mine, theirs) or 2 * len(both) >= len(mine | theirs))


def _silence(example: Example, seed: int) -> str:
    """What the right turn says that calls nothing."""
    if example.words is not None:
        return example.words
    said = [str(m.get("content")) for m in example.messages if m.get("role") == "user"]
    return calls_nothing(random.Random(f"{seed}/right/{example.id}"), said[-1] if said else "")


def _is_as_made(row: Row, counts: collections.Counter[str]) -> bool:
    """Whether a corruption has the error that it was made to have; others are taken as they are."""
    if row["kind"] == "answer":
        return True
    expected = MADE_TO_BE.get(row["kind"])
    kept = expected is None or row["error_type"] == expected
    counts[f"corruptions {'kept' if kept else 'discarded'}: {row['kind']}"] += 1
    return kept


def _merged(
    example: Example, answers: Iterable[Answer], counts: collections.Counter[str]
) -> dict[str, _Merged]:
    """The answers by what they say, in the order in which each was first given."""
    found: dict[str, _Merged] = {}
    for answer in answers:
        counts["answers"] += answer.count
        calls = parse_calls(answer.response)
        words = words_of(answer.response)
        if calls is None and not isinstance(answer.response, str) and not words:
            words = json.dumps(answer.response, ensure_ascii=False)  # calls in a broken form
        response: str | list[Call] = (
            words if calls is None else canonical_calls(calls, example.tools)
        )
        if calls == [] and not isinstance(answer.response, list):
            response = words.strip()
        merged = found.setdefault(same_key(calls, words), _Merged(response))
        if answer.kind is not None and not merged.models:
            merged.kind = answer.kind
        elif answer.kind is None:
            merged.kind = None  # what a model said counts as that
        merged.models[answer.model] += answer.count
        merged.licenses[answer.model] = answer.license
        if answer.right is not None:
            merged.verdicts.add(answer.right)
    counts["distinct answers"] += len(found)
    return found
