"""Reads a Llama-architecture GGUF file into Hugging Face's terms: config, tensors, tokenizer.

    GGUF                                 Hugging Face
    llama.embedding_length = 576         config["hidden_size"] = 576
    blk.0.attn_q.weight  (Q4_1 blocks)   model.layers.0.self_attn.q_proj.weight  float32 [576, 576]
    tokenizer.ggml.tokens, .merges       a PreTrainedTokenizerFast

Needs numpy, `gguf` and `tokenizers`, no torch. Tensors are dequantised when they are asked for, so
that a model cut to its first layers never pays for the others.

llama.cpp rotates neighbouring pairs of a head (0,1), (2,3), ... where Hugging Face rotates its two
halves (0, h/2), ...; its converter therefore reorders the rows of q and k, and `GgufTensors` puts
them back. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

Example:

    >>> from toolrm_jax import assets
    >>> model = read_gguf(assets.smollm2_gguf())
    >>> model.config["num_hidden_layers"], model.tensors["model.norm.weight"].shape
    (30, (576,))
    >>> model.tokenizer.tokenize("x = 12")
    ['x', 'Ġ=', 'Ġ', '1', '2']
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from toolrm_jax.errors import InputError


class GgufError(InputError, ValueError):
    """The file is not a GGUF file that this project can read; the message says why."""


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file in Hugging Face's terms; `config` is the content of a LlamaConfig."""

    config: dict[str, Any]
    tensors: "GgufTensors"
    tokenizer: PreTrainedTokenizerFast


def read_gguf(path: str | os.PathLike[str]) -> GgufModel:
    """Reads the header and the tokenizer; weights stay in the (memory-mapped) file until asked."""
    path = Path(os.fspath(path))
    reader = _open(path)
    fields = _Fields(path, reader)
    config = _config(fields, {tensor.name for tensor in reader.tensors})
    tensors = GgufTensors(path, reader, config)
    return GgufModel(config, tensors, build_tokenizer(fields, config))


