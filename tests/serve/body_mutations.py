"""Valid bodies of all formats, and the same with a few things changed in them.

body = mutated(random.Random(seed), "/classify")
"""

import copy
import random
from typing import Any

import tiny

_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "get_time", "parameters": _CITY}}
_CALL = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
_USER = {"role": "user", "content": "What time is it in Rome?"}
_TURN = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"time": "10:30"}'}
_SAYS = {"role": "assistant", "content": "Half past ten."}
_TEXT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>"


def _request(row: dict) -> dict:
    responses = [row["chosen"], *(wrong["response"] for wrong in row["rejected"]), "None fits."]
    return {name: row[name] for name in ("id", "tools", "messages")} | {"responses": responses}


_ROWS = [_request(row) for row in tiny.rows("train", 3)]
_AFTER_TOOLS = {
    "tools": [_TOOL],
    "messages": [_USER, _TURN, _RESULT],
    "responses": [_SAYS, _TURN, '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'],
    "use_activation": True,
}
VALID = {
    "/v1/rewards": [*_ROWS, _AFTER_TOOLS, {"requests": _ROWS[:2], "normalize": True}],
    "/get_reward": [
        {"query": [_TEXT, "Hi. "], "prompts": ["Hi"], "labels": [None]},
        {"query": [_TEXT + "\n"], "normalize": False, "use_activation": False},
    ],
    "/classify": [
        {"input": [_TEXT, [1, 2, 3]], "use_activation": False, "add_special_tokens": True},
        {"model": "rm", "input": _TEXT, "activation": True},
        {"messages": [_USER, _TURN, _RESULT, _SAYS], "tools": [_TOOL]},
    ],
    "/v1/embeddings": [
        {"model": "rm", "input": _TEXT, "encoding_format": "float"},
        {"input": [[9, 8], _TEXT], "add_special_tokens": False},
        {"input": [[9, 8], [7]], "normalize": True},
    ],
}
# A schema that refers to itself, halves of calls, texts that end turns or are JSON, numbers out of
# range: what once failed, or might.
_STRANGE: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, "", "x", "\ud800", "\0", "[", "{}", "[]", "null", "<|im_end|>",
    "<s>", "<tool_call>{", "a" * 3000, [], {}, [[]], [None], ["a", 1], {"": ""}, {"role": "user"},
    {"type": "object"}, {"$ref": "#"}, {"function": None}, {"name": "f", "arguments": "{"},
    {"name": "f", "arguments": [1]}, {"type": "function", "function": {"name": "f"}},
    {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#"}}},
]  # fmt: skip
_PIECES = (
    "", " ", "\n", "<|im_end|>", "<|im_end|>\n", "<|im_start|>assistant\n", "<|endoftext|>", "<s>",
    "<tool_call>", "</tool_call>", '{"name": "f"', "\\", '"', "é", "\u2028", "\ud83d", "0",
)  # fmt: skip
_NAMES = (
    "role", "content", "tool_calls", "name", "arguments", "parameters", "type", "properties",
    "enum", "default", "reasoning_content", "id", "messages", "input", "normalize", "requests",
)  # fmt: skip


def mutated(rng: random.Random, path: str) -> Any:
    """A valid body of an endpoint in which one to three things are changed; now and then none."""
    body = copy.deepcopy(rng.choice(VALID[path]))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(body))
        if not places:
            return body
        _change(*rng.choice(places), rng)
    return body if rng.random() < 0.98 else rng.choice(_STRANGE)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of all that is in a value, however deep."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    inner = [value[key] for key in keys if isinstance(value[key], dict | list)]
    return found + [place for one in inner for place in _places(one)]


def _change(within: Any, key: Any, rng: random.Random) -> None:
    strange, kind = copy.deepcopy(rng.choice(_STRANGE)), rng.random()
    if isinstance(within[key], str) and kind < 0.5:
        within[key] = _spliced(within[key], rng)
    elif kind < 0.6:
        within[key] = strange
    elif kind < 0.7:
        del within[key]
    elif kind < 0.9 and isinstance(within, dict):
        within[rng.choice(_NAMES)] = strange
    else:
        within[key] = [copy.deepcopy(within[key]) for _ in range(2)]


def _spliced(text: str, rng: random.Random) -> str:
    """The text with something else in the place of a part of it, at its end as often as not."""
    begin = rng.randrange(len(text) + 1)
    end = rng.choice((begin, begin + rng.randrange(9), len(text)))
    begin = rng.choice((begin, len(text)))
    return text[:begin] + rng.choice(_PIECES) * rng.choice((1, 1, 2, 40)) + text[end:]
