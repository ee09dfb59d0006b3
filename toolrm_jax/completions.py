"""What trainers hand to a reward function -> what is scored, and what is odd about it.

    prompt           completion             is scored as
    messages         text, or one message   a request: tools, messages, that response
    messages         several messages       the last one; those before it join the conversation
    text             text                   the text prompt + completion, at the end of its turn
    text, and the data set has messages     as the messages are: the text is what they render to

Where the prompt is a conversation, a data set's `messages` must be the same one: sets for SFT hold
there what the right answer is, which the reward model must not see.

A trainer may cut the end-of-turn token off a completion or leave it. Left, it is taken off where
the template will write it again; cut, it is put back where a text is scored, unless the completion
is known to be truncated. Columns from Arrow are cleaned of nulls, JSON text and arrays are read;
what the policy wrote stays as it is: {"city": null} is another argument than none.

    >>> read_completion([{"role": "user", "content": "Hi"}], "Hello.<|im_end|>", end="<|im_end|>")
    Completion(response='Hello.', ended=True, request={...}, text=None)
"""

import dataclasses
from typing import Any, Literal

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Response, Tool
from toolrm_jax.literals import read_json
from toolrm_jax.schema import unwrapped
from toolrm_jax.score_request import without_nulls
from toolrm_jax.tool_calls import attempts_call, parse_calls, words_of

Kind = Literal["over_long", "truncated", "empty", "unparseable", "unscorable"]


class CompletionError(InputError, ValueError):
    """What a trainer hands over is not in its own form; the message says what was found."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One completion: the turn itself, and the request or the text that stands for it."""

    response: Response
    ended: bool | None  # None: whether it was cut short cannot be known
    request: dict[str, Any] | None = None
    text: str | None = None

    @property
    def fault(self) -> Kind | None:
        """What can be told without a model: the first of truncated, empty, unparseable."""
        if self.ended is False:
            return "truncated"
        words = words_of(self.response)
        calls = self.response.get("tool_calls") if isinstance(self.response, dict) else None
        if not calls and not words.strip():
            return "empty"
        if parse_calls(self.response) is None and (calls or attempts_call(words, self._tools())):
            return "unparseable"
        return None

    def _tools(self) -> list[Tool]:
        """The tools that have a name; others are for the scorer to reject."""
        tools = (self.request or {}).get("tools")
        objects = [tool for tool in tools if isinstance(tool, dict)] if tools else []
        return [tool for tool in objects if _is_named(unwrapped(tool))]


def read_completion(
    prompt: Any,
    completion: Any,
    *,
    tools: Any = None,
    messages: Any = None,
    ended: bool | None = None,
    end: str | None = None,
    keeps_end: bool = False,
) -> Completion:
    """A completion as a trainer hands it over.

    Args:
      prompt: messages, or text.
      completion: text, or a list of messages that ends with the turn to score.
      tools, messages: what the data set has of them: lists, arrays or JSON text. `messages` are
        for a prompt that is text, and end before the turn.
      ended: whether the policy ended its turn, where its token ids say so.
      end: the text that ends a turn.
      keeps_end: completions keep that text, so that one without it is truncated.

    Raises:
      CompletionError: prompt, messages and completion do not go together.
    """
    messages, tools = _conversation(prompt, plain(messages)), plain(tools)
    if not isinstance(completion, str) and _listed(completion) in (None, []):
        completion = ""  # nothing was said, in whatever form
    before: list[Any] = []
    response: Response
    if isinstance(completion, str):
        response, found = _without_end(completion, end)
        ended = _ended(ended, found, keeps_end)
    else:
        before, turn, whole = _last_turn(completion)
        found = isinstance(turn.get("content"), str)
        if found:
            words, found = _without_end(turn["content"], end)
            turn = turn | {"content": words}
        response, ended = turn, _ended(ended, found, keeps_end=False) if whole else False
    if messages is not None:
        request = {"tools": tools or [], "messages": messages, "responses": [response]}
        if before and isinstance(messages, list):
            request["messages"] = [*messages, *before]
        return Completion(response, ended, request=request)
    if not isinstance(response, str):
        raise CompletionError(
            f"The prompt is text and the completion is messages: {_short(completion)}. Give both "
            f"as text, or both as messages."
        )
    tail = "" if ended is False else end or ""
    return Completion(response, ended, text=prompt + response + tail)


def _conversation(prompt: Any, messages: Any) -> Any:
    """What the policy was asked, by the prompt or by the data set; None where it is text alone."""
    own = None if isinstance(prompt, str) else plain(prompt)
    if messages is not None and own is not None and own != messages:
        raise CompletionError(
            f"The prompt is a conversation, {_short(own)}, and 'messages' is another one, "
            f"{_short(messages)}. What was asked? 'messages' stands for prompts that are text: "
            f"leave it out (dataset.remove_columns('messages')), or make it the same."
        )
    if own is None and isinstance(messages, list) and messages and _is_answer(messages[-1]):
        raise CompletionError(
            f"'messages' ends with an assistant's turn, {_short(messages[-1])}: the reference "
            f"answer, which the reward model must not see? Give what stands before the turn that "
            f"the policy takes."
        )
    return own if messages is None else messages


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def plain(value: Any) -> Any:
    """A column's value as lists and objects without nulls: from JSON text, arrays, Arrow's rows.

    Text that is no JSON stays text, for the scorer to reject.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        try:
            return read_json(value) if value.strip() else None
        except ValueError:
            return value
    return without_nulls(_listed(value))


def _listed(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's, as verl's and Tunix's columns are
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _is_named(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("name"), str)


def _without_end(text: str, end: str | None) -> tuple[str, bool]:
    """The text before the end of the turn, and whether that was there; more than one are padding,
    where the end is the pad."""
    shorter = text.rstrip()
    if not end or not shorter.endswith(end):
        return text, False
    while shorter.endswith(end):
        shorter = shorter.removesuffix(end)
    return shorter, True


def _ended(known: bool | None, found: bool, keeps_end: bool) -> bool | None:
    if known is not None:
        return known
    return True if found else (False if keeps_end else None)


def _last_turn(completion: Any) -> tuple[list[Any], dict[str, Any], bool]:
    """The messages before the last turn, that turn, and whether there is one.

    There is none where the budget ran out on a tool's result.
    """
    turns = _listed(completion)
    if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
        raise CompletionError(
            f"Expected a completion as text or as a list of messages, found {_short(completion)}."
        )
    turns = [_said(turn) for turn in turns]
    if turns[-1].get("role") == "assistant":
        return turns[:-1], turns[-1], True
    return turns, {"role": "assistant", "content": ""}, False


def _said(turn: dict[str, Any]) -> dict[str, Any]:
    """The message without the words or the calls that it does not have."""
    return {k: v for k, v in turn.items() if v is not None or k not in ("content", "tool_calls")}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
