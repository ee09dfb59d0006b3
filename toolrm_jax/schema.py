"""Tools and their JSON Schemas: one plain form, one clear error, one validity test for calls.

    {"type": "function", "function": {"name": ...}}  --normalize_tools-->  {"name", "description",
                                                                            "parameters"}

Schemas are JSON Schema, draft 2020-12. A call is valid when its tool is on offer, what is required
is there, nothing is unknown, and every value fits its schema. A "$ref" must lead to a place in the
schema itself: nothing is fetched. A "pattern" is matched by Python's `re` without a time limit, so
one that backtracks for ever does so here, when pairs are built or rules are run; training and
scoring match none.

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
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import referencing
import referencing.exceptions
from referencing.jsonschema import DRAFT202012

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
    fault = _schema_fault(_as_key(tool))
    if fault is not None:
        raise ToolSchemaError(
            f"tool {tool['name']!r}: {fault}. Its parameters must be a JSON Schema (draft 2020-12)"
        )


def _as_key(tool: Tool) -> str:
    try:
        return json.dumps(tool.get("parameters") or {}, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolSchemaError(
            f"tool {tool['name']!r}: parameters: expected JSON, found something else ({error})"
        ) from None


# Checking against the meta-schema takes milliseconds, and catalogues repeat their tools.
@functools.lru_cache(maxsize=65536)
def _schema_fault(key: str) -> str | None:
    schema = json.loads(key)
    if not isinstance(schema, dict):
        return f"parameters: expected an object, found {type(schema).__name__}"
    if schema.get("type") != "object":
        return f"parameters.type: expected 'object', found {schema.get('type')!r}"
    try:
        return _meta_fault(schema, "parameters") or next(_reference_faults(schema), None)
    except RecursionError:
        return "parameters: nested too deeply"


_FORMATS = jsonschema.FormatChecker(formats=())


# The meta-schema calls the format of patterns "regex".
@_FORMATS.checks("regex", raises=re.error)
def _is_pattern(pattern: Any) -> bool:
    return not isinstance(pattern, str) or bool(re.compile(pattern))


_META = jsonschema.Draft202012Validator(
    jsonschema.Draft202012Validator.META_SCHEMA, format_checker=_FORMATS
)


def _meta_fault(schema: Any, at: str) -> str | None:
    fault = jsonschema.exceptions.best_match(_META.iter_errors(schema))
    if fault is None:
        return None
    return f"{'.'.join([at, *map(str, fault.absolute_path)])}: {fault.message}"


# References --------------------------------------------------------------------------------------

# jsonschema's own default would request the address of a "$ref" that it does not know.
_NOTHING_ELSE: referencing.Registry = referencing.Registry()
_REFERENCES = ("$ref", "$dynamicRef")


def _reference_faults(schema: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the references of a schema that is valid but for them."""
    paths = dict(_paths(schema, "parameters"))
    resource = DRAFT202012.create_resource(schema)
    root = _NOTHING_ELSE.resolver_with_root(resource)
    for part, resolver in _subschemas(resource, root):
        for keyword in _REFERENCES:
            if keyword in part.contents:
                fault = _reference_fault(part.contents[keyword], resolver)
                if fault is not None:
                    yield f"{paths[id(part.contents)]}.{keyword}: {fault}"


def _subschemas(resource: Any, resolver: Any) -> Iterator[tuple[Any, Any]]:
    """Every part that is an object, with what resolves the references in it."""
    if isinstance(resource.contents, dict):
        yield resource, resolver
        for part in resource.subresources():
            yield from _subschemas(part, resolver.in_subresource(part))


def _paths(node: Any, at: str) -> Iterator[tuple[int, str]]:
    yield id(node), at
    parts = node.items() if isinstance(node, dict) else enumerate(node)
    for key, part in parts:
        if isinstance(part, dict | list):
            yield from _paths(part, f"{at}.{key}")


def _reference_fault(reference: str, resolver: Any) -> str | None:
    """A reference must lead, over others maybe, to a schema that is not again itself."""
    passed = set()
    while reference not in passed:
        passed.add(reference)
        try:
            found = resolver.lookup(reference)
        except (referencing.exceptions.Unresolvable, ValueError):
            return f"{reference!r} leads nowhere within the schema"
        fault = _meta_fault(found.contents, reference)
        if fault is not None:
            return f"{reference!r} leads to what is no schema: {fault}"
        onward = found.contents if isinstance(found.contents, dict) else {}
        if "$ref" not in onward:
            return None
        reference, resolver = onward["$ref"], found.resolver
    return f"{reference!r} leads back to itself"


# Calls -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=65536)
def _validator(key: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(key), registry=_NOTHING_ELSE)


# What a schema that was never checked makes jsonschema raise.
_UNCHECKED = (
    jsonschema.exceptions.UnknownType,
    referencing.exceptions.Unresolvable,
    re.error,
    AttributeError,
    RecursionError,
    TypeError,
    ValueError,
)


def call_fault(call: Call, tools: list[Tool]) -> str | None:
    """What makes the call invalid in this catalogue, in words; None if nothing does.

    Raises ToolSchemaError where the tool's schema cannot judge it; a checked one can.
    """
    tool = next((t for t in map(unwrapped, tools) if t["name"] == call["name"]), None)
    if tool is None:
        return f"no tool is named {call['name']!r}"
    parameters = tool.get("parameters") or {}
    try:
        unknown = [p for p in call["arguments"] if p not in (parameters.get("properties") or {})]
        if unknown and not parameters.get("additionalProperties"):
            return f"{call['name']} has no parameter {unknown[0]!r}"
        fault = next(_validator(_as_key(tool)).iter_errors(call["arguments"]), None)
    except OverflowError:
        return f"{call['name']}: a number is too large to be checked"
    except _UNCHECKED as error:
        check_tool({"name": tool["name"], "parameters": parameters})
        raise ToolSchemaError(f"tool {tool['name']!r} cannot judge a call: {error}") from error
    if fault is None:
        return None
    path = ".".join([call["name"], *map(str, fault.absolute_path)])
    return f"{path}: {fault.message}"


def call_is_valid(call: Call, tools: list[Tool]) -> bool:
    """Is the tool known, all that is required there, nothing unknown, and every type right?"""
    return call_fault(call, tools) is None


def value_is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """Does the value fit the schema of a parameter, taken by itself?

    False too where it refers to another part of its tool's schema, which is not at hand.
    """
    try:
        validator = _validator(json.dumps(schema, sort_keys=True))
        return bool(validator.is_valid(value))
    except (*_UNCHECKED, OverflowError):
        return False
