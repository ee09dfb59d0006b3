"""The README.md of an exported model: what it is, and how to score with it without this project.

    model_card("my-rm", config, about, "float32")   ->   text with YAML front matter

The Python block runs as it stands, beside the files; a test runs it.
"""

import re
from pathlib import Path
from typing import Any

from toolrm_jax.model_config import FAMILIES, ModelConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EMBEDDED = {"embedded:smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}

_CARD = """\
---
{front}
---

# {name}

An outcome reward model for tool calling: it reads a tool catalogue, a conversation and one proposed
assistant turn, and returns one number, higher where the turn is more likely right. Made with
`toolrm_jax`; the recipe is arXiv:2509.11963.

{facts}

## Data

{data}

## Metrics

{metrics}

## How to score

The reward is the raw logit at the last token of the tokenizer's own chat template, trailing newline
and all. Render with the template of this repository, add no special tokens, apply no sigmoid.

**In float32 for ranking.** bfloat16 has 8 significant bits: rewards near 2 are 1/64 apart, so that
answers whose rewards differ by less tie. Load in float32, or count ties as half.{bias}

### transformers

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = "."  # this repository
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()

tools = [{{"type": "function", "function": {{
    "name": "weather", "description": "Weather of a city",
    "parameters": {{"type": "object", "properties": {{"city": {{"type": "string"}}}}}},
}}}}]
messages = [{{"role": "user", "content": "Rain in Rome?"}}]
answer = {{"role": "assistant", "content": "", "tool_calls": [
    {{"type": "function", "function": {{"name": "weather", "arguments": {{"city": "Rome"}}}}}}
]}}
text = tokenizer.apply_chat_template([*messages, answer], tools=tools, tokenize=False)
with torch.no_grad():
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    reward = model(**inputs).logits[0, 0].item()
```

`pipeline("text-classification", model=path)(text)` gives the same number as `score`, with its
defaults, where the tokenizer adds no BOS of its own.

### TRL

`RewardTrainer(model=path, ...)` and `RewardConfig` take this repository as it is, to train on; its
GRPO and RLOO trainers take `reward_funcs=path`.

### vLLM

```
vllm serve {name} --runner pooling --dtype float32
curl localhost:8000/classify -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "input": "<the rendered text>", "use_activation": false}}'
```

The reward is `data[0].probs[0]`. `use_activation` (older versions: `activation`) must be false, or
a sigmoid is applied.

### SGLang

```
python -m sglang.launch_server --model-path {name} --is-embedding --dtype float32
curl localhost:30000/v1/embeddings -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "input": "<the rendered text>"}}'
```

The reward is `data[0].embedding[0]`.
"""

_BIAS = """

**The head has a bias**, `score.bias`, which transformers' own class leaves out when it loads: its
rewards differ by that constant, and their order is the same."""


def model_card(name: str, config: ModelConfig, about: dict[str, Any], dtype: str) -> str:
    """The card of a model that is exported in `dtype`; `about` is what toolrm.json says."""
    front = ["library_name: transformers", "pipeline_tag: text-classification"]
    hub_id = _hub_id(base_model(about))
    if hub_id:
        front.append(f"base_model: {hub_id}")
    front.append("tags: [reward-model, tool-calling, function-calling, toolrm]")
    return _CARD.format(
        front="\n".join(front),
        name=name,
        facts=_facts(config, about, dtype),
        data=_data(about),
        metrics=_metrics(about),
        bias=_BIAS if config.head_bias else "",
    )


def base_model(about: dict[str, Any]) -> str | None:
    """What the weights were trained or converted from, as the user named it."""
    return about.get("config", {}).get("model", {}).get("source") or about.get("origin")


def _hub_id(base: str | None) -> str | None:
    if base in _EMBEDDED:
        return _EMBEDDED[base]
    return base if base and _HUB_ID.fullmatch(base) and not Path(base).exists() else None


def _facts(config: ModelConfig, about: dict[str, Any], dtype: str) -> str:
    base = base_model(about)
    # Of a local path only the name: the rest is nobody else's business.
    shown = _hub_id(base) or (Path(base).name if base else "not known")
    lines = [
        f"- base model: {shown}",
        f"- architecture: {FAMILIES[config.family]}ForSequenceClassification, one label, "
        f"{config.num_layers} layers, {config.num_parameters:,} parameters, stored in {dtype}",
    ]
    if "step" in about:
        lines.append(f"- trained for {about['step']:,} steps")
    if about.get("fresh_head_seed") is not None:
        lines.append(
            f"- **not trained as a reward model**: its reward head is random (seed "
            f"{about['fresh_head_seed']})"
        )
    return "\n".join(lines)


def _data(about: dict[str, Any]) -> str:
    data = about.get("config", {}).get("data")
    if not data:
        return "Not recorded with these weights."
    return "\n".join(
        f"- {side}: {_shown(data.get(field))}, {len(about.get(tasks) or ()):,} prompts"
        for side, field, tasks in (
            ("training", "train", "train_tasks"),
            ("held out", "heldout", "heldout_tasks"),
        )
    ) + (
        "\n\nThe ids of all prompts are in `toolrm.json`: do not evaluate on those it was trained "
        "on."
    )


def _shown(source: Any) -> str:
    text = str(source)
    return f"`{text}`" if text.startswith("embedded:") else f"`{Path(text).name}`"


def _metrics(about: dict[str, Any]) -> str:
    found = about.get("heldout")
    if not found:
        return "Not recorded with these weights."
    rows = [("all pairs", found["accuracy"]), *sorted(found["by_error_type"].items())]
    table = "\n".join(
        f"| {label} | {e['n']:,} | {100 * e['mean']:.1f} | "
        f"{100 * e['low']:.1f}-{100 * e['high']:.1f} |"
        for label, e in rows
    )
    return (
        "Accuracy on the held-out pairs of the training run, in %, with a 95% interval; a tie "
        "counts as half.\n\n| pairs | n | accuracy | interval |\n|---|---|---|---|\n"
        f"{table}\n\n{found['ties']:,} ties. Rewards: mean {found['reward_mean']:.3f}, standard "
        f"deviation {found['reward_std']:.3f}."
    )
