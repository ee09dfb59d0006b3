"""Rows in the forms of upstreams, and reading them."""

import json

from toolrm_jax.examples import Example
from toolrm_jax.synth.source import Reject


def split_up(found):
    """(examples, rejects)."""
    found = list(found)
    return (
        [x for x in found if isinstance(x, Example)],
        [x for x in found if isinstance(x, Reject)],
    )


def only(found) -> Example:
    (example,), rejects = split_up(found)
    assert rejects == []
    return example


def write(path, value) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


TIDE = {
    "name": "tide",
    "description": "Height of the tide",
    "parameters": {
        "port": {"type": "str", "description": "A port"},
        "hours": {"type": "List[int], optional", "description": "Hours"},
        "unit": {"type": "str", "description": "m or ft", "default": "m"},
    },
}


XLAM = {
    "id": 3,
    "query": "Tide at Brest in feet?",
    "tools": json.dumps([TIDE]),
    "answers": json.dumps([{"name": "tide", "arguments": {"port": "Brest", "unit": "ft"}}]),
}


FERRIES = {
    "service_name": "Ferries_1",
    "slots": [
        {"name": "to", "description": "Island", "is_categorical": False, "possible_values": []},
        {
            "name": "cars",
            "description": "Cars",
            "is_categorical": True,
            "possible_values": ["1", "2"],
        },
        {
            "name": "night",
            "description": "By night",
            "is_categorical": True,
            "possible_values": ["True", "False"],
        },
    ],
    "intents": [
        {
            "name": "BookFerry",
            "description": "Book a ferry",
            "required_slots": ["to"],
            "optional_slots": {"cars": "1", "night": "dontcare"},
        }
    ],
}


def sgd_turn(speaker, said, **frame):
    return {
        "speaker": speaker,
        "utterance": said,
        "frames": [{"service": "Ferries_1", "actions": [], **frame}],
    }


def sgd_state(**values):
    return {"active_intent": "BookFerry", "slot_values": values, "requested_slots": []}


DIALOGUE = {
    "dialogue_id": "7_00001",
    "services": ["Ferries_1"],
    "turns": [
        sgd_turn("USER", "A ferry, please.", state=sgd_state()),
        sgd_turn("SYSTEM", "To which island?", actions=[{"act": "REQUEST", "slot": "to"}]),
        sgd_turn("USER", "Ouessant, two cars.", state=sgd_state(to=["Ouessant"], cars=["2"])),
        sgd_turn("SYSTEM", "To Ouessant?", actions=[{"act": "CONFIRM", "slot": "to"}]),
        sgd_turn("USER", "Yes.", state=sgd_state(to=["Ouessant"], cars=["2"])),
        sgd_turn(
            "SYSTEM",
            "Booked.",
            service_call={
                "method": "BookFerry",
                "parameters": {"to": "Ouessant", "cars": "2", "night": "dontcare"},
            },
            service_results=[{"to": "Ouessant"}],
        ),
        sgd_turn("USER", "And one more.", state=sgd_state()),
        sgd_turn("SYSTEM", "Where to?", actions=[{"act": "REQUEST", "slot": "to"}]),
    ],
}


def hammer_row(query):
    tools = [
        {
            "name": "Moor",
            "description": "Moors a boat",
            "parameters": {"berth": {"type": "int", "description": "", "required": True}},
        }
    ]
    return {
        "instruction": f"[BEGIN OF AVAILABLE TOOLS]\n{json.dumps(tools)}\n"
        f"[END OF AVAILABLE TOOLS]\n[BEGIN OF QUERY]\n{query}\n[END OF QUERY]\n",
        "input": "",
        "output": '```\n[{"name": "Moor", "arguments": {"berth": 2}}]\n```',
    }


def rotbench_row(*actions):
    tools = [
        {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}, "to": {"type": "string"}},
                "required": ["word"],
            },
        }
        for name in ("tr_a", "tr_b")
    ]
    system = f"You have access of the following tools:\n{json.dumps(tools)}\n\nLet's Begin!\n"
    return {
        "id": "Turn 1",
        "scenario": "TG",
        "conversations": [
            {"from": "system", "value": system},
            {"from": "user", "value": "Translate cat\nBegin!\n"},
            {"from": "assistant", "value": [f"Thought:\nAction: {a}" for a in actions]},
        ],
    }


# A query of NexusRaven's, and the functions of which it names some.
RAVEN = {
    "dataset": "sea",
    "prompt": "The tide at Brest, hourly",
    "python_function_name": "tide",
    "python_args_dict": '{"port": "Brest", "step": 1}',
    "context_functions": ["tide", "swell"],
}


def raven_function(name, *arguments, dataset="sea"):
    keys = ("name", "type", "required", "default", "description")
    declared = [dict(zip(keys, a, strict=True)) for a in arguments]
    return {"dataset": dataset, "name": name, "description": f"The {name}", "args_dicts": declared}


RAVEN_FUNCTIONS = [
    raven_function("swell"),
    raven_function("tide", dataset="elsewhere"),
    raven_function(
        "tide",
        ("port", "str", True, "None", "where"),
        ("step", "int", False, "6", ""),
        ("kinds", "list", False, 'JSON:["high", "low"]', ""),
        ("note", "None", False, "None", ""),
    ),
]

TOOL = {
    "name": "tide",
    "description": "",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}


CALL = {"name": "tide", "arguments": {"port": "Brest"}}


USER = {"role": "user", "content": "Tide at Brest?"}
