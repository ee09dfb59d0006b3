"""The shapes of public models by their hub ids, so that a plan needs neither a hub nor weights.

    architecture("Qwen/Qwen2.5-14B-Instruct")       -> ModelConfig, from the table below
    architecture("path/to/model"), ("org/name")     -> from its config.json alone

The table has the fields of the published `config.json` files that shapes depend on
(https://huggingface.co/Qwen, one repository a model). The numbers of parameters that follow from
them are those of the published weights (`tests/test_architectures.py`). Training never reads it.
"""

from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.pretrained import open_pretrained


class ArchitectureError(InputError, ValueError):
    """A model whose shape cannot be found out."""


def _model(
    family: str, width: int, mlp: int, layers: int, heads: int, kv_heads: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": family,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 151_936,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32_768 if family == "qwen2" else 40_960,
        "tie_word_embeddings": False,
    } | more


_TIED = {"tie_word_embeddings": True}
_WIDE = {"vocab_size": 152_064}  # the larger Qwen2.5 pad their embeddings further
_HEADS = {"head_dim": 128}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _model("qwen2", 896, 4864, 24, 14, 2, **_TIED),
    "Qwen/Qwen2.5-1.5B-Instruct": _model("qwen2", 1536, 8960, 28, 12, 2, **_TIED),
    "Qwen/Qwen2.5-3B-Instruct": _model("qwen2", 2048, 11008, 36, 16, 2, **_TIED),
    "Qwen/Qwen2.5-7B-Instruct": _model("qwen2", 3584, 18944, 28, 28, 4, **_WIDE),
    "Qwen/Qwen2.5-14B-Instruct": _model("qwen2", 5120, 13824, 48, 40, 8, **_WIDE),
    "Qwen/Qwen2.5-32B-Instruct": _model("qwen2", 5120, 27648, 64, 40, 8, **_WIDE),
    "Qwen/Qwen3-0.6B": _model("qwen3", 1024, 3072, 28, 16, 8, **_TIED, **_HEADS),
    "Qwen/Qwen3-1.7B": _model("qwen3", 2048, 6144, 28, 16, 8, **_TIED, **_HEADS),
    "Qwen/Qwen3-4B": _model("qwen3", 2560, 9728, 36, 32, 8, **_TIED, **_HEADS),
    "Qwen/Qwen3-8B": _model("qwen3", 4096, 12288, 36, 32, 8, **_HEADS),
    "Qwen/Qwen3-14B": _model("qwen3", 5120, 17408, 40, 40, 8, **_HEADS),
    "Qwen/Qwen3-32B": _model("qwen3", 5120, 25600, 64, 64, 8, **_HEADS),
}


def architecture(source: str) -> ModelConfig:
    """The shape of the model that a config's `model.source` names.

    Raises:
      InputError: it is not in the table, and cannot be opened here.
    """
    if source in PUBLISHED:
        return ModelConfig.from_hf(PUBLISHED[source])
    try:
        return open_pretrained(source).source.config
    except (InputError, FileNotFoundError) as error:
        raise ArchitectureError(
            f"The shape of {source!r} is not known without opening it, and: {error} Known without "
            f"opening them: {', '.join(PUBLISHED)}."
        ) from error
