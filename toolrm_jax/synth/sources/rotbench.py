"""RoTBench, first turn: the same requests under growing noise in the names of tools and parameters.

    clean.json, slight.json, ... [{"id", "scenario", "conversations": [
        {"from": "system", "value": "... access of the following tools:\n[tool, ...]\n\nLet's ..."},
        {"from": "user", "value": "the request\nBegin!\n"},
        {"from": "assistant", "value": ["Thought:\nAction: name\nAction Input: {...}", ...]}]}]

Any one of the assistant's values is right. Where all call one tool, the reference accepts the
values of any of them for each argument, and what only some give may be left out. Where they call
different tools the row makes a reject: a reference holds one set of calls, and a right answer would
be judged wrong. `first_only=True` takes the first value alone, and all rows, as evaluations by
greedy decoding do. Licence: Apache-2.0.
"""

import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from toolrm_jax.examples import Call, Example, Tool
from toolrm_jax.literals import read_json
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, as_list, examples, field, parsed
from toolrm_jax.synth.source import rows as read_rows
from toolrm_jax.tool_calls import exact_reference

LICENSE = "Apache-2.0"
_TOOLS = re.compile(r"following tools:\n(\[.*\])\s*Let's Begin!\s*", re.DOTALL)
_ACTION = re.compile(r"\s*(?:Thought:.*?\n)?Action: *(.*?)\nAction Input: *(\{.*\})\s*", re.DOTALL)


def read(path: str | os.PathLike[str], *, first_only: bool = False) -> Iterator[Example | Reject]:
    """The examples of one noise level's file."""
    level = PurePath(os.fspath(path)).name.split(".")[0]
    seen = -1

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        nonlocal seen
        seen += 1
        system, user, assistant = _turns(row)
        calls = [_call(text) for text in (assistant[:1] if first_only else assistant)]
        names = list(dict.fromkeys(call["name"] for call in calls))
        if len(names) > 1:
            raise Fault(Reason.SEVERAL_RIGHT, f"any of {', '.join(names)}")
        request = user.strip().removesuffix("Begin!").strip()
        messages = [{"role": "user", "content": request}]
        id_ = f"rotbench/{level}/{seen}"
        reference = None if len(calls) == 1 else [_merged(calls)]
        yield Draft(id_, _tools(system), messages, calls[:1], reference)

    return examples("rotbench", LICENSE, read_rows(path), drafts)


def _turns(row: Any) -> tuple[str, str, list[str]]:
    turns = as_list(field(row, "conversations", list), dict, "conversations")
    roles = [turn.get("from") for turn in turns]
    if roles != ["system", "user", "assistant"]:
        raise Fault(Reason.FORM, f"expected turns of system, user, assistant; found {roles!r:.80}")
    values = as_list(field(turns[2], "value", list), str, "the assistant's value")
    if not values:
        raise Fault(Reason.FORM, "the assistant's value is an empty list")
    return field(turns[0], "value", str), field(turns[1], "value", str), values


def _tools(system: str) -> list[Tool]:
    match = _TOOLS.search(system)
    if match is None:
        raise Fault(Reason.FORM, 'no list of tools before "Let\'s Begin!" in the system turn')
    return as_list(parsed(match[1], "tools"), dict, "tools")


def _call(text: str) -> Call:
    match = _ACTION.fullmatch(text)
    if match is None:
        raise Fault(Reason.FORM, f"expected Action and Action Input, found {text!r:.120}")
    try:
        arguments = read_json(match[2])
    except ValueError as error:
        raise Fault(Reason.NOT_JSON, f"Action Input: {error}") from None
    return {"name": match[1].strip(), "arguments": arguments}


def _merged(calls: list[Call]) -> Call:
    """One wanted call that each of the calls satisfies."""
    arguments: dict[str, list[Any]] = {}
    for call in exact_reference(calls):
        for param, values in call["arguments"].items():
            kept = arguments.setdefault(param, [])
            kept += [value for value in values if value not in kept]
    for param, values in arguments.items():
        if any(param not in call["arguments"] for call in calls):
            values.append("")
    return {"name": calls[0]["name"], "arguments": arguments}
