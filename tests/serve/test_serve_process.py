"""A real server, its clients, and its command."""

import contextlib
import json
import shutil
import signal
import socket
import time

import httpx
import jax
import numpy as np
import pytest
from app_requests import REQUEST, error_of, texts_and_rewards
from served import F32, requests, rewards_of, running, start

from toolrm_jax.reward_client import RewardClient
from toolrm_jax.scorer import Scorer
from toolrm_jax.serve import is_loopback, main


@pytest.fixture(scope="module")
def server(model):
    # Long enough for a program to be compiled on a busy machine.
    options = ("--max-tokens", "512", "--no-compile", "--time-out", "15")
    with running(model, *options) as started:
        yield started
    assert started.status == 0
    assert not [line for line in started.lines if "Traceback" in line]


def test_the_server_says_where_and_what_it_is(server, model):
    (line,) = [line for line in server.lines if "http://" in line]
    assert str(model) in line
    assert "float32" in line
    found = httpx.get(server.url + "/health").json()
    assert found == {
        "status": "ok", "model": str(model), "dtype": "float32", "max_tokens": 512,
    }  # fmt: skip


def test_verls_requests(server, plain):
    """As verl posts them to vLLM and to SGLang, one conversation at a time."""
    texts, expected = texts_and_rewards(plain, 3)
    with httpx.Client(base_url=server.url) as http:
        for text, reward in zip(texts, expected, strict=True):
            body = {"model": "rm", "input": text, "activation": False}
            vllm = http.post("/classify", json=body).json()
            assert vllm["data"][-1]["probs"][-1] == pytest.approx(reward, abs=1e-5)
            sglang = http.post("/v1/embeddings", json={"model": "rm", "input": text}).json()
            assert sglang["data"][-1]["embedding"][-1] == pytest.approx(reward, abs=1e-5)


def test_the_trainers_client_gets_the_librarys_rewards(server, plain):
    """Requests in several bodies, and whole texts."""
    trainer = RewardClient(server.url, rows=3)
    asked = requests(8)
    expected = rewards_of(plain, asked)
    for found, rewards in zip(trainer.score(asked), expected, strict=True):
        np.testing.assert_allclose(found, rewards, **F32)
    texts, rewards = texts_and_rewards(plain, 3)
    np.testing.assert_allclose(np.concatenate(trainer.score_texts(texts)), rewards, **F32)
    long = {"messages": [{"role": "user", "content": "word " * 2000}], "responses": ["Yes."]}
    (rejected,) = trainer.score([long])
    assert rejected.reason == "over-long"


def test_openrlhfs_requests(server, plain):
    """One query a request, stopped at the end of the turn; prompts and labels beside it."""
    texts, expected = texts_and_rewards(plain, 3)
    with httpx.Client(base_url=server.url) as http:
        for text, reward in zip(texts, expected, strict=True):
            query = text.removesuffix("\n")
            body = {"query": [query], "prompts": [query[:20]], "labels": [None]}
            found = http.post("/get_reward", json=body).json()
            assert found["rewards"] == found["scores"] == [pytest.approx(reward, abs=1e-5)]
            assert all(len(values) == 1 for values in found["extra_logs"].values())


def _raw(server, data: bytes, *, close: bool = False, wait: float = 10) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
        connection.sendall(data)
        return b"" if close else _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def _post(length: int, *headers: str) -> bytes:
    lines = ["POST /get_reward HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def _wait_for(condition) -> None:
    over = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.01)


def test_clients_that_leave_or_send_half_do_no_harm(server):
    for _ in range(20):
        _raw(server, _post(100) + b'{"query"', close=True)
        body = json.dumps({"query": ["Hi. " * 100]}).encode()
        _raw(server, _post(len(body)) + body, close=True)
        _raw(server, b"\x00\xff" * 50, close=True)
    assert httpx.post(server.url + "/v1/rewards", json=REQUEST).status_code == 200


def test_half_a_body_is_given_up_in_time(server):
    began = time.monotonic()
    found = _raw(server, _post(100, "Connection: close") + b'{"query"', wait=40)
    assert b"503" in found.splitlines()[0]
    assert b"time-out" in found
    assert 14 < time.monotonic() - began < 30


@pytest.mark.parametrize("megabytes", [11, 40])
def test_a_client_with_too_big_a_body_sees_the_answer(server, megabytes):
    content = b'{"query": ["' + b"x" * megabytes * 2**20 + b'"]}'
    with httpx.Client() as http:
        for _ in range(2):
            answer = http.post(server.url + "/get_reward", content=content)
            assert (answer.status_code, error_of(answer)["reason"]) == (413, "body too big")
        assert http.post(server.url + "/v1/rewards", json=REQUEST).status_code == 200
    found = _raw(server, _post(len(content), "Expect: 100-continue", "Connection: close"))
    assert found.startswith(b"HTTP/1.1 413")


