"""Synthesis without a model: examples/s and peak memory of each stage, as examples grow in number.

    python -m benchmarks.synth --examples 45000 180000 --workers 2

The examples are the normalised rows under $TOOLRM_DATA/data/train (made-up rows where it is unset),
as often as it takes: each copy has its own id and eight words of its own, so that it is read,
sketched and corrupted like any other. Corruptions alone answer. Memory is what all processes of a
stage hold together (RssAnon), sampled every 50 ms, so Linux alone. A stage that is complete in the
folder is not measured again: delete the folder to begin anew.
"""

import argparse
import contextlib
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peak_memory import anonymous_bytes
from toolrm_jax.synth.synth_config import STAGES


def originals(root: str | None) -> Iterator[dict[str, Any]]:
    """Normalised rows, in turn from each file, so that any number of them has all kinds."""
    if root is None:
        yield from map(_made_up, range(1000))
        return
    with contextlib.ExitStack() as stack:
        paths = sorted(Path(root, "data/train").glob("*.jsonl.gz"))
        files = [stack.enter_context(gzip.open(path)) for path in paths]
        for lines in itertools.zip_longest(*files):
            yield from (json.loads(line) for line in lines if line is not None)


def _made_up(number: int) -> dict[str, Any]:
    city = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    }
    tools = [
        {"name": name, "description": "For a city.", "parameters": {**city, "required": ["city"]}}
        for name in ("get_weather", "get_time", "find_hotel")
    ]
    asked = {"city": f"Town {number}", "days": 2 + number % 9}
    return {
        "id": f"made/{number}",
        "source": "made",
        "license": "MIT",
        "tools": tools,
        "conversation": [{"role": "user", "content": f"Weather in {asked['city']}, next days?"}],
        "gold_calls": [{"name": "get_weather", "arguments": asked}] if number % 10 else [],
        "meta": {},
    }


def write_examples(path: Path, count: int) -> None:
    """So many rows, each copy of an original with words of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with gzip.open(path, "wt", compresslevel=1) as file:
        for copy in itertools.count():
            for row in originals(os.environ.get("TOOLRM_DATA")):
                if written == count:
                    return
                file.write(json.dumps(_copy(row, copy)) + "\n")
                written += 1


def _copy(row: dict[str, Any], number: int) -> dict[str, Any]:
    if not number:
        return row
    rng = random.Random(f"{number}/{row['id']}")
    words = " ".join(f"{rng.choice('bcdfg')}{rng.randrange(10**5)}" for _ in range(8))
    first, *rest = row["conversation"]
    first = {**first, "content": f"{first['content']} ({words})"}
    return {**row, "id": f"{row['id']}~{number}", "conversation": [first, *rest]}


CONFIG = """
from ml_collections import ConfigDict
from toolrm_jax.synth.synth_config import synth_config

def get_config():
    config = synth_config()
    config.workers = {workers}
    config.sources = (
        {{"name": "rows", "format": "normalised", "path": {path!r}, "obfuscate": 0.5}},
    )
    config.answers.pool = ({{"kind": "corruption"}},)
    return config
"""


def descendants(pid: int) -> list[int]:
    """The process and all that it started."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [pid, *(inner for child in text.split() for inner in descendants(int(child)))]


def measure(command: list[str]) -> tuple[float, int, str]:
    """Runs a command: seconds, peak bytes of all its processes together, and what it printed."""
    start, peak, ended = time.perf_counter(), 0, threading.Event()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, sum(map(anonymous_bytes, descendants(process.pid))))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    output, _ = process.communicate()
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{output}")
    return time.perf_counter() - start, peak, output


def run(folder: Path, count: int, workers: int, stages: list[str]) -> list[dict[str, Any]]:
    """Every stage of one run, measured alone."""
    at = folder / str(count)
    if not (at / "rows.jsonl.gz").exists():
        write_examples(at / "rows.jsonl.gz", count)
    path = str((at / "rows.jsonl.gz").absolute())
    (at / "config.py").write_text(CONFIG.format(workers=workers, path=path))
    figures = []
    for stage in stages:
        seconds, peak, output = measure(
            [
                *(sys.executable, "-m", "toolrm_jax.synth", "--config", str(at / "config.py")),
                *("--workdir", str(at / "run"), f"--stages={stage}"),
            ]
        )
        done_before = "complete already" in output
        figures.append(
            {"stage": stage, "examples": count, "seconds": seconds, "peak_bytes": peak}
            | ({"measured": False} if done_before else {})
        )
        print(
            f"{count:>9,} examples  {stage:11}{seconds:8.1f} s{count / seconds:10,.0f} examples/s"
            f"{peak / 1e9:8.2f} GB{'  (was complete)' if done_before else ''}",
            flush=True,
        )
    total = sum(figure["seconds"] for figure in figures)
    peak = max(figure["peak_bytes"] for figure in figures)
    print(
        f"{count:>9,} examples  together   {total:8.1f} s{count / total:10,.0f} examples/s"
        f"{peak / 1e9:8.2f} GB",
        flush=True,
    )
    card = at / "run/dataset/card.json"
    if card.exists():
        print(f"{json.loads(card.read_text())['pairs']:,} pairs", flush=True)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, nargs="+", default=[45_000, 180_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-synth"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures = [
        figure
        for count in args.examples
        for figure in run(args.folder, count, args.workers, args.stages)
    ]
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
