"""The loader alone: pairs/s, padding, planning time; against what a host of the 14B run consumes.

    python -m benchmarks.loader [--rows 6000] [--workers 0 2] [--json loader.json]

Pairs of real tool-calling data from the folder that TOOLRM_DATA names, in Qwen2.5's tokens: the
wrong side is what a model answered where that is known, elsewhere a corruption of the right one.
Without that folder: the quickstart's BFCL pairs, in SmolLM2's.

  index     every row rendered and tokenised once, for its length
  batches   rows read, rendered, tokenised and packed again, as training does
  plan      an epoch of 180,000 prompts drawn from these lengths, for 16 and 32 chips
"""

import argparse
import gzip
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolrm_jax import assets, batch_plan
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import Lengths, PlanConfig, padding_share, plan_epoch
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.corruptions import corrupt
from toolrm_jax.examples import Example
from toolrm_jax.gguf_llama import read_gguf
from toolrm_jax.loader import Index, Loader, RowFile, RowTokenizer, build_index
from toolrm_jax.pairs import read_rows, write_rows
from toolrm_jax.rendering import Renderer, prepare_tokenizer

Row = dict[str, Any]

ROW = RowShape(4096, 64)
SHAPES = {
    "rows of 4,096": (ROW,),
    "rows of 2,048 and 4,096": (RowShape(2048, 32), ROW),
    "rows of 1,024, 2,048 and 4,096": (RowShape(1024, 16), RowShape(2048, 32), ROW),
}
CHIP_COUNTS = (16, 32)  # v5p:2x2x4 and v6e:4x4, v5e:4x8; a row a chip
PROMPTS = 180_000  # of the paper's training set
# What the 14B run consumes: the planner's upper bound, of four of its chips, which a v5p host has.
PLANS = Path(__file__).parents[1] / "docs" / "plans.json"
PLAN, CHIPS_PER_HOST = "14b v5p:2x2x4", 4
TARGET = 20.0


def host_tokens_per_second() -> float:
    """Tokens that a v5p host's chips train on in a second, with all collectives overlapped."""
    plan = json.loads(PLANS.read_text())[PLAN]
    return CHIPS_PER_HOST / plan["chips"] * plan["overlapped"]["tokens_per_second"]


def real_rows(root: Path, every: int = 1) -> Iterator[Row]:
    """Preference rows of two responses from `data/train` and `data/replay`, each `every`-th."""
    for part in ("train", "replay"):
        for path in sorted((root / "data" / part).glob("*.jsonl.gz")):
            with gzip.open(path, "rt") as file:
                for number, line in enumerate(itertools.islice(file, 0, None, every)):
                    task = json.loads(line)
                    if (wrong := _wrong(task)) is not None:
                        yield _preference(f"{path.stem}/{number}", task, wrong)


def _wrong(task: Row) -> Any:
    """A wrong response to the task; None where there is none."""
    if "answers" in task:
        wrongs = [answer for answer in task["answers"] if not answer["right"]]
        calls = [a["raw"] if a["calls"] is None else a["calls"] for a in wrongs]
        return calls[0] if calls else None
    reference = [
        call | {"arguments": {name: [value] for name, value in call["arguments"].items()}}
        for call in task["gold_calls"]
    ]
    example = Example(
        id=task["id"],
        source=task["source"],
        license="",
        tools=task["tools"],
        messages=task["conversation"],
        reference=reference,
        gold=task["gold_calls"],
    )
    wrong = next(corrupt(example, seed=0), None)
    return None if wrong is None else wrong.response


def _preference(row_id: str, task: Row, wrong: Any) -> Row:
    return {
        "id": row_id,
        "tools": task["tools"],
        "messages": task["conversation"],
        "chosen": task["gold_calls"],
        "rejected": [{"response": wrong}],
    }


def spread(rows: Iterable[Row], count: int) -> list[Row]:
    """So many of the rows, evenly over all of them."""
    every = list(rows)
    at = np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)
    return [every[i] for i in at]


def open_data(folder: Path, count: int) -> tuple[str, RowFile, PreTrainedTokenizerBase]:
    """(what it is, rows, tokenizer)."""
    root = os.environ.get("TOOLRM_DATA")
    if root:
        what, rows = "real tasks, Qwen2.5's tokens", spread(real_rows(Path(root)), count)
        tokenizer = AutoTokenizer.from_pretrained(Path(root) / "tokenizers" / "qwen2.5")
    else:
        built = read_rows(ensure_pairs(folder / "pairs", wrong_per_task=1).train)
        what, rows = "BFCL pairs, SmolLM2's tokens", spread(built, count)
        tokenizer = read_gguf(assets.smollm2_gguf()).tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "rows.jsonl", rows)
    return what, RowFile(folder / "rows.jsonl"), prepare_tokenizer(tokenizer)


