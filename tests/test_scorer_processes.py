"""Hosts that score beside each other in one group of JAX's never wait for one another."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from processes import joined, without_torch

from toolrm_jax.scorer import Scorer

# One host of the group: scores so many rows on its own devices, and tells what came of it.
HOST = """
import json, sys
from toolrm_jax.cluster import start_processes
start_processes("on", timeout_seconds=120)
import jax
from toolrm_jax.scorer import Scorer
path, rows, count, told = sys.argv[1:]
requests = [json.loads(line) for line in open(rows)][: int(count)]
# One shape to compile.
options = {"dtype": "float32", "max_tokens": 512, "min_row": 512, "batch_tokens": 1024}
with Scorer.from_pretrained(path, **options) as scorer:
    rewards = [scored.rewards.tolist() for scored in scorer.score(requests)]
    devices = scorer.mesh.devices.size
about = {"processes": jax.process_count(), "all": jax.device_count(), "devices": devices}
open(told, "w").write(json.dumps(about | {"rewards": rewards}))
"""


def start(arguments: list, environment: dict[str, str]) -> subprocess.Popen:
    env = os.environ | without_torch() | environment
    env |= {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", HOST, *map(str, arguments)],
        cwd=tiny.ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


def test_hosts_of_a_group_score_different_numbers_of_requests(model, tmp_path):
    """With a collective among them, the one with fewer batches would leave the other waiting."""
    rows = tiny.rows("row", 60)
    path, counts = tiny.write_lines(tmp_path / "rows.jsonl", rows), (3, 60)
    told = [tmp_path / f"{number}.json" for number in range(2)]
    hosts = [
        start([model, path, count, file], environment)
        for count, file, environment in zip(counts, told, joined(2), strict=True)
    ]
    try:
        said = [host.communicate(timeout=240)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], "\n\n".join(said)

    with Scorer.from_pretrained(model, dtype="float32", devices=jax.devices()[:1]) as scorer:
        alone = np.array([scored.rewards for scored in scorer.score(rows)])
    for count, file in zip(counts, told, strict=True):
        found = json.loads(file.read_text())
        assert (found["processes"], found["all"], found["devices"]) == (2, 4, 2)
        np.testing.assert_allclose(found["rewards"], alone[:count], rtol=1e-5, atol=1e-5)
