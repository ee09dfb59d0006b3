"""Rows to score, and the command that scores them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny
from processes import without_torch

from toolrm_jax import score
from toolrm_jax.scorer import Scorer

CHUNK = 8


def own_rows(count: int) -> list[dict]:
    return [
        {
            "id": row["id"],
            "tools": row["tools"],
            "messages": row["messages"],
            "responses": [row["chosen"], *(wrong["response"] for wrong in row["rejected"])],
        }
        for row in tiny.rows("row", count)
    ]


def command(model, data, output, *more) -> list[str]:
    options = {"--model": model, "--input": data, "--output": output, "--dtype": "float32"}
    options |= {"--chunk-rows": CHUNK, "--workers": 0, "--batch-tokens": 2048}
    return [*(str(word) for pair in options.items() for word in pair), *map(str, more)]


def run(*arguments) -> int:
    return score.main(command(*arguments))


def start(arguments, program: str = "") -> subprocess.Popen:
    """The command as a process of its own, on the devices of this one."""
    call = ["-c", program] if program else ["-m", "toolrm_jax.score"]
    return subprocess.Popen(
        [sys.executable, *call, *arguments],
        cwd=tiny.ROOT,
        env=os.environ | without_torch() | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def after(windows: int, event):
    """Scoring that raises, or calls, `event` after so many windows."""
    score_tokenized = Scorer.score_tokenized

    def changed(self, given, **options):
        for number, found in enumerate(score_tokenized(self, given, **options)):
            if number == windows:
                if isinstance(event, Exception):
                    raise event
                event()
            yield found

    return changed


def committed(folder: Path) -> int:
    """Chunks that an unfinished job has committed."""
    return len(list((folder / "out.jsonl.parts").glob("chunk-*.part")))
