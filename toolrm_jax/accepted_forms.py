"""Other forms of a right call that its reference accepts as well.

    reference {"city": ["New York City", "NYC"], "unit": ["km", ""]}     "" = may be left out
      bare   {"city": "NYC"}
      full   {"city": "New York City", "unit": "km"}

Real models write them all, on the right side and on the wrong one. A generator that always wrote
the same form would give the answer away: whatever spells out an optional argument would be wrong.

>>> want = {"name": "go", "arguments": {"city": ["New York City", "NYC"], "unit": ["km", ""]}}
>>> call = {"name": "go", "arguments": {"city": "New York City"}}
>>> full_form(call, call, want, [])["arguments"]
{'city': 'New York City', 'unit': 'km'}
>>> bare_form(full_form(call, call, want, []), call, want, [])["arguments"]
{'city': 'NYC'}
"""

import dataclasses
import random
from collections.abc import Callable, Collection
from typing import Any

from toolrm_jax.examples import Call, Example
from toolrm_jax.schema import call_is_valid
from toolrm_jax.tool_calls import canonical_calls, judge


def omittable(want: Call) -> dict[str, Any]:
    """The arguments that may be left out, each with the value that it may be spelled out with.

    Those of Java and JavaScript tools stay out: their values would have to be source text.
    """
    if "language" in want:
        return {}
    accepted = want["arguments"].items()
    plain = {p: [v for v in values if v != "" and _is_plain(v)] for p, values in accepted}
    return {p: plain[p][0] for p, values in accepted if "" in values and plain[p]}


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_right(value: Any, gold: Any, accepted: list[Any]) -> bool:
    """Is the value untouched by a corruption, so that another accepted one may stand for it?"""
    return value == gold or any(value == want and type(value) is type(want) for want in accepted)


def _texts(want: Call, param: str, value: Any) -> list[str]:
    """The accepted texts for a text, itself first."""
    accepted = want["arguments"].get(param) or []
    if "language" in want or not isinstance(value, str):
        return []
    return list(dict.fromkeys([value, *(v for v in accepted if isinstance(v, str) and v)]))


def _reform(
    call: Call,
    gold: Call,
    want: Call,
    required: Collection[str],
    keep: Callable[[], bool],
    pick: Callable[[list[str]], str],
) -> Call:
    """The call with its right arguments in another accepted form.

    keep() says of each argument that may be left out whether it is there; pick(texts) chooses
    among the accepted texts of an argument.
    """
    given, free = call["arguments"], omittable(want)
    out = {}
    for param, value in given.items():
        accepted = want["arguments"].get(param) or []
        right = _is_right(value, gold["arguments"].get(param), accepted)
        if right and "" in accepted and param not in required and not keep():
            continue
        texts = _texts(want, param, value) if right else []
        out[param] = pick(texts) if len(texts) > 1 else value
    for param, value in free.items():
        # What the corruption took out of the right call stays out.
        if param not in given and param not in gold["arguments"] and keep():
            out[param] = value
    return {**call, "arguments": out}


def full_form(call: Call, gold: Call, want: Call, required: Collection[str]) -> Call:
    """Every argument spelled out, in the longest accepted words.

    `call` is the right call `gold` or a corruption of it, `want` its reference, `required` what its
    tool requires. Values that are wrong stay as they are.
    """
    return _reform(call, gold, want, required, lambda: True, lambda texts: max(texts, key=len))


def bare_form(call: Call, gold: Call, want: Call, required: Collection[str]) -> Call:
    """What may be left out is, and texts are the shortest accepted."""
    return _reform(call, gold, want, required, lambda: False, lambda texts: min(texts, key=len))


def some_form(
    call: Call, gold: Call, want: Call, required: Collection[str], rng: random.Random
) -> Call:
    """Each argument that may be left out there or not, by chance; now and then another text."""

    def pick(texts: list[str]) -> str:
        return rng.choice(texts) if rng.random() < 0.3 else texts[0]

    return _reform(call, gold, want, required, lambda: rng.random() < 0.5, pick)


def in_some_form(task: Example, *, seed: int, share: float = 0.5) -> Example:
    """The task with its right calls in another accepted form, in a share of the tasks."""
    rng = random.Random(f"{seed}/form/{task.id}")
    if not task.gold or rng.random() >= share:
        return task
    required = {tool["name"]: tool["parameters"].get("required") or [] for tool in task.tools}
    gold = [
        some_form(call, call, want, required[call["name"]], rng)
        for call, want in zip(task.gold, task.reference, strict=True)
    ]
    gold = canonical_calls(gold, task.tools)
    valid = all(call_is_valid(call, task.tools) for call in gold)
    if valid and judge(gold, task.reference, task.tools).right:
        return dataclasses.replace(task, gold=gold)
    return task
