"""What is wrong is refused, and never with 500."""

import asyncio
import json
import shutil
import threading
import time

import numpy as np
import pytest
import tiny
from app_requests import REQUEST, USER, app_of, ask, error_of
from served import F32, client, scorer_of

from toolrm_jax import reward_app
from toolrm_jax.wire_formats import FORMATS


def test_one_bad_request_among_many_is_rejected_by_itself(plain):
    bad = [{"id": 7, "messages": [USER], "responses": []}, {"responses": ["x"]}, 3, {"id": []}]
    with app_of(plain) as app:
        answer = ask(app, "/v1/rewards", {"requests": [REQUEST, *bad, REQUEST]})
        assert answer.status_code == 200
        results = answer.json()["results"]
        assert ["rewards" in result for result in results] == [True, *[False] * 4, True]
        assert results[1]["id"] == 7
        assert results[1]["error"]["reason"] == "not a request"
        for request in bad:
            assert ask(app, "/v1/rewards", request).status_code == 422


def test_no_requests_and_no_texts(plain):
    with app_of(plain) as app:
        assert ask(app, "/v1/rewards", {"requests": []}).json()["results"] == []
        found = ask(app, "/get_reward", {"query": []}).json()
        assert found["rewards"] == found["scores"] == found["extra_logs"]["truncated"] == []
        for path in ("/classify", "/v1/embeddings"):
            assert "empty list" in error_of(ask(app, path, {"input": []}))["detail"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "Expecting value"),
        (b'{"query": ["x"', 400, "delimiter"),
        (b'\xff\xfe{"query": []}', 400, "not UTF-8"),
        ('{"query": []}'.encode("utf-16"), 400, "not UTF-8"),
        (b'{"query": NaN}', 400, "NaN"),
        (b'{"query": -Infinity}', 400, "Infinity"),
        (b'{"query": 1e999}', 400, "range of a double"),
        (b'{"query": ' + b"9" * 5000 + b"}", 400, "integer string conversion"),
        (b'{"query": ' + b"[" * 10**6, 400, "too deeply"),
        (b"[" * 500 + b"]" * 500, 422, "expected an object"),
        (b"[]", 422, "expected an object"),
        (b'{"query": "x"}', 422, "expected a list, found a string"),
        (b'{"query": [1]}', 422, "query[0]: expected a string, found 1"),
        (b'{"query": ["half \\ud800"]}', 422, "query[0]: the text holds half a surrogate pair"),
        (b'{"query": [""]}', 422, "query[0]"),
        (b'{"query": ["x"], "use_activation": 1}', 422, "use_activation: expected true or false"),
    ],
)
def test_a_bad_body_is_refused_with_its_fault(plain, body, status, words):
    with app_of(plain) as app:
        answer = ask(app, "/get_reward", body)
    assert answer.status_code == status
    assert words in error_of(answer)["detail"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/classify", {"input": [1, True]}, "expected a text or a list of token ids"),
        ("/classify", {"input": [10**9]}, "input[0]: ids from"),
        ("/classify", {"input": [-1]}, "input[0]: ids from"),
        ("/classify", {"input": [[1, 2], [2**70]]}, "input[1]"),
        ("/classify", {"input": "word " * 600}, "at most 512 are scored"),
        ("/get_reward", {"query": ["a", "word " * 600]}, "query[1]: 2400 tokens"),
        ("/v1/embeddings", {"input": {"text": "x"}}, "found an object"),
        ("/classify", {"messages": [USER]}, "assistant message as the last"),
        ("/classify", {"input": "x", "truncate_prompt_tokens": 5}, "nothing is ever cut"),
        ("/classify", {"messages": [USER], "truncate_prompt_tokens": 5}, "nothing is ever cut"),
        ("/v1/embeddings", {"input": "x", "truncate_prompt_tokens": 5}, "nothing is ever cut"),
        ("/v1/rewards", REQUEST | {"responses": ["word " * 600]}, "at most 512"),
        ("/v1/rewards", REQUEST | {"tools": [{"name": ""}]}, ""),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(plain, path, body, words):
    with app_of(plain) as app:
        answer = ask(app, path, body)
    assert answer.status_code == 422
    assert words in error_of(answer)["detail"]


def test_a_reward_that_is_not_finite_is_refused_by_every_endpoint(tmp_path):
    broken = tiny.write_reward_model(tmp_path / "model", head=np.inf)
    bodies = {"/get_reward": {"query": ["a"]}, "/v1/rewards": REQUEST}
    with scorer_of(broken) as scorer, app_of(scorer) as app:
        for path in FORMATS:
            answer = ask(app, path, bodies.get(path, {"input": "a"}))
            assert answer.status_code == 422
            assert error_of(answer)["reason"] == "reward is not finite"


def test_oldest_turns_are_dropped_where_the_server_does_and_reported(model):
    turns = [USER, {"role": "assistant", "content": "word " * 50}] * 20
    request = REQUEST | {"messages": [*turns, USER]}
    with (
        scorer_of(model, max_tokens=512, over_long="drop-oldest-turns") as scorer,
        app_of(scorer) as app,
    ):
        found = ask(app, "/v1/rewards", request).json()
        chat = {"messages": [*turns, USER, {"role": "assistant", "content": "Yes."}]}
        (data,) = ask(app, "/classify", chat).json()["data"]
        text = ask(app, "/classify", {"input": "word " * 600})
    assert found["dropped_messages"] == data["dropped_messages"] > 0
    assert max(found["tokens"]) <= 512
    np.testing.assert_allclose(data["probs"], found["rewards"][:1], **F32)
    assert text.status_code == 422


def test_limits_on_size_and_rows(plain):
    with app_of(plain, max_body_bytes=1000, max_rows=3, max_queued_tokens=60) as app:
        assert error_of(ask(app, "/get_reward", b" " * 1001))["reason"] == "body too big"
        assert ask(app, "/get_reward", b" " * 1001).status_code == 413
        for path, body in (
            ("/get_reward", {"query": ["x"] * 4}),
            ("/v1/rewards", REQUEST | {"responses": ["x"] * 4}),
            ("/v1/rewards", {"requests": [{}] * 4}),
            ("/v1/rewards", {"requests": [REQUEST, REQUEST]}),
        ):
            answer = ask(app, path, body)
            assert (answer.status_code, error_of(answer)["reason"]) == (413, "too many rows")
        # Text is no list, whatever it holds: its responses would not be counted.
        text = REQUEST | {"responses": json.dumps(["x"] * 4)}
        answer = ask(app, "/v1/rewards", text)
        words = "responses: expected a list, found a string"
        assert (answer.status_code, error_of(answer)["detail"]) == (422, words)
        (result,) = ask(app, "/v1/rewards", {"requests": [text]}).json()["results"]
        assert result["error"]["detail"] == words
        answer = ask(app, "/get_reward", {"query": ["Quito! " * 40]})
        assert (answer.status_code, error_of(answer)["reason"]) == (413, "too many tokens")


def test_a_body_is_measured_while_it_comes(plain):
    """Without a declared length, and never read to its end."""
    sent = 0

    async def endless():
        nonlocal sent
        while sent < 10**9:
            sent += 2**20
            yield b" " * 2**20

    async def post(app):
        async with client(app) as http:
            return await http.post("/get_reward", content=endless())

    with app_of(plain, max_body_bytes=1000) as app:
        assert asyncio.run(post(app)).status_code == 413
    assert sent < 10**8


def test_paths_and_methods(plain):
    with app_of(plain) as app:
        for path in ("/", "/v1", "/classify/", "/get_reward/x", "/pooling"):
            assert ask(app, path, {}).status_code == 404
        answer = ask(app, "/health", {})
        assert answer.status_code == 405
        assert "GET" in answer.headers["allow"]
        assert error_of(answer)["reason"] == "wrong method"


def test_a_normalised_reward_that_overflows_is_refused(model, tmp_path):
    """A deviation that is next to nothing; the raw reward is still to be had."""
    shutil.copytree(model, tmp_path / "model")
    tiny_std = {"heldout": {"reward_mean": 0.5, "reward_std": 5e-324}}
    (tmp_path / "model" / "toolrm.json").write_text(json.dumps(tiny_std))
    with scorer_of(tmp_path / "model") as scorer, app_of(scorer) as app:
        answer = ask(app, "/v1/rewards", REQUEST | {"normalize": True})
        assert answer.status_code == 422
        assert error_of(answer)["reason"] == "normalised reward is not finite"
        assert ask(app, "/v1/rewards", REQUEST).status_code == 200


def test_a_large_body_does_not_hold_up_small_ones(plain, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()
    parse = reward_app.parse_json

    def slow(body):
        if len(body) > 2**20:
            reading.set()
            assert go_on.wait(30)
        return parse(body)

    monkeypatch.setattr(reward_app, "parse_json", slow)

    async def run(app):
        async with client(app) as http:
            large = json.dumps({"query": ["word " * 2**18]}).encode()
            held = [asyncio.create_task(http.post("/get_reward", content=large)) for _ in range(3)]
            await asyncio.to_thread(reading.wait, 30)
            small = await http.post("/v1/rewards", json=REQUEST)
            go_on.set()
            return small, await asyncio.gather(*held)

    with app_of(plain) as app:
        small, large = asyncio.run(run(app))
    assert small.status_code == 200
    assert {answer.status_code for answer in large} == {422}


def test_many_responses_to_a_long_prompt_are_refused_at_little_cost(plain):
    body = {"messages": [{"role": "user", "content": "word " * 100_000}], "responses": ["x"] * 1000}
    began = time.monotonic()
    with app_of(plain) as app:
        answer = ask(app, "/v1/rewards", body)
    assert error_of(answer)["reason"] == "over-long"
    assert time.monotonic() - began < 5  # rendering it a thousand times takes half a minute
