"""Opens a reward model to be scored with: weights in the compute type, on this host's devices.

    a training workdir   runs/mine: its newest checkpoint
    anything that `pretrained` opens, with a reward head

A base model without a reward head is refused: its rewards would be those of a random head.

    >>> load_model("runs/mine", "bfloat16").config.num_layers
    30
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from toolrm_jax.huggingface import CheckpointError, load_params
from toolrm_jax.model import Params
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.sharding import make_inference_mesh

_BYTES = {"bfloat16": 2, "float32": 4}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its mesh, and its tokenizer."""

    config: ModelConfig
    params: Params
    tokenizer: PreTrainedTokenizerBase
    mesh: Mesh
    about: dict[str, Any]  # toolrm.json


def load_model(name: str, dtype: str, devices: Sequence[jax.Device] | None = None) -> LoadedModel:
    """Weights in `dtype` ("bfloat16", "float32"), norms and head in float32; see the module."""
    if dtype not in _BYTES:
        raise ValueError(f"dtype {dtype!r}: use one of {', '.join(_BYTES)}.")
    pretrained = open_pretrained(name)
    if not pretrained.source.has_head:
        raise CheckpointError(
            f"{name!r} has no reward head (score.weight): it is a language model, not a reward "
            f"model, and a random head would give meaningless rewards. Train it first: "
            f"python -m toolrm_jax.train --config.model.source={name} ..."
        )
    config = pretrained.source.config
    mesh = _mesh(config, dtype, devices)
    params = load_params(pretrained.source, mesh, dtype=dtype)
    return LoadedModel(config, params, pretrained.tokenizer, mesh, pretrained.about)


def _mesh(config: ModelConfig, dtype: str, devices: Sequence[jax.Device] | None) -> Mesh:
    return make_inference_mesh(config.width, config.num_parameters * _BYTES[dtype], devices)
