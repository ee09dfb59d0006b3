"""Tiny random models and batches that the tests of the model share.

    config = tiny("qwen3")                                    2 layers, width 16, 4 heads of 6
    params = random_params(config)                            no weight zero, no norm one
    batch = batch_of([[prompt, prompt], [prompt]], S, M)      two rows

Everything runs on the mesh that is set; `single_device` (conftest) sets one of a single device.
"""

import dataclasses
import functools

import jax
import numpy as np
from jax.sharding import NamedSharding
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from toolrm_jax.batch import Batch, RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.model import Compute, Forward, Params, abstract_params
from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.sharding import logical_to_spec

VOCAB = 64
F32, BF16 = Compute("float32"), Compute("bfloat16")
LLAMA3 = (
    ("factor", 8.0),
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 16),
)


def tiny(family: str = "qwen2", **changes) -> ModelConfig:
    """A two-layer model with grouped queries, of a width that is not heads * head_dim."""
    config = ModelConfig(
        family=family,
        vocab_size=VOCAB,
        width=16,
        mlp_width=24,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        rope=Rope(100.0, "llama3", LLAMA3) if family == "llama" else Rope(100.0),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        init_scale=0.3,
    )
    return dataclasses.replace(config, **changes)


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters none of which is at a neutral value, on the mesh that is set; alike on all meshes.

    Made on the host: compiling `init_params` on every mesh would take most of the tests' time.
    """
    rng = np.random.default_rng(seed)

    def draw(path, target):
        center = 1.0 if "norm" in path[-1].key else 0.0
        value = rng.normal(center, config.init_scale, target.shape).astype(np.float32)
        return jax.device_put(value, target.sharding)

    mesh = jax.sharding.get_mesh()
    return jax.tree_util.tree_map_with_path(draw, abstract_params(config, mesh))


@functools.cache
def forward(config: ModelConfig, compute: Compute = F32):
    """The jitted `forward(params, batch) -> rewards_BM`."""
    return jax.jit(Forward(config, compute))


@functools.cache
def reward_sum_gradient(config: ModelConfig, compute: Compute = F32):
    """Jitted gradient in the parameters of the sum of a batch's rewards."""
    run = Forward(config, compute)

    def total(params, batch):
        return jax.numpy.sum(run(params, batch) * (batch.answers > 0))

    return jax.jit(jax.grad(total))


def random_prompt(rng: np.random.Generator, length: int, *responses: int) -> TokenizedPrompt:
    """A prompt and responses of these lengths."""
    return TokenizedPrompt(
        rng.integers(1, VOCAB, length), [rng.integers(1, VOCAB, n) for n in responses]
    )


def batch_of(rows: list[list[TokenizedPrompt]], tokens: int, responses: int) -> Batch:
    """A batch of these rows, on the host."""
    batch = empty_batch(len(rows), RowShape(tokens, responses))
    for row, prompts in enumerate(rows):
        place(batch, row, prompts)
    return batch


def on_mesh(batch: Batch, mesh, leading: tuple[str, ...] = ("rows",)) -> Batch:
    """The batch laid out on the mesh, its first axes named `leading`."""

    def put(x):
        axes = (*leading, *[None] * (x.ndim - len(leading)))
        return jax.device_put(x, NamedSharding(mesh, logical_to_spec(axes)))

    return jax.tree.map(put, batch)


def alone(item: TokenizedPrompt) -> list[TokenizedPrompt]:
    """Each prompt + response as a plain sequence: its last token the response, the rest prompt."""
    whole = [np.concatenate([item.prompt, response]) for response in item.responses]
    return [TokenizedPrompt(tokens[:-1], [tokens[-1:]]) for tokens in whole]


def rewards_in_order(rewards_BM: jax.Array, batch: Batch) -> np.ndarray:
    """The rewards of the responses that are there, row by row."""
    return np.asarray(rewards_BM)[np.asarray(batch.answers) > 0]


TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of printable ASCII, newline and </s> (97 tokens); pad is eos, as in SmolLM2."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=TEMPLATE, eos_token="</s>", pad_token="</s>"
    )
