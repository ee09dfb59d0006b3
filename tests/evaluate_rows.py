"""Small rows for tests of evaluation: pairs, pools, tasks; and a model to score them."""

import json
import math

import tiny

from toolrm_jax.evaluate.cases import Candidate, Case

TOOL = {
    "name": "tide",
    "description": "When the water is high",
    "parameters": {
        "type": "object",
        "properties": {"port": {"type": "string"}, "day": {"type": "integer"}},
        "required": ["port"],
    },
}


def call(**arguments):
    return [{"name": "tide", "arguments": arguments}]


def pair_row(number=0, **changes):
    """A row of FC-RewardBench."""
    row = {
        "tools": [{"type": "function", "function": TOOL}],
        "conversation": [{"role": "user", "content": f"High water at Brest, day {number}?"}],
        "chosen_output": call(port="Brest", day=number),
        "rejected_output": call(port="Best", day=number),
        "error_type": "Parameter value error",
        "model_name": "m",
        "test_category": "simple",
        "test_id": f"simple_{number}",
    }
    return row | changes


def pool_row(number=0, rights=(True, False, False), **changes):
    candidates = [
        {
            "calls": call(port="Brest" if right else f"Port {k}", day=k),
            "correct": right,
            "n_samples": k + 1,
            "model_name": "m",
            "error_type": None if right else "value",
        }
        for k, right in enumerate(rights)
    ]
    row = {"test_id": f"t{number}", "tools": [TOOL], "candidates": candidates}
    return row | {"messages": [{"role": "user", "content": "High water at Brest?"}]} | changes


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def case(*rights, task="t", category=""):
    """A case whose candidates are as long as their number."""
    candidates = [Candidate("x" * (k + 1), right) for k, right in enumerate(rights)]
    return Case(task, [], [{"role": "user", "content": "?"}], candidates, category)


def normal_rows(count):
    """Normalised rows whose right call is in the request."""
    return [
        {
            "id": f"q{n}",
            "source": "s",
            "license": "MIT",
            "tools": [TOOL],
            "meta": {},
            "conversation": [{"role": "user", "content": f"High water at Brest, day {n}?"}],
            "gold_calls": call(port="Brest", day=n),
        }
        for n in range(count)
    ]


def write_reward_model(folder):
    """A tiny reward model that says it was trained on simple_0 to simple_9."""
    tiny.write_reward_model(folder)
    about = {
        "config": {"model": {"source": "tiny|lm"}, "data": {"train": "train.jsonl", "shapes": [8]}},
        "train_tasks": [f"bfcl/simple_{n}" for n in range(10)],
        "step": 1100,
        "heldout": {"accuracy": {"mean": 0.75, "low": math.nan}},
    }
    (folder / "toolrm.json").write_text(json.dumps(about))
    return folder
