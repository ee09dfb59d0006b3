"""AdamW with linear warm-up, cosine decay and clipping of the global gradient norm, from optax."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Hyper-parameters of AdamW and its schedule; validated on construction."""

    learning_rate: float
    steps: int
    warmup_fraction: float = 0.03
    final_fraction: float = 0.0  # of the learning rate, at the last step
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self):
        for name, ok, wanted in (
            ("learning_rate", self.learning_rate > 0, "a positive number"),
            ("steps", self.steps >= 1, "at least 1"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "in [0, 1)"),
            ("final_fraction", 0 <= self.final_fraction <= 1, "in [0, 1]"),
            ("b1", 0 <= self.b1 < 1, "in [0, 1)"),
            ("b2", 0 <= self.b2 < 1, "in [0, 1)"),
            ("eps", self.eps > 0, "a positive number"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("clip_norm", self.clip_norm > 0, "a positive number"),
        ):
            if not ok:
                raise ValueError(f"optimizer.{name}={getattr(self, name)!r}: it must be {wanted}.")


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate at a step: up in a line (the first step already moves), down along a cosine."""
    warmup = round(config.warmup_fraction * config.steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=max(warmup - 1, 0),
        decay_steps=max(config.steps, warmup + 1),
        end_value=config.final_fraction * config.learning_rate,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The gradient transformation; weight decay spares norms, biases and the reward head."""

    def decayed(params):
        # Matrices alone. Inside the stack of layers, norms and biases have the layers axis as well.
        def is_matrix(path, x):
            stacked = any(getattr(key, "key", None) == "blocks" for key in path)
            return x.ndim - stacked >= 2

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config),
            config.b1,
            config.b2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