def _open(path: Path) -> gguf.GGUFReader:
    if not path.is_file():
        raise GgufError(f"{path}: no such file.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise GgufError(f"{path}: not a GGUF file (it begins with {magic!r}, not with b'GGUF').")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        # The reader walks past the end of a short file in many ways; all mean the same.
        raise GgufError(
            f"{path}: truncated or damaged ({path.stat().st_size:,} bytes; the reader stopped "
            f"with {type(error).__name__}: {error}). Fetch the file again."
        ) from error


class _Fields:
    """Metadata of one file by key, with an error that names file and key where one is missing."""

    def __init__(self, path: Path, reader: gguf.GGUFReader):
        self.path = path
        self._fields = reader.fields

    def get(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise GgufError(f"{self.path}: the metadata has no {key!r}, which a model needs.")
        return self.get(key)


# --- config -------------------------------------------------------------------------------------

_DIMENSIONS = {
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "max_position_embeddings": "llama.context_length",
}


def _config(fields: _Fields, tensor_names: set[str]) -> dict[str, Any]:
    """The file's hyper-parameters as a LlamaConfig's content; refuses what LlamaConfig lacks."""
    _refuse_variants(fields, tensor_names)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    config |= {name: int(fields[key]) for name, key in _DIMENSIONS.items()}
    heads = config["num_attention_heads"]
    head_dim = fields.get("llama.attention.key_length", config["hidden_size"] // heads)
    rotated = fields.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise GgufError(
            f"{fields.path}: rotates {rotated} of {head_dim} head dimensions; all needed."
        )
    config |= {
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", heads)),
        "head_dim": int(head_dim),
        "hidden_act": "silu",
        "rms_norm_eps": _decimal(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _decimal(fields.get("llama.rope.freq_base", 10000.0)),
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }
    for name in ("bos", "eos", "padding"):
        token = fields.get(f"tokenizer.ggml.{name}_token_id")
        config[f"{name[:3]}_token_id"] = None if token is None else int(token)
    return config


def _refuse_variants(fields: _Fields, tensor_names: set[str]) -> None:
    path, architecture = fields.path, fields["general.architecture"]
    if architecture != "llama":
        raise GgufError(
            f"{path}: architecture {architecture!r}; only 'llama' is read from GGUF. Use the "
            f"model's Hugging Face directory (safetensors) instead."
        )
    if fields.get("llama.expert_count", 0):
        raise GgufError(f"{path}: a mixture of experts, which is not supported.")
    scaling = fields.get("llama.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensor_names:
        named = (
            f"type {scaling!r}" if scaling != "none" else "rope_freqs.weight (Llama 3.1 and later)"
        )
        raise GgufError(
            f"{path}: rope scaling by {named} is not read from GGUF. Use the model's Hugging Face "
            f"directory (safetensors) instead."
        )


def _decimal(value: float) -> float:
    """The decimal that was meant: 9.999999747378752e-06 in the file is float32(1e-5)."""
    return float(str(np.float32(value)))


# --- tensors ------------------------------------------------------------------------------------

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


class GgufTensors(Mapping[str, np.ndarray]):
    """Hugging Face name -> float32 array, dequantised at each access."""

    def __init__(self, path: Path, reader: gguf.GGUFReader, config: dict[str, Any]):
        self._path = path
        self._heads = {
            "attn_q": config["num_attention_heads"],
            "attn_k": config["num_key_value_heads"],
        }
        named = {_hugging_face_name(tensor.name): tensor for tensor in reader.tensors}
        self._check_names({t.name for t in reader.tensors}, config)
        self._tensors = {name: tensor for name, tensor in named.items() if name is not None}
        self._check_types()

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        heads = self._heads.get(tensor.name.split(".")[-2])
        return weights if heads is None else _unpermute(weights, heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check_names(self, found: set[str], config: dict[str, Any]) -> None:
        layers = range(config["num_hidden_layers"])
        expected = {f"blk.{i}.{part}.weight" for i in layers for part in _LAYER_NAMES}
        expected |= set(_TOP_NAMES) - (
            {"output.weight"} if config["tie_word_embeddings"] else set()
        )
        missing, unknown = sorted(expected - found), sorted(found - expected)
        if missing or unknown:
            raise GgufError(
                f"{self._path}: not the tensors of a {len(layers)}-layer Llama. "
                f"Missing: {_some(missing)}. Not known: {_some(unknown)}."
            )

    def _check_types(self) -> None:
        # One row of each kind is unpacked now: a kind that `gguf` cannot unpack shows at once.
        for tensor in {t.tensor_type: t for t in self._tensors.values()}.values():
            try:
                gguf.dequantize(tensor.data[:1], tensor.tensor_type)
            except NotImplementedError as error:
                raise GgufError(
                    f"{self._path}: {tensor.name} is stored as {tensor.tensor_type.name}, which "
                    f"the gguf package cannot dequantise. Use another quantisation."
                ) from error


def _hugging_face_name(name: str) -> str | None:
    match = _LAYER_TENSOR.fullmatch(name)
    if match is None:
        return _TOP_NAMES.get(name)
    part = _LAYER_NAMES.get(match[2])
    return None if part is None else f"model.layers.{match[1]}.{part}.weight"


def _unpermute(weights_OI: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from llama.cpp's order (pairs) back to Hugging Face's (halves)."""
    out, inp = weights_OI.shape
    pairs = weights_OI.reshape(heads, out // heads // 2, 2, inp)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(out, inp)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6]) or "none"
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


# --- tokenizer ----------------------------------------------------------------------------------

_GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_only])


def _letters_and_digits(digits: str) -> str:
    """The word pattern that Llama 3 and Qwen2 share but for how many digits make one word."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# How each vocabulary's merges were learned, by the file's `tokenizer.ggml.pre`.
#   smollm: digits are cut out one by one BEFORE words are found, so that a run of spaces before a
#     number stays one token. transformers' GGUF reader forgets the digits and gets "\n  1" wrong.
_PRE_TOKENIZERS = {
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _GPT2_WORDS],
    ),
    "gpt-2": _GPT2_WORDS,
    "qwen2": _words(_letters_and_digits(r"\p{N}")),
    "llama-bpe": _words(_letters_and_digits(r"\p{N}{1,3}")),
}
# Unicode normalisation before anything else; a GGUF file does not say it, the upstream files do.
_NORMALIZERS = {"qwen2": normalizers.NFC()}
# Vocabularies that take a whole word where it is a token, even if no chain of merges leads there.
_WHOLE_WORDS_FIRST = {"llama-bpe"}

_CONTROL, _USER_DEFINED = 3, 4


def build_tokenizer(fields: "_Fields", config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer that the metadata describe, chat template included."""
    kind, pre = fields["tokenizer.ggml.model"], fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise GgufError(
            f"{fields.path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported, only "
            f"'gpt2' (byte-level BPE) with one of {sorted(_PRE_TOKENIZERS)}. Use the model's "
            f"Hugging Face directory, which has a tokenizer.json."
        )
    tokens = fields["tokenizer.ggml.tokens"]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]],
            ignore_merges=pre in _WHOLE_WORDS_FIRST,
        )
    )
    if pre in _NORMALIZERS:
        tokenizer.normalizer = _NORMALIZERS[pre]
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    _add_whole_tokens(tokenizer, tokens, fields.get("tokenizer.ggml.token_type", []))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        chat_template=fields.get("tokenizer.chat_template"),
        add_bos_token=bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        add_eos_token=bool(fields.get("tokenizer.ggml.add_eos_token", False)),
        **_special_names(fields, tokens),
    )


def _add_whole_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Marks the tokens that are matched whole in any text, as special where the file says so."""
    by_type: dict[int, list[str]] = {_CONTROL: [], _USER_DEFINED: []}
    for token, kind in zip(tokens, types, strict=False):
        by_type.get(kind, []).append(token)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in by_type[_CONTROL]]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in by_type[_USER_DEFINED]])


def _special_names(fields: _Fields, tokens: list[str]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
