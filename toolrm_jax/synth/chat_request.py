"""An example as a chat-completion request, and the reply's message as a response.

    Example --request_body--> {"model", "messages", "tools", "temperature", "max_tokens", "seed"}
    {"content", "tool_calls", "refusal"} --read_message--> [{"name", "arguments"}] | "words"

Earlier calls of the conversation get the ids and the JSON strings that the protocol wants. Calls
whose arguments are no JSON, though the server parsed them, stay a text, as the model wrote them.

>>> read_message({"content": "[f(a=1)]"})
[{'name': 'f', 'arguments': {'a': 1}}]
>>> read_message({"tool_calls": [{"function": {"name": "f", "arguments": '{"a": '}}]})
'<tool_call>{"name": "f", "arguments": {"a": }</tool_call>'
"""

import json
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Call, Example, Message, Response
from toolrm_jax.splits import digest
from toolrm_jax.synth.dialects import given_arguments, read_calls, words_said
from toolrm_jax.synth.endpoint_settings import EndpointSettings
from toolrm_jax.tool_calls import parse_calls

# For models or servers that do not take tools of their own accord.
_INSTRUCTION = """\
You can call these functions, each a JSON object with a JSON Schema of its parameters:
{tools}
To call functions, write for each call, and nothing else:
<tool_call>{{"name": "...", "arguments": {{...}}}}</tool_call>
If no function fits, or something that is required is missing, say so in words."""


def request_body(
    example: Example, settings: EndpointSettings, sample: int, seed: int
) -> dict[str, Any]:
    """The body of one request for one answer."""
    native = settings.tools == "native"
    body: dict[str, Any] = {
        "model": settings.served_as or settings.model,
        "messages": list(_native(example) if native else _as_text(example)),
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        **settings.extra,
    }
    if native and example.tools:
        body["tools"] = [{"type": "function", "function": tool} for tool in example.tools]
    if settings.send_seed:
        body["seed"] = int(digest(seed, example.id, sample)[:7], 16)  # fits 31 bits
    return body


def read_message(message: dict[str, Any]) -> Response:
    """What the model replied: calls where they parse, else its words without its thoughts.

    Servers write the arguments of a call without any as "", null or not at all: they are {}.
    """
    made = message.get("tool_calls")
    if made:
        named = [_with_arguments(call) for call in made]
        calls = parse_calls({"role": "assistant", "tool_calls": named})
        return _as_written(made) if calls is None else calls
    text = text_of(message) or ""
    calls = read_calls(text)
    # An empty turn stays a text, as everywhere; an empty list is one too.
    return calls or ("" if calls == [] else words_said(text))


def text_of(message: dict[str, Any]) -> str | None:
    """The text of a message, its parts as one, or the refusal in its place; None for anything else.

    >>> text_of({"content": [{"type": "text", "text": "[f("}, {"type": "text", "text": "a=1)]"}]})
    '[f(a=1)]'
    """
    said = message.get("content") or message.get("refusal") or ""
    if isinstance(said, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in said]
        return "".join(map(str, parts)) if all(isinstance(p, str) for p in parts) else None
    return said if isinstance(said, str) else None


def _with_arguments(call: Any) -> Any:
    if isinstance(call, dict) and "name" in call:
        return {**call, "arguments": given_arguments(call.get("arguments"))}
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        return {**call, "function": _with_arguments(call["function"])}
    return call


def _as_written(made: list[Any]) -> str:
    texts = []
    for call in made:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            texts.append(json.dumps(call, ensure_ascii=False))
            continue
        name = json.dumps(function.get("name"), ensure_ascii=False)
        given = function.get("arguments")
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        texts.append(f'{{"name": {name}, "arguments": {arguments}}}')
    return "\n".join(f"<tool_call>{text}</tool_call>" for text in texts)


def _calls(message: Message) -> list[Call]:
    made = message.get("tool_calls") or []
    return [call.get("function", call) for call in made]


def _native(example: Example) -> Iterator[Message]:
    """The messages as the protocol has them: results name the calls that they answer."""
    waiting: list[str] = []
    number = 0
    for message in example.messages:
        plain = {"role": message["role"], "content": message.get("content") or ""}
        if calls := _calls(message):
            waiting = [f"call_{number + i}" for i in range(len(calls))]
            number += len(calls)
            plain["tool_calls"] = [
                _with_id(call, name) for call, name in zip(calls, waiting, strict=True)
            ]
        if message["role"] == "tool":
            # A result without a call before it, as some sources have, still needs an id.
            plain["tool_call_id"] = waiting.pop(0) if waiting else f"call_{number}"
        yield plain


def _with_id(call: Call, name: str) -> dict[str, Any]:
    arguments = call["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["name"], "arguments": arguments}
    return {"id": name, "type": "function", "function": function}


def _as_text(example: Example) -> Iterator[Message]:
    """The same with tools, calls and results in words, for templates that know none of them."""
    tools = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in example.tools)
    system = _INSTRUCTION.format(tools=tools)
    messages = list(example.messages)
    if messages and messages[0]["role"] == "system":
        system = f"{messages.pop(0).get('content') or ''}\n\n{system}"
    yield {"role": "system", "content": system}
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "tool":
            content = f"<tool_response>{content}</tool_response>"
        for call in _calls(message):
            content += f"\n<tool_call>{json.dumps(call, ensure_ascii=False)}</tool_call>"
        role = "user" if message["role"] == "tool" else message["role"]
        yield {"role": role, "content": content.strip()}
