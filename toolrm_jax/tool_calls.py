"""Tool calls: read them from a response, put them in one form, and say what is wrong with them.

    response (calls | words | message) --parse_calls--> [{"name", "arguments"}, ...] | None
    response + reference + tools       --judge-------> Verdict(right, error_type, detail)

A reference lists the accepted values of each argument, as the Berkeley Function Calling Leaderboard
(BFCL) does; "" among them means that the argument may be left out. The judge follows the rules of
BFCL's checker, and names errors as FC-RewardBench (arXiv:2509.11963) does:
- calls compare without order, and their number must be right;
- strings compare without case, blanks and the marks , . / - _ * ^, and ' equals ";
- an integer may stand for a float, never the reverse; true is not 1;
- an optional argument that the reference does not know is unexpected.
Three points differ on purpose: calls are matched to the reference in the best way, not the first
that fits; [1, 3] is as good as [1.0, 3.0] within a list too; and of several errors the gravest is
named, where BFCL's checker names the first in the order in which the arguments were written.

>>> tools = [{"name": "area", "parameters": {"type": "object", "properties":
...     {"base": {"type": "integer"}, "unit": {"type": "string"}}, "required": ["base"]}}]
>>> reference = [{"name": "area", "arguments": {"base": [10], "unit": ["cm", ""]}}]
>>> judge([{"name": "area", "arguments": {"base": 10}}], reference, tools).right
True
>>> judge('<tool_call>{"name": "area", "arguments": {"base": 12}}</tool_call>', reference, tools)
Verdict(right=False, error_type='Parameter value error', detail='area.base is 12, accepted: [10]')
"""

import dataclasses
import enum
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from toolrm_jax.examples import Call, Response, Tool
from toolrm_jax.literals import read_json, read_literal
from toolrm_jax.schema import unwrapped


class ErrorType(enum.StrEnum):
    """FC-RewardBench's names, from the gravest to the least: a verdict names the gravest.

    The order follows the steps of BFCL's checker: the whole answer, the name, what is required,
    then each argument, then what else is missing. On 1,931 wrong answers of real models whose error
    lies in a call, 1,857 get the name that the checker gives; the best of all orders gets 1,858.
    """

    PARSING = "Parsing error"
    CALL_COUNT = "Incorrect number of function calls"
    FUNCTION_NAME = "Incorrect function name"
    MISSING_REQUIRED = "Missing required parameter"
    UNEXPECTED = "Unexpected parameter"
    VALUE_TYPE = "Parameter value type error"
    VALUE = "Parameter value error"
    MISSING_OPTIONAL = "Missing optional parameter"

    def __repr__(self) -> str:
        return repr(self.value)


