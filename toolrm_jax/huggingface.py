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
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from toolrm_jax.errors import InputError
from toolrm_jax.model import Params, abstract_params
from toolrm_jax.model_config import ModelConfig, UnsupportedModel

Tensors = Mapping[str, np.ndarray]


class CheckpointError(InputError, ValueError):
    """A checkpoint that is incomplete, damaged, or not what its config says."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of the table: a Hugging Face tensor name ({}: the layer) and the parameter it is."""

    name: str
    path: tuple[str, ...]
    # How the tensor differs from the parameter: not at all, transposed, or a matrix of one row.
    form: Literal["same", "transposed", "one row"] = "same"

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

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of (one layer's) tensor, from that of the parameter."""
        one = np.broadcast_to(np.float32(0), shape[1:] if self.stacked else shape)
        return self.to_theirs(one).shape


def _norm(name: str, ours: str) -> Entry:
    return Entry(f"model.layers.{{}}.{name}", ("blocks", ours))


_bias = _norm


def _matrix(name: str, ours: str) -> Entry:
    return Entry(f"model.layers.{{}}.{name}", ("blocks", ours), "transposed")


TABLE = (
    Entry("model.embed_tokens.weight", ("embedding",)),
    _norm("input_layernorm.weight", "attention_norm"),
    _matrix("self_attn.q_proj.weight", "q"),
    _matrix("self_attn.k_proj.weight", "k"),
    _matrix("self_attn.v_proj.weight", "v"),
    _bias("self_attn.q_proj.bias", "q_bias"),
    _bias("self_attn.k_proj.bias", "k_bias"),
    _bias("self_attn.v_proj.bias", "v_bias"),
    _norm("self_attn.q_norm.weight", "q_norm"),
    _norm("self_attn.k_norm.weight", "k_norm"),
    _matrix("self_attn.o_proj.weight", "o"),
    _norm("post_attention_layernorm.weight", "mlp_norm"),
    _matrix("mlp.gate_proj.weight", "gate"),
    _matrix("mlp.up_proj.weight", "up"),
    _matrix("mlp.down_proj.weight", "down"),
    Entry("model.norm.weight", ("final_norm",)),
    Entry("score.weight", ("head",), "one row"),
    Entry("score.bias", ("head_bias",)),
)
# In a causal LM, and of no use to a reward model.
_DROPPED = ("lm_head.weight", "lm_head.bias")


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened checkpoint: what the model is, and its tensors by name, read on access."""

    config: ModelConfig
    tensors: Tensors
    origin: str

    @property
    def has_head(self) -> bool:
        return "score.weight" in self.tensors


class SafetensorsFolder(Mapping[str, np.ndarray]):
    """The tensors of a directory of safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of = dict(self._index())

    def _index(self) -> Iterator[tuple[str, Path]]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            files = _read_json(index).get("weight_map", {})
            absent = sorted({f for f in files.values() if not (self.folder / f).exists()})
            if absent:
                raise CheckpointError(
                    f"{index} names files that are not there: {', '.join(absent)}."
                )
            yield from ((name, self.folder / file) for name, file in files.items())
            return
        single = self.folder / "model.safetensors"
        if not single.exists():
            pickled = any(self.folder.glob("*.bin")) or any(self.folder.glob("*.pt"))
            raise CheckpointError(
                f"{self.folder} has no model.safetensors and no model.safetensors.index.json."
                + (
                    " Its pickle files are not read: save it again as safetensors."
                    if pickled
                    else ""
                )
            )
        with _open(single) as file:
            yield from ((name, single) for name in file.keys())  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> np.ndarray:
        path = self._file_of[name]
        with _open(path) as file:
            try:
                return file.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(f"{path}: {name} cannot be read: {error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected an object.")
    return content


def _open(path: Path):
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}.") from error


