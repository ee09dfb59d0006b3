"""The training step on SmolLM2-135M (30 layers), against a plain PyTorch loop over transformers.

    python -m benchmarks.train_step [--pairs 4] [--repetitions 5] [--profile]

Both train on the same pairs (one right, one wrong answer each) from the same weights: the
forward and backward pass and one AdamW update, float32 master weights. PyTorch runs as its users
write it: chosen and rejected sequences side by side in one padded batch,
`AutoModelForSequenceClassification`, in bfloat16 (autocast) and in float32. The three take turns
in one process, so that a machine that slows down slows all of them; ratios are per turn. PyTorch
keeps every activation of its padded sequences: at 8 pairs it was seen to pass 20 GB in bfloat16 and
24 GB in float32, hence 4.

The share of the matmul rate counts the FLOPs of distinct tokens alone (a prompt once, no
padding, no recomputation), over the rate of the model's own projections in the same precision
(`benchmarks/matmul.py`).
"""

import argparse
import collections
import ctypes
import ctypes.util
import dataclasses
import glob
import gzip
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.matmul import layer_rate
from toolrm_jax.batch import Batch, RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.huggingface import load_params, save_directory
from toolrm_jax.loader import Loader, RowFile, RowTokenizer, build_index, to_device
from toolrm_jax.model import Compute, Forward
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.pairs import write_rows
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh
from toolrm_jax.train_step import make_train_step, new_state

SHAPE = RowShape(2048, 64)


@dataclasses.dataclass
class Work:
    """The same pairs for both sides."""

    loader: Loader
    sequences: list[tuple[np.ndarray, np.ndarray]]  # whole token ids of right and wrong
    distinct_tokens: int
    mean_keys: float  # keys that a distinct token attends to, on average


