"""A tiny model directory and a few preference rows, so that a whole training run takes seconds.

    write_model(folder)      config.json, model.safetensors, a byte-level BPE tokenizer; no torch
    write_data(folder)       train.jsonl (40 prompts x 3 wrong), heldout.jsonl (12 prompts x 3)
    config = run_config(folder, **{"train.steps": 6})

Right answers name the tool that was asked for and copy the city; wrong ones do not.
"""

import functools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from processes import without_torch
from safetensors.numpy import load_file, save_file
from tensorboardX.proto import event_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from toolrm_jax.chat_template import prepare_tokenizer

CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Quito", "Seoul", "Tunis", "Dakar", "Hanoi")
TOOLS = ("get_weather", "get_time")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Much shorter than the package's own: compilation time grows with a row's length.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{{ tools | map(attribute="function") | list | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
{{- "\n" if not loop.first }}<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ROOT = Path(__file__).parent.parent

# Of a log line, what depends on the clock and the machine.
RATES = (
    "pairs_per_second",
    "tokens_per_second",
    "flops_per_second",
    "input_wait_share",
    "memory_bytes",
    "eta_seconds",
)


def _tool(name: str) -> dict:
    city = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"name": name, "description": "For a city.", "parameters": city}


def _row(name: str, number: int) -> dict:
    city, other = CITIES[number % 10], CITIES[(number + 3) % 10]
    asked = TOOLS[number // 10 % 2]
    unasked = TOOLS[1 - number // 10 % 2]
    wrongs = [
        ("Incorrect function name", [{"name": unasked, "arguments": {"city": city}}]),
        ("Parameter value error", [{"name": asked, "arguments": {"city": other}}]),
        ("Missing required parameter", [{"name": asked, "arguments": {}}]),
    ]
    return {
        "id": f"{name}/{number}",
        "tools": [_tool(tool) for tool in TOOLS],
        "messages": [{"role": "user", "content": f"Question {number}: {asked} of {city}?"}],
        "chosen": [{"name": asked, "arguments": {"city": city}}],
        "rejected": [
            {"response": response, "error_type": error_type, "kind": "made"}
            for error_type, response in wrongs
        ],
    }


def rows(name: str, count: int) -> list[dict]:
    """The first rows of a side; ids begin with the side's name."""
    return [_row(name, number) for number in range(count)]


def write_lines(path: Path, lines: list[dict]) -> Path:
    """A JSON lines file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_data(folder: Path) -> None:
    """train.jsonl and heldout.jsonl."""
    write_lines(folder / "train.jsonl", rows("train", 40))
    write_lines(folder / "heldout.jsonl", rows("heldout", 12))


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the rows, with ChatML's tokens, ready to render tool calls."""
    return prepare_tokenizer(new_tokenizer())


def new_tokenizer(extra: tuple[str, ...] = (), template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """The same as it is before it is made ready, with more special tokens or another template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL, *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [json.dumps(row, ensure_ascii=False) for row in rows("train", 20)]
    bpe.train_from_iterator([*texts * 3, TEMPLATE], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Puts <s> first, in its template and of its own accord."""
    fast = new_tokenizer(extra=("<s>",), template="{{ bos_token }}" + TEMPLATE)
    fast.bos_token = "<s>"
    number = fast.convert_tokens_to_ids("<s>")
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", number)]
    )
    return prepare_tokenizer(fast)


def eos_tokenizer(single: str = "<s> $A <|endoftext|>") -> PreTrainedTokenizerFast:
    """Puts <s> first, and ends every text in a token that its template does not write."""
    fast = bos_tokenizer()
    special = [(token, fast.convert_tokens_to_ids(token)) for token in ("<s>", "<|endoftext|>")]
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, special_tokens=special
    )
    return fast


def write_model(folder: Path, width: int = 32, layers: int = 2) -> Path:
    """A random Llama CausalLM as a Hugging Face directory."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    mlp, half, vocab = 2 * width, width // 2, len(tokenizer())
    shapes = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (width, width) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (half, width) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (width, mlp)
    tensors = {name: random.normal(0, 0.2, shape).astype("f4") for name, shape in shapes.items()}
    for layer in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(width, "f4")
    tensors["model.norm.weight"] = np.ones(width, "f4")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save_pretrained(folder)
    return folder


def write_reward_model(
    folder: Path, head: float = 1.0, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """The same model as a reward model, its random head scaled; with another tokenizer, if wanted.

    The vocabulary is the larger one of what both tokenizers need.
    """
    write_model(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if tokenizer is not None:
        more = len(tokenizer) - len(tensors["model.embed_tokens.weight"])
        rows = np.random.default_rng(1).normal(0, 0.2, (max(more, 0), 32)).astype("f4")
        embedding = np.concatenate([tensors["model.embed_tokens.weight"], rows])
        tensors["model.embed_tokens.weight"] = embedding
        tokenizer.save_pretrained(folder)
    random_head = np.random.default_rng(2).normal(0, 1, (1, 32))
    tensors["score.weight"] = (head * random_head).astype("f4")
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "vocab_size": len(tensors["model.embed_tokens.weight"]),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def settings(folder: Path) -> dict:
    """What a run on `folder`'s model and data sets, by field; small, and in float32."""
    return {
        "model.source": str(folder / "model"),
        "model.dtype": "float32",
        "data.train": str(folder / "train.jsonl"),
        "data.heldout": str(folder / "heldout.jsonl"),
        "data.row_shapes": ((384, 16),),
        "data.batch_tokens": 8 * 384,
        "optimizer.learning_rate": 3e-3,
        "train.steps": 8,
        "train.log_every": 1,
        "train.checkpoint_every": 3,
    }


def run_config(folder: Path, **changes):
    """The config of a run on `folder`'s model and data; changes by dotted field."""
    from toolrm_jax.default_config import default_config

    config = default_config()
    for field, value in (settings(folder) | changes).items():
        part, _, name = field.rpartition(".")
        holder = config[part] if part else config
        assert name in holder, field
        holder[name] = value
    return config.lock()


def command(folder: Path, workdir: Path, **changes) -> list[str]:
    """The command line of the same run."""
    fields = settings(folder) | changes
    return [
        "--config",
        str(ROOT / "configs" / "smollm2_135m.py"),
        "--workdir",
        str(workdir),
        *(f"--config.{field}={value}" for field, value in fields.items()),
    ]


def start(
    arguments: list[str],
    devices: int,
    program: str = "",
    start_new_session: bool = False,
    **environment: str,
) -> subprocess.Popen:
    """Starts `python -m toolrm_jax.train` (or a program that calls it) as a process of its own."""
    call = ["-c", program] if program else ["-m", "toolrm_jax.train"]
    env = os.environ | without_torch() | environment
    env |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *call, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=start_new_session,
    )


def metrics(workdir: Path, split: str = "train") -> list[dict]:
    """The lines of metrics.jsonl of one split."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def board(workdir: Path) -> dict[tuple[str, int], float]:
    """The values that TensorBoard shows, by tag and step."""
    shown = {}
    for path in (workdir / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while len(data) - at >= 16:  # records: length, checksum, event, checksum
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 16 + length > len(data):  # cut off, where the disk was full
                break
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            shown |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            at += 16 + length
    return shown


def group_exists(number: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True