def open_directory(folder: str | Path) -> Source:
    """Opens a Hugging Face directory.

    Raises:
      FileNotFoundError: there is no `config.json`.
      UnsupportedModel: the config asks for what is not computed here, or has several labels.
      CheckpointError: weights missing or unreadable.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no config.json: not a Hugging Face checkpoint.")
    hf = _read_json(path)
    tensors = SafetensorsFolder(folder)
    return Source(read_config(hf, tensors), tensors, str(folder))


def read_config(hf: Mapping[str, Any], tensors: Tensors) -> ModelConfig:
    """The ModelConfig of a `config.json`, with what the weights alone tell (a bias of the head)."""
    architecture = (hf.get("architectures") or [""])[0]
    if architecture and not architecture.endswith(("ForCausalLM", "ForSequenceClassification")):
        raise UnsupportedModel(
            f"architecture {architecture!r}: only *ForCausalLM and *ForSequenceClassification "
            f"are read."
        )
    if architecture.endswith("ForSequenceClassification"):
        labels = hf.get("num_labels", len(hf["id2label"]) if "id2label" in hf else 2)
        if labels != 1:
            raise UnsupportedModel(
                f"a classifier with {labels} labels; a reward model has exactly 1."
            )
        if "score.weight" not in tensors:
            raise CheckpointError(
                f"{architecture} without score.weight: its reward head was lost when it was saved. "
                f"Save it again with the head, or start a new head from the *ForCausalLM model."
            )
    return dataclasses.replace(ModelConfig.from_hf(hf), head_bias="score.bias" in tensors)


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
    source: Source, mesh: jax.sharding.Mesh, seed: int = 0, dtype: str = "float32"
) -> Params:
    """Parameters on the mesh: float32, or the matrices in `dtype` and the rest in float32. A source
    without a reward head gets a fresh one, Normal(0, 1/(D + 1)) from `seed`.

    Raises:
      CheckpointError: naming every missing, unexpected or misshapen tensor.
    """
    expected = abstract_params(source.config, mesh)
    problems = _wrong_names(source)
    params: Params = {}
    for entry, count in _entries(source.config):
        target = _lookup(expected, entry.path)
        if entry.path == ("head",) and not source.has_head:
            value = fresh_head(source.config, seed)
        else:
            value = _read(entry, count, target.shape, source.tensors, problems)
        if not problems:
            value = value.astype(dtype) if entry.is_matrix else value
            _assign(params, entry.path, jax.device_put(value, target.sharding))
    if problems:
        raise CheckpointError(
            f"{source.origin} does not fit its config.json: " + "; ".join(problems) + "."
        )
    return params


def fresh_head(config: ModelConfig, seed: int) -> np.ndarray:
    """A new reward head: float32 Normal(0, 1/(D + 1)), [D], alike on every machine for a seed."""
    return (
        np.random.default_rng(seed)
        .normal(0, (config.width + 1) ** -0.5, config.width)
        .astype(np.float32)
    )


def save_directory(
    folder: str | Path,
    config: ModelConfig,
    params: Params,
    tokenizer: Any,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Writes a Hugging Face directory in float32: weights, config, tokenizer, template, and
    `extra_files` (name -> text).

    It is built under a temporary name and renamed when complete; an earlier checkpoint of that name
    is replaced whole.

    Raises:
      FileExistsError: `folder` holds something that is no checkpoint.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "config.json").exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds files but no config.json, so it is no checkpoint to be replaced: "
            f"choose another directory, or empty this one."
        )
    partial, replaced = (folder.with_name(folder.name + end) for end in (".partial", ".replaced"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    tensors = dict(to_hf_tensors(config, params))
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    for name, text in (extra_files or {}).items():
        (partial / name).write_text(text)
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    hf = config.to_hf() | {name: getattr(tokenizer, name) for name in ids}
    # Last, so that what was cut short has no config.json and opens nowhere.
    (partial / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return folder


def to_hf_tensors(config: ModelConfig, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter under its Hugging Face name and in its shape."""
    for entry, count in _entries(config):
        value = np.asarray(jax.device_get(_lookup(params, entry.path)))
        for layer in range(count):
            tensor = entry.to_theirs(value[layer] if entry.stacked else value)
            yield entry.name.format(layer), np.ascontiguousarray(tensor)


def _entries(config: ModelConfig) -> list[tuple[Entry, int]]:
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


def _wrong_names(source: Source) -> list[str]:
    """What is missing and what is there without a place to go."""
    present = set(source.tensors)
    names = {entry.name.format(i) for entry, n in _entries(source.config) for i in range(n)}
    if not source.has_head:
        names -= {"score.weight", "score.bias"}
    unexpected = _unexpected(present - names, source.config)
    return [f"missing: {name}" for name in sorted(names - present)] + [
        f"unexpected: {name}" for name in sorted(unexpected)
    ]


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
    return {n for n in names if n not in _DROPPED and not beyond(n) and not n.endswith(rotary)}


def _read(
    entry: Entry, count: int, shape: tuple[int, ...], tensors: Tensors, problems: list[str]
) -> np.ndarray:
    """The parameter of a row of the table, float32; adds to `problems` each tensor that misfits."""
    value = np.empty(shape, np.float32)
    for layer in range(count):
        name = entry.name.format(layer)
        if name not in tensors:
            continue  # already among the problems
        tensor = np.asarray(tensors[name])
        if tensor.shape != entry.their_shape(shape):
            wanted = entry.their_shape(shape)
            problems.append(f"shape of {name}: {tensor.shape}, expected {wanted}")
        else:
            value[layer if entry.stacked else ...] = entry.to_ours(tensor)
    return value


def _lookup(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _assign(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
