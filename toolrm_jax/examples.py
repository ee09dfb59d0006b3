"""A task: the tools on offer, the conversation so far, and the answers that count as right.

    Example
      tools      [{"name", "description", "parameters": JSON Schema}, ...]
      messages   [{"role", "content"}, ...]                 ends with the turn to answer
      reference  [{"name", "arguments": {param: [accepted values]}}, ...]   [] = call nothing
      gold       [{"name", "arguments": {param: value}}, ...]   the first accepted answer
      words      where gold is []: what the right turn says. "" nothing, or nobody knows; None: that
                 no tool on offer does what was asked, in whatever words
      by_outcome   whether calls are right by what they bring about, so that other calls than the
                 gold may be right too, and only who tried them can tell

A reference may carry "language": "java" | "javascript": its values then arrive as source text
(see `literals`). Readers such as `bfcl` make examples; `pairs` turns them into training rows.

>>> Example(id="t/0", source="t", license="MIT", tools=[], messages=[], reference=[], gold=[]).id
't/0'
"""

from dataclasses import dataclass
from typing import Any

Call = dict[str, Any]  # {"name": str, "arguments": dict}
Tool = dict[str, Any]  # {"name": str, "description": str, "parameters": JSON Schema}
Message = dict[str, Any]  # {"role": str, "content": str, ...}
Response = list[Call] | str | dict[str, Any]  # calls, words, or a whole assistant message


@dataclass(frozen=True)
class Example:
    """One task; immutable, and what it holds is never changed in place."""

    id: str
    source: str
    license: str
    tools: list[Tool]
    messages: list[Message]
    reference: list[Call]
    gold: list[Call]
    words: str | None = ""
    by_outcome: bool = False
