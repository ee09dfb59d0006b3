"""Hugging Face checkpoints, read and written: one table maps tensors to parameters, both ways.

    model.layers.{0..L-1}.self_attn.q_proj.weight  [N*H, D]  <->  blocks/q  [L, D, N*H]
    score.weight                                   [1, D]    <->  head      [D]

What can be read: a directory with `config.json` and safetensors (one file, or shards with an
index), of a causal LM (its head is dropped; a fresh reward head is drawn) or of a sequence
classifier with one label (its head is kept). A written directory loads with
`AutoModelForSequenceClassification.from_pretrained`, tokenizer and template included.

    >>> source = open_directory("path/to/checkpoint")
    >>> with jax.set_mesh(mesh):
    ...     params = load_params(source, mesh)
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from toolrm_jax.files import write_durably
from toolrm_jax.model import Params, abstract_params
from toolrm_jax.model_config import ModelConfig, UnsupportedModel
from toolrm_jax.output_folder import new_folder
from toolrm_jax.param_reading import Form, ParamReader, spans_processes
from toolrm_jax.paths import absolute, as_path
from toolrm_jax.safetensors_folder import (
    DEFAULT_SHARD_BYTES,
    SafetensorsFolder,
    read_json,
    write_safetensors,
)
from toolrm_jax.tensors import DTYPES, CheckpointError, Spec, Tensors, by_rows

__all__ = ["CheckpointError", "Source", "load_params", "open_directory", "save_directory"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table: a Hugging Face tensor name ({}: the layer), the parameter it is, and
    the tensor's axes (see `axis_sizes`)."""

    name: str
    path: tuple[str, ...]
    axes: tuple[str, ...]
    # How the tensor differs from the parameter: not at all, transposed, or a matrix of one row.
    form: Form = "same"

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    @property
    def is_matrix(self) -> bool:
        """Is it multiplied (or looked up) in the compute type?"""
        return self.form == "transposed" or self.path == ("embedding",)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        if self.form == "one row":
            return tensor[0]
        return tensor.T if self.form == "transposed" else tensor

    def to_theirs(self, value: np.ndarray) -> np.ndarray:
        if self.form == "one row":
            return value[None]
        return value.T if self.form == "transposed" else value

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape of (one layer's) tensor."""
        sizes = axis_sizes(config)
        return tuple(sizes[axis] for axis in self.axes)


def axis_sizes(config: ModelConfig) -> dict[str, int]:
    """The size of every axis of the table."""
    return {
        "vocab": config.vocab_size,
        "width": config.width,
        "queries": config.num_heads * config.head_dim,
        "keys": config.num_kv_heads * config.head_dim,
        "mlp": config.mlp_width,
        "head": config.head_dim,
        "label": 1,
    }


def _vector(name: str, ours: str, axis: str) -> Entry:
    return Entry(f"model.layers.{{}}.{name}", ("blocks", ours), (axis,))


def _matrix(name: str, ours: str, *axes: str) -> Entry:
    return Entry(f"model.layers.{{}}.{name}", ("blocks", ours), axes, "transposed")


TABLE = (
    Entry("model.embed_tokens.weight", ("embedding",), ("vocab", "width")),
    _vector("input_layernorm.weight", "attention_norm", "width"),
    _matrix("self_attn.q_proj.weight", "q", "queries", "width"),
    _matrix("self_attn.k_proj.weight", "k", "keys", "width"),
    _matrix("self_attn.v_proj.weight", "v", "keys", "width"),
    _vector("self_attn.q_proj.bias", "q_bias", "queries"),
    _vector("self_attn.k_proj.bias", "k_bias", "keys"),
    _vector("self_attn.v_proj.bias", "v_bias", "keys"),
    _vector("self_attn.q_norm.weight", "q_norm", "head"),
    _vector("self_attn.k_norm.weight", "k_norm", "head"),
    _matrix("self_attn.o_proj.weight", "o", "width", "queries"),
    _vector("post_attention_layernorm.weight", "mlp_norm", "width"),
    _matrix("mlp.gate_proj.weight", "gate", "mlp", "width"),
    _matrix("mlp.up_proj.weight", "up", "mlp", "width"),
    _matrix("mlp.down_proj.weight", "down", "width", "mlp"),
    Entry("model.norm.weight", ("final_norm",), ("width",)),
    Entry("score.weight", ("head",), ("label", "width"), "one row"),
    Entry("score.bias", ("head_bias",), ("label",)),
)
# In a causal LM, and of no use to a reward model.
DROPPED = ("lm_head.weight", "lm_head.bias")


def entries(config: ModelConfig) -> list[tuple[Entry, int]]:
    """The rows of the table that this model has, each with how many tensors it stands for."""
    absent = set()
    if not config.qkv_bias:
        absent |= {"q_bias", "k_bias", "v_bias"}
    if not config.qk_norm:
        absent |= {"q_norm", "k_norm"}
    if not config.head_bias:
        absent.add("head_bias")
    rows = [entry for entry in TABLE if entry.path[-1] not in absent]
    return [(entry, config.num_layers if entry.stacked else 1) for entry in rows]


def placed(config: ModelConfig) -> dict[str, tuple[Entry, int]]:
    """Every tensor of the model with its row and its layer, in the order of a file: layer by
    layer."""
    rows = [entry for entry, _ in entries(config)]
    first_stacked = next(i for i, entry in enumerate(rows) if entry.stacked)
    before, after = rows[:first_stacked], [e for e in rows[first_stacked:] if not e.stacked]
    layers = [
        (entry.name.format(i), (entry, i))
        for i in range(config.num_layers)
        for entry in rows
        if entry.stacked
    ]
    return dict([(e.name, (e, 0)) for e in before] + layers + [(e.name, (e, 0)) for e in after])


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint: what the model is, and its tensors by name, read on access."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    origin: str

    @property
    def has_head(self) -> bool:
        return "score.weight" in self.tensors


# --- reading --------------------------------------------------------------------------------------


def open_directory(folder: str | os.PathLike[str]) -> Source:
    """Opens a Hugging Face directory.

    Raises:
      FileNotFoundError: there is no `config.json`.
      UnsupportedModel: the config asks for what is not computed here, or has several labels.
      CheckpointError: weights missing or unreadable (and the config's faults too, if any).
    """
    root = as_path(folder)
    path = root / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{root} has no config.json: not a Hugging Face checkpoint.")
    hf = read_json(path)
    try:
        tensors = SafetensorsFolder(root)
    except CheckpointError as error:
        try:
            read_config(hf, {})
        except UnsupportedModel as other:
            raise CheckpointError(f"{error} And: {other}") from error
        raise
    config = read_config(hf, tensors)
    architecture = (hf.get("architectures") or [""])[0]
    if architecture.endswith("ForSequenceClassification") and "score.weight" not in tensors:
        raise CheckpointError(
            f"{root} is a {architecture} without score.weight: its reward head was lost when it "
            f"was saved. Save it again with the head, or start a new one from the *ForCausalLM "
            f"model."
        )
    return Source(config, tensors, str(root))


def read_config(hf: Mapping[str, Any], tensors: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a `config.json`, with what the weights alone tell (a bias of the head)."""
    faults = []
    architecture = (hf.get("architectures") or [""])[0]
    if architecture and not architecture.endswith(("ForCausalLM", "ForSequenceClassification")):
        faults.append(
            f"architecture {architecture!r}: only *ForCausalLM and *ForSequenceClassification "
            f"are read."
        )
    if architecture.endswith("ForSequenceClassification"):
        labels = hf.get("num_labels", len(hf["id2label"]) if "id2label" in hf else 2)
        if labels != 1:
            faults.append(
                f"a classifier with {labels} labels; a reward model has exactly 1: use a "
                f"checkpoint that was trained with num_labels=1."
            )
    try:
        config = ModelConfig.from_hf(hf)
    except UnsupportedModel as error:
        raise UnsupportedModel(" ".join([*faults, str(error)])) from error
    if faults:
        raise UnsupportedModel(" ".join(faults))
    return dataclasses.replace(config, head_bias="score.bias" in tensors)


def truncate(source: Source, num_layers: int) -> Source:
    """The same model cut to its first layers (0: all of them)."""
    if not num_layers:
        return source
    if not 0 < num_layers <= source.config.num_layers:
        raise ValueError(
            f"num_layers={num_layers}: {source.origin} has {source.config.num_layers} layers; "
            f"use 1 to that many, or 0 for all."
        )
    return dataclasses.replace(
        source, config=dataclasses.replace(source.config, num_layers=num_layers)
    )


def load_params(
    source: Source,
    mesh: jax.sharding.Mesh,
    seed: int = 0,
    dtype: str = "float32",
    spread: bool | None = None,
) -> Params:
    """Parameters on the mesh: float32, or the matrices in `dtype` and the rest in float32. A source
    without a reward head gets a fresh one, Normal(0, 1/(D + 1)) from `seed`.

    spread: read every byte on one process alone and exchange (see `param_reading`; default: where
      the mesh has several processes, who must all take part).

    Raises:
      CheckpointError: naming every missing, unexpected or misshapen tensor.
    """
    refuse_misfits(source)
    expected = abstract_params(source.config, mesh)
    spread = spans_processes(mesh) if spread is None else spread
    params: Params = {}
    with ParamReader(RewardTensors(source, seed), spread) as reader:
        # The largest first: what it takes to move one then comes on top of little else.
        rows = [(entry, _lookup(expected, entry.path)) for entry, _ in entries(source.config)]
        for entry, target in sorted(rows, key=lambda row: -row[1].size):
            kept = dtype if entry.is_matrix else "float32"
            target = jax.ShapeDtypeStruct(target.shape, kept, sharding=target.sharding)
            _assign(params, entry.path, reader.read(entry.name, entry.form, target))
    return params


def fresh_head(config: ModelConfig, seed: int) -> np.ndarray:
    """A new reward head: float32 Normal(0, 1/(D + 1)), [D], alike on every machine for a seed."""
    return (
        np.random.default_rng(seed)
        .normal(0, (config.width + 1) ** -0.5, config.width)
        .astype(np.float32)
    )


class RewardTensors(Tensors):
    """Exactly the tensors of the reward model that a source gives: what a causal LM has besides is
    left out, and where there is no reward head, `fresh_head` of the seed is there. A `head`
    (float32 [D]) takes the place of either."""

    def __init__(self, source: Source, seed: int = 0, head: np.ndarray | None = None):
        self._tensors = by_rows(source.tensors)
        self._names = tuple(placed(source.config))
        if head is None and not source.has_head:
            head = fresh_head(source.config, seed)
        self._head = None if head is None else head[None]

    def spec(self, name: str) -> Spec:
        if self._fresh(name) is not None:
            return Spec(self._fresh(name).shape, self._fresh(name).dtype)
        return self._tensors.spec(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._fresh(name) is not None:
            return self._fresh(name)[start:stop]
        return self._tensors.rows(name, start, stop)

    def row_step(self, name: str) -> int:
        return 1 if self._fresh(name) is not None else self._tensors.row_step(name)

    def stated_sha256(self, name: str) -> str | None:
        return None if self._fresh(name) is not None else self._tensors.stated_sha256(name)

    def _fresh(self, name: str) -> Any:
        return self._head if name == "score.weight" else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# --- what is amiss --------------------------------------------------------------------------------


def refuse_misfits(source: Source, more: list[str] | None = None) -> None:
    """Raises CheckpointError naming every tensor that does not fit the config, and `more`."""
    problems = misfits(source) + (more or [])
    if problems:
        raise CheckpointError(
            f"{source.origin} does not fit its config.json: "
            + "; ".join(problems)
            + ". Use the config.json that belongs to these weights, or fetch both again."
        )


def misfits(source: Source) -> list[str]:
    """What is missing, what is there without a place to go, and what has another shape."""
    tensors, wanted = by_rows(source.tensors), placed(source.config)
    present = set(source.tensors)
    names = set(wanted)
    if not source.has_head:
        names -= {"score.weight", "score.bias"}
    unexpected = _unexpected(present - names, source.config)
    problems = [f"missing: {name}" for name in sorted(names - present)]
    problems += [f"unexpected: {name}" for name in sorted(unexpected)]
    for name in (n for n in wanted if n in present):
        shape, expected = tensors.spec(name).shape, wanted[name][0].shape(source.config)
        if shape != expected:
            problems.append(f"shape of {name}: {shape}, expected {expected}")
    return problems


def _unexpected(names: set[str], config: ModelConfig) -> set[str]:
    """Those that are neither dropped on purpose nor of a layer beyond the ones asked for."""

    def beyond(name: str) -> bool:
        parts = name.split(".")
        return (
            parts[:2] == ["model", "layers"]
            and parts[2].isdigit()
            and int(parts[2]) >= config.num_layers
        )

    rotary = "rotary_emb.inv_freq"  # a constant that old checkpoints saved
    return {n for n in names if n not in DROPPED and not beyond(n) and not n.endswith(rotary)}


def vocabulary_misfits(config: ModelConfig, tokenizer: Any) -> list[str]:
    """Tokens that have no row in the embedding. More rows than tokens are common, and fine: Qwen2.5
    has 151,936 for 151,665."""
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest < config.vocab_size:
        return []
    beyond = sum(index >= config.vocab_size for index in tokenizer.get_vocab().values())
    return [
        f"the tokenizer has ids up to {highest}, the embedding {config.vocab_size} rows: {beyond} "
        f"tokens have none (a tokenizer of another model, or tokens added without resizing the "
        f"embedding)"
    ]


# --- writing --------------------------------------------------------------------------------------


def save_directory(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    weights: Params | Tensors,
    tokenizer: Any,
    extra_files: Mapping[str, str] | None = None,
    bar: tqdm | None = None,
) -> epath.Path:
    """Writes a Hugging Face directory in the type of the weights (parameters that this process
    holds, or tensors wherever they are): weights, config, tokenizer, template, and `extra_files`
    (name -> text).

    It is built under a temporary name and renamed when complete; an earlier checkpoint of that name
    is replaced whole.

    Raises:
      FileExistsError: `folder` holds something that is no checkpoint.
      OutputError: there is no room for it.
    """
    folder = absolute(folder)
    tensors = weights if isinstance(weights, Tensors) else ParamTensors(config, weights)
    size = sum(tensors.spec(name).nbytes for name in tensors)
    with new_folder(folder, is_directory, nbytes=size) as partial:
        write_directory(partial, config, tensors, tokenizer, extra_files, bar=bar)
    return folder


def write_directory(
    folder: Path,
    config: ModelConfig,
    tensors: Tensors,
    tokenizer: Any,
    extra_files: Mapping[str, str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    bar: tqdm | None = None,
) -> dict[str, str]:
    """Fills an empty folder with a Hugging Face checkpoint, as a stream; returns the SHA-256 of
    each tensor. `generation_config.json` is left out: a reward model generates nothing."""
    tokenizer.save_pretrained(folder)
    sha256 = write_safetensors(folder, tensors, max_shard_bytes, bar)
    for name, text in (extra_files or {}).items():
        write_durably(folder / name, text)
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    hf = config.to_hf(widest_dtype(tensors).name) | {n: getattr(tokenizer, n) for n in ids}
    # Last, so that what was cut short has no config.json and opens nowhere.
    write_durably(folder / "config.json", json.dumps(hf, indent=2) + "\n")
    return sha256


def is_directory(folder: epath.Path) -> bool:
    """Whether this is a Hugging Face directory."""
    return (folder / "config.json").exists()


def widest_dtype(tensors: Tensors) -> np.dtype:
    """The type that holds every tensor exactly: their own where they have one, else float32."""
    found = {tensors.spec(name).dtype for name in tensors}
    return found.pop() if len(found) == 1 else DTYPES["F32"]


class ParamTensors(Tensors):
    """Parameters under their Hugging Face names and in their shapes."""

    def __init__(self, config: ModelConfig, params: Params):
        self._placed, self._params = placed(config), params

    def spec(self, name: str) -> Spec:
        entry, _ = self._placed[name]
        value = _lookup(self._params, entry.path)
        one = np.broadcast_to(np.int8(0), value.shape[1:] if entry.stacked else value.shape)
        return Spec(entry.to_theirs(one).shape, np.dtype(value.dtype))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        entry, layer = self._placed[name]
        # JAX keeps the host's copy with the array, so that its other layers need no other.
        value = np.asarray(jax.device_get(_lookup(self._params, entry.path)))
        tensor = entry.to_theirs(value[layer] if entry.stacked else value)
        return np.ascontiguousarray(tensor[start:stop])

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)


def to_hf_tensors(config: ModelConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter under its Hugging Face name and in its shape."""
    yield from ParamTensors(config, params).items()


def _lookup(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _assign(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
