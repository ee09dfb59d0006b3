"""GRPO with Tunix, rewarded by a reward model of this project.

    python examples/tunix_grpo.py --policy DIR --reward-model runs/quickstart/model/export
    python examples/tunix_grpo.py --policy DIR --url http://127.0.0.1:8000

DIR is a Hugging Face directory of a Llama (safetensors). google-tunix 0.1.7 asks for an older
transformers than this project does: install it with --no-deps, and with it qwix, jaxtyping,
wadler_lindig, google_metrax, clu, wrapt, kagglehub, omegaconf, sentencepiece, perfetto and pillow.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

from toolrm_jax.reward_client import RewardClient
from toolrm_jax.reward_functions import RewardSource, ScorerRewards, TunixReward, UnscoredRule

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "The weather in a city.", "parameters": CITY},
    {"name": "get_time", "description": "The time in a city.", "parameters": CITY},
]
QUESTIONS = ("Is it raining in {}?", "What time is it in {}?")
CITIES = ("Rome", "Oslo", "Lima", "Cairo")
PROMPTS_A_STEP = 2


def batches(tokenizer: Any, steps: int) -> list[dict[str, Any]]:
    """Prompts as the policy reads them, and tools and messages as JSON text."""
    questions = [question.format(city) for city in CITIES for question in QUESTIONS]
    found = []
    for step in range(steps):
        picked = [questions[(step * PROMPTS_A_STEP + i) % 8] for i in range(PROMPTS_A_STEP)]
        chats = [[{"role": "user", "content": question}] for question in picked]
        tools = [{"type": "function", "function": tool} for tool in TOOLS]
        options = {"tools": tools, "tokenize": False, "add_generation_prompt": True}
        prompts = [tokenizer.apply_chat_template(chat, **options) for chat in chats]
        columns = {
            "prompts": prompts,
            "messages": [json.dumps(chat) for chat in chats],
            "tools": [json.dumps(TOOLS)] * len(chats),
        }
        found.append({name: np.array(column) for name, column in columns.items()})
    return found


def model_config(folder: Path) -> llama.ModelConfig:
    """Tunix's config of a Hugging Face Llama."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    return llama.ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=config.get("rope_theta", 10_000),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        weight_tying=config.get("tie_word_embeddings", False),
    )


def learner_of(
    policy: Path, reward: Callable[..., Any], steps: int, tokens: int, prompt_tokens: int
) -> tuple[GRPOLearner, list[dict[str, Any]]]:
    """A GRPO learner on one device, and its training data."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    axes = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=axes, devices=jax.devices()[:1])
    actor, reference = (
        create_model_from_safe_tensors(str(policy), model_config(policy), mesh) for _ in range(2)
    )
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=actor,
        reference=reference,
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adamw(1e-6),
                eval_every_n_steps=10**6,
                max_steps=steps,
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=tokens,
                max_prompt_length=prompt_tokens,
                kv_cache_size=prompt_tokens + tokens + 1,
                temperature=1.0,
            ),
        ),
    )
    config = GRPOConfig(num_generations=4, beta=0.04)
    learner = GRPOLearner(rl_cluster=cluster, algo_config=config, reward_fns=reward)
    return learner, batches(tokenizer, steps)


def source_of(args: argparse.Namespace) -> RewardSource:
    """The reward model: a server's, or one in this process."""
    if args.url:
        return RewardClient(args.url)
    from toolrm_jax.scorer import Scorer

    return ScorerRewards(Scorer.from_pretrained(args.reward_model))


def main() -> None:
    """Trains a few steps and says what was not simply scored."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", required=True, type=Path)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--reward-model", help="workdir, directory or hub id; scored in process")
    where.add_argument("--url", help="of a reward server, e.g. http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128, help="of a completion at most")
    args = parser.parse_args()
    reward = TunixReward(source_of(args), rule=UnscoredRule.number(-10.0))
    learner, data = learner_of(args.policy, reward, args.steps, args.tokens, prompt_tokens=512)
    learner.train(data)
    print("Completions:", dict(reward.counts))


if __name__ == "__main__":
    main()
