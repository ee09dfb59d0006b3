"""ToolAlpaca's evaluation files, eval_real.json and eval_simulated.json, as their authors publish.

    [{"Name": "Nager.Date", "Function_Description": {"LongWeekend": "Get long weekends\nParameters:
        {\"year\": \"Required. integer. \"}\nOutput: ...", "components": ...},
      "Instructions": ["Any long weekends in 2024?", ...],
      "Golden_Answers": [[{"Action": "LongWeekend", "Action_Input": "{\"year\": 2024}"}], ...]}]

Every instruction is an example. A parameter's text opens with "Required." where it is, its type,
and "One of: [...]" where it has choices. "components" describes results and is no tool. The
training file has no Golden_Answers but what an LLM did step by step, so its rows make rejects.
Licence: Apache-2.0.
"""

import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from toolrm_jax.examples import Example, Tool
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, as_list, examples, field, parsed
from toolrm_jax.synth.source import rows as read_rows

LICENSE = "Apache-2.0"
_DESCRIBED = re.compile(r"(.*?)\n?Parameters: (\{.*?\})\nOutput:.*", re.DOTALL)
_PARAMETER = re.compile(
    r"(?P<required>Required\. )?(?P<type>\w+(?:\[\w+\]|\[?\w*\{.*?\}\]?)?)\. ?"
    r"(?:One of: \[(?P<choices>.*?)\]\. ?)?(?P<description>.*)",
    re.DOTALL,
)
_TYPES = {"string", "integer", "number", "boolean", "object"}


def read(path: str | os.PathLike[str]) -> Iterator[Example | Reject]:
    """The examples of one of the two files."""
    stem = PurePath(os.fspath(path)).name.split(".")[0]

    def drafts(row: Any, line: int) -> Iterator[Draft | Fault]:
        name = field(row, "Name", str)
        if "Golden_Answers" not in row:
            raise Fault(Reason.FORM, f"{name}: no Golden_Answers; is this the training file?")
        tools = _tools(field(row, "Function_Description", dict))
        asked = as_list(field(row, "Instructions", list), str, "Instructions")
        answers = as_list(field(row, "Golden_Answers", list), list, "Golden_Answers")
        if len(asked) != len(answers):
            raise Fault(Reason.FORM, f"{name}: {len(asked)} instructions, {len(answers)} answers")
        for index, (request, actions) in enumerate(zip(asked, answers, strict=True)):
            messages = [{"role": "user", "content": request}]
            try:
                yield Draft(f"toolalpaca/{stem}/{name}/{index}", tools, messages, _calls(actions))
            except Fault as fault:
                yield Fault(fault.reason, f"{name}, instruction {index}: {fault.detail}")

    return examples("toolalpaca", LICENSE, read_rows(path), drafts)


def _calls(actions: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": field(action, "Action", str),
            "arguments": parsed(field(action, "Action_Input", (str, dict)), "Action_Input"),
        }
        for action in actions
    ]


def _tools(described: dict[str, Any]) -> list[Tool]:
    return [_tool(name, text) for name, text in described.items() if name != "components"]


def _tool(name: str, text: Any) -> Tool:
    match = _DESCRIBED.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Fault(Reason.FORM, f"{name}: expected 'Parameters: {{...}}', found {text!r:.120}")
    properties, required = {}, []
    for param, about in _object(match[2], name).items():
        properties[param], needed = _parameter(f"{name}.{param}", about)
        if needed:
            required.append(param)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": match[1].strip(), "parameters": parameters}


def _object(text: str, name: str) -> dict[str, Any]:
    value = parsed(text, name)
    if not isinstance(value, dict):
        raise Fault(Reason.FORM, f"{name}: its parameters are {value!r:.80}")
    return value


def _parameter(name: str, about: Any) -> tuple[dict[str, Any], bool]:
    """(schema, whether it is required)."""
    match = _PARAMETER.fullmatch(about) if isinstance(about, str) else None
    if match is None:
        raise Fault(Reason.FORM, f"{name}: expected '[Required. ]type. ...', found {about!r:.80}")
    schema = _schema(name, match["type"])
    if match["description"].strip():
        schema["description"] = match["description"].strip()
    if match["choices"] and schema.get("type") == "string":
        schema["enum"] = list(dict.fromkeys(c.strip() for c in match["choices"].split(",")))
    return schema, match["required"] is not None


def _schema(name: str, declared: str) -> dict[str, Any]:
    kind, _, inner = declared.partition("[")
    if kind == "Array":
        item = inner.rstrip("]").partition("{")[0].lower()
        return {"type": "array", "items": {"type": item}} if item in _TYPES else {"type": "array"}
    kind = kind.partition("{")[0].lower()
    if kind not in _TYPES:
        raise Fault(Reason.TOOL, f"{name}: no type is called {declared!r:.80}")
    return {"type": kind}
