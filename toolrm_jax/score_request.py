"""What can be asked of a scorer: rows in three forms -> Request(tools, messages, responses).

    own              {"id", "tools", "messages", "responses": [response, ...]}
    FC-RewardBench   {"tools", "conversation", "chosen_output", "rejected_output", "test_id"}
    preferences      {"prompt", "chosen", "rejected"} or {"chosen", "rejected"} (TRL's explicit and
                     implicit prompt), and this project's own {"messages", "chosen", "rejected"}

A response is a list of calls, a string, or an assistant message. Of a row with two sides the chosen
one comes first; a side that is a list of messages is the turn in it, after the conversation that it
may repeat. Tools, messages and the list of responses may be JSON text, as Arrow tables often hold
them, tools may be absent, and tuples stand for lists. A row's name is its "id", or else its
"test_id": text or a whole number.

    >>> request_of({"messages": [{"role": "user", "content": "Hi"}], "responses": ["Hello."]}).id
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Message, Response, Tool
from toolrm_jax.literals import read_json


class RequestError(InputError, ValueError):
    """A row that is no request; the message says what was found and what was expected."""


# Why something is not scored.
NOT_JSON = "not JSON"
NO_REQUEST = "not a request"
BAD_TOOL = "bad tool"
CANNOT_RENDER = "cannot be rendered"
OVER_LONG = "over-long"
# A whole request of a server's client.
TOO_MANY_TOKENS = "too many tokens"
BODY_TOO_BIG = "body too big"


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt with N >= 1 responses to be scored."""

    tools: list[Tool]
    messages: list[Message]
    responses: list[Response]
    id: Any = None


@dataclasses.dataclass(frozen=True)
class Rejected:
    """What is not scored, and why: a reason from a short list, and the details."""

    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def request_of(row: Any) -> Request:
    """The request that a row stands for, in whichever form; raises RequestError."""
    if isinstance(row, Request):
        return row
    if not isinstance(row, dict):
        raise RequestError(f"expected an object, found {type(row).__name__}")
    if row.get("responses") is not None:
        messages = _messages(row)
        responses = _list(_read(row["responses"], "responses"), "responses")
    elif "chosen_output" in row and "rejected_output" in row:
        messages = _messages(row)
        responses = [row["chosen_output"], row["rejected_output"]]
    elif "chosen" in row and "rejected" in row:
        messages, responses = _preference(row)
    else:
        raise RequestError(
            f"expected 'messages' and 'responses', or 'chosen_output' and 'rejected_output', or "
            f"'chosen' and 'rejected'; found the fields {', '.join(map(repr, row)) or 'none'}"
        )
    if not messages:
        raise RequestError("expected at least one message, found an empty list")
    if not responses:
        raise RequestError("expected at least one response, found an empty list")
    for number, response in enumerate(responses):
        if not isinstance(response, list | str | dict):
            raise RequestError(
                f"responses[{number}]: expected a list of calls, a string or an assistant message, "
                f"found {_short(response)}"
            )
    return Request(_tools(row), messages, responses, id_of(row))


def no_number_in(value: Any) -> str | None:
    """The first NaN, Infinity or -Infinity in a value, by its name: JSON knows none of them, so
    that no request which comes as text has any."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return None
    return next((found for item in value if (found := no_number_in(item))), None)


def id_of(row: dict[str, Any]) -> str | int | None:
    """The name that a row gives itself, if it does; raises RequestError for what is no name."""
    name = row.get("id")
    name = row.get("test_id") if name is None else name
    if name is None or isinstance(name, str) or type(name) is int:
        return name
    raise RequestError(f"id: expected text or a whole number, found {_short(name)}")


def id_or_none(row: Any) -> str | int | None:
    """The name that a row gives itself; what is no name is not given back."""
    try:
        return id_of(row) if isinstance(row, dict) else None
    except RequestError:  # the row is rejected for it
        return None


def without_nulls(value: Any) -> Any:
    """The value without the fields that are null: Arrow gives every object of a column all fields
    that any of them has."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _tools(row: dict[str, Any]) -> list[Tool]:
    tools = row.get("tools")
    return _list(_read(tools, "tools") if tools else [], "tools")


