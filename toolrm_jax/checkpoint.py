"""Training checkpoints: what a run needs to go on as if nothing had happened.

    workdir/checkpoints/{step}/state   step, parameters, optimizer moments: plain dicts of arrays
                              /meta    JSON: the loader's state, the model, the run's config, ids

Nothing here is pickled. Orbax writes a checkpoint under a temporary name and renames it when it is
complete; with several processes, each writes its own shards.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from toolrm_jax.model import Params
from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.train_step import TrainState


class Checkpoints:
    """The checkpoints of one run; saving is asynchronous, `close` waits for it."""

    def __init__(self, workdir: str | Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        folder = Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(folder, options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves the state under its own step, with JSON metadata."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta)
        )
        self._manager.save(step, args=items)

    def restore(
        self, like: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state at `step` (default: the latest), laid out as `like` is, and its metadata."""
        step = self.latest() if step is None else step
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(like)
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        tree = restored["state"]
        opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), tree["opt_state"])
        return TrainState(tree["step"], tree["params"], opt_state), restored["meta"]

    def restore_params(self, like: Params, step: int | None = None) -> Params:
        """The parameters alone, in the types and layouts of `like` (arrays, or their shapes)."""
        step = self.latest() if step is None else step
        target = {"params": like}
        restore = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=restore))["state"][
            "params"
        ]

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """The metadata alone."""
        step = self.latest() if step is None else step
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=items)["meta"]

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()


def _tree(state: TrainState) -> dict[str, Any]:
    """Plain dicts and lists: optax's own containers would tie the file to its class names."""
    return {
        "step": state.step,
        "params": state.params,
        "opt_state": jax.tree.leaves(state.opt_state),
    }


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A ModelConfig as JSON; `config_from_json` undoes it."""
    return dataclasses.asdict(config)


def config_from_json(data: dict[str, Any]) -> ModelConfig:
    """The ModelConfig that `config_to_json` wrote."""
    rope = data["rope"]
    scaling = tuple((name, value) for name, value in rope["scaling"])
    return ModelConfig(**{**data, "rope": Rope(rope["theta"], rope["type"], scaling)})
