"""Rows of `messages` and `tools`, as OpenAI's API takes them: chat logs and fine-tuning files.

    {"messages": [{"role": "user", "content": "Rain in Rome?"},
                  {"role": "assistant", "tool_calls": [{"type": "function", "function":
                       {"name": "rain", "arguments": "{\"city\": \"Rome\"}"}}]}],
     "tools": [{"type": "function", "function": {"name", "description", "parameters"}}]}

Every assistant turn is an answer to what stands before it: its calls are gold, or, where it has
words only, calling nothing and saying that is. `turns="last"` takes the last one alone. Messages
after the last assistant turn are not read. `tools` may be JSON text. The licence is yours to say.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.source import (
    Draft,
    Fault,
    Reason,
    Reject,
    examples,
    field,
    message_text,
    parsed,
    rows,
)


def read(
    path: str | os.PathLike[str],
    *,
    license: str,
    name: str = "openai",
    turns: Literal["all", "last"] = "all",
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
) -> Iterator[Example | Reject]:
    """The examples of a file or a hub's data set of such rows."""
    if turns not in ("all", "last"):
        raise InputError(f"turns is {turns!r}; expected 'all' or 'last'")

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        messages = parsed(field(row, "messages", (str, list)), "messages")
        tools = parsed(field(row, "tools", (str, list)), "tools")
        answers = _assistant_turns(messages)
        for index in answers if turns == "all" else answers[-1:]:
            made = messages[index].get("tool_calls") or []
            id_ = f"{name}/{row.get('id', line)}/{index}"
            words = message_text(messages[index], index)
            yield Draft(id_, tools, messages[:index], made, words=words)

    values = rows(path, split=split, subset=subset, revision=revision)
    return examples(name, license, values, drafts)


def _assistant_turns(messages: Any) -> list[int]:
    """Where assistant turns stand that answer something."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Fault(Reason.MESSAGES, f"expected a list of messages, found {messages!r:.80}")
    found = [i for i, m in enumerate(messages) if m.get("role") == "assistant" and i > 0]
    if not found:
        raise Fault(Reason.MESSAGES, "no assistant turn, so nothing that was right to answer")
    return found
