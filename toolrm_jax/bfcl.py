"""Reads the tasks of the Berkeley Function Calling Leaderboard (BFCL) from its data directory.

    BFCL_v4_multiple.json                   {"id", "question": [[message, ...]], "function": [tool]}
    possible_answer/BFCL_v4_multiple.json   {"id", "ground_truth": [{name: {param: [accepted]}}]}

Both are JSON lines, found in the wheel `bfcl-eval` (Apache-2.0) under `bfcl_eval/data`. The types
of BFCL's tools are not JSON Schema; one table, TYPES, maps them. Tools of its Java and JavaScript
tasks take every value as source text, as FC-RewardBench (arXiv:2509.11963) shows them. The gold
answer takes the first accepted value and leaves out what may be left out. A task whose own gold
answer is invalid, or that no answer can satisfy, is dropped and counted by reason; `all_tasks`
gives those too, for what has to keep clear of them.

    tasks, dropped = read_tasks("site-packages/bfcl_eval/data")
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from toolrm_jax import schema
from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Example, Tool
from toolrm_jax.literals import write_literal
from toolrm_jax.tool_calls import canonical_calls, judge, listed

ANSWERED = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
)
UNANSWERED = ("irrelevance", "live_irrelevance")
CATEGORIES = ANSWERED + UNANSWERED
LICENSE = "Apache-2.0"

# BFCL's word for a type -> JSON Schema's; None: any value.
TYPES: dict[str, str | None] = {
    **dict.fromkeys(("string", "String", "char"), "string"),
    **dict.fromkeys(("integer", "long", "short", "byte", "Bigint"), "integer"),
    **dict.fromkeys(("number", "float", "double"), "number"),
    **dict.fromkeys(("boolean", "bool", "Boolean"), "boolean"),
    **dict.fromkeys(("array", "list", "tuple", "Array", "ArrayList", "Set"), "array"),
    **dict.fromkeys(("object", "dict", "HashMap", "Hashtable"), "object"),
    **dict.fromkeys(("any", "Any", ""), None),
}
_LANGUAGES = {"java": "Java", "javascript": "JavaScript"}


class BfclError(InputError, ValueError):
    """A row that is not in BFCL's form; the message names file and line."""


def read_tasks(
    data_dir: str | os.PathLike[str], categories: Sequence[str] = CATEGORIES
) -> tuple[list[Example], collections.Counter[str]]:
    """The tasks of the categories, and how many were dropped for which reason.

    Raises FileNotFoundError for a missing file, BfclError for a malformed row, and ToolSchemaError
    for a tool that stays invalid once its types are mapped.
    """
    tasks: list[Example] = []
    dropped: collections.Counter[str] = collections.Counter()
    for task, reason in all_tasks(data_dir, categories):
        if reason is None:
            tasks.append(task)
        else:
            dropped[reason] += 1
    return tasks, dropped


def all_tasks(
    data_dir: str | os.PathLike[str], categories: Sequence[str] = CATEGORIES
) -> Iterator[tuple[Example, str | None]]:
    """The tasks of the categories, each with the reason to drop it or None. Raises as the above."""
    for category in categories:
        for task in _read_category(pathlib.Path(data_dir), category):
            yield task, _why_drop(task)


def _read_category(data_dir: pathlib.Path, category: str) -> Iterator[Example]:
    if category not in CATEGORIES:
        raise ValueError(f"BFCL category {category!r} is not one of {', '.join(CATEGORIES)}")
    file = data_dir / f"BFCL_v4_{category}.json"
    truths: dict[str, tuple[str, Any]] = {}
    if category in ANSWERED:
        truth_file = data_dir / "possible_answer" / file.name
        truths = {row["id"]: (at, row) for at, row in _rows(truth_file, ("id", "ground_truth"))}
    language = category.rpartition("_")[2]
    for at, row in _rows(file, ("id", "question", "function")):
        if category in ANSWERED and row["id"] not in truths:
            raise BfclError(f"{at}: task {row['id']!r} has no row in possible_answer/{file.name}")
        yield _task(at, row, truths.get(row["id"]), language if language in _LANGUAGES else None)


