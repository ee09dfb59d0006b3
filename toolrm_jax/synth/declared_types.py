"""Types as function-calling data sets write them, mostly Python's, as JSON Schema.

    "str"  "int, optional"  "List[float]"  "list(str)"  "Tuple[int, int]"  "Union[int, str]"

>>> schema_of("List[Tuple[int, int]], optional")
({'type': 'array', 'items': {'type': 'array', 'items': {'type': 'integer'}}}, True)
>>> schema_of("Union[int, str]")
({'type': ['integer', 'string']}, False)
"""

import ast
import functools
import re
from typing import Any

_WORDS = {
    **dict.fromkeys(("str", "string", "char", "text", "date", "datetime", "time"), "string"),
    **dict.fromkeys(("int", "integer", "long"), "integer"),
    **dict.fromkeys(("float", "double", "number", "numeric", "decimal"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("list", "array", "tuple", "set", "sequence", "iterable"), "array"),
    **dict.fromkeys(("dict", "dictionary", "object", "map", "mapping", "hashmap"), "object"),
    **dict.fromkeys(("none", "null", "nonetype"), "null"),
}
# Any value: what is called is written as text, complex numbers as text or as pairs.
_ANY = ("any", "callable", "function", "complex", "")
_PARAMETRISED = re.compile(r"([\w.]+)\s*[\[(](.*)[\])]", re.DOTALL)
_OPTIONAL = re.compile(r"[,(\s]+optional\)?\s*$", re.IGNORECASE)


class UnknownType(ValueError):
    """A type that is none of those above."""


@functools.lru_cache(maxsize=4096)
def _read(declared: str) -> tuple[dict[str, Any], bool]:
    text = declared.strip()
    plain = _OPTIONAL.sub("", text)
    schema, optional = _schema(plain)
    return schema, optional or plain != text


def schema_of(declared: str) -> tuple[dict[str, Any], bool]:
    """(schema, whether the type says that the value may be left out). Raises UnknownType."""
    schema, optional = _read(declared)
    return dict(schema), optional  # its own copy: callers add descriptions


def _schema(text: str) -> tuple[dict[str, Any], bool]:
    word = text.strip().lower().removeprefix("typing.")
    if word in _ANY:
        return {}, False
    if word in _WORDS:
        return {"type": _WORDS[word]}, False
    members = _split(text, "|") if "|" in text else re.split(r"\s+or\s+", text)
    if len(members) > 1:
        return _union(members)
    match = _PARAMETRISED.fullmatch(text.strip())
    if match is None:
        raise UnknownType(f"no type is called {text.strip()!r}")
    return _parametrised(match[1].lower().rpartition(".")[2], match[2])


def _parametrised(name: str, inner: str) -> tuple[dict[str, Any], bool]:
    if name == "optional":
        return _schema(inner)[0], True
    if name == "union":
        return _union(_split(inner, ","))
    if name == "literal":
        return {"enum": list(ast.literal_eval(f"[{inner}]"))}, False
    if name in _ANY:
        return {}, False
    kind = _WORDS.get(name)
    if kind == "array":
        parts = {str(part): part for part in _members(inner)}
        items = next(iter(parts.values())) if len(parts) == 1 else {}
        return {"type": "array"} | ({"items": items} if items else {}), False
    if kind is None:
        raise UnknownType(f"no type is called {name!r}")
    return {"type": kind}, False  # Dict[str, int]; also "int (0-100)", a type with a remark


def _members(inner: str) -> list[dict[str, Any]]:
    return [_schema(part)[0] for part in _split(inner, ",") if part.strip() != "..."]


def _union(members: list[str]) -> tuple[dict[str, Any], bool]:
    schemas = [_schema(member)[0] for member in members]
    optional = {"type": "null"} in schemas
    schemas = [schema for schema in schemas if schema != {"type": "null"}]
    if len(schemas) == 1:
        return schemas[0], optional
    if all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        return {"type": list(dict.fromkeys(schema["type"] for schema in schemas))}, optional
    return ({} if {} in schemas else {"anyOf": schemas}), optional


def _split(text: str, mark: str) -> list[str]:
    """The parts between marks that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "[(") - (char in "])")
        if char == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]
