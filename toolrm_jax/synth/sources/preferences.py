"""Published pairs: FC-RewardBench, and the authors' training set ToolRM-train-data.

    ibm-research/fc-reward-bench      {"tools", "conversation", "chosen_output", "rejected_output",
                                       "error_type", "model_name", "test_category", "test_id"}
    ibm-research/ToolRM-train-data    the same, or {"tools", "messages" | "conversation" | "prompt",
                                       "chosen", "rejected"}

The chosen side is gold. `answers` gives the sides as answers that are already judged: the chosen
one right, the rejected one wrong; their ids are those of the examples. Sides may be lists of calls,
texts, assistant messages, or any of these as JSON text; a chosen side in words calls nothing, and
its words are what should be said.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Example, Response
from toolrm_jax.score_request import Request, RequestError, request_of
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, examples, field, parsed, rows
from toolrm_jax.tool_calls import attempts_call, parse_calls, words_of


def read_pairs(
    path: str | os.PathLike[str], *, name: str, license: str, split: str, revision: str | None
) -> Iterator[Example | Reject]:
    """Every pair's prompt with its chosen side as gold."""

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        request = _request(row)
        yield Draft(
            _id(name, row, line),
            request.tools,
            request.messages,
            _gold(request, row),
            words=words_of(request.responses[0]),
        )

    return examples(name, license, rows(path, split=split, revision=revision), drafts)


def answers(
    path: str | os.PathLike[str], *, name: str, split: str, revision: str | None
) -> Iterator[Answer | Reject]:
    """Every pair's two sides, judged as published. The rejected side's model may be named."""
    for file, line, row in rows(path, split=split, revision=revision):
        try:
            if isinstance(row, Fault):
                raise row
            chosen, *rejected = _request(row).responses
        except Fault as fault:
            yield Reject(name, file, line, str(fault.reason), fault.detail[:300])
            continue
        id_, model = _id(name, row, line), str(row.get("model_name") or "unknown")
        yield Answer(id_, "gold", "", True, chosen, right=True)
        for wrong in rejected:
            # The rows name models, not their licences.
            yield Answer(id_, model, "unknown", False, wrong, right=False)


def _id(name: str, row: dict[str, Any], line: int) -> str:
    # One task stands in several pairs, so that its own id is not enough.
    return f"{name}/{row.get('test_id', row.get('id', 'row'))}/{line}"


def _request(row: Any) -> Request:
    field(row, "tools", (list, str))
    read = {key: _side(value) for key, value in row.items()}
    read["tools"] = parsed(row["tools"], "tools")
    if isinstance(read.get("conversation"), str):
        read["conversation"] = parsed(read["conversation"], "conversation")
    try:
        request = request_of(read)
    except RequestError as error:
        raise Fault(Reason.FORM, str(error)) from None
    if len(request.responses) < 2:
        raise Fault(Reason.FORM, "expected a chosen and a rejected side")
    return request


def _side(value: Any) -> Any:
    """JSON text as its value where it is calls or messages; other text as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, list | dict) else value


def _gold(request: Request, row: dict[str, Any]) -> list[dict[str, Any]]:
    chosen: Response = request.responses[0]
    calls = parse_calls(chosen)
    if calls is None and isinstance(chosen, str | dict):
        words = words_of(chosen)
        if words and not attempts_call(words, [t for t in request.tools if _is_tool(t)]):
            return []
    if calls is None:
        raise Fault(Reason.NO_CALL, f"the chosen side: {chosen!r:.120}")
    return calls


def _is_tool(tool: Any) -> bool:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return isinstance(inner, dict) and isinstance(inner.get("name"), str)