_GRAVITY = {error: rank for rank, error in enumerate(ErrorType)}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a response is right and, if not, what is wrong with it first of all."""

    right: bool
    error_type: ErrorType | None = None
    detail: str = ""


# Reading a response ------------------------------------------------------------------------------


# Real arguments nest less than ten deep. What passes is walked by recursion, here, in templates and
# by jsonschema, which takes several of Python's 1,000 frames a level.
_DEEPEST = 64


def check_json(value: Any, room: int = _DEEPEST) -> None:
    """ValueError unless the value is JSON that UTF-8 can carry: no NaN, no lone surrogate."""
    if not room:
        raise ValueError(f"nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not a string")
            check_json(key, room)
            check_json(item, room - 1)
    elif isinstance(value, list):
        for item in value:
            check_json(item, room - 1)
    elif isinstance(value, str):
        value.encode()  # UnicodeEncodeError is a ValueError
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")  # 1e999 reads as infinity
    elif not isinstance(value, float | int | None):
        raise ValueError(f"{type(value).__name__} is not JSON")


def _as_call(value: Any) -> Call:
    """One call from its JSON value; ValueError if it is none."""
    if isinstance(value, dict) and "name" not in value:
        value = value.get("function")
    if not isinstance(value, dict) or not {"name", "arguments"} <= set(value):
        raise ValueError("not an object with name and arguments")
    if set(value) - {"name", "arguments", "id", "type"}:
        raise ValueError("unknown keys beside name and arguments")
    name, arguments = value["name"], value["arguments"]
    if isinstance(arguments, str):
        arguments = read_json(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("name is not a string, or arguments are not an object")
    check_json({name: arguments})
    return {"name": name, "arguments": arguments}


def _as_calls(value: Any) -> list[Call]:
    return [_as_call(item) for item in (value if isinstance(value, list) else [value])]


_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


def _parse_hermes(text: str) -> list[Call] | None:
    """<tool_call>{...}</tool_call>, one or several; words may stand before the first only."""
    _, tag, rest = text.partition(_OPEN)
    calls = []
    while tag:
        block, closed, rest = rest.partition(_CLOSE)
        if not closed:
            raise ValueError(f"{_OPEN} without {_CLOSE}")
        calls.append(_as_call(read_json(block.strip())))
        between, tag, rest = rest.partition(_OPEN)
        if between.strip():
            raise ValueError(f"text after {_CLOSE}")
    return calls or None


def _parse_json(text: str) -> list[Call] | None:
    """A bare JSON object, or a list of them."""
    return _as_calls(read_json(text)) if text[:1] in ("{", "[") else None


# Each parser gives the calls, None for a text that is not in its dialect, or ValueError for a text
# that is but is broken. The first that knows the dialect decides.
DIALECTS = {"hermes": _parse_hermes, "json": _parse_json}


def _parse_text(text: str) -> list[Call] | None:
    text = text.strip()
    if not text:
        return []
    for parse in DIALECTS.values():
        calls = parse(text)
        if calls is not None:
            return calls
    return None


def parse_calls(response: Response) -> list[Call] | None:
    """The calls that a response makes: [] for an empty turn, None where it does not parse."""
    try:
        if isinstance(response, str):
            return _parse_text(response)
        if isinstance(response, dict) and "role" in response:
            made = response.get("tool_calls")
            return _as_calls(made) if made else _parse_text(words_of(response))
        return _as_calls(response)
    except ValueError:
        return None


def words_of(response: Response) -> str:
    """The words of a response: the text itself, or a message's content; "" for a list of calls."""
    if isinstance(response, str):
        return response
    content = response.get("content") if isinstance(response, dict) else None
    return content if isinstance(content, str) else ""


def canonical_calls(calls: list[Call], tools: list[Tool]) -> list[Call]:
    """The same calls, arguments in the order of the tool's schema, unknown ones after."""
    known = _by_name(tools)
    return [_canonical(call, known.get(call["name"])) for call in calls]


def _canonical(call: Call, tool: Tool | None) -> Call:
    given = call["arguments"]
    ordered = [p for p in _properties(tool) if p in given]
    rest = [p for p in given if p not in set(ordered)]
    return {"name": call["name"], "arguments": {p: given[p] for p in ordered + rest}}


def _by_name(tools: list[Tool]) -> dict[str, Tool]:
    return {tool["name"]: tool for tool in map(unwrapped, tools)}


def _properties(tool: Tool | None) -> dict[str, Any]:
    return ((tool or {}).get("parameters") or {}).get("properties") or {}


# Comparing values --------------------------------------------------------------------------------

_IGNORED = re.compile(r"[ ,./\-_*^]")
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def standard_text(text: str) -> str:
    """What is left of a string once differences that do not count are taken away."""
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _matches(value: Any, want: Any) -> bool:
    """Does the value equal one accepted value? Objects hold lists of accepted values per key."""
    if isinstance(want, dict) and isinstance(value, dict):
        return all(
            k in want and any(_matches(v, w) for w in listed(want[k])) for k, v in value.items()
        ) and all(k in value or "" in listed(w) for k, w in want.items())
    if isinstance(want, list) and isinstance(value, list):
        return len(value) == len(want) and all(map(_matches, value, want))
    if isinstance(want, str) and isinstance(value, str):
        return standard_text(value) == standard_text(want)
    return isinstance(value, bool) == isinstance(want, bool) and value == want


