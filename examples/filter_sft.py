"""Is filtered data better? One model fine-tuned on a random half, on the best half, and on all.

    pip install trl
    python -m toolrm_jax.evaluate filter --model runs/quickstart/model/export --data train.jsonl \
        --noise 0.3 --keep 0.5 --output runs/filter
    python examples/filter_sft.py --policy HuggingFaceTB/SmolLM2-135M-Instruct \
        --run runs/filter --test test.jsonl

`--run` is a folder that the filter wrote. `--test` has normalised rows; those that are in the run
(by id or by request) are left out, and of the others `--tasks` are drawn by the seed. Their right
answers are held against what each model answers greedily (exact calls), and against the loss that
it gives them. Chats of more than `--max-tokens` are left out, of both, and counted: cut short, they
would lose their answer.

Chats are rendered as everywhere in this project: where the tokenizer's own template shows no tools
or no calls (SmolLM2's shows neither), by the project's. A chat that comes out without the name of
a tool or of a call is an error.

"all" is every row once: with --keep 0.5 twice the steps of a half. Where it is better, more steps
may be the reason. A demonstration: with some hundred rows on a CPU the intervals (95%, over tasks)
are wide, and no claim goes beyond them.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from toolrm_jax.errors import InputError, reported
from toolrm_jax.evaluate.cases import Case, Seen
from toolrm_jax.examples import Example
from toolrm_jax.metrics import Estimate, estimate, paired_gain
from toolrm_jax.rendering import Rendered, Renderer, assistant_turn, prepare_tokenizer
from toolrm_jax.synth.sources import open_source
from toolrm_jax.tool_calls import judge

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Chat:
    """A row as the model reads it."""

    row: Row
    prompt: list[int]
    answer: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.answer


def read_rows(path: Path) -> list[Row]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def row_of(example: Example) -> Row:
    """The example and its right answer, as a row of a run."""
    turn = assistant_turn(example.gold or example.words or "", example.tools)
    return {
        "id": example.id,
        "tools": example.tools,
        "messages": [*example.messages, turn],
        "reference": example.reference,
    }


# Rendering ---------------------------------------------------------------------------------------


def open_renderer(policy: str) -> Renderer:
    """By the policy's tokenizer, its template one that shows tools and calls."""
    return Renderer(prepare_tokenizer(AutoTokenizer.from_pretrained(policy)))


def chat_of(row: Row, renderer: Renderer) -> Chat:
    """The row's messages up to the last, which is the answer. Raises InputError for lost names."""
    *messages, answer = row["messages"]
    rendered = renderer.render(row["tools"], messages, [answer])
    _check_names(row, rendered, renderer)
    return Chat(row, rendered.prompt.tolist(), rendered.responses[0].tolist())


def _check_names(row: Row, rendered: Rendered, renderer: Renderer) -> None:
    calls = row["messages"][-1].get("tool_calls") or []
    for what, ids, names in (
        ("prompt", rendered.prompt, [tool["name"] for tool in row["tools"]]),
        ("answer", rendered.responses[0], [call["function"]["name"] for call in calls]),
    ):
        text = renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if lost := [name for name in names if name not in text]:
            raise InputError(
                f"{row['id']}: the chat template leaves {lost[0]!r} out of the {what}, which is "
                f"{text!r:.200}. Give a model whose template shows tools beside these messages."
            )


def fitting(rows: Sequence[Row], renderer: Renderer, max_tokens: int, what: str) -> list[Chat]:
    """The rows as chats of at most so many tokens; says how many are longer."""
    chats = [chat_of(row, renderer) for row in rows]
    fit = [chat for chat in chats if len(chat.tokens) <= max_tokens]
    print(f"{what}: {len(fit):,} of {len(rows):,} have at most {max_tokens:,} tokens", flush=True)
    return fit


def unseen(examples: Sequence[Example], run: Sequence[Row]) -> list[Row]:
    """Those that share neither id nor request with a row of the run; says how many do."""

    def case(id_: str, messages: list[Any]) -> Case:
        return Case(id_, [], messages, [])

    seen = Seen.of([case(row["id"], row["messages"][:-1]) for row in run])
    shared = seen.tasks(case(one.id, one.messages) for one in examples)
    left = [row_of(one) for one in examples if one.id not in shared]
    print(f"tests: {len(examples) - len(left):,} of {len(examples):,} are in the run, left out")
    return left


def drawn(tests: list[Chat], count: int, seed: int) -> list[Chat]:
    """So many of them: files are often in an order, and their first rows of one kind."""
    return random.Random(f"{seed}/tests").sample(tests, min(count, len(tests)))


