"""Small files of normalised rows to synthesise from, and a config that reads them."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from toolrm_jax.examples import Example
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.synth_config import synth_config
from toolrm_jax.tool_calls import exact_reference

CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Quito", "Seoul", "Tunis", "Dakar", "Hanoi")
DISHES = ("pasta", "curry", "ramen", "tacos", "salad", "pizza", "stew", "sushi", "paella", "pho")


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    required = [p for p, schema in properties.items() if not schema.pop("optional", False)]
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": f"To {name.replace('_', ' ')}.", "parameters": parameters}


def tools() -> list[dict[str, Any]]:
    """Three tools with numbers, an enum and optional parameters."""
    return [
        _tool(
            "find_restaurant",
            city={"type": "string", "description": "City"},
            dish={"type": "string", "description": "Dish", "optional": True},
            guests={"type": "integer", "description": "How many", "optional": True},
        ),
        _tool(
            "book_table",
            city={"type": "string", "description": "City"},
            guests={"type": "integer", "description": "How many"},
        ),
        _tool(
            "get_weather",
            city={"type": "string", "description": "City"},
            unit={"type": "string", "enum": ["celsius", "fahrenheit"], "optional": True},
        ),
    ]


def row(number: int) -> dict[str, Any]:
    """Single-turn, multi-turn and irrelevance in turn; no two say the same."""
    city, dish, guests = CITIES[number % 10], DISHES[number // 10 % 10], 2 + number % 7
    asked = f"Please find {dish} for {guests} guests in {city}, order {number}."
    find = {"name": "find_restaurant", "arguments": {"city": city, "dish": dish, "guests": guests}}
    book = {"name": "book_table", "arguments": {"city": city, "guests": guests}}
    made = {
        "id": f"made/{number}",
        "source": "made",
        "license": "MIT",
        "tools": tools(),
        "conversation": [{"role": "user", "content": asked}],
        "gold_calls": [find],
        "meta": {},
    }
    if number % 3 == 1:
        made["conversation"] += [
            {"role": "assistant", "content": "", "tool_calls": [find]},
            {"role": "tool", "content": json.dumps({"found": f"Trattoria {number}"})},
            {"role": "user", "content": f"Book it and the weather, reference {number * 7}."},
        ]
        made["gold_calls"] = [book, {"name": "get_weather", "arguments": {"city": city}}]
    if number % 3 == 2:
        made["conversation"] = [
            {"role": "user", "content": f"Translate text {number} about {dish} to Latin, {city}."}
        ]
        made["gold_calls"] = []
    return made


TRIP = {
    "from_city": {"type": "string"},
    "to_city": {"type": "string"},
    "day": {"type": "string", "description": "The date, as YYYY-MM-DD"},
    "guests": {"type": "integer", "default": 1},
    "cabin": {"type": "string", "enum": ["economy", "business", "first"]},
    "discount": {"type": "number", "description": "As a decimal fraction."},
    "stops": {"type": "array", "items": {"type": "string"}},
    "ticket": {"type": "string"},
    "gate": {"type": "string"},
    "contact": {"type": "object", "properties": {"age": {"type": "integer"}}},
    "window": {"type": "boolean"},
    "bags": {"type": "integer", "default": 2},
}


def trip(number: int, silent: bool = False) -> Example:
    """Two trips by one tool, with what every kind of corruption needs."""
    city, other = CITIES[number % 10], CITIES[(number + 3) % 10]
    values = {
        "from_city": city,
        "to_city": other,
        "day": f"2024-03-{number % 28 + 1:02}",
        "guests": 3 + number % 5,
        "cabin": ("economy", "business", "first")[number % 3],
        "discount": 0.25,
        "stops": ["Bergen", "Turin"],
        "ticket": f"AB-{1000 + number}",
        "gate": f"door {number % 40}b",
        "contact": {"age": 30 + number % 30},
    }
    back = {**values, "from_city": other, "to_city": city, "day": f"2024-04-{number % 28 + 1:02}"}
    said = "; ".join(f"{name} {value}" for name, value in values.items())
    request = f"A trip with 25% off: {said}. And back on {back['day']} from {other} to {city}."
    parameters = {"type": "object", "properties": TRIP, "required": list(values)[:-1]}
    catalogue = [{"name": "book_trip", "description": "", "parameters": parameters}, *tools()]
    gold = [] if silent else [{"name": "book_trip", "arguments": v} for v in (values, back)]
    reference = exact_reference(gold)
    for call in reference:
        call["arguments"]["bags"] = [2, ""]
    messages = [{"role": "user", "content": request}]
    return Example(f"trip/{number}", "made", "MIT", catalogue, messages, reference, gold)


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON lines, packed; a string or bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        for line in rows:
            text = line if isinstance(line, bytes | str) else json.dumps(line)
            file.write((text if isinstance(text, bytes) else text.encode()) + b"\n")
    return path


def config(source: Path, **fields: Any) -> ConfigDict:
    """A synthesis of one file with corruptions; fields by their dotted names."""
    made = synth_config()
    made.workers = 0
    made.shard_rows = 40
    made.sources = (
        {"name": "made", "format": "normalised", "path": str(source), "obfuscate": 0.3},
    )
    made.selection.quotas = ConfigDict({"single": 100, "multi": 100, "irrelevance": 40})
    with made.unlocked():
        made.update_from_flattened_dict(fields)
    return made


def finished_run(folder: Path) -> Path:
    """The workdir of a whole synthesis of 150 rows."""
    source = write_rows(folder / "rows.jsonl.gz", [row(n) for n in range(150)])
    Pipeline(config(source), folder / "run").run()
    return folder / "run"


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file, but of those that name the folder's own path."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
