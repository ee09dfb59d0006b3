"""A 7B-shaped bf16 checkpoint goes through memory in pieces, both ways. Takes minutes, 30 GB."""

import json
import re
import shutil
import sys

import pytest

from benchmarks.convert import SHAPE_7B, RandomTensors, make_model
from benchmarks.peak_memory import measure
from toolrm_jax.huggingface import placed
from toolrm_jax.safetensors_folder import SafetensorsFolder
from toolrm_jax.tensors import progress, transfer

GB = 10**9


@pytest.fixture
def folder(tmp_path):
    """Removed at once: pytest would keep 30 GB for three runs."""
    if shutil.disk_usage(tmp_path).free < 35 * GB:
        pytest.skip("needs 35 GB of free disk")
    yield tmp_path
    shutil.rmtree(tmp_path)


def convert(*arguments: str) -> int:
    """Runs a conversion as a process of its own; its peak anonymous memory."""
    command = [sys.executable, "-m", "toolrm_jax.convert", *arguments, "--quiet"]
    seconds, peak, output = measure(command)
    assert re.search(r"\d+ tensors, written and read back", output)
    print(f"{arguments[0]}: {seconds:.0f} s, peak {peak / GB:.2f} GB anonymous")
    return peak


@pytest.mark.slow
def test_a_7b_converts_both_ways_within_the_bound(folder):
    source = make_model(folder / "hf", SHAPE_7B)
    weights = RandomTensors(SHAPE_7B)
    largest = max(weights.spec(name).nbytes for name in placed(SHAPE_7B))
    before = SafetensorsFolder(source)
    expected = transfer(before, None, progress(before, "hashing", show=False)).sha256
    assert sum(weights.spec(name).nbytes for name in weights) > 14 * GB

    bound = 4 * GB + largest
    ours = str(folder / "ours")
    assert convert("from-hf", "--source", str(source), "--output", ours) <= bound
    shutil.rmtree(source)  # two copies on the disk at a time
    back = folder / "back"
    assert convert("to-hf", "--checkpoint", ours, "--output", str(back)) <= bound
    assert json.loads((back / "tensor_sha256.json").read_text()) == expected
