"""NexusRaven's evaluation: `Nexusflow/NexusRaven_API_evaluation`, its two standardised subsets.

    standardized_queries    {"dataset": "cve_cpe", "prompt": "...", "python_function_name": "find",
                             "python_args_dict": "{\"limit\": 5}",
                             "context_functions": ["find", ...]}
    standardized_api_list   {"dataset": "cve_cpe", "name": "find", "description": "...",
                             "args_dicts": [{"name", "type", "required", "default",
                                             "description"}, ...]}

Written from the published schema and the upstream's own reader, not run on the real files. A
function is known by data set and name. A type is Python's, "None" is any; a default is Python's
text, or JSON after "JSON:". As upstream, an answer is right that calls the function with these
arguments, what it leaves out being its default. Licence: CC-BY-NC-4.0.

    for found in open_source("nexusraven", "Nexusflow/NexusRaven_API_evaluation"): ...
    for found in open_source("nexusraven", "queries.jsonl", functions="functions.jsonl"): ...
"""

import ast
import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example, Tool
from toolrm_jax.paths import as_path
from toolrm_jax.synth.source import (
    Draft,
    Fault,
    Reason,
    Reject,
    as_list,
    examples,
    field,
    parsed,
    rows,
)
from toolrm_jax.synth.sources.xlam import typed_tool

LICENSE = "CC-BY-NC-4.0"
SUBSETS = ("standardized_queries", "standardized_api_list")
_Functions = dict[tuple[str, str], Any]


def read(
    path: str | os.PathLike[str],
    *,
    functions: str | os.PathLike[str] | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[Example | Reject]:
    """The examples of the hub's data set; or of a file of queries, with one of functions."""
    if functions is None and as_path(path).is_file():
        raise InputError(
            f"{path}: the functions are in a file of their own. Name it with the option "
            f"'functions' (of the source in synthesis's config; --option functions=FILE of "
            f"evaluation's commands), or give the hub's data set, which has both."
        )
    subsets = (None, None) if functions else SUBSETS
    known: _Functions = {}
    seen = -1

    def drafts(row: Any, _: int) -> Iterator[Draft]:
        nonlocal known, seen
        seen += 1
        known = known or _functions(functions or path, split, subsets[1], revision)
        data = field(row, "dataset", str)
        names = as_list(field(row, "context_functions", list), str, "context_functions")
        arguments = parsed(field(row, "python_args_dict", (str, dict)), "python_args_dict")
        call = {"name": field(row, "python_function_name", str), "arguments": arguments}
        yield Draft(
            f"nexusraven/{data}/{seen}",
            [_tool(known, data, name) for name in names],
            [{"role": "user", "content": field(row, "prompt", str)}],
            [call],
        )

    values = rows(path, split=split, subset=subsets[0], revision=revision)
    return examples("nexusraven", LICENSE, values, drafts)


def _functions(
    path: str | os.PathLike[str], split: str, subset: str | None, revision: str | None
) -> _Functions:
    found: _Functions = {}
    for _, _, row in rows(path, split=split, subset=subset, revision=revision):
        if isinstance(row, dict):  # another is missed where a query names it
            found[str(row.get("dataset")), str(row.get("name"))] = row
    return found


def _tool(known: _Functions, data: str, name: str) -> Tool:
    if (data, name) not in known:
        raise Fault(Reason.TOOL, f"no function {name!r} of {data!r} in the list of functions")
    row = known[data, name]
    declared = as_list(field(row, "args_dicts", list), dict, "args_dicts")
    parameters = {field(about, "name", str): _parameter(name, about) for about in declared}
    tool = typed_tool({**row, "parameters": parameters})
    tool["parameters"]["required"] = [str(a["name"]) for a in declared if a.get("required")]
    return tool


def _parameter(tool: str, about: dict[str, Any]) -> dict[str, Any]:
    made = {"type": about.get("type"), "description": about.get("description")}
    made["type"] = "any" if made["type"] in (None, "None") else made["type"]
    default = about.get("default")
    if about.get("required") or default in (None, "None"):
        return made
    return made | {"default": _default(tool, default)}


def _default(tool: str, written: Any) -> Any:
    if not isinstance(written, str):
        return written
    if written.startswith("JSON:"):
        return parsed(written.removeprefix("JSON:"), "default")
    try:
        return ast.literal_eval(written)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise Fault(Reason.TOOL, f"{tool!r}: a default is {written!r:.80}") from None
