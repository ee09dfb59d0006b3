"""Messages and answers in the one form that everything behind the reader takes.

    message   {"role", "content": text, "tool_calls": [{"name", "arguments"}, ...], ...}
    answer    words  |  [{"name", "arguments"}, ...]  |  a message, where it has more than one of
                                                         words, calls and reasoning

Calls in OpenAI's form ({"id", "type", "function": {"name", "arguments": JSON text}}) become plain.
An answer's list of calls of which one is none becomes the text that the renderer shows for it, for
such an answer is wrong, but one. In a conversation a call that is none is an error.

>>> made = {"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}
>>> plain_answer([made])
[{'name': 'now', 'arguments': {}}]
>>> plain_message({"role": "assistant", "content": None, "tool_calls": [made]}, 0)["tool_calls"]
[{'id': 'c', 'name': 'now', 'arguments': {}}]
"""

from collections.abc import Callable
from typing import Any

from toolrm_jax.examples import Call, Message, Response
from toolrm_jax.rendering import RenderError, assistant_turn, checked_message
from toolrm_jax.tool_calls import parse_calls


def plain_message(message: Any, index: int) -> Message:
    """The message at the index of a conversation. Raises RenderError."""
    out = checked_message(message, index)
    given = out.pop("tool_calls", [])
    calls = parse_calls(given)
    if calls is None:
        raise RenderError(
            f"messages[{index}]: expected calls with a name and arguments that are an object, "
            f"found {given!r:.120}"
        )
    _check_texts(out, f"messages[{index}]")
    if calls:
        ids = [call.get("id") for call in given]
        out["tool_calls"] = [
            {"id": id_} | call if id_ else call for id_, call in zip(ids, calls, strict=True)
        ]
    return out


def plain_answer(answer: Response) -> Response:
    """What an answer says and calls; rendered, it is the same. Raises RenderError."""
    if isinstance(answer, str) or answer == []:
        return answer
    if isinstance(answer, dict) and not {"role", "content", "tool_calls"} & answer.keys():
        answer = parse_calls(answer) or [answer]  # a single call, broken or not
    turn = assistant_turn(answer, [], raw=True)
    _check_texts(turn, "An answer")
    calls = [call["function"] for call in turn.pop("tool_calls", [])]
    if "reasoning_content" in turn or (calls and turn["content"]):
        return turn | ({"tool_calls": calls} if calls else {})
    return calls or turn["content"]


def _check_texts(message: Message, what: str) -> None:
    """Templates join these to texts, and names are looked up."""
    for key in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(message.get(key, ""), str):
            raise RenderError(f"{what}: expected text as {key}, found {message[key]!r:.80}")


def with_calls(answer: Response, change: Callable[[Call], Call]) -> Response:
    """The answer with each of its calls changed, those in a text too; words stay."""
    said = plain_answer(assistant_turn(answer, [])) if isinstance(answer, str) else answer
    if isinstance(said, str):
        return answer
    if isinstance(said, list):
        return [change(call) for call in said]
    calls = [change(call) for call in said.get("tool_calls") or []]
    return said | ({"tool_calls": calls} if calls else {})
