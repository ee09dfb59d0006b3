"""Training checkpoints: what a run needs to go on as if nothing had happened.

    workdir/checkpoints/{step}/state   step, parameters, optimizer moments: plain dicts of arrays
                              /meta    JSON: the loader's state, the model, the run's config, ids

Nothing here is pickled. Orbax writes a checkpoint under a temporary name and renames it when it is
complete; with several processes, each writes its own shards. In an object store, which renames
nothing, a file commit_success.txt is written last, and a step without it is none.
"""

import dataclasses
import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.paths import absolute
from toolrm_jax.train_step import TrainState

_CHUNK_BYTES = 64 << 20


class Checkpoints:
    """The checkpoints of one run; saving is asynchronous, `close` waits for it."""

    def __init__(self, workdir: str | os.PathLike[str], keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        folder = absolute(workdir) / "checkpoints"
        self._manager = ocp.CheckpointManager(folder, options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves the state under its own step, with JSON metadata."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        tree = _tree(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(tree, save_args=jax.tree.map(_chunks, tree)),
            meta=ocp.args.JsonSave(meta),
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


def _chunks(array: jax.Array) -> ocp.SaveArgs:
    """One layer at most in a chunk, so that a layer can be read without the rest of its stack: for
    a 7B, 272 MB of 7.6 GB. Without this, Orbax makes a chunk of all that a device holds."""
    return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if array.ndim == 3 else ())


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
