"""Checkpoints: bit-equal, laid out as asked for, plain data."""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import shutil
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from toolrm_jax.checkpoint import (
    Checkpoints,
    CheckpointsError,
    config_from_json,
    config_to_json,
)
from toolrm_jax.checkpoint_files import LISTING
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


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4), (1, 8), (8, 1)])
def test_a_state_goes_to_another_mesh_shape(tmp_path, sizes):
    state = random_state(make_mesh(data=4, fsdp=2), step=3)
    with contextlib.closing(Checkpoints(tmp_path)) as saved:
        saved.save(state, {})
        like = random_state(make_mesh(data=sizes[0], fsdp=sizes[1]), step=0, seed=1)
        restored, _ = saved.restore(like)
        assert_same(restored, state)
        wanted = [x.sharding for x in jax.tree.leaves(like)]
        assert [x.sharding for x in jax.tree.leaves(restored)] == wanted


# --- The best one ---------------------------------------------------------------------------------


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_the_best_is_kept_besides_the_newest(tmp_path, meshes):
    scores = {1: (0.5, -0.7), 2: (0.8, -0.6), 3: (0.8, -0.5), 4: (0.8, -0.5), 5: None, 6: None}
    saved = Checkpoints(tmp_path, keep=2)
    for step, score in scores.items():
        if score:
            assert saved.improves(score) == (step <= 3)  # a tie is no improvement
        saved.save(random_state(meshes[1], step), {}, score)
    saved.close()
    assert steps_in(tmp_path) == [3, 5, 6]

    again = Checkpoints(tmp_path, keep=2)  # another process, later
    assert again.best() == (3, (0.8, -0.5))
    assert not again.improves((0.8, -0.5))
    assert again.improves((0.8, -0.4))
    again.save(random_state(meshes[1], 7), {}, (0.9, -0.9))
    again.save(random_state(meshes[1], 8), {}, None)
    again.save(random_state(meshes[1], 9), {}, None)
    again.close()
    assert steps_in(tmp_path) == [7, 8, 9]


def test_the_best_is_not_kept_where_that_is_not_wanted(tmp_path, meshes):
    saved = Checkpoints(tmp_path, keep=1, keep_best=False)
    assert not saved.improves((1.0, 0.0))
    for step, score in ((1, (0.9, 0.0)), (2, (0.1, 0.0))):
        saved.save(random_state(meshes[1], step), {}, score)
    saved.close()
    assert steps_in(tmp_path) == [2]


# --- Damage ---------------------------------------------------------------------------------------


def largest_file(folder: Path) -> Path:
    """The arrays' own bytes, which are most of a checkpoint."""
    files = (folder / "state" / "ocdbt.process_0" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


def flip(path: Path, at: int | None = None) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "arrays cut off": lambda f: os.truncate(largest_file(f), largest_file(f).stat().st_size // 2),
    "arrays gone": lambda f: largest_file(f).unlink(),
    "a bit of the arrays": lambda f: flip(largest_file(f)),
    "a bit of the index of arrays": lambda f: flip(f / "state" / "manifest.ocdbt"),
    "a bit of the tree": lambda f: flip(f / "state" / "_METADATA"),
    "a bit of the metadata": lambda f: flip(f / "meta" / "metadata"),
    "metadata cut off": lambda f: os.truncate(f / "meta" / "metadata", 5),
    "metadata gone": lambda f: shutil.rmtree(f / "meta"),
    "state gone": lambda f: shutil.rmtree(f / "state"),
    "a bit of the list of files": lambda f: flip(f / LISTING),
    "a bit of a checksum": lambda f: flip(f / LISTING, (f / LISTING).read_bytes().rindex(b" ") + 2),
    "list of files gone": lambda f: (f / LISTING).unlink(),
    "everything gone": lambda f: [shutil.rmtree(f), f.mkdir()],
}


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory, meshes):
    """Two checkpoints, and the state of the first; to be copied."""
    folder = tmp_path_factory.mktemp("two")
    states = {step: random_state(meshes[1], step, seed=step) for step in (1, 2)}
    with contextlib.closing(Checkpoints(folder)) as saved:
        for step, state in states.items():
            saved.save(state, {"at": step})
    return folder, states


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said_to_be(tmp_path, two_saved, meshes, damage):
    folder, states = two_saved
    shutil.copytree(folder, tmp_path / "run")
    DAMAGE[damage](tmp_path / "run" / "checkpoints" / "2")
    said: list[str] = []
    opened = Checkpoints(tmp_path / "run", say=said.append)
    restored, meta = opened.restore(states[2])
    assert_same(restored, states[1])
    assert meta == {"at": 1}
    (message,) = said
    assert message.startswith("checkpoint 2 is damaged and is passed over: ")
    names = ("state", "meta/metadata", LISTING)
    assert any(name in message.partition("over: ")[2] for name in names), message

    # It is written again when the run gets there.
    opened.save(states[2], {"at": "again"})
    opened.close()
    with contextlib.closing(Checkpoints(tmp_path / "run")) as again:
        restored, meta = again.restore(states[1])
        assert_same(restored, states[2])
        assert meta == {"at": "again"}
    assert steps_in(tmp_path / "run") == [1, 2]