def _messages(row: dict[str, Any]) -> list[Message]:
    other = row.get("messages") is None and "conversation" in row
    name = "conversation" if other else "messages"
    return _list(_read(row.get(name), name), name)


def _read(value: Any, name: str) -> Any:
    """The value, or what it is the JSON text of."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value) if value.strip() else []
    except ValueError as error:
        raise RequestError(f"{name}: expected a list or its JSON text, found {error}") from None


def _preference(row: dict[str, Any]) -> tuple[list[Message], list[Response]]:
    """Messages, and the chosen and the rejected response(s)."""
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("messages") is not None or row.get("conversation") is not None:
        messages = _messages(row)
        return messages, [_turn(chosen, "chosen", messages), *_wrongs(rejected, chosen, messages)]
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        if not (_are_messages(chosen) and _are_messages(rejected) and len(chosen) > 1):
            prompt = [{"role": "user", "content": prompt}]
    elif prompt is not None:
        prompt = _list(prompt, "prompt")
    if isinstance(prompt, list):
        return prompt, [_turn(row[side], side, prompt) for side in ("chosen", "rejected")]
    return _implicit(chosen, rejected, prompt)


def _implicit(chosen: Any, rejected: Any, text: str | None) -> tuple[list[Message], list[Response]]:
    """The messages that two conversations begin with, and what each has after them.

    A `text` of the prompt beside them must be what a user says in there.
    """
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RequestError(
            "'chosen' and 'rejected' are texts without a 'prompt', so that where the answer begins "
            "is unknown: give 'prompt', or both sides as lists of messages"
        )
    chosen, rejected = _list(chosen, "chosen"), _list(rejected, "rejected")
    shared = _shared(chosen, rejected)
    messages = chosen[:shared]
    said = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    if text is not None and text not in said:
        raise RequestError(
            f"'prompt' is the text {_short(text)}, and the conversations under 'chosen' and "
            f"'rejected' do not share a user's message of that text: leave 'prompt' out, or give "
            f"the answers alone"
        )
    return messages, [_turn(chosen[shared:], "chosen"), _turn(rejected[shared:], "rejected")]


def _wrongs(rejected: Any, chosen: Any, messages: list[Message]) -> list[Response]:
    """The wrong responses: {"response": ...} each, or responses as they are, or one turn."""
    if not isinstance(rejected, list):
        return [_turn(rejected, "rejected", messages)]
    if not rejected:
        raise RequestError(
            "rejected: expected at least one wrong response, found an empty list; one that calls "
            "nothing is [[]]"
        )
    bare = all(isinstance(wrong, dict) and "response" not in wrong for wrong in rejected)
    # Calls, or messages where the other side is a list of messages too, are one response.
    if bare and (_are_messages(chosen) or not _are_messages(rejected)):
        return [_turn(rejected, "rejected", messages)]
    wrongs = [w["response"] if isinstance(w, dict) and "response" in w else w for w in rejected]
    return [_turn(wrong, f"rejected[{n}]", messages) for n, wrong in enumerate(wrongs)]


def _shared(a: list[Any], b: list[Any]) -> int:
    """Messages that two conversations begin with; the last of either is an answer."""
    most = max(min(len(a), len(b)) - 1, 0)
    return next((i for i in range(most) if a[i] != b[i]), most)


def _are_messages(side: Any) -> bool:
    """Is it a list of messages, and not one of calls?"""
    return isinstance(side, list) and any(isinstance(m, dict) and "role" in m for m in side)


def _turn(side: Any, name: str, before: Sequence[Message] = ()) -> Response:
    """A side as a response: words, calls, or the one assistant message in a list that may begin
    with the conversation `before` it."""
    if not _are_messages(side):
        return side
    if before and side[: len(before)] == list(before):
        side = side[len(before) :]
    if len(side) != 1:
        roles = [m.get("role") if isinstance(m, dict) else None for m in side]
        raise RequestError(
            f"{name}: expected one assistant message after the shared conversation, found messages "
            f"of {roles}"
        )
    return side[0]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RequestError(f"expected a list under {name!r}, found {_short(value)}")
    return list(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
