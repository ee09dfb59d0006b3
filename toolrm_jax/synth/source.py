"""From an upstream's rows to examples: what every source shares.

    file, bucket or hub --rows--> (file, line, value) --a source's drafts--> Draft
                                        |                                      |  checked
                                        v                                      v
                                   Reject(source, file, line, reason, detail)  Example

A source says only how a row of its upstream reads. Whether the tools are valid, the messages can be
rendered, and the gold calls fit their own schemas is checked here, alike for all. What fails ends
as a Reject with one of the reasons below, and reading goes on.

An argument that is given its tool's own default may be left out, and one that was left out may be
given it: the reference accepts both. `""` among the accepted values means "may be left out".

    >>> draft = Draft("q/0", [{"name": "now"}], [{"role": "user", "content": "Time?"}],
    ...               [{"name": "now", "arguments": {}}])
    >>> checked(draft, "q", "MIT").gold
    [{'name': 'now', 'arguments': {}}]
"""

import dataclasses
import enum
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from toolrm_jax.examples import Call, Example, Message, Tool
from toolrm_jax.literals import read_json
from toolrm_jax.row_source import open_rows
from toolrm_jax.schema import ToolSchemaError, call_fault, normalize_tools
from toolrm_jax.synth.json_array import BrokenArray, array_rows, holds_array
from toolrm_jax.tool_calls import canonical_calls, exact_reference, judge, judge_value, parse_calls

# Real examples stay under 100 kB; what is longer fits no training row.
LARGEST_EXAMPLE = 1 << 19
LARGEST_ARGUMENTS = 1 << 16


class Reason(enum.StrEnum):
    """Why a row, or a part of it, is no example."""

    NOT_JSON = "not JSON"
    NOT_UTF8 = "not UTF-8"
    FORM = "not in the source's form"
    TOO_LARGE = "too large"
    NO_TOOLS = "no tools"
    TOOL = "a tool is invalid"
    SAME_NAME = "two tools have one name"
    MESSAGES = "the messages are not a conversation"
    NO_CALL = "a gold call is no call"
    NOT_OFFERED = "gold calls a tool that is not offered"
    UNKNOWN_PARAMETER = "gold gives a parameter that its tool does not have"
    MISSING_PARAMETER = "gold leaves out what its tool requires"
    MISFIT_VALUE = "gold gives a value that its tool's schema rejects"
    OWN_REFERENCE = "gold is wrong by its own reference"
    SEVERAL_RIGHT = "several different calls are right"
    NESTED = "gold takes the result of another call"
    UPSTREAM = "dropped by the upstream's own reader"
    DOUBTED = "not to be trusted, by what the row says of itself"


class Fault(Exception):
    """What is wrong with a row; the source's reader makes a Reject of it."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Reject:
    """What did not become an example, where it stands, and why."""

    source: str
    file: str
    line: int | None  # from 1; in an array, where the element begins; None: unknown
    reason: str
    detail: str
    draft: "Draft | None" = None  # as far as it could be read


@dataclasses.dataclass(frozen=True)
class Draft:
    """An example as its source reads it, before anything is checked."""

    id: str
    tools: list[Any]  # plain or in OpenAI's wrapper
    messages: list[Any]
    calls: Any  # the right calls, in any form that `parse_calls` reads
    reference: list[Call] | None = None  # None: these calls, and defaults left out or spelled out
    words: str | None = ""  # of a turn that calls nothing; see `Example`
    by_outcome: bool = False
    source: str | None = None  # None: the source's own
    license: str | None = None
    fault: Fault | None = None  # why it is to be rejected, whatever else may be found


# Rows --------------------------------------------------------------------------------------------

NumberedValue = tuple[str, int, Any]  # file, line, a JSON value or a Fault


def rows(
    path: str | os.PathLike[str],
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
) -> Iterator[NumberedValue]:
    """The rows of JSON lines, a JSON array (.json), Parquet, gs:// or a hub's data set, the last at
    this revision (a commit, branch or tag) or at its newest commit.

    Raises RowSourceError where nothing can be opened, or a compressed file is damaged.
    """
    name = os.fspath(path)
    if revision is None and holds_array(name):
        try:
            for line, value in array_rows(name):
                yield name, line, value
        except BrokenArray as error:
            reason = Reason.NOT_UTF8 if error.encoding else Reason.NOT_JSON
            yield name, error.line, Fault(reason, str(error))
        return
    for line, row in open_rows(name, split=split, subset=subset, revision=revision):
        yield name, line, row if isinstance(row, dict) else _value(row)


def _value(row: bytes) -> Any:
    """The JSON value of a line, or a Fault."""
    if len(row) > 8 * LARGEST_EXAMPLE:
        return Fault(Reason.TOO_LARGE, f"a row of {len(row):,} bytes")
    try:
        return read_json(row.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Fault(Reason.NOT_UTF8, str(error))
    except ValueError as error:
        return Fault(Reason.NOT_JSON, str(error))


def parsed(value: Any, name: str) -> Any:
    """A field that may be JSON text, as its value. Raises Fault."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        raise Fault(Reason.NOT_JSON, f"{name}: {error}") from None