SHOWS = ["arrays cut off", "arrays gone", "a bit of the index of arrays"]


@pytest.fixture
def orbax_leaves_coroutines():
    """Where one array fails, Orbax closes the loop under the others' feet: they are let go here.

    The warnings that the unfinished ones end with would otherwise fall on whichever test runs
    when they are collected. Some still wait for TensorStore's threads, a second at most: what a
    full disk holds back TensorStore keeps for good.
    """
    yield
    for _ in range(10):
        gc.collect()
        # By type, not isinstance: asked for their class, some of torch's objects warn.
        left = (one for one in gc.get_objects() if type(one) is types.CoroutineType)
        if not any(one.cr_frame and "orbax" in one.cr_code.co_filename for one in left):
            return
        time.sleep(0.1)


def orbax_fails(test):
    """For a test in which Orbax fails to read or to write an array."""
    test = pytest.mark.usefixtures("orbax_leaves_coroutines")(test)
    return pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(test)


@orbax_fails
@pytest.mark.parametrize("damage", SHOWS)
def test_damage_is_noticed_without_checksums_where_it_shows(tmp_path, meshes, damage):
    states = {step: random_state(meshes[1], step, seed=step) for step in (1, 2)}
    with contextlib.closing(Checkpoints(tmp_path, checksums=False)) as saved:
        for state in states.values():
            saved.save(state, {})
    DAMAGE[damage](tmp_path / "checkpoints" / "2")
    with contextlib.closing(Checkpoints(tmp_path, say=lambda _: None)) as opened:
        assert_same(opened.restore(states[2])[0], states[1])


def test_without_a_sound_checkpoint_nothing_is_started_anew(tmp_path, two_saved):
    folder, states = two_saved
    shutil.copytree(folder, tmp_path / "run")
    for step in (1, 2):
        flip(largest_file(tmp_path / "run" / "checkpoints" / str(step)))
    opened = Checkpoints(tmp_path / "run", say=lambda _: None)
    with pytest.raises(CheckpointsError, match=r"no sound checkpoint.*2: .*; 1: .*workdir"):
        opened.restore(states[1])


@pytest.mark.parametrize("name", ["files.json", "meta/metadata", "state/manifest.ocdbt"])
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, two_saved, meshes, monkeypatch, name):
    """Passed over, it would be written anew, or removed as older than the newest."""
    folder, states = two_saved
    shutil.copytree(folder, tmp_path / "run")
    file = epath.Path(tmp_path / "run" / "checkpoints" / "2" / name)
    assert file.exists()
    opened = type(file).open

    def failing(self, *given, **more):
        if self == file:
            raise OSError(errno.EIO, "Input/output error")
        return opened(self, *given, **more)

    def reading(self):
        with failing(self) as text:
            return text.read()

    def restored():
        with contextlib.closing(Checkpoints(tmp_path / "run")) as saved:
            return saved.restore(states[1])[0]

    with monkeypatch.context() as patched:
        patched.setattr(type(file), "open", failing)
        patched.setattr(type(file), "read_text", reading)
        with pytest.raises(CheckpointsError, match=r"cannot be read now .*Input/output error"):
            restored()
    assert_same(restored(), states[2])


