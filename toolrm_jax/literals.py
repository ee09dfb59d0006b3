"""Java and JavaScript values as source text: how such tools take their arguments.

BFCL's Java and JavaScript tools, and so FC-RewardBench's, declare every parameter a string and
expect the value as that language would write it.

    value           Java                                   JavaScript
    3               3   (long: 3L)                         3
    True            true                                   true
    ["a", "b"]      new String[]{"a", "b"}                 ["a", "b"]
    {"limit": 50}   new HashMap<>() {{ put("limit", 50); }}  {"limit": 50}

>>> write_literal([1, 2], "ArrayList", "java")
'new ArrayList<>(Arrays.asList(1, 2))'
>>> read_literal('new String[]{"a", "b"}')
['a', 'b']
>>> read_literal("['width', 'height']")
['width', 'height']
>>> read_literal("{stopPropagation: true}")
{'stopPropagation': True}
"""

import json
import re
from typing import Any

_JAVA_ELEMENT = {str: "String", bool: "boolean", int: "int", float: "double"}
_JAVA_LIST = re.compile(
    r"""(?:new\s+[\w.<>]*\[\]\s*\{(?P<array>.*)\}
        |(?:new\s+\w+<[^>]*>\()?\s*(?:Arrays\.asList|List\.of)\((?P<list>[^()]*)\)\)?)""",
    re.DOTALL | re.VERBOSE,
)
_JAVA_PUT = re.compile(r"put\(\s*(.+?)\s*\)\s*;")
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)[lLfFdDn]?")
_WORDS = {"true": True, "false": False, "null": None}


def read_json(text: str) -> Any:
    """The JSON value; ValueError too for what the standard does not know, and Python cannot hold.

    That is NaN and Infinity, thousands of brackets in one another, and thousands of digits.
    """
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_literal(value: Any, declared: str, language: str) -> str:
    """The value as source text of the language, for a parameter of the declared type."""
    if isinstance(value, str):
        return value
    if language == "javascript":
        return json.dumps(_whole(value), ensure_ascii=False)
    if isinstance(value, list):
        items = ", ".join(json.dumps(item, ensure_ascii=False) for item in value)
        if declared != "Array":
            return f"new ArrayList<>(Arrays.asList({items}))"
        kinds = {type(item) for item in value}
        element = _JAVA_ELEMENT.get(kinds.pop(), "Object") if len(kinds) == 1 else "Object"
        return f"new {element}[]{{{items}}}"
    if isinstance(value, dict):
        puts = " ".join(
            f"put({json.dumps(k)}, {json.dumps(v, ensure_ascii=False)});" for k, v in value.items()
        )
        return f"new HashMap<>() {{{{ {puts} }}}}"
    return json.dumps(value) + ("L" if declared == "long" else "")


def _whole(value: Any) -> Any:
    # JavaScript writes 3, never 3.0.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_whole(item) for item in value] if isinstance(value, list) else value


def read_literal(text: str) -> Any:
    """The value that the source text stands for; the text itself when it is none of ours."""
    text = text.strip()
    try:
        return _read(text)
    except (ValueError, RecursionError):
        return text  # too deep or too many digits, as in `read_json`


def _read(text: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        pass
    if number := _NUMBER.fullmatch(text):
        return json.loads(number[1])
    if listed := _JAVA_LIST.fullmatch(text):
        return _items(listed["array"] if listed["array"] is not None else listed["list"])
    if "HashMap" in text:
        puts = [_items(put) for put in _JAVA_PUT.findall(text)]
        return {str(put[0]): put[1] for put in puts if len(put) == 2}
    if text[:1] == "[" and text[-1:] == "]":
        return _items(text[1:-1])
    if text[:1] == "{" and text[-1:] == "}":
        pairs = [part.partition(":") for part in _split(text[1:-1])]
        return {key.strip().strip("'\""): _item(value.strip()) for key, _, value in pairs}
    return text


def _items(body: str) -> list[Any]:
    return [_item(part.strip()) for part in _split(body) if part.strip()]


def _item(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return _WORDS[text] if text in _WORDS else read_literal(text)


def _split(body: str) -> list[str]:
    """The parts between commas that stand outside quotes and brackets."""
    parts, depth, quote, start = [], 0, "", 0
    for i, char in enumerate(body):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(body[start:i])
            start = i + 1
    return [*parts, body[start:]]