def test_a_body_of_ten_megabytes_is_read(server):
    content = b'{"query": ["' + b"word " * (2 * 2**20 - 10) + b'"]}'
    answer = httpx.post(server.url + "/get_reward", content=content, timeout=60)
    # Over-long, or over the server's time-out: in words, either way.
    assert answer.status_code in (422, 503)
    assert error_of(answer)["reason"] in ("over-long", "time-out")


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False),
    ],
)  # fmt: skip
def test_loopback_addresses_are_known(host, inside):
    assert is_loopback(host) == inside


def test_other_hosts_need_a_token(monkeypatch):
    monkeypatch.delenv("TOOLRM_SERVE_TOKEN", raising=False)
    with pytest.raises(SystemExit, match=r"set TOOLRM_SERVE_TOKEN .*--allow-unauthenticated"):
        main(["--model", "none", "--host", "0.0.0.0"])


def test_a_window_of_no_time_is_allowed_and_less_is_not(capsys):
    command = ["--model", "/nowhere", "--port", "0", "--window-ms"]
    with pytest.raises(SystemExit, match=r"error: .*/nowhere"):
        main([*command, "0"])
    with pytest.raises(SystemExit) as ended:
        main([*command, "-1"])
    assert ended.value.code == 2
    assert "-1 is not more than 0" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--port", "x"], ["--window-ms", "x"], ["--max-rows", "1.5"]])
def test_what_is_no_number_is_wrong_usage(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "none", *wrong])
    assert f"{wrong[1]!r}: expected a" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_said_in_one_whole_line(model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    for path in (tmp_path / "model").glob("*token*"):
        path.unlink()
    with pytest.raises(SystemExit, match=r"no tokenizer that transformers can open.*[^:]$"):
        main(["--model", str(tmp_path / "model"), "--port", "0"])


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=r"cannot be bound.*--port 0"):
            main(["--model", "none", "--port", port])


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_compiles_is_answered_in_one_line(model, number, status):
    with start(model, "--cache-dir", "none") as starting:
        try:
            assert starting.stderr.readline().startswith("compiling up to")
            starting.send_signal(number)
            _, said = starting.communicate(timeout=120)
        finally:
            starting.kill()
    assert starting.returncode == status
    assert said == "interrupted: no request is under way\n"


def test_a_device_without_memory_is_said_in_words(model, monkeypatch, capsys):
    def full(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nx")

    monkeypatch.setattr(Scorer, "compile", full)
    assert main(["--model", str(model), "--port", "0"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.)" in said
    assert "--batch-tokens" in said


def test_other_faults_of_the_device_stay_bugs(model, monkeypatch):
    def broken(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(Scorer, "compile", broken)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main(["--model", str(model), "--port", "0"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_idle_connections_and_half_a_body_hold_nothing_up(model):
    """A server for one request at a time, with five open connections that ask for nothing."""
    options = ("--max-tokens", "512", "--no-compile", "--max-connections", "1")
    with contextlib.ExitStack() as stack, running(model, *options) as server:
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert httpx.post(server.url + "/v1/rewards", json=REQUEST, timeout=60).status_code == 200
        half = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        half.sendall(_post(100) + b'{"query"')
        _wait_for(lambda: httpx.post(server.url + "/v1/rewards", json=REQUEST).status_code == 503)
        answer = httpx.post(server.url + "/v1/rewards", json=REQUEST)
        assert error_of(answer)["reason"] == "too many requests at once"
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(server.url + "/health").status_code == 200
        began = time.monotonic()
        server.terminate()
        assert b"shutting down" in _rest(half)
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 30  # and not the time-out's 120


def test_a_server_with_a_token_listens_elsewhere(model):
    options = ("--host", "0.0.0.0", "--no-compile", "--max-tokens", "512")
    with running(model, *options, TOOLRM_SERVE_TOKEN="sesame\n") as server:
        url = f"http://127.0.0.1:{server.port}/v1/rewards"
        assert httpx.post(url, json=REQUEST).status_code == 401
        headers = {"authorization": "Bearer sesame"}
        assert httpx.post(url, json=REQUEST, headers=headers).status_code == 200
    assert server.status == 0
    assert "sesame" not in "".join(server.lines)
