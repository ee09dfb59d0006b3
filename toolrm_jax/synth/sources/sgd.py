"""Schema-Guided Dialogue from its published JSON: a folder of one split.

    schema.json            [{"service_name", "slots": [{"name", "description", "is_categorical",
                             "possible_values"}], "intents": [{"name", "description",
                             "required_slots", "optional_slots": {slot: default}}]}]
    dialogues_001.json     [{"dialogue_id", "services", "turns": [{"speaker", "utterance",
                             "frames": [{"service", "actions", "state" | "service_call",
                             "service_results"}]}]}]

Tools are the intents of a dialogue's services. Categorical slots are enums: of integers where all
values are digits, booleans where they are True and False; other slots are texts. A default of
"dontcare" is none. Examples, one each, with the dialogue so far:
- a service call of the system is the gold call; later turns see it, and its result, as a call;
- a turn in which the system asks for a slot that the user's intent requires and has not been given
  is an irrelevance example: nothing can be called yet. What it says is the right answer.
Other system turns (offers, confirmations, small talk) are no examples: a call would not be plainly
wrong there. Dates in the calls count from the day of the dialogues, so a system message names it.
Licence: CC-BY-SA-4.0.

    for found in open_source("sgd", "dstc8-schema-guided-dialogue/train"): ...
"""

import datetime
import json
import os
from collections.abc import Iterator
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Example, Message, Tool
from toolrm_jax.paths import as_path
from toolrm_jax.synth.source import (
    Draft,
    Fault,
    NumberedValue,
    Reason,
    Reject,
    as_list,
    examples,
    field,
    rows,
)

LICENSE = "CC-BY-SA-4.0"
_TRUTHS = {"True": True, "False": False}
_ANY = "dontcare"


def read(
    path: str | os.PathLike[str], *, today: str = "2019-03-01", results_shown: int = 3
) -> Iterator[Example | Reject]:
    """The examples of a split's folder; of a call's results the first `results_shown` are told."""
    folder = as_path(path)
    files = sorted(str(file) for file in folder.glob("dialogues_*.json")) if folder.is_dir() else []
    if not files or not (folder / "schema.json").exists():
        raise InputError(
            f"{folder}: expected the folder of one split (train, dev, test) of the published JSON, "
            f"with schema.json and dialogues_*.json in it"
        )
    services = _services(str(folder / "schema.json"))
    day = datetime.date.fromisoformat(today)
    opening = {"role": "system", "content": f"Today is {day:%A}, {day}."}

    def drafts(row: Any, line: int) -> Iterator[Draft]:
        return _Dialogue(row, services, f"sgd/{folder.name}", results_shown).drafts(opening)

    return examples("sgd", LICENSE, _all(files), drafts)


def _all(files: list[str]) -> Iterator[NumberedValue]:
    for file in files:
        yield from rows(file)


# Services ----------------------------------------------------------------------------------------


class _Service:
    """One service: its intents as tools, and how its slots' values read."""

    def __init__(self, value: Any):
        slots = as_list(field(value, "slots", list), dict, "slots")
        self.slots = {field(slot, "name", str): _slot_schema(slot) for slot in slots}
        self.intents = {
            field(intent, "name", str): intent
            for intent in as_list(field(value, "intents", list), dict, "intents")
        }
        self.tools = [self._tool(name, intent) for name, intent in self.intents.items()]

    def required(self, intent: str) -> list[str]:
        return self.intents[intent]["required_slots"]

    def _tool(self, name: str, intent: dict[str, Any]) -> Tool:
        required = as_list(field(intent, "required_slots", list), str, "required_slots")
        optional = field(intent, "optional_slots", dict)
        properties = {slot: self._schema(slot) for slot in (*required, *optional)}
        for slot, default in optional.items():
            if default != _ANY:
                properties[slot] = {**properties[slot], "default": self.value(slot, default)}
        return {
            "name": name,
            "description": field(intent, "description", str),
            "parameters": {"type": "object", "properties": properties, "required": required},
        }

    def _schema(self, slot: str) -> dict[str, Any]:
        if slot not in self.slots:
            raise Fault(Reason.FORM, f"the slot {slot!r} is not among the service's slots")
        return self.slots[slot]

    def value(self, slot: str, text: Any) -> Any:
        """A slot's value as its schema has it; what does not read so stays as it is."""
        kind = self._schema(slot)["type"]
        if kind == "boolean":
            return _TRUTHS.get(text, text) if isinstance(text, str) else text
        return int(text) if kind == "integer" and _is_number(text) else text


