"""A few tasks of our own in BFCL's format, for tests that must run without its data."""

import json
import pathlib
from typing import Any


def _tool(name: str, description: str, required: list[str], **properties: dict[str, Any]) -> dict:
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


_LUNCH = _tool(
    "canteen.reserve",
    "Reserve a table.",
    ["canteen", "guests"],
    canteen={"type": "string", "description": "Name of the canteen, such as 'Mensa Nord'."},
    guests={"type": "integer", "description": "How many people come."},
    day={"type": "string", "description": "Day, YYYY-MM-DD.", "default": "2024-01-01"},
    seat={"type": "string", "description": "Where to sit.", "enum": ["window", "garden", "bar"]},
    quiet={"type": "boolean", "description": "A quiet corner.", "default": False},
)
_CANCEL = _tool(
    "canteen.cancel",
    "Cancel a table.",
    ["canteen"],
    canteen={"type": "string", "description": "Name of the canteen."},
    fee={"type": "float", "description": "Fee as a decimal fraction, e.g. 0.05.", "default": 0.1},
)
_TEMPERATURE = _tool(
    "read_sensor",
    "Read a sensor.",
    ["sensor_id"],
    sensor_id={"type": "string", "description": "The id."},
    metrics={"type": "array", "items": {"type": "string"}, "description": "What to read."},
    window={"type": "tuple", "items": {"type": "float"}, "description": "From, to."},
)
_JAVA = _tool(
    "Queue.resize",
    "Resizes the queue",
    ["queue", "size", "names", "strict"],
    queue={"type": "any", "description": "The queue"},
    size={"type": "long", "description": "New size"},
    names={"type": "Array", "description": "Names", "items": {"type": "String"}},
    strict={"type": "boolean", "description": "Fail if too small"},
)
_PAINT = _tool(
    "mix_paint",
    "Mix a paint.",
    ["colour"],
    colour={"type": "dict", "properties": {"red": {"type": "integer"}, "name": {"type": "string"}}},
    litres={"type": "float", "description": "Litres."},
)

_TASKS: dict[str, list[tuple[str, list[dict], list[dict] | None]]] = {
    "simple_python": [
        (
            "Please reserve the garden seat at Mensa Nord for 4 people on 2024-03-02.",
            [_LUNCH],
            [
                {
                    "canteen.reserve": {
                        "canteen": ["Mensa Nord", "the Mensa Nord canteen"],
                        "guests": [4],
                        "day": ["2024-03-02"],
                        "seat": ["garden"],
                        "quiet": ["", False],
                    }
                }
            ],
        ),
        (
            "Mix 2.5 litres of the paint 'Deep Rust' with 120 red.",
            [_PAINT],
            [{"mix_paint": {"colour": [{"red": [120], "name": ["Deep Rust"]}], "litres": [2.5]}}],
        ),
    ],
    "simple_java": [
        (
            "Resize `jobQueue` to 40 with the names 'alpha' and 'beta', strictly.",
            [_JAVA],
            [
                {
                    "Queue.resize": {
                        "queue": ["jobQueue"],
                        "size": [40],
                        "names": [["alpha", "beta"]],
                        "strict": [True],
                    }
                }
            ],
        )
    ],
    "parallel_multiple": [
        (
            "Read temperature and humidity of sensor K-17, and humidity of sensor L-44.",
            [_TEMPERATURE],
            [
                {
                    "read_sensor": {
                        "sensor_id": ["K-17"],
                        "metrics": [["temperature", "humidity"], ["humidity", "temperature"]],
                        "window": ["", [0.0, 1.0]],
                    }
                },
                {
                    "read_sensor": {
                        "sensor_id": ["L-44"],
                        "metrics": [["humidity"]],
                        "window": ["", [0.0, 1.0]],
                    }
                },
            ],
        )
    ],
    "multiple": [
        (
            "Cancel our table at Mensa Nord, not the one at Café Ost.",
            [_LUNCH, _CANCEL],
            [{"canteen.cancel": {"canteen": ["Mensa Nord"], "fee": [0.1, ""]}}],
        )
    ],
    "irrelevance": [
        ("What is the tallest tree in Lund?", [_CANCEL], None),
        ("Translate 'hej' for Anna.", [_TEMPERATURE], None),
    ],
}
CATEGORIES = tuple(_TASKS)


def write_samples(data_dir: pathlib.Path) -> pathlib.Path:
    """Write the tasks as BFCL's files; returns the directory."""
    (data_dir / "possible_answer").mkdir(parents=True)
    for category, tasks in _TASKS.items():
        name = f"BFCL_v4_{category}.json"
        rows, truths = [], []
        for number, (request, tools, truth) in enumerate(tasks):
            task_id = f"{category}_{number}"
            question = [[{"role": "user", "content": request}]]
            rows.append({"id": task_id, "question": question, "function": tools})
            truths.append({"id": task_id, "ground_truth": truth})
        (data_dir / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
        if tasks[0][2] is not None:
            answers = "\n".join(map(json.dumps, truths)) + "\n"
            (data_dir / "possible_answer" / name).write_text(answers)
    return data_dir
