"""Are two checkpoints the same model? Tensor by tensor, and by the rewards they give.

A, B (each: Hugging Face, GGUF or Orbax)
    --tensors, piece by piece--> equal bytes, or the largest difference by name
    --float32 forward of prompts--> the largest difference of rewards

>>> found = compare_tensors(open_pretrained("a"), open_pretrained("b"))
>>> found.differences
[]
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from toolrm_jax.batch import RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.huggingface import RewardTensors, load_params, refuse_misfits
from toolrm_jax.loader import to_device
from toolrm_jax.model import Compute, Forward
from toolrm_jax.pretrained import Pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tensors import Tensors, pieces

_WEATHER = {
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
# Prompts for `verify` where none are given: a call, a wrong one, words, nothing; with history.
PROMPTS: list[dict[str, Any]] = [
    {
        "tools": [_WEATHER],
        "messages": [{"role": "user", "content": "Rain in Rome this week?"}],
        "responses": [
            [{"name": "weather", "arguments": {"city": "Rome", "days": 7}}],
            [{"name": "weather", "arguments": {"city": "Paris"}}],
            "I cannot know.",
            "",
        ],
    },
    {
        "tools": [_WEATHER],
        "messages": [
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hello. What can I do for you?"},
            {"role": "user", "content": "Tell me a joke about 42 umbrellas."},
        ],
        "responses": ["No.", [{"name": "weather", "arguments": {}}]],
    },
]


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one tensor differs: the largest absolute difference, or why there is none."""

    name: str
    largest: float
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason or f'largest difference {self.largest:.3g}'}"


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """What a comparison of tensors found."""

    tensors: int
    equal_bytes: int
    differences: list[Difference]  # those whose values differ, the largest first
    other_types: list[str]  # equal values, stored in another type

    def above(self, tolerance: float) -> list[Difference]:
        """The differences that are not within the tolerance."""
        return [d for d in self.differences if d.reason or not d.largest <= tolerance]


def compare_tensors(a: Pretrained, b: Pretrained, seed: int = 0) -> TensorReport:
    """Compares every tensor of the two reward models, piece by piece; of a causal LM, those of the
    reward model that it gives with a fresh head of the seed."""
    for side in (a, b):
        refuse_misfits(side.source)
    first, second = (RewardTensors(side.source, seed) for side in (a, b))
    differences = [
        Difference(name, np.inf, f"only in {side}")
        for names, others, side in ((first, second, "the first"), (second, first, "the second"))
        for name in names
        if name not in others
    ]
    equal, other_types = 0, []
    shared = [name for name in first if name in second]
    for name in tqdm(shared, "comparing", unit="tensor", leave=False, disable=None):
        same_type = first.spec(name).dtype == second.spec(name).dtype
        found = _difference(name, first, second)
        if found is not None:
            differences.append(found)
        elif same_type:
            equal += 1
        else:
            other_types.append(
                f"{name} ({first.spec(name).dtype} and {second.spec(name).dtype}, equal values)"
            )
    differences.sort(key=lambda d: -d.largest)
    return TensorReport(len(set(first) | set(second)), equal, differences, other_types)


def _difference(name: str, first: Tensors, second: Tensors) -> Difference | None:
    """None where all values are the same (and, in one type, all bytes)."""
    a, b = first.spec(name), second.spec(name)
    if a.shape != b.shape:
        return Difference(name, np.inf, f"shapes {a.shape} and {b.shape}")
    largest, same = 0.0, True
    for start, stop in pieces(a, max(first.row_step(name), second.row_step(name))):
        x, y = first.rows(name, start, stop), second.rows(name, start, stop)
        if x.dtype == y.dtype and np.array_equal(_bits(x), _bits(y)):
            continue
        x32, y32 = x.astype(np.float32), y.astype(np.float32)
        gap = float(np.max(np.abs(x32 - y32), initial=0.0))
        # Same values in other bytes of one type: a zero's sign, or a NaN's payload.
        same = same and gap == 0 and x.dtype != y.dtype
        largest = max(largest, gap) if np.isfinite(gap) else float("nan")
    return None if same else Difference(name, largest)


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")


def rewards(
    model: Pretrained, prompts: Sequence[dict[str, Any]] = PROMPTS, seed: int = 0
) -> np.ndarray:
    """The rewards of all responses of all prompts, in float32 throughout, in order.

    prompts: {"tools", "messages", "responses"} each. The whole model is in memory in float32.
    """
    renderer = Renderer(model.tokenizer)
    items = [
        TokenizedPrompt(found.prompt, list(found.responses))
        for found in (
            renderer.render(row.get("tools") or [], row["messages"], row["responses"])
            for row in prompts
        )
    ]
    # One shape for all: one compilation.
    longest = -(-max(item.tokens for item in items) // 128) * 128
    shape = RowShape(longest, max(len(item.responses) for item in items))
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        forward = jax.jit(Forward(model.source.config, Compute("float32", "none")))
        params = load_params(model.source, mesh, seed)
        return np.concatenate([_rewards_of(forward, params, item, shape, mesh) for item in items])


def _rewards_of(forward, params, item: TokenizedPrompt, shape: RowShape, mesh) -> np.ndarray:
    batch = empty_batch(1, shape)
    place(batch, 0, [item])
    batches = jax.tree.map(lambda x: x[None], batch)
    on_mesh = jax.tree.map(lambda x: x[0], to_device(batches, mesh))
    return np.asarray(forward(params, on_mesh))[0, : len(item.responses)]
