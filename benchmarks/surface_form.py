"""How much does a reward depend on how an answer is spelled? Canonical calls against as written.

    python -m benchmarks.surface_form --model runs/quickstart/model/export [--prompts 100]

An answer that parses is scored from its canonical calls; with `Renderer(raw=True)` it is scored as
its text stands. This scores the same answers both ways and prints, per way of spelling,

    change   the mean absolute difference of the reward (the spread of rewards beside it)
    flips    the share of pairs, right against wrong, whose order is another

The answers are right and wrong calls for held-out BFCL tasks, spelled in several ways; or, with
`--pools`, what real models wrote, against the calls that BFCL's checker read in it
(pools_dev.jsonl.gz, in the folder that TOOLRM_DATA names). Tasks that the model was trained on are
left out, where its directory says which (toolrm.json).
"""

import argparse
import dataclasses
import gzip
import json
import os
import random
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import jax
import numpy as np

from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.examples import Call, Response
from toolrm_jax.huggingface import load_params
from toolrm_jax.loader import Loader, RowFile, RowTokenizer, build_index
from toolrm_jax.model import Compute, Forward
from toolrm_jax.pair_scores import PairScores, make_reward_function, score
from toolrm_jax.pairs import Row, read_rows, write_rows
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tool_calls import parse_calls

SHAPE = RowShape(2048, 64)
ROWS = 2  # of a batch


# How an answer is written -------------------------------------------------------------------------


def _shuffled(calls: list[Call], order: random.Random) -> list[Call]:
    """The same calls, each with its arguments in another order."""
    items = [list(call["arguments"].items()) for call in calls]
    return [
        {"name": call["name"], "arguments": dict(order.sample(pairs, len(pairs)))}
        for call, pairs in zip(calls, items, strict=True)
    ]


