"""What a decoder looks like: `ModelConfig`, read from and written to a Hugging Face `config.json`.

Three families are covered: Qwen2 / Qwen2.5, Qwen3, and Llama (SmolLM2 is one). A setting that
changes the computation and is not covered is refused by name, rather than ignored.

    >>> config = ModelConfig.from_hf({"model_type": "llama", "hidden_size": 8, "vocab_size": 32,
    ...     "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1})
    >>> config.head_dim, config.num_parameters
    (4, 928)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from toolrm_jax.errors import InputError

FAMILIES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}

# Fields that would change the computation, with the values under which they do not.
_MUST_BE: dict[str, tuple] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
}
# Settings of a rope type: those it needs, then those it may have besides.
_ROPE_SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
ROPE_TYPES = tuple(_ROPE_SETTINGS)


class UnsupportedModel(InputError, ValueError):
    """A checkpoint that asks for something this project does not compute."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding: its base and, for longer contexts, how it is scaled."""

    theta: float = 10_000.0
    type: str = "default"
    # The scaling's own parameters (factor, ...), as Hugging Face names them.
    scaling: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder with a scalar reward head. Hugging Face's names of these fields: `from_hf`."""

    family: str
    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    rope: Rope = Rope()
    max_positions: int = 32_768
    qkv_bias: bool = False
    qk_norm: bool = False
    head_bias: bool = False
    init_scale: float = 0.02
    # Whether the causal model that this one came from shared its output head with the embedding.
    tied_embeddings: bool = False

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UnsupportedModel(
                f"num_attention_heads={self.num_heads} is not a multiple of "
                f"num_key_value_heads={self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise UnsupportedModel(
                f"head_dim={self.head_dim} is odd: rotary embeddings need pairs."
            )

    @property
    def num_layer_parameters(self) -> int:
        """Weights in one layer."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.width * (2 * q + 2 * kv) + (q + 2 * kv) * self.qkv_bias
        norms = 2 * self.width + 2 * self.head_dim * self.qk_norm
        return attention + norms + 3 * self.width * self.mlp_width

    @property
    def num_parameters(self) -> int:
        """All weights: embedding, layers, final norm, reward head."""
        head = self.width + self.head_bias
        return (
            self.vocab_size * self.width
            + self.num_layers * self.num_layer_parameters
            + self.width
            + head
        )

    def flops_per_token(self, keys: float) -> float:
        """Forward FLOPs of a token that attends to `keys` keys (a multiply-add counts as two)."""
        projections = 2 * (self.num_layer_parameters - 2 * self.width)
        attention = 4 * self.num_heads * self.head_dim * keys
        return self.num_layers * (projections + attention)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> "ModelConfig":
        """From the contents of a `config.json`; raises UnsupportedModel naming all faults."""
        family = hf.get("model_type", "")
        if family not in FAMILIES:
            raise UnsupportedModel(
                f"model_type {family!r} is not supported; supported: {', '.join(sorted(FAMILIES))}."
            )
        _refuse_unsupported(hf, family)
        defaults = {"qwen2": 151_936, "qwen3": 151_936, "llama": 32_000}
        heads = hf["num_attention_heads"]
        return cls(
            family=family,
            vocab_size=hf.get("vocab_size", defaults[family]),
            width=hf["hidden_size"],
            mlp_width=hf["intermediate_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=hf.get("num_key_value_heads", None if family == "llama" else 32) or heads,
            head_dim=hf.get("head_dim")
            or (128 if family == "qwen3" else hf["hidden_size"] // heads),
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            rope=_rope_from_hf(hf),
            max_positions=hf.get("max_position_embeddings", 2048 if family == "llama" else 32_768),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            init_scale=hf.get("initializer_range", 0.02),
            tied_embeddings=hf.get("tie_word_embeddings", False),
        )

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The `config.json` of this model as a Hugging Face sequence classifier with one label."""
        own = {"attention_bias": False, "mlp_bias": False} if self.family == "llama" else {}
        if self.family == "qwen3":
            own = {"attention_bias": False}
        scaling = {"rope_type": self.rope.type, **dict(self.rope.scaling)}
        return {
            "architectures": [f"{FAMILIES[self.family]}ForSequenceClassification"],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_theta": self.rope.theta, **scaling},
            # The same as transformers 4 reads it; without it, theta would be 10,000 there.
            "rope_theta": self.rope.theta,
            **({} if self.rope.type == "default" else {"rope_scaling": scaling}),
            "max_position_embeddings": self.max_positions,
            "initializer_range": self.init_scale,
            "tie_word_embeddings": self.tied_embeddings,
            "use_cache": False,
            "dtype": dtype,
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            # Without it, text-classification pipelines put one label through a sigmoid.
            "problem_type": "regression",
            **own,
        }


def _refuse_unsupported(hf: Mapping[str, Any], family: str) -> None:
    wrong = [
        f"{field}={hf[field]!r} (supported: {allowed[0]!r})"
        for field, allowed in _MUST_BE.items()
        if field in hf and hf[field] not in allowed
    ]
    if family != "qwen2" and hf.get("attention_bias"):
        wrong.append("attention_bias=True (supported: False)")
    if any(kind != "full_attention" for kind in hf.get("layer_types") or ()):
        wrong.append("layer_types with other than 'full_attention'")
    wrong += _wrong_rope(hf)
    missing = [
        field
        for field in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
        if field not in hf
    ]
    wrong += [f"{field} is missing" for field in missing]
    if wrong:
        raise UnsupportedModel(
            f"This {family} config.json is not supported: " + "; ".join(wrong) + "."
        )


def _wrong_rope(hf: Mapping[str, Any]) -> list[str]:
    fields = _rope_fields(hf)
    kind = fields["rope_type"]
    if kind not in ROPE_TYPES:
        return [f"rope scaling {kind!r} (supported: {', '.join(ROPE_TYPES)})"]
    needed, optional = _ROPE_SETTINGS[kind]
    wrong = [f"rope scaling {kind!r} without {name}" for name in needed if name not in fields]
    if fields.pop("partial_rotary_factor", None) not in (1, None):
        wrong.append("rope setting partial_rotary_factor (supported: 1)")
    known = {"rope_type", "rope_theta", *needed, *optional}
    unknown = sorted(set(fields) - known)
    return wrong + [f"rope setting {name} of {kind!r} is not known" for name in unknown]


def _rope_fields(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings in transformers 5's form, from either form; the older one goes first there,
    too."""
    fields = dict(hf.get("rope_scaling") or hf.get("rope_parameters") or {})
    fields.setdefault("rope_type", fields.pop("type", None) or "default")
    fields.pop("type", None)
    fields.setdefault("rope_theta", hf.get("rope_theta", 10_000.0))
    if fields["rope_type"] in ("llama3", "yarn"):
        positions = hf.get("max_position_embeddings", 2048)
        fields.setdefault("original_max_position_embeddings", positions)
        if fields.get("factor", 1) is None:
            fields["factor"] = positions / fields["original_max_position_embeddings"]
    return fields


def _rope_from_hf(hf: Mapping[str, Any]) -> Rope:
    fields = _rope_fields(hf)
    kind, theta = fields.pop("rope_type"), fields.pop("rope_theta")
    fields.pop("partial_rotary_factor", None)
    return Rope(theta=float(theta), type=kind, scaling=tuple(sorted(fields.items())))