def test_what_a_killed_save_left_is_removed(tmp_path, two_saved):
    folder, states = two_saved
    shutil.copytree(folder, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / "2", checkpoints / "3.partial")
    said: list[str] = []
    with contextlib.closing(Checkpoints(tmp_path / "run", say=said.append)) as opened:
        assert opened.latest() == 2
        assert_same(opened.restore(states[1])[0], states[2])
    assert steps_in(tmp_path / "run") == [1, 2]
    assert len(said) == 1
    assert "3.partial" in said[0]


# --- A full disk ----------------------------------------------------------------------------------


@orbax_fails
def test_a_full_disk_costs_a_save_and_nothing_else(small_disk, meshes):
    states = {step: random_state(meshes[1], step, seed=step) for step in (1, 2, 3)}
    saved = Checkpoints(small_disk)
    saved.save(states[1], {"at": 1})
    saved.wait()
    room = shutil.disk_usage(small_disk).free
    size = shutil.disk_usage(small_disk).used
    (small_disk / "filler").write_bytes(bytes(room - size // 2))
    saved.save(states[2], {"at": 2})
    saved.wait()
    first, second = saved.ended()
    assert (first.step, first.error, second.step) == (1, "", 2)
    assert "No space left on device" in second.error
    assert (saved.latest(), saved.failures) == (1, 1)
    assert_same(saved.restore(states[3])[0], states[1])

    (small_disk / "filler").unlink()
    saved.save(states[3], {"at": 3})
    saved.close()
    assert [end.error for end in saved.ended()] == [""]
    assert steps_in(small_disk) == [1, 3]
    with contextlib.closing(Checkpoints(small_disk)) as again:
        assert_same(again.restore(states[1])[0], states[3])


def test_what_a_failed_save_leaves_is_removed_by_the_next_one(tmp_path, meshes):
    """Its writers may still be at work when it fails, and make the folder anew."""
    with contextlib.closing(Checkpoints(tmp_path)) as saved:
        saved.save(random_state(meshes[1], 1), {})
        saved.wait()
        late = tmp_path / "checkpoints" / "2.partial" / "state"
        late.mkdir(parents=True)
        (late / "late").write_text("")
        saved.save(random_state(meshes[1], 3), {})
    assert steps_in(tmp_path) == [1, 3]


def test_what_cannot_be_removed_fails_no_save(tmp_path, meshes, monkeypatch):
    """A file that is open over NFS, say."""
    stuck = tmp_path / "checkpoints" / "1.removed.partial"
    stuck.mkdir(parents=True)
    rmtree = type(epath.Path(tmp_path)).rmtree

    def refuses(self, *args, **kwargs):
        if self.name == stuck.name:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rmtree(self, *args, **kwargs)

    monkeypatch.setattr(type(epath.Path(tmp_path)), "rmtree", refuses)
    with contextlib.closing(Checkpoints(tmp_path)) as saved:
        for step in (2, 3):
            saved.save(random_state(meshes[1], step), {})
            saved.wait()
        assert [end.error for end in saved.ended()] == ["", ""]
    assert stuck.exists()


@pytest.mark.parametrize("where", ["writing", "folder", "joining"])
def test_an_error_while_saving_is_reported_not_raised(tmp_path, meshes, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")

    class Full:
        def result(self):
            raise full

    async def writes(*args, **kwargs):
        return [Full()]

    def raises(*args, **kwargs):
        raise full

    saved = Checkpoints(tmp_path)
    saved.save(random_state(meshes[1], 1), {})
    saved.wait()
    with monkeypatch.context() as patched:
        if where == "writing":
            patched.setattr(ocp.StandardCheckpointHandler, "async_save", writes)
        elif where == "folder":
            patched.setattr(Checkpoints, "_prepare", raises)
        else:
            patched.setattr(ocp.StandardCheckpointHandler, "finalize", raises)
        saved.save(random_state(meshes[1], 2), {})
        saved.wait()
    assert "No space left on device" in saved.ended()[-1].error
    assert steps_in(tmp_path) == [1]
    saved.save(random_state(meshes[1], 2), {})
    saved.close()
    assert steps_in(tmp_path) == [1, 2]


YARN = Rope(5e5, "yarn", (("factor", 4.0), ("truncate", True)))


@pytest.mark.parametrize("changes", [{}, {"family": "qwen3", "qk_norm": True}, {"rope": YARN}])
def test_a_model_config_goes_through_json(changes):
    config = dataclasses.replace(MODEL, **changes)
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config
