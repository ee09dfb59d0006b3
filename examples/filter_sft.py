"""Is filtered data better? One model fine-tuned on a random half, on the best half, and on all.

    pip install trl
    python -m toolrm_jax.evaluate filter --model runs/quickstart/model/export --data train.jsonl \
        --noise 0.3 --keep 0.5 --output runs/filter
    python examples/filter_sft.py --policy HuggingFaceTB/SmolLM2-135M-Instruct \
        --run runs/filter --test test.jsonl

`--run` is a folder that the filter wrote. `--test` has normalised rows, none of which is in it;
their right answers are held against what each model answers greedily (exact calls), and against
the loss that it gives them. A demonstration: with some hundred rows on a CPU the intervals are
wide, and no claim goes beyond them.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from toolrm_jax.examples import Example
from toolrm_jax.metrics import estimate
from toolrm_jax.rendering import assistant_turn
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import judge

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def text_of(row: Row, tokenizer: Any, *, answered: bool = True) -> str:
    """The chat as the model reads it; without its last message, up to where the answer begins."""
    tools = [{"type": "function", "function": tool} for tool in row["tools"]]
    return tokenizer.apply_chat_template(
        row["messages"] if answered else row["messages"][:-1],
        tools=tools,
        tokenize=False,
        add_generation_prompt=not answered,
    )


def fine_tuned(args: argparse.Namespace, rows: list[Row], name: str) -> tuple[Any, Any]:
    """(model, tokenizer) after one epoch on the rows' answers."""
    tokenizer = AutoTokenizer.from_pretrained(args.policy)
    model = AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.float32)
    data = Dataset.from_list(
        [
            {
                "prompt": (prompt := text_of(row, tokenizer, answered=False)),
                "completion": text_of(row, tokenizer)[len(prompt) :],
            }
            for row in rows
        ]
    )
    config = SFTConfig(
        output_dir=str(args.run / "sft" / name),
        per_device_train_batch_size=4,
        learning_rate=args.learning_rate,
        num_train_epochs=1,
        max_length=args.max_tokens,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        seed=args.seed,
    )
    trainer = SFTTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return trainer.model.eval(), tokenizer


def measured(model: Any, tokenizer: Any, tests: list[Example]) -> tuple[np.ndarray, np.ndarray]:
    """(whether the greedy answer is right, the mean loss of the right answer's tokens), [tests]."""
    right, losses = [], []
    for example in tests:
        turn = assistant_turn(example.gold or example.words or "", example.tools)
        row = {"tools": example.tools, "messages": [*example.messages, turn]}
        prompt = text_of(row, tokenizer, answered=False)
        start = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        whole = tokenizer(
            text_of(row, tokenizer), return_tensors="pt", add_special_tokens=False
        ).input_ids
        with torch.inference_mode():
            made = model.generate(start, max_new_tokens=128, do_sample=False)
            labels = whole.clone()
            labels[:, : start.shape[1]] = -100
            losses.append(model(whole, labels=labels).loss.item())
        said = tokenizer.decode(made[0, start.shape[1] :], skip_special_tokens=True)
        right.append(judge(said.strip(), example.reference, example.tools).right)
    return np.array(right, float), np.array(losses)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", required=True, help="a causal model to fine-tune")
    parser.add_argument("--run", required=True, type=Path, help="what evaluate filter wrote")
    parser.add_argument("--test", required=True, help="normalised rows to measure on")
    parser.add_argument("--tasks", type=int, default=40, help="so many of them (default: 40)")
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    kept, dropped = (read_rows(args.run / name) for name in ("kept.jsonl", "dropped.jsonl"))
    everything = sorted([*kept, *dropped], key=lambda row: row["id"])
    rng = random.Random(args.seed)
    found = open_source("normalised", args.test)
    tests = [one for one in found if isinstance(one, Example)][: args.tasks]
    sides = {
        "random half": rng.sample(everything, len(kept)),
        "best half": kept,
        "all": everything,
    }
    for name, rows in sides.items():
        rows = rng.sample(rows, len(rows))
        right, losses = measured(*fine_tuned(args, rows, name.replace(" ", "-")), tests)
        ids = [example.id for example in tests]
        noise = sum(row["planted_noise"] for row in rows) / len(rows)
        print(
            f"{name:12} {len(rows):6,} rows, {noise:.0%} noise: right {estimate(right, ids)}%, "
            f"loss of right answers {losses.mean():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
