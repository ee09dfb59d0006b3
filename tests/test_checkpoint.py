"""Checkpoints: bit-equal, laid out as asked for, plain data."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from toolrm_jax.checkpoint import Checkpoints, config_from_json, config_to_json
from toolrm_jax.model import abstract_params
from toolrm_jax.model_config import ModelConfig, Rope
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.sharding import make_mesh
from toolrm_jax.train_step import TrainState, new_state

MODEL = ModelConfig("llama", 64, 16, 24, 2, 4, 2, 4)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3, steps=10))


def random_state(mesh, step: int, seed: int = 0) -> TrainState:
    """A state in which no number is zero; the same numbers on every mesh."""
    rng = np.random.default_rng(seed)

    def noise(x):
        if x.dtype == jnp.int32:
            return jax.device_put(np.full(x.shape, step, np.int32), x.sharding)
        return jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding)

    params = jax.tree.map(noise, abstract_params(MODEL, mesh))
    with jax.set_mesh(mesh):
        return jax.tree.map(noise, new_state(params, OPTIMIZER))


def assert_same(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.array_equal(x, y)


@pytest.fixture(scope="module")
def meshes():
    return make_mesh(data=2, fsdp=2, tensor=2), make_mesh(devices=jax.devices()[:1])


def test_a_state_comes_back_bit_equal_on_any_mesh(tmp_path, meshes):
    eight, _ = meshes
    state = random_state(eight, step=7)
    meta = {"loader": {"next_step": 7}, "train_tasks": ["a", "b"]}
    saved = Checkpoints(tmp_path)
    saved.save(state, meta)
    saved.close()

    opened = Checkpoints(tmp_path)
    assert opened.latest() == 7
    assert opened.meta() == meta
    for mesh in meshes:
        like = random_state(mesh, step=0, seed=1)
        restored, again = opened.restore(like)
        assert_same(restored, state)
        assert again == meta
        # The moments too: they are two thirds of what has to fit.
        for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
            assert x.sharding == y.sharding
    opened.close()


def test_a_state_that_goes_on_changing_does_not_change_what_is_saved(tmp_path, meshes):
    state = random_state(meshes[0], step=1)
    kept = jax.tree.map(lambda x: np.array(x, copy=True), state)
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    saved = Checkpoints(tmp_path)
    saved.save(state, {})  # goes on in the background
    for _ in range(5):
        state = change(state)
    saved.wait()
    assert_same(saved.restore(state)[0], kept)
    saved.close()


def test_the_newest_few_are_kept(tmp_path, meshes):
    saved = Checkpoints(tmp_path, keep=2)
    assert saved.latest() is None
    for step in (2, 4, 6):
        saved.save(random_state(meshes[1], step), {"at": step})
    saved.wait()
    assert saved.latest() == 6
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]
    assert saved.meta(4) == {"at": 4}
    saved.save(random_state(meshes[1], 6, seed=9), {"at": "again"})  # there already
    saved.wait()
    assert saved.meta(6) == {"at": 6}
    saved.close()


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path, meshes):
    saved = Checkpoints(tmp_path)
    saved.save(random_state(meshes[1], 1), {"a": 1})
    saved.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix not in (".pkl", ".pickle", ".pt", ".bin")
        assert not path.read_bytes().startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05"))


YARN = Rope(5e5, "yarn", (("factor", 4.0), ("truncate", True)))


@pytest.mark.parametrize("changes", [{}, {"family": "qwen3", "qk_norm": True}, {"rope": YARN}])
def test_a_model_config_goes_through_json(changes):
    config = dataclasses.replace(MODEL, **changes)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
