"""One optimizer step: `train_step(state, batches) -> state, metrics`, jitted once per row shape.

    batches [k micro-batches, B rows, ...] --scan--> sum of gradients, of prompts --divide--> AdamW

Gradients of a *sum* over prompts are accumulated and divided by the step's number of prompts at the
end, so k micro-batches of unequal size are one big batch.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from toolrm_jax.batch import Batch
from toolrm_jax.loss import PairSums, describe, pair_sums
from toolrm_jax.model import Forward, Params
from toolrm_jax.sharding import compiler_options, on_mesh


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What training carries from step to step, and what a checkpoint holds."""

    step: jax.Array  # int32: the next step to take
    params: Params
    opt_state: optax.OptState


def new_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; moments are laid out as their parameters are."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))


def abstract_state(
    params: Params, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes, types and layouts of `new_state(params, ...)`, without the arrays."""
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda params: new_state(params, optimizer), params)
    return on_mesh(state, mesh)


def make_train_step(forward: Forward, optimizer: optax.GradientTransformation, eta: float):
    """Returns the jitted `train_step`, for the devices of the current mesh; the state is
    donated."""

    def micro_step(params: Params, batch: Batch) -> tuple[PairSums, Params]:
        def loss(params):
            sums = pair_sums(forward(params, batch), batch, eta)
            return sums.loss, sums

        gradients, sums = jax.grad(loss, has_aux=True)(params)
        return sums, gradients

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=compiler_options())
    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def add(total, batch):
            return jax.tree.map(jnp.add, total, micro_step(state.params, batch)), None

        first = micro_step(state.params, jax.tree.map(lambda x: x[0], batches))
        rest = jax.tree.map(lambda x: x[1:], batches)
        (sums, gradients), _ = (
            jax.lax.scan(add, first, rest) if len(batches.answers) > 1 else (first, None)
        )
        # An empty step (all padding) must not divide by zero.
        gradients = jax.tree.map(lambda g: g / jnp.maximum(sums.prompts, 1e-9), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = describe(sums) | {"gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
