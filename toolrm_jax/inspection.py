"""What a checkpoint is, as facts for people and programs.

>>> print(as_text(inspect("embedded:smollm2")))
family           Llama, causal LM (GGUF) ...
"""

import hashlib
from collections import Counter
from typing import Any

from toolrm_jax.huggingface import DROPPED, misfits, vocabulary_misfits
from toolrm_jax.model_card import base_model
from toolrm_jax.model_config import FAMILIES
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.tensors import by_rows


def inspect(name: str) -> dict[str, Any]:
    """Family, sizes, types, tokenizer, template and origin; JSON types only."""
    return facts(open_pretrained(name))


def facts(model: Pretrained) -> dict[str, Any]:
    """The same of a checkpoint that is open. Reads no weights."""
    config, tensors = model.source.config, by_rows(model.source.tensors)
    specs = {name: tensors.spec(name) for name in tensors}
    numbers: Counter[str] = Counter()
    for spec in specs.values():
        numbers[spec.dtype.name] += spec.nbytes // spec.dtype.itemsize
    template = str(model.tokenizer.chat_template)
    return {
        "path": str(model.path or model.source.origin),
        "kind": model.kind,
        "family": FAMILIES[config.family],
        "reward_head": _head(model),
        "parameters": config.num_parameters,
        "dtypes": dict(numbers),
        "bytes": sum(spec.nbytes for spec in specs.values()),
        "layers": config.num_layers,
        "width": config.width,
        "mlp_width": config.mlp_width,
        "heads": [config.num_heads, config.num_kv_heads, config.head_dim],
        "rope": {"type": config.rope.type, "theta": config.rope.theta, **dict(config.rope.scaling)},
        "max_positions": config.max_positions,
        "tied_embeddings": config.tied_embeddings,
        "embedding_rows": config.vocab_size,
        "left_out": sorted(name for name in specs if name in DROPPED),
        "tokenizer": {
            "class": type(model.tokenizer).__name__,
            "tokens": len(model.tokenizer),
            "pad": [model.tokenizer.pad_token, model.tokenizer.pad_token_id],
            "eos": [model.tokenizer.eos_token, model.tokenizer.eos_token_id],
            "bos": [model.tokenizer.bos_token, model.tokenizer.bos_token_id],
        },
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "base_model": base_model(model.about),
        "step": model.about.get("step"),
        "checksums": sum(tensors.stated_sha256(name) is not None for name in specs),
        "problems": misfits(model.source) + vocabulary_misfits(config, model.tokenizer),
        "tensors": {name: [list(s.shape), s.dtype.name] for name, s in specs.items()},
    }


def _head(model: Pretrained) -> str:
    if not model.source.has_head:
        return "none (a causal LM: a fresh one is drawn)"
    seed = model.about.get("fresh_head_seed")
    head = "one label" if not model.source.config.head_bias else "one label, with a bias"
    return head if seed is None else f"{head}, random (seed {seed}): not trained yet"


def as_text(found: dict[str, Any], tensors: bool = False) -> str:
    """The facts as lines; tensors: every shape and type, too."""
    heads, kv_heads, head_dim = found["heads"]
    tokenizer = found["tokenizer"]
    dtypes = ", ".join(f"{n:,} in {dtype}" for dtype, n in found["dtypes"].items())
    lines = {
        "path": f"{found['path']} ({found['kind']})",
        "family": found["family"],
        "reward head": found["reward_head"],
        "parameters": f"{found['parameters']:,}",
        "stored": f"{dtypes}; {found['bytes'] / 1e9:,.3f} GB in {len(found['tensors'])} tensors",
        "shape": f"{found['layers']} layers, width {found['width']}, MLP {found['mlp_width']}, "
        f"{heads} heads on {kv_heads} key heads of {head_dim}",
        "rope": ", ".join(f"{key} {value}" for key, value in found["rope"].items()),
        "positions": f"{found['max_positions']:,}",
        "embedding": f"{found['embedding_rows']:,} rows"
        + (", tied in the causal LM" if found["tied_embeddings"] else ""),
        "left out": ", ".join(found["left_out"]) or "nothing",
        "tokenizer": f"{tokenizer['class']}, {tokenizer['tokens']:,} tokens; "
        + ", ".join(f"{key} {tokenizer[key][0]!r}" for key in ("pad", "eos", "bos")),
        "template": f"SHA-256 {found['template_sha256']}",
        "from": f"{found['base_model'] or 'not recorded'}"
        + (f", step {found['step']:,}" if found["step"] is not None else ""),
        "checksums": f"of {found['checksums']} tensors" if found["checksums"] else "none stated",
        "problems": "; ".join(found["problems"]) or "none",
    }
    text = [f"{label:<12} {value}" for label, value in lines.items()]
    if tensors:
        text += [f"  {n:<48} {shape} {dtype}" for n, (shape, dtype) in found["tensors"].items()]
    return "\n".join(text)