# Training and measuring --------------------------------------------------------------------------


def fine_tuned(args: argparse.Namespace, chats: list[Chat], name: str, renderer: Renderer) -> Any:
    """(model, steps) after one epoch on the chats' answers."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(args.policy, dtype=torch.float32)
    data = Dataset.from_list(
        [
            {
                "input_ids": chat.tokens,
                "completion_mask": [0] * len(chat.prompt) + [1] * len(chat.answer),
            }
            for chat in chats
        ]
    )
    config = SFTConfig(
        output_dir=str(args.run / "sft" / name),
        per_device_train_batch_size=4,
        learning_rate=args.learning_rate,
        num_train_epochs=1,
        max_length=args.max_tokens,
        completion_only_loss=True,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        seed=args.seed,
    )
    trainer = SFTTrainer(
        model, args=config, train_dataset=data, processing_class=renderer.tokenizer
    )
    trainer.train()
    return trainer.model.eval(), trainer.state.global_step


def measured(model: Any, renderer: Renderer, tests: list[Chat]) -> tuple[np.ndarray, np.ndarray]:
    """(whether the greedy answer is right, the mean loss of the right answer's tokens), [tests]."""
    import torch

    tokenizer = renderer.tokenizer
    right, losses = [], []
    for chat in tests:
        start, whole = (
            torch.tensor([ids], device=model.device) for ids in (chat.prompt, chat.tokens)
        )
        with torch.inference_mode():
            made = model.generate(
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=len(chat.answer) + 64,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            labels = whole.clone()
            labels[:, : start.shape[1]] = -100
            losses.append(model(whole, labels=labels).loss.item())
        said = tokenizer.decode(made[0, start.shape[1] :], skip_special_tokens=True)
        verdict = judge(said.strip(), chat.row["reference"], chat.row["tools"])
        right.append(verdict.right)
    return np.array(right, float), np.array(losses)


def plain(found: Estimate) -> str:
    """Of a loss, which is no share."""
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def compare_sides(args: argparse.Namespace) -> None:
    """Trains and measures one side after the other; prints a line of each."""
    renderer = open_renderer(args.policy)
    kept, dropped = (read_rows(args.run / name) for name in ("kept.jsonl", "dropped.jsonl"))
    found = open_source("normalised", args.test)
    tests = unseen([one for one in found if isinstance(one, Example)], [*kept, *dropped])
    best, rest = (
        fitting(rows, renderer, args.max_tokens, what)
        for what, rows in (("kept", kept), ("dropped", dropped))
    )
    chats = fitting(tests, renderer, args.max_tokens, "tests")
    if not chats or not best:
        raise InputError(
            f"{len(best):,} kept rows and {len(chats):,} tests can be used; expected some of both. "
            f"Give tests that are not in the run, or a larger --max-tokens."
        )
    chats = drawn(chats, args.tasks, args.seed)
    rng = random.Random(args.seed)
    everything = sorted([*best, *rest], key=lambda chat: chat.row["id"])
    sides = {
        "random half": rng.sample(everything, len(best)),
        "best half": best,
        "all": everything,
    }
    ids = [chat.row["id"] for chat in chats]
    first: tuple[np.ndarray, np.ndarray] | None = None
    for name, side in sides.items():
        model, steps = fine_tuned(
            args, rng.sample(side, len(side)), name.replace(" ", "-"), renderer
        )
        right, losses = measured(model, renderer, chats)
        first = first or (right, losses)
        noise = sum(chat.row["planted_noise"] for chat in side) / len(side)
        print(
            f"{name:12} {len(side):6,} rows, {steps:,} steps, {noise:.0%} noise: right "
            f"{estimate(right, ids)}% ({paired_gain(right, first[0], ids)} more), loss of right "
            f"answers {plain(paired_gain(losses, np.zeros(len(ids)), ids))} "
            f"({plain(paired_gain(losses, first[1], ids))} more)",
            flush=True,
        )
    print('"more": than the random half, test by test. "all" had more steps than the halves.')


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", required=True, help="a causal model to fine-tune")
    parser.add_argument("--run", required=True, type=Path, help="what evaluate filter wrote")
    parser.add_argument("--test", required=True, help="normalised rows to measure on")
    parser.add_argument(
        "--tasks", type=int, default=40, help="so many of them, drawn by the seed (default: 40)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=1024, help="longer chats are left out (default: 1024)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    with reported():
        compare_sides(parser.parse_args())


if __name__ == "__main__":
    main()