def plan_table(lengths: Lengths, prompts: int) -> list[dict[str, Any]]:
    """An epoch of so many prompts, drawn from these lengths, in each shape and size of mesh."""
    drawn = lengths.take(np.random.default_rng(0).integers(0, len(lengths), prompts))
    table = []
    for (name, shapes), chips in itertools.product(SHAPES.items(), CHIP_COUNTS):
        config = PlanConfig(shapes, chips * ROW.tokens, row_multiple=chips)
        start = time.perf_counter()
        steps = plan_epoch(drawn, config, seed=0, epoch=0)
        table.append(
            {
                "shapes": name,
                "chips": chips,
                "prompts": prompts,
                "steps": len(steps),
                "padding": padding_share(steps, drawn, config),
                "seconds": time.perf_counter() - start,
            }
        )
    return table


def index_rate(rows: RowFile, tokenize: RowTokenizer, workers: int) -> tuple[float, Index]:
    """(rows/s, index); the start of the workers is counted, as a run waits for it."""
    start = time.perf_counter()
    index = build_index(rows, tokenize, [ROW], workers)
    return len(rows) / (time.perf_counter() - start), index


def batch_rates(
    rows: RowFile, index: Index, tokenize: RowTokenizer, workers: int
) -> dict[str, float]:
    """Of the epoch's batches for a host of four chips, from the first one on."""
    plan = PlanConfig((ROW,), CHIPS_PER_HOST * ROW.tokens, row_multiple=CHIPS_PER_HOST)
    loader = Loader(rows, index, tokenize, plan, workers=workers)
    steps = len(loader.epoch(0))
    batches = loader.batches(0, steps)
    next(batches)  # the workers start
    start = time.perf_counter()
    for _ in batches:
        pass
    seconds = time.perf_counter() - start
    examples = [i for step in loader.epoch(0)[1:] for i in step.examples()]
    tokens = int(index.lengths.tokens[examples].sum())
    pairs = sum(len(index.kept[i]) for i in examples)
    return {
        "workers": workers,
        "pairs": pairs / seconds,
        "tokens": tokens / seconds,
        "padding": loader.padding_share(),
        "times": tokens / seconds / host_tokens_per_second(),
    }


def measure(folder: Path, count: int, workers: list[int]) -> dict[str, Any]:
    """All figures, said as they come."""
    what, rows, tokenizer = open_data(folder, count)
    tokenize = RowTokenizer(Renderer(tokenizer))
    rates = []
    for number in workers:
        rate, index = index_rate(rows, tokenize, number)
        found = batch_rates(rows, index, tokenize, number) | {"index_rows": rate}
        rates.append(found)
        print(
            f"workers {number}: index {rate:,.0f} rows/s; batches {found['pairs']:,.0f} pairs/s, "
            f"{found['tokens']:,.0f} tokens/s, {100 * found['padding']:.1f}% padding: "
            f"{found['times']:.0f} times a host of the 14B run (target {TARGET:.0f})",
            flush=True,
        )
    lengths = index.lengths.take(np.flatnonzero(index.usable))
    quantiles = np.quantile(lengths.tokens, (0.05, 0.5, 0.95, 0.99)).astype(int)
    left_out = len(batch_plan.too_long(index.lengths, [ROW]))
    print(
        f"{what}: {len(index.ids):,} rows; tokens a row: 5% {quantiles[0]:,}, median "
        f"{quantiles[1]:,}, 95% {quantiles[2]:,}, 99% {quantiles[3]:,}; {left_out} longer than "
        f"{ROW.tokens:,} left out"
    )
    table = plan_table(lengths, PROMPTS) + plan_table(lengths, 5_000)
    for plan in table:
        print(
            f"{plan['prompts']:>7,} prompts, {plan['chips']} chips, {plan['shapes']}: "
            f"{plan['steps']:,} steps, {100 * plan['padding']:.2f}% padding, planned in "
            f"{plan['seconds']:.1f} s"
        )
    return {"data": what, "rows": len(index.ids), "rates": rates, "plans": table}


def main(_: list[str]) -> None:
    """Command line."""
    args = _ARGUMENTS
    print(
        f"{os.cpu_count()} cores; a v5p host of the 14B run is taken to train on "
        f"{host_tokens_per_second():,.0f} tokens/s: {CHIPS_PER_HOST} chips of the plan {PLAN}, all "
        f"collectives overlapped",
        flush=True,
    )
    found = measure(args.folder, args.rows, args.workers)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=6000, help="rows to read")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, os.cpu_count() or 1])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-loader"))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


if __name__ == "__main__":
    _ARGUMENTS = _arguments()
    app.run(main, argv=["benchmarks.loader"])  # Grain's workers need absl's flags