def make_work(folder: Path, count: int, model) -> Work:
    """`count` pairs of the quickstart's training rows that fill one micro-batch, drawn by seed."""
    files = ensure_pairs(folder / "pairs")
    tokenize = RowTokenizer(Renderer(model.tokenizer))
    rows = [json.loads(line) for line in files.train.read_text().splitlines()]
    np.random.default_rng(0).shuffle(rows)
    chosen, tokens = [], 0
    for row in rows:
        row = row | {"rejected": row["rejected"][:1]}
        item = tokenize(row)[0]
        if item.tokens > 1024 or len(item.responses) < 2:
            continue
        chosen.append(row)
        tokens += item.tokens
        if len(chosen) == count:
            break
    path = folder / "bench.jsonl"
    write_rows(path, chosen)
    data = RowFile(path)
    index = build_index(data, tokenize, [SHAPE])
    batch_tokens = -(-tokens // SHAPE.tokens) * SHAPE.tokens
    loader = Loader(data, index, tokenize, PlanConfig((SHAPE,), batch_tokens), shuffle=False)
    if len(loader.epoch(0)) != 1:  # packing needs a row more than the tokens alone
        plan = PlanConfig((SHAPE,), batch_tokens + SHAPE.tokens)
        loader = Loader(data, index, tokenize, plan, shuffle=False)
    items = [tokenize(row)[0] for row in chosen]
    whole = [tuple(np.concatenate([i.prompt, r]) for r in i.responses) for i in items]
    keys = sum(
        len(i.prompt) ** 2 / 2 + sum(len(r) * (len(i.prompt) + len(r) / 2) for r in i.responses)
        for i in items
    )
    return Work(loader, whole, tokens, keys / tokens)


class Ours:
    """The project's training step."""

    def __init__(self, model, work: Work, dtype: str):
        self.mesh = make_mesh()
        config = OptimizerConfig(learning_rate=1e-6, steps=1000)
        with jax.set_mesh(self.mesh):
            forward = Forward(model.source.config, Compute(dtype))
            optimizer = make_optimizer(config)
            self.step = make_train_step(forward, optimizer, eta=0.01)
            self.state = new_state(load_params(model.source, self.mesh), optimizer)
            self.batch: Batch = to_device(next(work.loader.batches(0, 1)), self.mesh)

    def run(self) -> float:
        """One step; seconds."""
        with jax.set_mesh(self.mesh):
            start = time.perf_counter()
            self.state, metrics = self.step(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))
            return time.perf_counter() - start

    def profile(self) -> dict[str, float]:
        """Thread seconds of one step by kind of operation, from a trace."""
        with jax.set_mesh(self.mesh):
            text = self.step.lower(self.state, self.batch).compile().as_text()
        names = dict(re.findall(r"%([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text))
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run()
            (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
            events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
        kinds: collections.Counter[str] = collections.Counter()
        for event in events:
            op = event.get("args", {}).get("hlo_op")
            if event.get("ph") == "X" and op and not op.startswith(("while", "cond")):
                kinds[_kind(op, names.get(op, ""))] += event["dur"] / 1e6
        return dict(kinds.most_common())


def _kind(op: str, name: str) -> str:
    product = op.startswith("ynn") or "dot" in op
    if "attention" in name:
        return "attention: products" if product else "attention: rest"
    if product:
        return "projections"
    if "layout_constraint" in name:
        return "transposes for projections"
    if op.startswith(("dynamic-update-slice", "wrapped_")):  # of whole stacks of all layers
        return "keeping activations for the backward pass"
    if "while" not in name:
        return "outside the layers (optimizer, embedding, head)"
    return "norms, SiLU, rotary embedding, residuals, casts"


class Torch:
    """A plain loop over transformers: pad, forward, Bradley-Terry, backward, AdamW."""

    def __init__(self, folder: Path, work: Work, autocast: bool):
        import torch
        from transformers import AutoModelForSequenceClassification

        self.torch, self.autocast = torch, autocast
        self.model = AutoModelForSequenceClassification.from_pretrained(folder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        sequences = [right for right, _ in work.sequences] + [wrong for _, wrong in work.sequences]
        longest = max(map(len, sequences))
        ids = np.full((len(sequences), longest), self.model.config.pad_token_id)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(sequences):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        self.ids, self.mask = torch.tensor(ids), torch.tensor(mask)

    def run(self) -> float:
        """One step; seconds."""
        torch = self.torch
        start = time.perf_counter()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            rewards = self.model(input_ids=self.ids, attention_mask=self.mask).logits[:, 0].float()
        right, wrong = rewards.chunk(2)
        loss = -torch.nn.functional.logsigmoid(right - wrong) + 0.01 * (right + wrong) ** 2
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - start


def step_flops(config: ModelConfig, work: Work) -> float:
    """Forward and backward FLOPs of the distinct tokens."""
    return 3 * work.distinct_tokens * config.flops_per_token(work.mean_keys)


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=4, help="pairs per step")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/bench"), help="for pairs and weights"
    )
    parser.add_argument("--profile", action="store_true", help="say where our step's time goes")
    args = parser.parse_args()
    model = open_pretrained("embedded:smollm2")
    work = make_work(args.folder, args.pairs, model)
    with jax.set_mesh(make_mesh()):
        params = load_params(model.source, make_mesh())
    exported = save_directory(args.folder / "model", model.source.config, params, model.tokenizer)
    sides = {
        "ours, bfloat16": Ours(model, work, "bfloat16"),
        "ours, float32": Ours(model, work, "float32"),
        "PyTorch, bfloat16": Torch(exported, work, autocast=True),
        "PyTorch, float32": Torch(exported, work, autocast=False),
    }
    for side in sides.values():
        side.run()  # compiles, or warms up
        _return_free_memory()
    times: dict[str, list[float]] = {name: [] for name in sides}
    rates: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for _ in range(args.repetitions):
        for dtype, found in rates.items():
            found.append(layer_rate(dtype))
        for name, side in sides.items():
            times[name].append(side.run())
            _return_free_memory()
    _report(args, work, model.source.config, times, rates)
    if args.profile:
        for kind, spent in sides["ours, bfloat16"].profile().items():
            print(f"  {spent:7.2f} thread seconds  {kind}")


def _return_free_memory() -> None:
    """Hands what is freed back to the system (Linux). Otherwise the four sides' heaps, each cut up
    in its own way, add up to more than 24 GB within a few turns."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _report(args, work: Work, config: ModelConfig, times, rates) -> None:
    padded = 2 * len(work.sequences) * max(len(s) for pair in work.sequences for s in pair)
    print(
        f"{args.pairs} pairs: {work.distinct_tokens} distinct tokens (ours), {padded} padded ones "
        f"(PyTorch); {os.cpu_count()} cores; {args.repetitions} turns, medians"
    )
    flops = step_flops(config, work)
    for name, spent in times.items():
        rate = statistics.median(rates[name.split(", ")[1]])
        reached = flops / statistics.median(spent)
        print(
            f"  {name:20}{args.pairs / statistics.median(spent):7.3f} pairs/s{reached / 1e9:7.0f} "
            f"GFLOP/s over distinct tokens = {100 * reached / rate:.0f}% of {rate / 1e9:.0f}"
        )
    bfloat16, float32 = (statistics.median(times[f"PyTorch, {d}"]) for d in rates)
    best = "PyTorch, bfloat16" if bfloat16 < float32 else "PyTorch, float32"
    print(f"  best PyTorch: {best}")
    for ours, theirs in (
        ("ours, bfloat16", best),
        ("ours, bfloat16", "PyTorch, bfloat16"),
        ("ours, float32", "PyTorch, float32"),
    ):
        ratios = sorted(t / o for o, t in zip(times[ours], times[theirs], strict=True))
        print(
            f"  {ours} over {theirs}: {statistics.median(ratios):.2f} times "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
