"""Scoring with SmolLM2-135M (30 layers), against transformers on PyTorch.

    python -m benchmarks.score [--repetitions 5] [--pairs 60] [--pools 16] [--profile]
    python -m benchmarks.score --only first growth

Real pairs and pools of at least 16 candidates, from the folder that TOOLRM_DATA names, or else
the quickstart's data. PyTorch runs as its users write it: every candidate's whole conversation
tokenised, sorted by length, padded in batches, `AutoModelForSequenceClassification`, inference
mode. Ours is `Scorer.score`, from requests to rewards, rendering and tokenisation included;
PyTorch's sequences are tokenised beforehand. Each side runs in the better of float32 and bfloat16
(tried first on a few sequences, in turns). The two take turns on the same requests, a fresh draw
each repetition, of which the other runs first each time.

"Per token" divides the ratio of responses/s by the ratio of the tokens computed (theirs, with
padding, over ours, with padding): 1.00 is as fast per token as the better PyTorch. The share of
the matmul rate counts the FLOPs of distinct tokens alone over the rate of the model's own
projections (`benchmarks/matmul.py`), measured in each repetition.
"""

import argparse
import collections
import copy
import dataclasses
import glob
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.matmul import layer_rate
from benchmarks.train_step import _kind
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.huggingface import load_params, save_directory
from toolrm_jax.model import init_params
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.request_tokens import Tokenized
from toolrm_jax.score_plan import Work, plan_window
from toolrm_jax.scorer import Scorer
from toolrm_jax.sharding import make_mesh, split_cpu

PRECISIONS = ("bfloat16", "float32")
SECTIONS = ("pairs", "pools", "growth", "first")
MIN_POOL = 16
MAX_TOKENS = 4096

# A process of its own, timed from its start: imports, weights, compilation, one request.
FIRST = """
import json, sys
from toolrm_jax.scorer import Scorer
request = json.load(open(sys.argv[2]))
with Scorer.from_pretrained(sys.argv[1], cache_dir=sys.argv[3]) as scorer:
    next(scorer.score([request]))
"""