def field(row: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of the row, which must be there and of the kind. Raises Fault."""
    if not isinstance(row, dict):
        raise Fault(Reason.FORM, f"expected an object, found {row!r:.80}")
    value = row.get(name)
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(k.__name__ for k in kinds)
        found = f"{value!r:.80}" if name in row else f"the fields {', '.join(map(str, row))[:120]}"
        raise Fault(Reason.FORM, f"expected {wanted} under {name!r}, found {found}")
    return value


def as_list(value: Any, kind: type, name: str) -> list[Any]:
    """A list whose items are of the kind. Raises Fault."""
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise Fault(Reason.FORM, f"{name}: expected a list of {kind.__name__}, found {value!r:.80}")
    return value


# Examples ----------------------------------------------------------------------------------------

Drafts = Callable[[Any, int], Iterable[Draft | Fault]]


def examples(
    source: str, license: str, values: Iterable[NumberedValue], drafts: Drafts
) -> Iterator[Example | Reject]:
    """What the rows hold: `drafts(value, line)` reads one; its Faults become Rejects."""
    for file, line, value in values:
        for made in _drafts(value, line, drafts):
            try:
                if isinstance(made, Fault):
                    raise made
                yield checked(made, source, license)
            except Fault as fault:
                draft = None if isinstance(made, Fault) else made
                yield Reject(source, file, line, str(fault.reason), fault.detail[:300], draft)


def _drafts(value: Any, line: int, drafts: Drafts) -> list[Draft | Fault]:
    if isinstance(value, Fault):
        return [value]
    try:
        return list(drafts(value, line))
    except Fault as fault:
        return [fault]
    except RecursionError:
        return [Fault(Reason.NOT_JSON, "nested too deeply")]


def checked(draft: Draft, source: str, license: str) -> Example:
    """The draft as an example, gold in canonical form. Raises Fault."""
    if draft.fault is not None:
        raise draft.fault
    _check_size(draft)
    tools = _tools(draft.tools)
    messages = _messages(draft.messages)
    gold = _gold(draft.calls, tools)
    reference = draft.reference
    if reference is None:
        reference = reference_of(gold, tools)
    verdict = judge(gold, reference, tools)
    if not verdict.right:
        raise Fault(Reason.OWN_REFERENCE, verdict.detail)
    return Example(
        draft.id,
        draft.source or source,
        draft.license or license,
        tools,
        messages,
        reference,
        gold,
        "" if gold else draft.words,
        draft.by_outcome,
    )


def _check_size(draft: Draft) -> None:
    try:
        text = json.dumps(
            [draft.tools, draft.messages, draft.calls], ensure_ascii=False, allow_nan=False
        )
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Fault(Reason.NOT_UTF8, str(error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Fault(Reason.NOT_JSON, str(error)) from None
    if size > LARGEST_EXAMPLE:
        raise Fault(Reason.TOO_LARGE, f"an example of {size:,} bytes, at most {LARGEST_EXAMPLE:,}")


def _tools(tools: Any) -> list[Tool]:
    if tools == []:
        raise Fault(Reason.NO_TOOLS, "an empty list of tools")
    try:
        plain = normalize_tools(tools)
    except ToolSchemaError as error:
        raise Fault(Reason.TOOL, str(error)) from None
    found: dict[str, Tool] = {}
    for tool in plain:
        if not isinstance(tool["description"], str):
            raise Fault(Reason.TOOL, f"{tool['name']}: description is not a string")
        # Some upstreams list the same tool twice; two different ones cannot be told apart.
        if found.setdefault(tool["name"], tool) != tool:
            raise Fault(Reason.SAME_NAME, tool["name"])
    return list(found.values())


_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {
    "developer": "system",
    "function": "tool",
}


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise Fault(Reason.MESSAGES, f"expected a list of messages, found {messages!r:.80}")
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: Any, index: int) -> Message:
    """{"role", "content"} and, where there are such, "tool_calls" in plain form, "name", ids."""
    role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        raise Fault(Reason.MESSAGES, f"messages[{index}] has no known role: {message!r:.80}")
    out: Message = {"role": role, "content": message_text(message, index)}
    if message.get("tool_calls"):
        out["tool_calls"] = _made_calls(message["tool_calls"], index)
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            if not isinstance(message[key], str):
                raise Fault(Reason.MESSAGES, f"messages[{index}].{key} is not a string")
            out[key] = message[key]
    return out


def message_text(message: dict[str, Any], index: int) -> str:
    """What the message at the index says, "" beside calls; a list of texts as one. Raises Fault."""
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else None for p in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    if not isinstance(content, str):
        raise Fault(Reason.MESSAGES, f"messages[{index}] has no text: {content!r:.80}")
    return content


def _made_calls(calls: Any, index: int) -> list[Call]:
    plain = parse_calls(calls) if isinstance(calls, list) else None
    if plain is None:
        raise Fault(Reason.MESSAGES, f"messages[{index}]: no calls: {calls!r:.80}")
    ids = [call.get("id") for call in calls]
    return [{"id": id_} | call if id_ else call for id_, call in zip(ids, plain, strict=True)]


def _gold(calls: Any, tools: list[Tool]) -> list[Call]:
    plain = parse_calls(calls) if isinstance(calls, list) else None
    if plain is None:
        raise Fault(Reason.NO_CALL, f"{calls!r:.200}")
    for call in plain:
        size = len(json.dumps(call["arguments"]))
        if size > LARGEST_ARGUMENTS:
            raise Fault(Reason.TOO_LARGE, f"{call['name']}: arguments of {size:,} characters")
        _check_call(call, tools)
    return canonical_calls(plain, tools)


def _check_call(call: Call, tools: list[Tool]) -> None:
    try:
        fault = call_fault(call, tools)
    except ToolSchemaError as error:
        raise Fault(Reason.TOOL, str(error)) from None
    if fault is None:
        return
    tool = next((tool for tool in tools if tool["name"] == call["name"]), None)
    if tool is None:
        raise Fault(Reason.NOT_OFFERED, call["name"])
    known, required = _parameters(tool)
    if any(param not in known for param in call["arguments"]):
        raise Fault(Reason.UNKNOWN_PARAMETER, fault)
    if any(param not in call["arguments"] for param in required):
        raise Fault(Reason.MISSING_PARAMETER, fault)
    raise Fault(Reason.MISFIT_VALUE, fault)


def _parameters(tool: Tool) -> tuple[dict[str, Any], list[str]]:
    parameters = tool["parameters"]
    return parameters.get("properties") or {}, parameters.get("required") or []


def reference_of(gold: list[Call], tools: list[Tool]) -> list[Call]:
    """A reference for calls that fit their tools: these calls, defaults left out or spelled out."""
    by_name = {tool["name"]: tool for tool in tools}
    reference = exact_reference(gold)
    for call, want in zip(gold, reference, strict=True):
        known, required = _parameters(by_name[call["name"]])
        for param, schema in known.items():
            if param not in required and isinstance(schema, dict) and "default" in schema:
                _accept_default(call, want, param, schema)
    return reference


def _accept_default(call: Call, want: Call, param: str, schema: dict[str, Any]) -> None:
    default, given = schema["default"], call["arguments"]
    if param in given:
        if given[param] == default and type(given[param]) is type(default):
            want["arguments"][param].append("")
        return
    (exact,) = exact_reference([{"name": "", "arguments": {param: default}}])
    accepted = exact["arguments"][param]
    fits = default in schema.get("enum", [default])
    if default is not None and fits and judge_value(default, accepted, schema) is None:
        want["arguments"][param] = [*accepted, ""]