def listed(accepted: Any) -> list[Any]:
    """Accepted values as a list: some nested ones stand alone."""
    return accepted if isinstance(accepted, list) else [accepted]


def _fits(value: Any, schema: dict[str, Any], accepted: list[Any]) -> bool:
    """Is the value of the declared type, or else of the type of the first accepted value?"""
    kinds = _kinds(schema)
    if not kinds or any(_fits_kind(value, kind, schema, accepted) for kind in kinds):
        return True
    first = next((want for want in accepted if want != ""), None)
    return first is not None and type(value) is type(first) and not isinstance(value, list)


def _kinds(schema: Any) -> list[str]:
    """The declared types; none where the schema leaves them open, as `true` does."""
    return listed(schema.get("type") or []) if isinstance(schema, dict) else []


def _takes_lists(schema: Any, accepted: list[Any]) -> bool:
    kinds = _kinds(schema)
    return "array" in kinds if kinds else any(isinstance(want, list) for want in accepted)


def _fits_kind(value: Any, kind: str, schema: dict[str, Any], accepted: list[Any]) -> bool:
    if not isinstance(value, PYTHON_TYPES.get(kind, ())):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if not isinstance(value, list):
        return True
    lists = [want for want in accepted if isinstance(want, list)] or [[]]
    items = schema.get("items") or {}
    return any(all(_fits(item, items, want) for item in value) for want in lists)


def judge_value(
    value: Any, accepted: list[Any], schema: dict[str, Any], language: str | None = None
) -> ErrorType | None:
    """VALUE_TYPE, VALUE, or None where the value is accepted.

    With a language, the value must be source text of it that stands for an accepted value.
    """
    if language is not None:
        return _judge_literal(value, accepted, language)
    if not _fits(value, schema, accepted):
        return ErrorType.VALUE_TYPE
    if value == [] and "" in accepted and _takes_lists(schema, accepted):
        return None  # an empty list stands for what may be left out
    return None if any(_matches(value, want) for want in accepted) else ErrorType.VALUE


def _judge_literal(value: Any, accepted: list[Any], language: str) -> ErrorType | None:
    if not isinstance(value, str):
        return ErrorType.VALUE_TYPE
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    # JavaScript strings may come in their quotes; BFCL takes Java's bare.
    bare = value[1:-1] if quoted and language == "javascript" else value
    if any(isinstance(want, str) and _matches(bare, want) for want in accepted):
        return None
    typed = [want for want in accepted if not isinstance(want, str)]
    if not typed:
        return ErrorType.VALUE
    read = read_literal(value)
    if any(_matches(read, want) for want in typed):
        return None
    numbers = isinstance(read, int | float) and isinstance(typed[0], int | float)
    alike = type(read) is type(typed[0]) or (
        numbers and isinstance(read, bool) == isinstance(typed[0], bool)
    )
    return ErrorType.VALUE if alike else ErrorType.VALUE_TYPE


# Judging calls -----------------------------------------------------------------------------------


def exact_reference(calls: list[Call]) -> list[Call]:
    """A reference that accepts these calls and no others, as far as the judge tells them apart."""
    return [
        {"name": call["name"], "arguments": {p: [_exact(v)] for p, v in call["arguments"].items()}}
        for call in calls
    ]


