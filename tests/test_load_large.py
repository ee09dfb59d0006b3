"""Processes of a mesh load their shares of a model of 4 GB, and never hold more. Takes minutes.

The bound: a process's anonymous memory peaks at most 2 GB above its share (its devices' shards, in
float32), Python, JAX and the libraries included. 4 GB of disk and about 12 GB of memory.
"""

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from processes import free_port

from benchmarks.convert import RandomTensors, sized, tiny_tokenizer
from benchmarks.peak_memory import measure
from toolrm_jax.huggingface import write_directory

GB = 10**9

LOAD = """
import json, os, sys, time, jax
jax.distributed.initialize(
    os.environ["COORDINATOR"], int(os.environ["PROCESSES"]), int(os.environ["PROCESS"]))
from toolrm_jax.huggingface import load_params, open_directory
from toolrm_jax.sharding import make_mesh
start = time.perf_counter()
params = load_params(open_directory(sys.argv[1]), make_mesh(fsdp=-1))
seconds = time.perf_counter() - start
share = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
mean_size = jax.jit(lambda x: abs(x).mean())  # as one loop, without an array of its own
sums = {jax.tree_util.keystr(path): float(mean_size(x))
        for path, x in jax.tree_util.tree_leaves_with_path(params)}
print("DONE", json.dumps([share, seconds, sums]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random bf16 model in files of 1 GB, in layers of Qwen2.5-7B's shapes; removed at once."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 10 * GB:
        pytest.skip("needs 10 GB of free disk")
    config = sized(4 * GB)
    write_directory(folder, config, RandomTensors(config), tiny_tokenizer(), max_shard_bytes=GB)
    assert len(list(folder.glob("*.safetensors"))) >= 4
    yield folder
    shutil.rmtree(folder)


def load(model, processes: int, number: int, port: int) -> tuple[int, int, float, dict]:
    """One process: its share, its peak, seconds, and the mean size of each parameter's numbers."""
    env = {
        "COORDINATOR": f"127.0.0.1:{port}",
        "PROCESSES": str(processes),
        "PROCESS": str(number),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", LOAD, str(model)]
    _, peak, output = measure(command, env=os.environ | env, cwd=tiny.ROOT)
    share, seconds, sums = json.loads(output.partition("DONE ")[2].splitlines()[0])
    return share, peak, seconds, sums


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_process_holds_its_share_and_at_most_2_gb_more(model, processes):
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    port = free_port()
    with ThreadPoolExecutor(processes) as pool:
        found = list(
            pool.map(lambda number: load(model, processes, number, port), range(processes))
        )
    for number, (share, peak, seconds, sums) in enumerate(found):
        print(
            f"process {number} of {processes}: share {share / GB:.2f} GB, peak {peak / GB:.2f} GB, "
            f"{seconds:.0f} s"
        )
        assert share == pytest.approx(2 * weights / processes, rel=0.01)  # bf16 -> f32
        assert peak <= share + 2 * GB
        assert sums == found[0][3]
        for name, size in sums.items():  # Normal(0, 0.02^2), but for the head
            assert name == "['head']" or size == pytest.approx(0.016, rel=0.1), name
