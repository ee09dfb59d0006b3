"""Models and folders that the tests of conversion start from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import tiny
from processes import without_torch
from safetensors.numpy import load_file, save_file
from tiny_models import random_params
from tiny_models import tiny as tiny_config

from toolrm_jax.huggingface import (
    ParamTensors,
    write_directory,
)
from toolrm_jax.model_config import Rope
from toolrm_jax.output_folder import new_folder
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tensors import Cast

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


YARN = (("factor", 4.0), ("original_max_position_embeddings", 16))


def config_of(family: str = "qwen2", **changes):
    return tiny_config(family, **{"vocab_size": len(tiny.tokenizer())} | changes)


MODELS = {
    "qwen2": config_of("qwen2"),
    "qwen2, tied, yarn": config_of("qwen2", tied_embeddings=True, rope=Rope(1e6, "yarn", YARN)),
    "qwen3": config_of("qwen3"),
    "qwen3, tied": config_of("qwen3", tied_embeddings=True),
    "llama": config_of("llama"),
    "llama, tied, with a bias": config_of("llama", tied_embeddings=True, head_bias=True),
}


def write_hf(folder: Path, config, dtype: str = "float32") -> Path:
    """A random reward model as a Hugging Face directory, in a type."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = random_params(config)
    weights = Cast(ParamTensors(config, params), np.dtype(DTYPES[dtype]))
    with new_folder(folder, is_ours=lambda _: True) as partial:
        write_directory(partial, config, weights, tiny.tokenizer())
    (folder / "tensor_sha256.json").unlink()  # as from anywhere else
    return folder


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, by the safetensors package."""
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def assert_equal_bytes(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def rewrite(folder: Path, change, config: dict | None = None) -> Path:
    """Changes tensors in place, and fields of config.json ("absent": none)."""
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text()) | (config or {})
    fields = {name: value for name, value in fields.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def nothing(_) -> None:
    pass


def start(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | without_torch() | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(bytes(content))