def _exact(value: Any) -> Any:
    """The value such that nested objects too hold lists of accepted values."""
    if isinstance(value, dict):
        return {k: [_exact(v)] for k, v in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    # An empty string would mean "may be left out"; a blank equals it where values are compared.
    return " " if value == "" else value


def judge(response: Response, reference: list[Call], tools: list[Tool]) -> Verdict:
    """Is the response right by the reference and, if not, which error is the gravest?

    Words without any sign of a call count as calling nothing: right where the reference is empty,
    the wrong number of calls elsewhere.
    """
    calls = parse_calls(response)
    if calls is None:
        if not words_of(response) or attempts_call(words_of(response), tools):
            return Verdict(False, ErrorType.PARSING, "the response does not parse as calls")
        calls = []
    if len(calls) != len(reference):
        wanted = f"{len(calls)} calls, {len(reference)} wanted"
        return Verdict(False, ErrorType.CALL_COUNT, wanted)
    # Sorted, so that the verdict does not depend on the order in which calls are given.
    faults = _least_faults(sorted(calls, key=_key), sorted(reference, key=_key), _by_name(tools))
    if not faults:
        return Verdict(True)
    return Verdict(False, *min(faults, key=_rank))


def attempts_call(text: str, tools: list[Tool]) -> bool:
    """Does a text that does not parse as calls nevertheless try to make one?"""
    if "<tool_call" in text or "tool_calls" in text or text.lstrip()[:1] in ("{", "["):
        return True
    if re.search(r'"(name|function|arguments|parameters)"\s*:', text):
        return True
    return any(f"{name}(" in text or f"{name}:" in text for name in _by_name(tools))


def _key(call: Call) -> str:
    return json.dumps(call, sort_keys=True)


Fault = tuple[ErrorType, str]


def _least_faults(calls: list[Call], reference: list[Call], tools: dict[str, Tool]) -> list[Fault]:
    """The faults left when as many calls as possible are matched to what they satisfy."""
    faults = [[_call_fault(call, want, tools) for want in reference] for call in calls]
    owner: dict[int, int] = {}  # which call satisfies which wanted call

    def satisfy(i: int, tried: set[int]) -> bool:
        for j, fault in enumerate(faults[i]):
            if fault is None and j not in tried:
                tried.add(j)
                if j not in owner or satisfy(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    unmatched = [i for i in range(len(calls)) if not satisfy(i, set())]
    left = [j for j in range(len(reference)) if j not in owner]
    return list(_pair_off(unmatched, left, faults))


def _pair_off(
    unmatched: list[int], left: list[int], faults: list[list[Fault | None]]
) -> Iterable[Fault]:
    """Each unmatched call against the wanted call that it comes nearest to."""
    for i in unmatched:
        near = max(left, key=lambda j: _gravity(faults[i][j]))
        left.remove(near)
        fault = faults[i][near]
        assert fault is not None, "an unmatched call satisfies a wanted call that is left"
        yield fault


def _gravity(fault: Fault | None) -> int:
    return len(_GRAVITY) if fault is None else _GRAVITY[fault[0]]


def _call_fault(call: Call, want: Call, tools: dict[str, Tool]) -> Fault | None:
    """The gravest of what is wrong with one call against one wanted call."""
    return min(_call_faults(call, want, tools), key=_rank, default=None)


def _rank(fault: Fault) -> tuple[int, str]:
    # The detail settles ties, so that not even the words depend on the order of the arguments.
    return _GRAVITY[fault[0]], fault[1]


def _call_faults(call: Call, want: Call, tools: dict[str, Tool]) -> Iterator[Fault]:
    """All that is wrong with one call; a call of another function is nothing but that."""
    name, given, accepted = call["name"], call["arguments"], want["arguments"]
    if name != want["name"]:
        yield ErrorType.FUNCTION_NAME, f"{name!r} is called, {want['name']!r} wanted"
        return
    properties = _properties(tools.get(name))
    required = ((tools.get(name) or {}).get("parameters") or {}).get("required") or []
    for param in required:
        if param not in given:
            yield ErrorType.MISSING_REQUIRED, f"{name} lacks {param!r}"
    for param, value in given.items():
        if param not in properties or param not in accepted:
            yield ErrorType.UNEXPECTED, f"{name} is given {param!r}"
            continue
        error = judge_value(value, accepted[param], properties[param], want.get("language"))
        if error is not None:
            yield error, f"{name}.{param} is {value!r}, accepted: {accepted[param]!r}"
    for param, values in accepted.items():
        if param not in given and param not in required and "" not in values:
            yield ErrorType.MISSING_OPTIONAL, f"{name} lacks {param!r}"
