"""The quickstart's data: preference pairs from the BFCL tasks in the wheel, built once per folder.

BFCL tasks --corrupt, judge, balance, split--> folder/train.jsonl, heldout.jsonl, report.json

    python -m toolrm_jax.bfcl_pairs --output runs/pairs
"""

import argparse
import dataclasses
import hashlib
import json
import os
from pathlib import Path

from etils import epath

from toolrm_jax import bfcl, pairs
from toolrm_jax.assets import WHEELS, bfcl_data_dir, fetch
from toolrm_jax.errors import reported
from toolrm_jax.files import write_text
from toolrm_jax.paths import as_path


@dataclasses.dataclass(frozen=True)
class PairFiles:
    """Where the two sides of the split are."""

    train: epath.Path
    heldout: epath.Path
    report: epath.Path


# What the rows depend on; a change of any makes old files stale.
GENERATORS = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in (
        "accepted_forms",
        "bfcl",
        "corruptions",
        "distractors",
        "errors",
        "examples",
        "files",
        "literals",
        "near_names",
        "near_values",
        "pair_report",
        "pairs",
        "paths",
        "refusals",
        "schema",
        "splits",
        "task_view",
        "tool_calls",
        "value_corruptions",
    )
)


def generator_digest() -> str:
    """A hash of the code that makes the pairs, and of the version of the tasks."""
    sources = [path.read_bytes() for path in GENERATORS]
    content = b"\0".join([f"bfcl-eval {WHEELS['bfcl-eval']}".encode(), *sources])
    return hashlib.sha256(content).hexdigest()


def ensure_pairs(
    folder: str | os.PathLike[str], *, seed: int = 0, wrong_per_task: int = 3
) -> PairFiles:
    """Builds the pairs in `folder` and prints the report, unless the same pairs are there."""
    root = as_path(folder)
    files = PairFiles(root / "train.jsonl", root / "heldout.jsonl", root / "report.json")
    settings = {"seed": seed, "wrong_per_task": wrong_per_task, "generator": generator_digest()}
    # The report is written last, so it stands for a complete folder.
    if files.report.exists() and json.loads(files.report.read_text()).get("settings") == settings:
        return files
    fetch()
    tasks, dropped = bfcl.read_tasks(bfcl_data_dir())
    train, heldout, report = pairs.build(tasks, seed=seed, wrong_per_task=wrong_per_task)
    report.left_out.update(dropped)
    files.report.unlink(missing_ok=True)
    pairs.write_rows(files.train, train)
    pairs.write_rows(files.heldout, heldout)
    content = json.dumps({"settings": settings} | report.to_json(), indent=2)
    write_text(files.report, content + "\n")
    print(report.table())
    return files


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", required=True, help="folder for train.jsonl, heldout.jsonl, report.json"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the corruptions and the split")
    parser.add_argument("--wrong-per-task", type=int, default=3, help="wrong responses per prompt")
    args = parser.parse_args()
    with reported():
        files = ensure_pairs(args.output, seed=args.seed, wrong_per_task=args.wrong_per_task)
    print(f"{files.train}\n{files.heldout}")


if __name__ == "__main__":
    main()
