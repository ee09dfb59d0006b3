"""Hammer's rows: API-Bank and ToolAlpaca as MadeAgents/Hammer publishes them for evaluation.

    {"instruction": "... [BEGIN OF AVAILABLE TOOLS]\n[{\"name\", \"description\", \"parameters\":
         {name: {\"type\", \"description\"[, \"required\": true]}}}]\n[END OF AVAILABLE TOOLS] ...
         [BEGIN OF QUERY]\nUser: ...\nAI: ...\nAPI-Request: ```[calls]```->result\nGenerate API
         Request:\n[END OF QUERY]",
     "input": "", "output": "```\n[{\"name\": ..., \"arguments\": {...}}]\n```"}

A parameter is required where the row says so: ToolAlpaca's do, API-Bank's say nothing. A dialogue's
earlier requests become assistant turns with calls, their results tool turns. API-Bank's dialogues
end with an AI turn that announces the call; it is kept, as published. Licences: API-Bank MIT,
ToolAlpaca Apache-2.0.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Example, Message
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, as_list, examples, field, parsed
from toolrm_jax.synth.source import rows as read_rows
from toolrm_jax.synth.sources.xlam import typed_tool
from toolrm_jax.tool_calls import parse_calls

_TURN = re.compile(r"^(User|AI|API-Request): ", re.MULTILINE)
_REQUEST = re.compile(r"\s*```(.*?)```\s*->(.*)", re.DOTALL)
_ROLES = {"User": "user", "AI": "assistant"}


def read_api_bank(path: str | os.PathLike[str]) -> Iterator[Example | Reject]:
    """API-Bank, any of Hammer's levels."""
    return _read(path, "api_bank", "MIT")


def read_toolalpaca(path: str | os.PathLike[str]) -> Iterator[Example | Reject]:
    """ToolAlpaca as Hammer chose and wrote it."""
    return _read(path, "toolalpaca_hammer", "Apache-2.0")


def _read(path: str | os.PathLike[str], name: str, license: str) -> Iterator[Example | Reject]:
    stem = os.path.basename(os.fspath(path)).split(".")[0]
    seen = -1

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        nonlocal seen
        seen += 1  # rows have no ids; the line of an array's element is no stable one
        text = field(row, "instruction", str)
        tools = as_list(parsed(_section(text, "AVAILABLE TOOLS"), "tools"), dict, "tools")
        calls = parsed(field(row, "output", str).strip().strip("`").strip(), "output")
        yield Draft(
            f"{name}/{stem}/{seen}",
            [_tool(tool) for tool in tools],
            _messages(_section(text, "QUERY")),
            calls,
        )

    return examples(name, license, read_rows(path), drafts)


def _section(text: str, name: str) -> str:
    match = re.search(rf"\[BEGIN OF {name}\]\n(.*?)\[END OF {name}\]", text, re.DOTALL)
    if match is None:
        raise Fault(Reason.FORM, f"the instruction has no section {name!r}")
    return match[1].strip()


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    typed = typed_tool(tool)
    declared = tool.get("parameters") or {}
    typed["parameters"]["required"] = [
        p for p in typed["parameters"]["properties"] if declared[p].get("required") is True
    ]
    return typed


def _messages(query: str) -> list[Message]:
    query = query.removesuffix("Generate API Request:").strip()
    opened = _TURN.match(query)
    if opened is None:
        return [{"role": "user", "content": query}]
    _, *parts = _TURN.split(query)
    messages: list[Message] = []
    for who, said in zip(parts[::2], parts[1::2], strict=True):
        if who in _ROLES:
            messages.append({"role": _ROLES[who], "content": said.strip()})
        else:
            messages += _request(said)
    return messages


def _request(said: str) -> list[Message]:
    """An earlier request and its result."""
    match = _REQUEST.fullmatch(said.strip())
    calls = parse_calls(parsed(match[1].strip(), "API-Request")) if match else None
    if match is None or not calls:
        raise Fault(Reason.FORM, f"an API-Request that is none: {said!r:.120}")
    result = {"role": "tool", "name": calls[0]["name"], "content": match[2].strip()}
    return [{"role": "assistant", "content": "", "tool_calls": calls}, result]