def _is_number(text: Any) -> bool:
    return isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19


def _slot_schema(slot: dict[str, Any]) -> dict[str, Any]:
    described = {"description": field(slot, "description", str)}
    values = as_list(field(slot, "possible_values", list), str, "possible_values")
    if not slot.get("is_categorical") or not values:
        return {"type": "string", **described}
    if set(values) <= set(_TRUTHS):
        return {"type": "boolean", **described}
    if all(_is_number(value) for value in values):
        return {"type": "integer", **described, "enum": [int(value) for value in values]}
    return {"type": "string", **described, "enum": values}


def _services(file: str) -> dict[str, _Service]:
    services = {}
    for _, line, value in rows(file):
        try:
            if isinstance(value, Fault):
                raise value
            services[field(value, "service_name", str)] = _Service(value)
        except Fault as fault:
            # Without its schema no dialogue can be read, so this is no matter of one row.
            raise InputError(f"{file}, line {line}: {fault}") from None
    return services


# Dialogues ---------------------------------------------------------------------------------------


class _Dialogue:
    """One dialogue, walked turn by turn."""

    def __init__(self, row: Any, services: dict[str, _Service], name: str, results_shown: int):
        self.id = f"{name}/{field(row, 'dialogue_id', str)}"
        self.turns = as_list(field(row, "turns", list), dict, "turns")
        names = as_list(field(row, "services", list), str, "services")
        unknown = [name for name in names if name not in services]
        if unknown:
            raise Fault(Reason.FORM, f"the service {unknown[0]!r} is not in schema.json")
        self.services = {name: services[name] for name in names}
        self.tools = [tool for name in names for tool in services[name].tools]
        self.shown = results_shown
        self.states: dict[str, dict[str, Any]] = {}  # what the user has said, by service

    def drafts(self, opening: Message) -> Iterator[Draft]:
        messages = [opening]
        for index, turn in enumerate(self.turns):
            said = field(turn, "utterance", str)
            frames = as_list(field(turn, "frames", list), dict, "frames")
            if field(turn, "speaker", str) == "USER":
                for frame in frames:
                    self.states[field(frame, "service", str)] = field(frame, "state", dict)
                messages.append({"role": "user", "content": said})
                continue
            calls = [self._call(frame) for frame in frames if "service_call" in frame]
            if calls or any(self._must_ask(frame) for frame in frames):
                yield Draft(f"{self.id}/{index}", self.tools, list(messages), calls, words=said)
            if calls:
                messages.append({"role": "assistant", "content": "", "tool_calls": calls})
                messages += [self._result(f) for f in frames if "service_call" in f]
            messages.append({"role": "assistant", "content": said})

    def _service(self, frame: dict[str, Any]) -> _Service:
        name = field(frame, "service", str)
        if name not in self.services:
            raise Fault(Reason.FORM, f"{name!r} is not among the dialogue's services")
        return self.services[name]

    def _call(self, frame: dict[str, Any]) -> Call:
        service, call = self._service(frame), field(frame, "service_call", dict)
        given = field(call, "parameters", dict)
        arguments = {p: service.value(p, v) for p, v in given.items() if v != _ANY}
        return {"name": field(call, "method", str), "arguments": arguments}

    def _result(self, frame: dict[str, Any]) -> Message:
        results = as_list(frame.get("service_results", []), dict, "service_results")
        told = {"count": len(results), "results": results[: self.shown]}
        text = json.dumps(told, ensure_ascii=False)
        return {"role": "tool", "name": frame["service_call"]["method"], "content": text}

    def _must_ask(self, frame: dict[str, Any]) -> bool:
        """Does the system ask for what the user's intent requires and does not have yet?"""
        service = self._service(frame)
        state = self.states.get(frame["service"], {})
        intent = state.get("active_intent")
        if not isinstance(intent, str) or intent not in service.intents:
            return False
        known = field(state, "slot_values", dict)
        missing = [slot for slot in service.required(intent) if slot not in known]
        actions = as_list(field(frame, "actions", list), dict, "actions")
        return any(a.get("act") == "REQUEST" and a.get("slot") in missing for a in actions)
