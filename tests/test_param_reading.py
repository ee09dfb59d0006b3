"""Parameters read onto meshes: every layout equals the whole one, and nothing is read twice."""

import collections

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_models
from jax.sharding import NamedSharding, PartitionSpec
from tiny import write_model

from toolrm_jax.huggingface import ParamTensors, RewardTensors, Source, load_params, open_directory
from toolrm_jax.param_reading import ParamReader
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tensors import Held, Tensors

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 2), (2, 2, 2), (1, 4, 2), (4, 2, 1)]


class Watched(Tensors):
    """Tensors that count how often each row is read."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self.reads: collections.Counter[tuple[str, int]] = collections.Counter()

    def spec(self, name):
        return self._tensors.spec(name)

    def rows(self, name, start, stop):
        self.reads.update((name, row) for row in range(start, stop))
        return self._tensors.rows(name, start, stop)

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    return open_directory(write_model(tmp_path_factory.mktemp("model") / "hf"))


@pytest.fixture(scope="module")
def plain(source):
    """Each parameter on the host, by its path."""
    return jax.device_get(load_params(source, make_mesh(devices=jax.devices()[:1])))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("sizes", MESHES)
def test_every_layout_holds_the_same_numbers(source, plain, sizes, spread):
    axes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    mesh = make_mesh(**axes, devices=jax.devices()[: int(np.prod(sizes))])
    params = load_params(source, mesh, spread=spread)
    expected = tiny_models.abstract_params(source.config, mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), plain)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(
        lambda x: x.sharding, expected
    )


@pytest.mark.parametrize("spread", [False, True])
def test_every_row_is_read_once(source, plain, spread):
    tensors = Watched(RewardTensors(source))
    watched = Source(source.config, tensors, "watched")
    load_params(watched, make_mesh(data=2, fsdp=2, tensor=2), spread=spread)
    counts = {n: tensors.spec(n).shape[0] for n in tensors}
    assert tensors.reads == {(n, row): 1 for n, rows in counts.items() for row in range(rows)}


@pytest.mark.parametrize("spread", [False, True])
def test_rows_that_no_mesh_divides_are_padded_and_cut_again(spread, monkeypatch):
    """599 rows of an embedding over 8 devices; pieces of three rows."""
    monkeypatch.setattr("toolrm_jax.tensors.PIECE_BYTES", 3 * 16 * 4)
    config = tiny_models.tiny("qwen3", vocab_size=599)
    one = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(one):
        params = tiny_models.random_params(config)
    found = load_params(
        Source(config, ParamTensors(config, params), "memory"),
        make_mesh(data=2, fsdp=2, tensor=2),
        spread=spread,
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(params))


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    "spec",
    [
        (None, ("data", "fsdp"), "tensor"),
        (None, ("fsdp", "data"), "tensor"),
        (None, "tensor", ("data", "fsdp")),
        (None, ("data", "fsdp", "tensor")),
        ("data", None, "fsdp"),
        (),
    ],
    ids=str,
)
def test_any_layout_can_be_had_by_the_exchange(spec, stored):
    """Mesh axes together on one side, in either order; on the layers; and copies everywhere."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    layers = np.random.default_rng(0).normal(size=(2, 40, 24)).astype(stored)
    tensors = Held({f"layers.{i}.w": layer for i, layer in enumerate(layers)})
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    target = jax.ShapeDtypeStruct((2, 24, 40), np.float32, sharding=sharding)
    with ParamReader(tensors, spread=True) as reader:
        found = reader.read("layers.{}.w", "transposed", target)
    assert found.sharding == sharding
    np.testing.assert_array_equal(found, layers.astype(np.float32).swapaxes(1, 2))