def read_requests(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """{"pairs": requests with two responses, "pools": with MIN_POOL and more}."""
    root = os.environ.get("TOOLRM_DATA")
    if root:
        pairs = _read(Path(root) / "data/eval/fcrb_dev.jsonl.gz")
        pools = [
            {
                "tools": row["tools"],
                "messages": row["conversation"],
                "responses": [
                    c["raw"] if c["calls"] is None else c["calls"] for c in row["candidates"]
                ],
            }
            for row in _read(Path(root) / "data/eval/pools_dev.jsonl.gz")
        ]
        return {"pairs": pairs, "pools": [p for p in pools if len(p["responses"]) >= MIN_POOL]}
    built = {}
    for name, wrong in (("pairs", 1), ("pools", MIN_POOL - 1)):
        rows = _read(ensure_pairs(folder / f"pairs-{wrong}", wrong_per_task=wrong).train)
        built[name] = [row for row in rows if len(row["rejected"]) == wrong]
    return built


def _read(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        return [json.loads(line) for line in file]


class Ours:
    """The project's scorer."""

    def __init__(self, model: Path, cache: Path, dtype: str):
        self.dtype = dtype
        options = {"dtype": dtype, "max_tokens": MAX_TOKENS, "cache_dir": cache}
        self.scorer = Scorer.from_pretrained(model, **options)

    def tokens(self, requests: list[dict[str, Any]]) -> list[np.ndarray]:
        """The sequences, for the other side and for counting."""
        tokenized = [self.scorer.tokenize(request) for request in requests]
        return [s for item in tokenized if isinstance(item, Tokenized) for s in item.sequences()]

    def fits(self, request: dict[str, Any]) -> bool:
        return isinstance(self.scorer.tokenize(request), Tokenized)

    def run(self, requests: list[dict[str, Any]]) -> tuple[float, Work]:
        """(seconds, work)."""
        before = self.scorer.work
        start = time.perf_counter()
        for _ in self.scorer.score(requests):
            pass
        seconds = time.perf_counter() - start
        after = self.scorer.work
        names = [field.name for field in dataclasses.fields(Work)]
        return seconds, Work(*(getattr(after, n) - getattr(before, n) for n in names))

    def compile_for(self, requests: list[dict[str, Any]]) -> None:
        """Compiles what these requests need, so that no compilation is timed."""
        tokenized = [self.scorer.tokenize(request) for request in requests]
        for window in self.scorer.windows_of(tokenized):
            sequences = [s for t in window if isinstance(t, Tokenized) for s in t.sequences()]
            batches = plan_window(sequences, self.scorer.plan).batches
            self.scorer.compile({(batch.shape, len(batch.rows)) for batch in batches})

    def profile(self, requests: list[dict[str, Any]]) -> dict[str, float]:
        """Thread seconds by kind of operation, from a trace."""
        texts = [program.as_text() for program in self.scorer._programs.values()]
        names = dict(re.findall(r"%([\w.\-]+) = .*?op_name=\"([^\"]*)\"", "\n".join(texts)))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(requests)
            (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
            events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
        kinds: collections.Counter[str] = collections.Counter()
        for event in events:
            op = event.get("args", {}).get("hlo_op")
            if event.get("ph") == "X" and op and not op.startswith(("while", "cond")):
                kinds[_kind(op, names.get(op, ""))] += event["dur"] / 1e6
        return dict(kinds.most_common())


class Torch:
    """A plain loop over transformers: sort by length, pad, forward."""

    def __init__(self, folder: Path, dtype: str, batch: int):
        import torch
        from transformers import AutoModelForSequenceClassification

        self.torch, self.batch = torch, batch
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()

    def run(self, sequences: list[np.ndarray]) -> tuple[float, int]:
        """(seconds, tokens computed, padding included)."""
        torch, computed = self.torch, 0
        start = time.perf_counter()
        ordered = sorted(sequences, key=len)
        with torch.inference_mode():
            for at in range(0, len(ordered), self.batch):
                part = ordered[at : at + self.batch]
                ids = np.full((len(part), len(part[-1])), self.model.config.pad_token_id)
                mask = np.zeros_like(ids)
                for row, tokens in enumerate(part):
                    ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
                inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
                self.model(**inputs).logits[:, 0].float().tolist()
                computed += ids.size
        return time.perf_counter() - start, computed


def better(name: str, runs: dict[str, Callable[[], float]]) -> str:
    """The precision whose run, which gives seconds, is the fastest of three turns."""
    times: dict[str, list[float]] = {dtype: [] for dtype in runs}
    for _ in range(3):
        for dtype, run in runs.items():
            times[dtype].append(run())
    best = min(times, key=lambda dtype: min(times[dtype]))
    found = ", ".join(f"{dtype} {min(seconds):.2f} s" for dtype, seconds in times.items())
    print(f"{name} on a few: {found}; {best} is used below", flush=True)
    return best


def best_sides(model: Path, pairs: list[dict[str, Any]], args) -> tuple[Ours, Torch]:
    """Both sides, each in its better precision."""
    few = pairs[:8]
    ours = {dtype: Ours(model, args.folder / "compiled", dtype) for dtype in PRECISIONS}
    for side in ours.values():
        side.compile_for(few)
    our_best = better("ours", {d: lambda s=s: s.run(few)[0] for d, s in ours.items()})
    sequences = sorted(ours[our_best].tokens(pairs[:32]), key=len)
    middle = sequences[len(sequences) // 2 :][: args.torch_batch]
    theirs = {dtype: Torch(model, dtype, args.torch_batch) for dtype in PRECISIONS}
    best = better("PyTorch", {d: lambda s=s: s.run(middle)[0] for d, s in theirs.items()})
    return ours[our_best], theirs[best]


def compare(kind: str, requests: list[dict[str, Any]], ours: Ours, theirs: Torch, args) -> None:
    """Turns of both sides on the same requests; prints a line each, and medians."""
    count = args.pairs if kind == "pairs" else args.pools
    good = [request for request in requests if ours.fits(request)]
    rng = np.random.default_rng(0)
    ratios, per_token, shares = [], [], []
    for turn in range(args.repetitions):
        drawn = [good[i] for i in rng.choice(len(good), min(count, len(good)), replace=False)]
        sequences = ours.tokens(drawn)
        ours.compile_for(drawn)
        rate = layer_rate(ours.dtype)
        # In turns: a machine that slows down while it is busy is unkind to whoever comes second.
        if turn % 2 == 0:
            seconds, work = ours.run(drawn)
            their_seconds, their_tokens = theirs.run(sequences)
        else:
            their_seconds, their_tokens = theirs.run(sequences)
            seconds, work = ours.run(drawn)
        rate = statistics.mean([rate, layer_rate(ours.dtype)])
        reached = flops(ours.scorer.config, sequences, ours) / seconds
        ratios.append(their_seconds / seconds)
        tokens = their_tokens / work.computed_tokens
        per_token.append(ratios[-1] / tokens)
        shares.append(reached / rate)
        print(
            f"{kind} {turn + 1}: {len(sequences)} responses; ours {len(sequences) / seconds:.2f}/s,"
            f" PyTorch {len(sequences) / their_seconds:.2f}/s: {ratios[-1]:.2f} times; tokens "
            f"{tokens:.2f} times fewer (padding {100 * work.padding_share:.1f}%); per token "
            f"{per_token[-1]:.2f}; {reached / 1e9:.0f} GFLOP/s = {100 * shares[-1]:.0f}% of "
            f"{rate / 1e9:.0f}",
            flush=True,
        )
    print(
        f"{kind}: medians: {statistics.median(ratios):.2f} times PyTorch's responses/s "
        f"({min(ratios):.2f} to {max(ratios):.2f}), per token {statistics.median(per_token):.2f} "
        f"({min(per_token):.2f} to {max(per_token):.2f}), {100 * statistics.median(shares):.0f}% "
        f"of the matmul rate"
    )
    if args.profile:
        for name, spent in ours.profile(drawn).items():
            print(f"  {spent:7.2f} thread seconds  {name}")


def flops(config: ModelConfig, sequences: list[np.ndarray], ours: Ours) -> float:
    """Forward FLOPs of the distinct tokens, each attending to the keys before it."""
    total = 0.0
    for item in plan_window(sequences, ours.scorer.plan).items:
        prompt = len(item.prompt)
        total += prompt * config.flops_per_token(prompt / 2)
        total += sum(len(r) * config.flops_per_token(prompt + len(r) / 2) for r in item.responses)
    return total


def growth(pairs: list[dict[str, Any]], ours: Ours, args) -> None:
    """Rows/s against the size of the job: on a tiny model (the host's own cost), and on SmolLM2."""
    mesh = make_mesh(data=-1)
    config = dataclasses.replace(
        ours.scorer.config, width=16, mlp_width=16, num_layers=1, num_heads=1, num_kv_heads=1,
        head_dim=16,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        params = init_params(config, 0)
    options = {"dtype": "float32", "max_tokens": MAX_TOKENS}
    tiny = copy.copy(ours)
    tiny.scorer = Scorer(config, params, ours.scorer.tokenizer, mesh, **options)
    good = [request for request in pairs if ours.fits(request)]
    sizes = {"a tiny model": (tiny, (100, 1000, 10_000)), "SmolLM2": (ours, (10, 100, 1000))}
    for name, (side, counts) in sizes.items():
        for count in counts:
            if count > args.growth and name == "SmolLM2":
                continue
            requests = [_numbered(good[i % len(good)], i) for i in range(count)]
            side.compile_for(requests)  # all of them: fewer make other windows, of other shapes
            list(side.scorer.score(requests[:100]))  # what else is slow the first time
            start = time.perf_counter()
            answered = sum(1 for _ in side.scorer.score(requests))
            seconds = time.perf_counter() - start
            assert answered == count
            print(f"growth, {name}: {count} rows at {count / seconds:.1f} rows/s", flush=True)


def _numbered(request: dict[str, Any], number: int) -> dict[str, Any]:
    """The request with a message of its own, so that no two are equal."""
    name = "messages" if "messages" in request else "conversation"
    *earlier, last = request[name]
    return request | {name: [*earlier, last | {"content": f"{last['content']} ({number})"}]}


def time_to_first(model: Path, request: dict[str, Any], folder: Path) -> None:
    """Seconds from the start of a process to its first reward: nothing compiled, then all of it."""
    (folder / "request.json").write_text(json.dumps(request))
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm", "warm"):
            start = time.perf_counter()
            arguments = [str(model), str(folder / "request.json"), cache]
            subprocess.run([sys.executable, "-c", FIRST, *arguments], check=True)
            print(f"time to first reward, {name} cache: {time.perf_counter() - start:.1f} s")


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--repetitions", type=int, default=5, help="turns of each side")
    add("--pairs", type=int, default=60, help="pairs a turn")
    add("--pools", type=int, default=16, help=f"pools of {MIN_POOL} and more candidates a turn")
    add("--torch-batch", type=int, default=8, help="sequences of a PyTorch batch")
    add("--growth", type=int, default=1000, help="at most so many rows with SmolLM2")
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    add("--profile", action="store_true", help="say where our time goes")
    add("--folder", type=Path, default=Path("runs/bench"), help="for pairs and weights")
    args = parser.parse_args()
    split_cpu()  # as the command does
    requests = read_requests(args.folder)
    model = export(args.folder / "model")
    print(f"{os.cpu_count()} cores; {jax.default_backend()}; jax {jax.__version__}")
    if {"pairs", "pools"} & set(args.only):
        ours, theirs = best_sides(model, requests["pairs"], args)
        for kind in ("pairs", "pools"):
            if kind in args.only:
                compare(kind, requests[kind], ours, theirs, args)
    if "growth" in args.only:
        growth(requests["pairs"], Ours(model, args.folder / "compiled", "bfloat16"), args)
    if "first" in args.only:
        time_to_first(model, requests["pairs"][0], args.folder)


def export(folder: Path) -> Path:
    """SmolLM2 with a fresh reward head, as a Hugging Face directory for both sides."""
    pretrained = open_pretrained("embedded:smollm2")
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = load_params(pretrained.source, mesh)
    config = pretrained.source.config
    return save_directory(folder, config, params, pretrained.tokenizer)


if __name__ == "__main__":
    main()
