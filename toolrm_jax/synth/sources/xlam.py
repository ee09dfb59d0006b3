"""APIGen's rows: `Salesforce/xlam-function-calling-60k`, and `MadeAgents/xlam-irrelevance-7.5k`.

    {"id": 7, "query": "Rain in Rome?",
     "tools": "[{\"name\": \"rain\", \"description\": ..., \"parameters\":
                {\"city\": {\"type\": \"str, optional\", \"description\": ...}}}]",
     "answers": "[{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}]"}

Written from the published schema, not run on the real file. `tools` and `answers` are JSON text (a
list is read too); "[]" answers a query that no tool fits. A parameter may be left out where its
type says "optional" or it has a default. Types are Python's, see `declared_types`; an unknown one
makes a reject. Licence: CC-BY-4.0, both.

    for found in open_source("xlam", "xlam_function_calling_60k.json"): ...
"""

import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Example
from toolrm_jax.synth.declared_types import UnknownType, schema_of
from toolrm_jax.synth.source import (
    Draft,
    Fault,
    Reason,
    Reject,
    as_list,
    examples,
    field,
    parsed,
    rows,
)

LICENSE = "CC-BY-4.0"


def read(
    path: str | os.PathLike[str],
    *,
    name: str = "xlam",
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
) -> Iterator[Example | Reject]:
    """The examples of a file or a hub's data set with APIGen's columns."""

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        query = field(row, "query", str)
        tools = as_list(parsed(field(row, "tools", (str, list)), "tools"), dict, "tools")
        calls = parsed(field(row, "answers", (str, list)), "answers")
        yield Draft(
            f"{name}/{row.get('id', line)}",
            [typed_tool(tool) for tool in tools],
            [{"role": "user", "content": query}],
            calls,
            words=None,
        )

    values = rows(path, split=split, subset=subset, revision=revision)
    return examples(name, LICENSE, values, drafts)


def read_irrelevance(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
) -> Iterator[Example | Reject]:
    """The same columns; the examples are named for xlam-irrelevance."""
    return read(path, name="xlam_irrelevance", split=split, subset=subset, revision=revision)


def typed_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool whose parameters are {name: {"type", "description", "default"}} as JSON Schema.

    One that is JSON Schema already stays as it is.
    """
    declared = tool.get("parameters") or {}
    if not isinstance(declared, dict):
        raise Fault(Reason.TOOL, f"{tool.get('name')!r}: parameters are {declared!r:.80}")
    if declared.get("type") == "object" and isinstance(declared.get("properties"), dict):
        return tool
    properties, required = {}, []
    for param, about in declared.items():
        properties[param], optional = _parameter(tool.get("name"), param, about)
        if not optional:
            required.append(param)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "name": tool.get("name"),
        "description": tool.get("description") or "",
        "parameters": parameters,
    }


def _parameter(tool: Any, param: str, about: Any) -> tuple[dict[str, Any], bool]:
    """(schema, whether it may be left out)."""
    if not isinstance(about, dict) or not isinstance(about.get("type", ""), str):
        raise Fault(Reason.TOOL, f"{tool!r}: parameter {param!r} is {about!r:.80}")
    try:
        schema, optional = schema_of(about.get("type", ""))
    except (UnknownType, SyntaxError, ValueError, RecursionError) as error:
        raise Fault(Reason.TOOL, f"{tool!r}: type of {param!r}: {error}") from None
    if about.get("description"):
        schema["description"] = about["description"]
    if isinstance(about.get("enum"), list):
        schema["enum"] = about["enum"]
    if "default" in about:
        schema["default"] = about["default"]
    return schema, optional or "default" in about
