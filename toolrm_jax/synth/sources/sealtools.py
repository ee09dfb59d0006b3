"""Seal-Tools: one request a row, and a catalogue of its tools in a file of its own.

    dev.jsonl    [{"api": "getLake", "parameters": {...}}, "the request"]          one call
                 [[{"api", "parameters", "responses": ["API_call_0"]}, ...], "the request"]
    tool.jsonl   {"api_name", "api_description", "field": "Area/Topic", "parameters":
                  {name: {"type", "description"}}, "required": [...]}

A row names no tools on offer (its authors retrieve them), so they are drawn here: the called ones,
and others of the same field first, then of the same area, up to `offered`, in random order. What is
drawn depends on the seed and the row alone. `irrelevance=True` offers tools of other areas only, so
that calling nothing is right. A row in which a call takes another's result ("API_call_1") makes a
reject: one turn cannot know what the result will be called. Licence: Apache-2.0.
"""

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Example, Tool
from toolrm_jax.paths import as_path
from toolrm_jax.synth.source import Draft, Fault, Reason, Reject, as_list, examples, field
from toolrm_jax.synth.source import rows as read_rows
from toolrm_jax.synth.sources.xlam import typed_tool

LICENSE = "Apache-2.0"
_CATALOGUES = ("tool.jsonl", "tool.jsonl.gz")


def read(
    path: str | os.PathLike[str],
    *,
    catalogue: str | os.PathLike[str] | None = None,
    offered: int = 5,
    irrelevance: bool = False,
    seed: int = 0,
) -> Iterator[Example | Reject]:
    """The examples of one of its files; the catalogue is tool.jsonl(.gz) beside it."""
    name = "sealtools_irrelevance" if irrelevance else "sealtools"
    stem = PurePath(os.fspath(path)).name.split(".")[0]
    tools: _Catalogue | None = None

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        nonlocal tools
        tools = tools or _Catalogue(catalogue or catalogue_beside(path))
        calls, request = _row(row)
        id_ = f"{name}/{stem}/{line}"
        rng = random.Random(f"{seed}/{id_}")
        gold = [call["name"] for call in calls]
        on_offer = tools.others(gold, offered, rng) if irrelevance else tools.own(gold)
        if not irrelevance:
            on_offer += tools.like(gold, max(0, offered - len(on_offer)), rng)
            rng.shuffle(on_offer)
        messages = [{"role": "user", "content": request}]
        yield Draft(id_, on_offer, messages, [] if irrelevance else calls)

    return examples(name, LICENSE, read_rows(path), drafts)


def catalogue_beside(path: str | os.PathLike[str]) -> str:
    """The catalogue in the folder of a file of requests. Raises InputError."""
    folder = as_path(path).parent
    for name in _CATALOGUES:
        if (folder / name).exists():
            return str(folder / name)
    raise InputError(
        f"{folder} has no {' or '.join(_CATALOGUES)}: Seal-Tools' tools are in that file. Name it "
        f"with the option 'catalogue'."
    )


def _row(row: Any) -> tuple[list[Call], str]:
    if not isinstance(row, list) or len(row) != 2 or not isinstance(row[1], str):
        raise Fault(Reason.FORM, f"expected [calls, request], found {row!r:.80}")
    listed = as_list(row[0] if isinstance(row[0], list) else [row[0]], dict, "calls")
    calls = [
        {"name": field(call, "api", str), "arguments": field(call, "parameters", dict)}
        for call in listed
    ]
    for call in calls:
        for param, value in call["arguments"].items():
            if isinstance(value, str) and value.startswith("API_call_"):
                raise Fault(Reason.NESTED, f"{call['name']}.{param} is {value!r}")
    return calls, row[1]


class _Catalogue:
    """All tools, by name and by field."""

    def __init__(self, path: str | os.PathLike[str]):
        self.tools: dict[str, Tool | Fault] = {}
        self.fields: dict[str, list[str]] = {}
        self.field_of: dict[str, str] = {}
        for file, line, value in read_rows(path):
            try:
                self._add(value)
            except Fault as fault:
                raise InputError(f"{file}, line {line}: {fault}") from None
        self.names = sorted(self.tools)

    def _add(self, value: Any) -> None:
        if isinstance(value, Fault):
            raise value
        name, where = field(value, "api_name", str), field(value, "field", str)
        described = {
            "name": name,
            "description": value.get("api_description") or "",
            "parameters": field(value, "parameters", dict),
        }
        try:
            tool = typed_tool(described)
        except Fault as fault:
            self.tools[name] = fault  # told to the rows that call it
            return
        required = as_list(value.get("required", []), str, "required")
        tool["parameters"]["required"] = required
        self.tools[name], self.field_of[name] = tool, where
        for group in (where, where.partition("/")[0]):
            self.fields.setdefault(group, []).append(name)

    def own(self, gold: Iterable[str]) -> list[Tool]:
        return [self._tool(name) for name in dict.fromkeys(gold)]

    def _tool(self, name: str) -> Tool:
        tool = self.tools.get(name)
        if tool is None:
            raise Fault(Reason.NOT_OFFERED, f"{name!r} is not in the catalogue")
        if isinstance(tool, Fault):
            raise tool
        return tool

    def like(self, gold: list[str], count: int, rng: random.Random) -> list[Tool]:
        """Tools of the fields of the called ones, then of their areas."""
        fields = [self.field_of[name] for name in gold if name in self.field_of]
        found: dict[str, None] = {}
        for groups in (fields, [where.partition("/")[0] for where in fields]):
            near = {name for where in groups for name in self.fields[where]} - {*gold, *found}
            wanted = min(count - len(found), len(near))
            found |= dict.fromkeys(rng.sample(sorted(near), wanted))
        return [self._tool(name) for name in found]

    def others(self, gold: list[str], count: int, rng: random.Random) -> list[Tool]:
        """Tools of areas in which none of the called ones is."""
        for name in gold:
            self._tool(name)
        areas = {self.field_of[name].partition("/")[0] for name in gold}
        drawn = rng.sample(self.names, min(len(self.names), 8 * count))
        found = [
            name for name in drawn if self.field_of.get(name, "").partition("/")[0] not in areas
        ]
        return [self._tool(name) for name in found if name in self.field_of][:count]
