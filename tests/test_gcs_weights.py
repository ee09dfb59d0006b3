"""Weights in an object store: processes read the bytes that are theirs, once, and no others."""

import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from fake_gcs import FakeGcs
from processes import free_port, without_torch

from toolrm_jax.huggingface import load_params
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.safetensors_folder import SafetensorsFolder
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tensors import CheckpointError

WIDTH, LAYERS = 128, 3

# Loads the model on a mesh of all processes; keeps what its devices hold.
LOAD = """
import os, sys, jax, numpy as np
jax.distributed.initialize(
    os.environ["COORDINATOR"], int(os.environ["PROCESSES"]), int(os.environ["PROCESS"]))
from toolrm_jax.huggingface import load_params, open_directory
from toolrm_jax.sharding import make_mesh
source, sizes, output = sys.argv[1], [int(n) for n in sys.argv[2].split(",")], sys.argv[3]
mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes)))
params = load_params(open_directory(source), mesh)
held = {}
for path, value in jax.tree_util.tree_leaves_with_path(params):
    for shard in value.addressable_shards:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        held[f"{name} {shard.index} {value.shape}"] = np.asarray(shard.data)
np.savez(output, **held)
"""


def load_together(
    source: str, sizes: tuple[int, ...], processes: int, output, stores, devices: int = 2
) -> list[dict[str, np.ndarray]]:
    """What each process holds, by parameter, place in it, and its shape."""
    common = {"COORDINATOR": f"127.0.0.1:{free_port()}", "PROCESSES": str(processes)}
    common |= {"JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    common |= without_torch()
    shape = ",".join(map(str, sizes))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, source, shape, str(output / f"{number}.npz")],
            env=os.environ | common | {"PROCESS": str(number)} | stores[number].environment,
            cwd=tiny.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n\n".join(outputs)
    return [dict(np.load(output / f"{number}.npz")) for number in range(processes)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model large enough that its headers and vectors are little of it."""
    return tiny.write_model(tmp_path_factory.mktemp("m") / "hf", width=WIDTH, layers=LAYERS)


@pytest.fixture
def stores(model):
    """One store for each process, so that their reads are told apart."""
    with FakeGcs() as one, FakeGcs() as two:
        for store in (one, two):
            store.put_folder(model, "models/m")
        yield one, two


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 1), (1, 2, 2)], ids=str)
def test_processes_read_each_byte_once_between_them(model, stores, tmp_path, sizes):
    held = load_together("gs://bucket/models/m", sizes, 2, tmp_path, stores)

    # The right numbers in the right places ...
    single = load_params(open_pretrained(str(model)).source, make_mesh(devices=jax.devices()[:1]))
    whole = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value)
        for path, value in jax.tree_util.tree_leaves_with_path(single)
    }
    for shards in held:
        assert {key.split(" ")[0] for key in shards} == set(whole)
        for key, value in shards.items():
            name, rest = key.split(" ", 1)
            index = eval(rest.rpartition(" (")[0], {"slice": slice})
            np.testing.assert_array_equal(value, whole[name][index], err_msg=key)

    # ... from half of the bytes each, in ranges that do not meet.
    folder = SafetensorsFolder(model)
    size = (model / "model.safetensors").stat().st_size
    matrices = sum(folder.spec(n).nbytes for n in folder if len(folder.spec(n).shape) == 2)
    begin = size - sum(folder.spec(n).nbytes for n in folder)
    small = size - matrices  # the header, and vectors, which each process reads whole
    small += 4 * 4 * WIDTH  # no number of devices divides the embedding's rows: one more for each
    for store in stores:
        assert store.bytes_read("model.safetensors") <= matrices / 2 + small
    ranges = sorted(
        (read.start, read.stop)
        for store in stores
        for read in store.reads
        if read.name.endswith("model.safetensors") and read.start >= begin
        if read.stop - read.start > 4 * WIDTH  # not a vector's
    )
    assert sum(stop - start for start, stop in ranges) == matrices
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))


def test_a_whole_model_is_opened_from_a_store(model, stores, tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLRM_CACHE_DIR", str(tmp_path / "cache"))
    mesh = make_mesh(devices=jax.devices()[:1])
    expected = open_pretrained(str(model))
    with stores[0].reached():
        found = open_pretrained("gs://bucket/models/m")
        assert found.source.config == expected.source.config
        text = "get_weather of Rome"
        assert found.tokenizer(text) == expected.tokenizer(text)
        stores[0].reads.clear()
        params = load_params(found.source, mesh)
        # Nothing twice, nothing besides.
        weights = [r for r in stores[0].reads if r.name.endswith(".safetensors")]
        assert len(set(weights)) == len(weights)
        total = sum(expected.source.tensors.spec(n).nbytes for n in expected.source.tensors)
        assert stores[0].bytes_read(".safetensors") == total
    jax.tree.map(np.testing.assert_array_equal, params, load_params(expected.source, mesh))


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_object_is_named(model, damage):
    data = (model / "model.safetensors").read_bytes()
    damaged = {"cut": data[:-100], "header": data[:8] + b"x" + data[9:], "empty": b""}[damage]
    with FakeGcs() as store, store.reached():
        store.put("m/config.json", (model / "config.json").read_bytes())
        store.put("m/model.safetensors", damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
            open_pretrained("gs://bucket/m")


def test_what_an_index_names_and_is_not_there_is_named(model):
    with FakeGcs() as store, store.reached():
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        store.put("m/config.json", (model / "config.json").read_bytes())
        store.put("m/model.safetensors.index.json", json.dumps(index).encode())
        with pytest.raises(CheckpointError, match="model-00001-of-00002"):
            open_pretrained("gs://bucket/m")