def _rows(file: pathlib.Path, keys: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row with the place where it stands, "file, line n"."""
    if not file.exists():
        raise FileNotFoundError(
            f"{file} not found: expected BFCL's data directory (bfcl_eval/data of the wheel"
            " bfcl-eval), with BFCL_v4_*.json and possible_answer/ in it"
        )
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            at = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BfclError(f"{at}: expected one JSON object a line, found {error}") from None
            missing = [k for k in keys if k not in row] if isinstance(row, dict) else list(keys)
            if missing:
                raise BfclError(
                    f"{at}: expected an object with {', '.join(keys)}, found no {missing[0]!r}"
                )
            if not isinstance(row["id"], str):
                raise BfclError(f"{at}: expected a string under 'id', found {row['id']!r:.80}")
            yield at, row


def _task(
    at: str, row: dict[str, Any], truth: tuple[str, Any] | None, language: str | None
) -> Example:
    name = f"bfcl/{row['id'].rpartition('_')[0]}"
    tools = [
        map_tool(tool, language, at) for tool in _list_of(dict, row["function"], "function", at)
    ]
    if len(_list_of(list, row["question"], "question", at)) != 1:
        raise BfclError(f"{at}: expected one turn under 'question', found {len(row['question'])}")
    declared = {tool["name"]: tool for tool in row["function"]}
    reference = [] if truth is None else _reference(*truth, language)
    gold = [_gold_call(call, declared) for call in reference]
    return Example(
        id=f"bfcl/{row['id']}",
        source=name,
        license=LICENSE,
        tools=tools,
        messages=_list_of(dict, row["question"][0], "question[0]", at),
        reference=reference,
        gold=canonical_calls(gold, tools),
        words=None,  # BFCL's irrelevance tasks: no tool does what is asked
    )


def _list_of(kind: type, value: Any, what: str, at: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise BfclError(
            f"{at}: expected a list of {kind.__name__} under {what!r}, found {value!r:.80}"
        )
    return value


# Tools -------------------------------------------------------------------------------------------


def map_tool(tool: dict[str, Any], language: str | None, at: str) -> Tool:
    """A BFCL tool with its types mapped to JSON Schema; ToolSchemaError if it stays invalid."""
    name = tool.get("name")
    if not isinstance(name, str) or not isinstance(tool.get("parameters"), dict):
        raise BfclError(f"{at}: expected a tool with 'name' and 'parameters', found {tool!r:.80}")
    parameters = _map_schema(tool["parameters"])
    if language is not None:
        declared = tool["parameters"].get("properties") or {}
        parameters["properties"] = {p: _as_text(s, language) for p, s in declared.items()}
    mapped = {"name": name, "description": tool.get("description", ""), "parameters": parameters}
    schema.check_tool(mapped)
    return mapped


def _map_schema(node: Any) -> Any:
    """The node with mapped types, all the way down; words that JSON Schema knows otherwise go."""
    if not isinstance(node, dict):
        return node
    out = {key: value for key, value in node.items() if key not in ("type", "optional")}
    if "type" in node:
        # An unknown type is kept: the schema check then names tool, path and type.
        kind = (
            TYPES.get(node["type"], node["type"]) if isinstance(node["type"], str) else node["type"]
        )
        out = ({} if kind is None else {"type": kind}) | out
    if isinstance(out.get("properties"), dict):
        out["properties"] = {p: _map_schema(s) for p, s in out["properties"].items()}
    if "items" in out:
        out["items"] = _map_schema(out["items"])
    return out


def _as_text(node: dict[str, Any], language: str) -> dict[str, Any]:
    """The schema of a parameter that takes source text of the language."""
    kind, spoken = node.get("type") or "any", _LANGUAGES[language]
    if kind == "any":
        note = f"This parameter can be of any type of {spoken} object in string representation."
    else:
        note = f"This is {spoken} {kind} type parameter in string representation."
    text = node.get("description", "").strip()
    text = text + "." if text and text[-1] not in ".!?" else text
    return {"type": "string", "description": f"{text} {note}".strip()}


# Answers -----------------------------------------------------------------------------------------


def _reference(at: str, row: dict[str, Any], language: str | None) -> list[Call]:
    calls = []
    for truth in _list_of(dict, row["ground_truth"], "ground_truth", at):
        if len(truth) != 1 or not isinstance(next(iter(truth.values())), dict):
            raise BfclError(
                f"{at}: expected {{name: {{parameter: [accepted]}}}}, found {truth!r:.80}"
            )
        ((name, accepted),) = truth.items()
        for param, values in accepted.items():
            if not isinstance(values, list):
                raise BfclError(
                    f"{at}: expected a list of accepted values for {name}.{param},"
                    f" found {values!r:.80}"
                )
        call = {"name": name, "arguments": accepted}
        calls.append(call if language is None else {**call, "language": language})
    return calls


def _gold_call(want: Call, tools: dict[str, Any]) -> Call:
    """The first accepted answer; what may be left out is, unless the tool requires it."""
    parameters = (tools.get(want["name"]) or {}).get("parameters") or {}
    required, properties = parameters.get("required") or [], parameters.get("properties") or {}
    arguments = {}
    for param, accepted in want["arguments"].items():
        values = [value for value in accepted if value != ""]
        if "" in accepted and param not in required:
            continue
        value = _resolve(values[0]) if values else ""
        if "language" in want:
            kind = (properties.get(param) or {}).get("type", "any")
            value = write_literal(value, kind, want["language"])
        arguments[param] = value
    return {"name": want["name"], "arguments": arguments}


def _resolve(want: Any) -> Any:
    """One value out of an accepted one: its objects hold lists of accepted values per key."""
    if isinstance(want, list):
        return [_resolve(item) for item in want]
    if not isinstance(want, dict):
        return want
    return {k: _resolve(listed(v)[0]) for k, v in want.items() if "" not in listed(v) and listed(v)}


def _why_drop(task: Example) -> str | None:
    if not task.tools:
        return "no tools"
    if any(not values for want in task.reference for values in want["arguments"].values()):
        return "an argument has no accepted value"
    if any(not schema.call_is_valid(call, task.tools) for call in task.gold):
        return "gold call is invalid by its tool's schema"
    if not judge(task.gold, task.reference, task.tools).right:
        return "gold call is wrong by its own reference"
    return None
