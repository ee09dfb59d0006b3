"""Tools and their JSON Schemas: one plain form, one clear error, one validity test for calls.

    {"type": "function", "function": {"name": ...}}  --normalize_tools-->  {"name", "description",
                                                                            "parameters"}

Schemas are JSON Schema, draft 2020-12. A call is valid when its tool is on offer, what is required
is there, nothing is unknown, and every value fits its schema.

>>> parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
>>> tool = {"type": "function", "function": {"name": "add", "parameters": parameters}}
>>> tools = normalize_tools([tool])
>>> call_is_valid({"name": "add", "arguments": {"a": 1}}, tools)
True
>>> call_is_valid({"name": "add", "arguments": {"a": "1"}}, tools)
False
"""

import functools
import json
from typing import Any

import jsonschema

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Tool


class ToolSchemaError(InputError, ValueError):
    """A tool, or its JSON Schema, is not valid; the message names the tool and the path."""


def normalize_tools(tools: list[dict[str, Any]]) -> list[Tool]:
    """Tools as plain {"name", "description", "parameters"}, each schema checked.

    Takes the OpenAI wrapper too; a tool without "parameters" takes none. Raises ToolSchemaError.
    """
    if not isinstance(tools, list):
        raise ToolSchemaError(f"tools: expected a list of tools, found {type(tools).__name__}")
    plain = [_plain_tool(tool, index) for index, tool in enumerate(tools)]
    for tool in plain:
        check_tool(tool)
    return plain


def unwrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool itself, whether or not it stands in OpenAI's {"type", "function"} wrapper."""
    inner = tool.get("function")
    return inner if isinstance(inner, dict) and "name" not in tool else tool


def _plain_tool(tool: Any, index: int) -> Tool:
    if not isinstance(tool, dict):
        raise ToolSchemaError(f"tools[{index}]: expected an object, found {type(tool).__name__}")
    tool = unwrapped(tool)
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise ToolSchemaError(
            f"tools[{index}]: expected a non-empty string under 'name', found {name!r}"
        )
    return {
        "name": name,
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
    }


def check_tool(tool: Tool) -> None:
    """Raise ToolSchemaError, naming tool and path, unless the parameters are a JSON Schema."""
    fault = _schema_fault(_as_key(tool["parameters"]))
    if fault is not None:
        raise ToolSchemaError(
            f"tool {tool['name']!r}: {fault}. Its parameters must be a JSON Schema (draft 2020-12)"
        )


def _as_key(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


# Checking against the meta-schema takes milliseconds, and catalogues repeat their tools.
@functools.lru_cache(maxsize=65536)
def _schema_fault(key: str) -> str | None:
    schema = json.loads(key)
    if not isinstance(schema, dict):
        return f"parameters: expected an object, found {type(schema).__name__}"
    if schema.get("type") != "object":
        return f"parameters.type: expected 'object', found {schema.get('type')!r}"
    meta = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
    fault = jsonschema.exceptions.best_match(meta.iter_errors(schema))
    if fault is None:
        return None
    path = ".".join(["parameters", *map(str, fault.absolute_path)])
    return f"{path}: {fault.message}"


@functools.lru_cache(maxsize=65536)
def _validator(key: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(key))


def call_fault(call: Call, tools: list[Tool]) -> str | None:
    """What makes the call invalid in this catalogue, in words; None if nothing does."""
    tool = next((t for t in map(unwrapped, tools) if t["name"] == call["name"]), None)
    if tool is None:
        return f"no tool is named {call['name']!r}"
    parameters = tool.get("parameters") or {}
    unknown = [p for p in call["arguments"] if p not in parameters.get("properties", {})]
    if unknown and not parameters.get("additionalProperties"):
        return f"{call['name']} has no parameter {unknown[0]!r}"
    fault = next(_validator(_as_key(parameters)).iter_errors(call["arguments"]), None)
    if fault is None:
        return None
    path = ".".join([call["name"], *map(str, fault.absolute_path)])
    return f"{path}: {fault.message}"


def call_is_valid(call: Call, tools: list[Tool]) -> bool:
    """Is the tool known, all that is required there, nothing unknown, and every type right?"""
    return call_fault(call, tools) is None
