"""The examples run as they are written, against a real server."""

import concurrent.futures
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from served import F32, rewards_of, running, scorer_of

ASKED = {
    "messages": [{"role": "user", "content": "Rain in Rome?"}],
    "tools": [],
    "responses": ["I cannot look that up."],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def server(model):
    with running(model, "--max-tokens", "512", "--no-compile") as started:
        yield started


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    paths = [str(tiny.ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, str(tiny.ROOT / "examples" / name), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_verls_example_gives_the_servers_reward(server, model):
    with scorer_of(model) as scorer:
        ((expected,),) = rewards_of(scorer, [ASKED])
    np.testing.assert_allclose(float(run("verl_reward.py", server.url)), expected, **F32)


def test_verls_example_opens_one_source_for_all_threads(monkeypatch):
    monkeypatch.syspath_prepend(str(tiny.ROOT / "examples"))
    import verl_reward

    opened = []

    class Source:
        end_text = None

        def __init__(self, url):
            opened.append(url)
            time.sleep(0.2)

        def score(self, asked):
            return [[1.0] for _ in asked]

    monkeypatch.setattr(verl_reward, "RewardClient", Source)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [("d", "x", "", ASKED, "http://there") for _ in range(8)]
        assert list(pool.map(lambda one: verl_reward.compute_score(*one), asked)) == [1.0] * 8
    assert opened == ["http://there"]
    assert verl_reward.reward_of("http://there", None, -10.0).counts == {"completions": 8}


@pytest.mark.slow
@pytest.mark.torch
def test_trls_example_trains_on_a_servers_rewards(server, tmp_path):
    policy = tiny.write_model(tmp_path / "policy")
    options = ("--output", str(tmp_path / "out"), "--steps", "2", "--tokens", "8")
    printed = run("trl_grpo.py", "--policy", str(policy), "--url", server.url, *options)
    assert "'completions': 16" in printed


@pytest.mark.slow
def test_tunixs_example_trains_on_a_servers_rewards(server, tmp_path):
    pytest.importorskip("tunix", reason="google-tunix asks for older transformers than this does")
    policy = tiny.write_model(tmp_path / "policy")
    options = ("--steps", "2", "--tokens", "8")
    printed = run("tunix_grpo.py", "--policy", str(policy), "--url", server.url, *options)
    assert "'completions': 16" in printed
