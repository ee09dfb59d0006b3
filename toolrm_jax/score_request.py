"""What can be asked of a scorer: rows in three forms -> Request(tools, messages, responses).

    own              {"id", "tools", "messages", "responses": [response, ...]}
    FC-RewardBench   {"tools", "conversation", "chosen_output", "rejected_output", "test_id"}
    preferences      {"prompt", "chosen", "rejected"} or {"chosen", "rejected"} (TRL's explicit and
                     implicit prompt), and this project's own {"messages", "chosen", "rejected"}

A response is a list of calls, a string, or an assistant message. Of a row with two sides the chosen
one comes first. Tools may be JSON text, as Arrow tables often hold them, and may be absent.

    >>> request_of({"messages": [{"role": "user", "content": "Hi"}], "responses": ["Hello."]}).id
"""

import dataclasses
import json
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Message, Response, Tool


class RequestError(InputError, ValueError):
    """A row that is no request; the message says what was found and what was expected."""


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
        messages, responses = _messages(row), _list(row["responses"], "responses")
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
    return Request(_tools(row), messages, responses, row.get("id", row.get("test_id")))


def without_nulls(value: Any) -> Any:
    """The value without the fields that are null: Arrow gives every object of a column all fields
    that any of them has."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _tools(row: dict[str, Any]) -> list[Tool]:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise RequestError(f"tools: expected JSON, found {error}") from None
    return _list(tools or [], "tools")


def _messages(row: dict[str, Any]) -> list[Message]:
    name = "messages" if "messages" in row else "conversation"
    return _list(row.get(name), name)


def _preference(row: dict[str, Any]) -> tuple[list[Message], list[Response]]:
    """Messages, and the chosen and the rejected response(s)."""
    if "messages" in row or "conversation" in row:
        rejected = row["rejected"] if isinstance(row["rejected"], list) else [row["rejected"]]
        wrongs = [w["response"] if isinstance(w, dict) and "response" in w else w for w in rejected]
        return _messages(row), [row["chosen"], *wrongs]
    if "prompt" in row:
        prompt = row["prompt"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return _list(prompt, "prompt"), [_turn(row[side], side) for side in ("chosen", "rejected")]
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RequestError(
            "'chosen' and 'rejected' are texts without a 'prompt', so that where the answer begins "
            "is unknown: give 'prompt', or both sides as lists of messages"
        )
    chosen, rejected = _list(chosen, "chosen"), _list(rejected, "rejected")
    shared = _shared(chosen, rejected)
    sides = {"chosen": chosen[shared:], "rejected": rejected[shared:]}
    return chosen[:shared], [_turn(turns, side) for side, turns in sides.items()]


def _shared(a: list[Any], b: list[Any]) -> int:
    """Messages that two conversations begin with; the last of either is an answer."""
    most = max(min(len(a), len(b)) - 1, 0)
    return next((i for i in range(most) if a[i] != b[i]), most)


def _turn(side: Any, name: str) -> Response:
    """A side as a response: words, calls, or the one assistant message in a list."""
    if not isinstance(side, list) or not any(isinstance(m, dict) and "role" in m for m in side):
        return side
    if len(side) != 1:
        roles = [m.get("role") if isinstance(m, dict) else None for m in side]
        raise RequestError(
            f"{name}: expected one assistant message after the shared conversation, found messages "
            f"of {roles}"
        )
    return side[0]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(f"expected a list under {name!r}, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