def _hermes(calls: list[Call]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


SPELLINGS: dict[str, Callable[[list[Call], random.Random], str]] = {
    "<tool_call> blocks": lambda calls, order: _hermes(calls),
    "arguments shuffled": lambda calls, order: _hermes(_shuffled(calls, order)),
    "JSON list": lambda calls, order: json.dumps(calls),
    "JSON list, indented": lambda calls, order: json.dumps(calls, indent=2),
}


def respelled(rows: Iterable[Row], spelling: str, seed: int = 0) -> Iterator[Row]:
    """The rows with every answer as text; answers that call nothing have no spelling, and go."""
    order = random.Random(seed)
    for row in rows:
        wrongs = [wrong for wrong in row["rejected"] if _calls(wrong["response"])]
        if wrongs and _calls(row["chosen"]):
            yield {
                **row,
                "chosen": SPELLINGS[spelling](row["chosen"], order),
                "rejected": [
                    {**wrong, "response": SPELLINGS[spelling](wrong["response"], order)}
                    for wrong in wrongs
                ],
            }


def _calls(response: Response) -> bool:
    return isinstance(response, list) and bool(parse_calls(response))


def pool_rows(path: str | Path, form: str, wrong_per_task: int = 3) -> Iterator[Row]:
    """Real models' answers, a right one and some wrong ones a task.

    form: "raw", as they wrote them, in whatever dialect; "calls", what BFCL's checker read in them.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for pool in map(json.loads, lines):
            answers = [c for c in pool["candidates"] if c["calls"] and isinstance(c["raw"], str)]
            right = [c for c in answers if c["correct"]]
            wrong = [c for c in answers if not c["correct"]][:wrong_per_task]
            if right and wrong:
                yield {
                    "id": f"bfcl/{pool['test_id']}",
                    "tools": pool["tools"],
                    "messages": pool["conversation"],
                    "chosen": right[0][form],
                    "rejected": [
                        {"response": c[form], "error_type": c["error_type"]} for c in wrong
                    ],
                }


# What it does to the reward -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Drift:
    """Canonical against as written, over the pairs that both have."""

    pairs: int
    rewards: int
    change: float  # mean absolute difference of a response's reward
    spread: float  # standard deviation of the canonical rewards, for scale
    flips: float  # share of pairs whose order is another


def drift(canonical: PairScores, written: PairScores) -> Drift:
    """Compares the two scorings of the same rows; pairs that only one of them has are left out.

    (Two answers with the same calls are two texts, but one canonical form.)
    """
    ours, theirs = _by_pair(canonical), _by_pair(written)
    shared = [pair for pair in ours if pair in theirs]
    if not shared:
        raise ValueError("the two scorings have no pair in common: are they of the same rows?")
    a_P2, b_P2 = (np.array([side[pair] for pair in shared]) for side in (ours, theirs))
    # A task's right answer stands in each of its pairs, and counts once.
    first = np.unique([task for task, _ in shared], return_index=True)[1]
    a_N, b_N = (np.concatenate([x_P2[first, 0], x_P2[:, 1]]) for x_P2 in (a_P2, b_P2))
    flips_P = np.sign(a_P2[:, 0] - a_P2[:, 1]) != np.sign(b_P2[:, 0] - b_P2[:, 1])
    return Drift(
        pairs=len(shared),
        rewards=len(a_N),
        change=float(np.abs(a_N - b_N).mean()),
        spread=float(a_N.std()),
        flips=float(flips_P.mean()),
    )


def _by_pair(scores: PairScores) -> dict[tuple[str, int], tuple[float, float]]:
    pairs = zip(scores.tasks, scores.numbers, strict=True)
    return dict(zip(pairs, zip(scores.right, scores.wrong, strict=True), strict=True))


class Scorer:
    """A model that scores the rows of a file, canonical or as written."""

    def __init__(self, model: str, dtype: str = "bfloat16", shape: RowShape = SHAPE):
        opened = open_pretrained(model)
        self.tokenizer, self.shape = opened.tokenizer, shape
        self.mesh = make_mesh(fsdp=-1)
        with jax.set_mesh(self.mesh):
            self.params = load_params(opened.source, self.mesh)
            forward = Forward(opened.source.config, Compute(dtype))
        self.rewards_of = make_reward_function(forward)

    def score(self, rows: list[Row], *, raw: bool) -> tuple[PairScores, dict[str, int]]:
        """The scores, and how many answers or rows were left out for which reason."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, rows)
            file = RowFile(path)
            tokenize = RowTokenizer(Renderer(self.tokenizer, raw=raw))
            index = build_index(file, tokenize, [self.shape])
            shards = self.mesh.size
            plan = PlanConfig((self.shape,), ROWS * self.shape.tokens, row_multiple=shards)
            loader = Loader(file, index, tokenize, plan, shuffle=False)
            with jax.set_mesh(self.mesh):
                return score(self.rewards_of, self.params, loader, self.mesh), index.counts()


# Command line -------------------------------------------------------------------------------------


def unseen(rows: Iterable[Row], model: str, count: int) -> list[Row]:
    """The first rows of tasks that the model was not trained on."""
    about = Path(model) / "toolrm.json"
    seen: Collection[str] = ()
    if about.is_file():
        seen = set(json.loads(about.read_text()).get("train_tasks", ()))
    rows = [row for row in rows if row["id"] not in seen]
    if not rows:
        raise SystemExit(f"error: {model} was trained on every task that there is to compare")
    return rows[:count]


def _collections(args: argparse.Namespace) -> Iterator[tuple[str, list[Row]]]:
    """The canonical rows first, then each way of spelling with its rows."""
    if args.pools:
        if "TOOLRM_DATA" not in os.environ:
            raise SystemExit("error: --pools reads the folder that TOOLRM_DATA names; it is unset")
        pools = Path(os.environ["TOOLRM_DATA"]) / "data/eval/pools_dev.jsonl.gz"
        for name, form in (("canonical", "calls"), ("as models wrote", "raw")):
            yield name, unseen(pool_rows(pools, form), args.model, args.prompts)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.rows or ensure_pairs(folder).heldout
        rows = unseen(read_rows(path), args.model, args.prompts)
    yield "canonical", list(respelled(rows, "JSON list"))
    for spelling in SPELLINGS:
        yield spelling, list(respelled(rows, spelling))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a reward model: directory or hub id")
    parser.add_argument("--prompts", type=int, default=100, help="how many held-out prompts")
    parser.add_argument("--dtype", default="bfloat16", help="of the products, or float32")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--rows", type=Path, help="preference file to respell instead of BFCL's")
    source.add_argument("--pools", action="store_true", help="real models' answers, as written")
    args = parser.parse_args()
    scorer = Scorer(args.model, args.dtype)
    print(f"{'spelling':22}{'pairs':>7}{'rewards':>9}{'change':>9}{'spread':>9}{'flips':>8}")
    collections = _collections(args)
    canonical, left_out = scorer.score(next(collections)[1], raw=False)
    for spelling, rows in collections:
        written, _ = scorer.score(rows, raw=True)
        found = drift(canonical, written)
        print(
            f"{spelling:22}{found.pairs:7,}{found.rewards:9,}{found.change:9.3f}"
            f"{found.spread:9.3f}{found.flips:8.1%}"
        )
    for reason, count in left_out.items():
        print(f"Left out: {count:,} ({reason}).")


if __name__ == "__main__":
    main()
