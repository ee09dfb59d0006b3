"""GRPO with TRL, rewarded by a reward model of this project.

    pip install trl
    python examples/trl_grpo.py --policy Qwen/Qwen2.5-0.5B-Instruct \
        --reward-model runs/quickstart/model/export
    # or, with the reward model in another process (then JAX is not imported here):
    python -m toolrm_jax.serve --model runs/quickstart/model/export --port 8000
    python examples/trl_grpo.py --policy Qwen/Qwen2.5-0.5B-Instruct --url http://127.0.0.1:8000

`--data` takes JSON lines of {"tools", "messages"}; a few built-in tasks otherwise. TRL shows a
policy no tools of a data set's, so prompts are rendered here, and the reward function is given
`messages` and `tools` as columns. RLOOTrainer takes the same reward function.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from toolrm_jax.reward_client import RewardClient
from toolrm_jax.reward_functions import (
    RewardSource,
    ScorerRewards,
    TRLReward,
    UnscoredRule,
    end_ids_of,
)

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "The weather in a city.", "parameters": CITY},
    {"name": "get_time", "description": "The time in a city.", "parameters": CITY},
]
QUESTIONS = ("Is it raining in {}?", "What time is it in {}?", "Tell me a joke about {}.")
CITIES = ("Rome", "Oslo", "Lima", "Cairo")


def built_in_rows() -> list[dict[str, Any]]:
    """A dozen tasks, a third of which call for no tool."""
    questions = [question.format(city) for question in QUESTIONS for city in CITIES]
    return [{"tools": TOOLS, "messages": [{"role": "user", "content": q}]} for q in questions]


def dataset_of(rows: list[dict[str, Any]], tokenizer: Any) -> Dataset:
    """Prompts as the policy reads them; tools and messages as JSON text, which Arrow leaves be."""
    return Dataset.from_list(
        [
            {
                "prompt": tokenizer.apply_chat_template(
                    row["messages"],
                    tools=[{"type": "function", "function": tool} for tool in row["tools"]],
                    tokenize=False,
                    add_generation_prompt=True,
                ),
                "messages": json.dumps(row["messages"]),
                "tools": json.dumps(row["tools"]),
            }
            for row in rows
        ]
    )


def trainer_of(
    policy: str, reward: TRLReward, output: Path, steps: int, tokens: int, data: Path | None = None
) -> GRPOTrainer:
    """A GRPO trainer of a policy, small enough for a laptop."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    lines = data.read_text().splitlines() if data else []
    rows = [json.loads(line) for line in lines] or built_in_rows()
    config = GRPOConfig(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=tokens,
        learning_rate=1e-6,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=torch.cuda.is_available(),  # TRL's default, which it refuses on a CPU
    )
    return GRPOTrainer(
        model=policy,
        reward_funcs=reward,
        args=config,
        train_dataset=dataset_of(rows, tokenizer),
        processing_class=tokenizer,
    )


def ends_of(policy: str) -> frozenset[int]:
    """The ids that end the policy's turns; Qwen's and Llama's have more than their tokenizer's."""
    try:
        config = GenerationConfig.from_pretrained(policy)
    except OSError:  # it has none: the model's own config says
        config = AutoConfig.from_pretrained(policy)
    return end_ids_of(AutoTokenizer.from_pretrained(policy), config)


def source_of(args: argparse.Namespace) -> RewardSource:
    """The reward model: a server's, or one in this process."""
    if args.url:
        return RewardClient(args.url)
    from toolrm_jax.scorer import Scorer

    return ScorerRewards(Scorer.from_pretrained(args.reward_model))


def main() -> None:
    """Trains a few steps and says what was not simply scored."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", required=True, help="directory or hub id of a causal LM")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--reward-model", help="workdir, directory or hub id; scored in process")
    where.add_argument("--url", help="of a reward server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, help="JSON lines of tools and messages")
    parser.add_argument("--output", type=Path, default=Path("runs/trl_grpo"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128, help="of a completion at most")
    args = parser.parse_args()
    reward = TRLReward(source_of(args), end_ids=ends_of(args.policy), rule=UnscoredRule())
    trainer_of(args.policy, reward, args.output, args.steps, args.tokens, args.data).train()
    print("Completions:", dict(reward.counts))


if __name__ == "__main__":
    main()
