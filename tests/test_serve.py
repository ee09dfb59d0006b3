"""Every endpoint answers with the model's rewards; what is wrong is refused, and never with 500."""

import asyncio
import contextlib
import json
import math
import shutil
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import served
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import F32, client, requests, rewards_of, running, scorer_of

from toolrm_jax import reward_app
from toolrm_jax.errors import InputError
from toolrm_jax.reward_app import ServeOptions, make_app
from toolrm_jax.reward_client import RewardClient
from toolrm_jax.serve import is_loopback, main
from toolrm_jax.wire_formats import FORMATS

STATISTICS = {"heldout": {"reward_mean": 0.5, "reward_std": 2.0}}
USER = {"role": "user", "content": "Rain in Rome?"}
REQUEST = {"messages": [USER], "responses": ["Yes.", "No."]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")
    (folder / "toolrm.json").write_text(json.dumps(STATISTICS))
    return folder


@pytest.fixture(scope="module")
def bos_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bos") / "model"
    return tiny.write_reward_model(folder, tokenizer=tiny.bos_tokenizer())


@pytest.fixture(scope="module", params=["plain", "bos"])
def scorer(request, model, bos_model):
    """With a tokenizer that has no BOS, and one that has."""
    with scorer_of(model if request.param == "plain" else bos_model) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(model):
    with scorer_of(model, max_tokens=512) as opened:
        yield opened


@contextlib.contextmanager
def app_of(scorer, **options):
    app = make_app(scorer, ServeOptions(**options))
    try:
        yield app
    finally:
        app.state.server.close()


def ask(app, path: str, body, **options) -> httpx.Response:
    """One POST in this process: of bytes, or of JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def post():
        async with client(app) as http:
            return await http.post(path, content=content, **options)

    return asyncio.run(post())


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"reason", "detail"}
    return error


def texts_and_rewards(scorer, count: int = 6) -> tuple[list[str], np.ndarray]:
    asked = requests(count)
    texts = [text for request in asked for text in served.rendered(scorer, request)]
    return texts, np.concatenate(rewards_of(scorer, asked))


# --- Equality -------------------------------------------------------------------------------------


def test_our_endpoint_gives_the_librarys_rewards(scorer):
    asked = requests(8)
    expected = rewards_of(scorer, asked)
    assert np.std(np.concatenate(expected)) > 0.1
    with app_of(scorer, model="rm") as app:
        many = ask(app, "/v1/rewards", {"requests": asked}).json()
        alone = [ask(app, "/v1/rewards", request).json() for request in asked]
    assert many["model"] == "rm"
    for request, result, one, rewards in zip(asked, many["results"], alone, expected, strict=True):
        np.testing.assert_allclose(result["rewards"], rewards, **F32)
        np.testing.assert_allclose(one["rewards"], rewards, **F32)
        assert result["tokens"] == [len(s) for s in scorer.tokenize(request).sequences()]
        assert set(one) == {"id", "rewards", "tokens", "dropped_messages", "model"}
        assert result["id"] == request["id"] == one["id"]


def test_rendered_texts_get_the_librarys_rewards_from_every_format(scorer):
    """A tokenizer that adds a BOS adds no second one where the text has it."""
    texts, expected = texts_and_rewards(scorer)
    with app_of(scorer) as app:
        openrlhf = ask(app, "/get_reward", {"query": texts}).json()
        vllm = ask(app, "/classify", {"input": texts}).json()
        sglang = ask(app, "/v1/embeddings", {"input": texts}).json()
    np.testing.assert_allclose(openrlhf["rewards"], expected, **F32)
    np.testing.assert_allclose([d["probs"][0] for d in vllm["data"]], expected, **F32)
    np.testing.assert_allclose([d["embedding"][-1] for d in sglang["data"]], expected, **F32)
    assert set(openrlhf["extra_logs"]["truncated"]) == {0.0}


def test_a_text_that_stops_at_the_end_of_turn_is_completed(scorer):
    texts, expected = texts_and_rewards(scorer, 3)
    stopped = [text.removesuffix("\n") for text in texts]
    assert all(text.endswith("<|im_end|>") for text in stopped)
    with app_of(scorer) as app:
        found = ask(app, "/get_reward", {"query": stopped}).json()
        classified = ask(app, "/classify", {"input": stopped}).json()
    np.testing.assert_allclose(found["rewards"], expected, **F32)
    np.testing.assert_allclose([d["probs"][0] for d in classified["data"]], expected, **F32)


def test_any_other_text_is_scored_as_it_is_and_flagged(scorer):
    text = served.rendered(scorer, requests(1)[0])[0]
    cut = text[: len(text) // 2]
    ids = scorer.tokenizer(cut, add_special_tokens=False)["input_ids"]
    expected = scorer.score_sequences([ids]).rewards
    with app_of(scorer) as app:
        found = ask(app, "/get_reward", {"query": [cut, text]}).json()
        (data,) = ask(app, "/classify", {"input": ids}).json()["data"]
    np.testing.assert_allclose(found["rewards"][:1], expected, **F32)
    np.testing.assert_allclose(data["probs"], expected, **F32)
    assert found["extra_logs"]["truncated"] == [1.0, 0.0]
    assert data["truncated"] is True


def test_classify_takes_ids_and_conversations(scorer):
    request = requests(1)[0]
    (expected,) = rewards_of(scorer, [request])
    (ids,) = (s.tolist() for s in scorer.tokenize(request).sequences())
    answer = scorer.tokenize.renderer.conversation(
        request["tools"], request["messages"], request["responses"][0]
    )["conversation"][-1]
    chat = {"messages": [*request["messages"], answer], "tools": request["tools"]}
    with app_of(scorer) as app:
        for body in ({"input": ids}, {"input": [ids]}, chat):
            found = ask(app, "/classify", body).json()
            np.testing.assert_allclose(found["data"][-1]["probs"], expected, **F32)
            assert found["usage"]["prompt_tokens"] == len(ids)
            assert found["data"][0]["truncated"] is False


def test_special_tokens_are_added_to_a_text_without_them_unless_declined(bos_model):
    with scorer_of(bos_model) as scorer, app_of(scorer) as app:
        text = "<|im_start|>user\nHi<|im_end|>\n"
        bare = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
        with_bos = [scorer.tokenizer.bos_token_id, *bare]
        expected = scorer.score_sequences([with_bos, bare]).rewards
        found = ask(app, "/classify", {"input": text}).json()
        declined = ask(app, "/classify", {"input": text, "add_special_tokens": False}).json()
    assert abs(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(found["data"][0]["probs"], expected[:1], **F32)
    np.testing.assert_allclose(declined["data"][0]["probs"], expected[1:], **F32)


def test_rewards_are_raw_unless_asked_otherwise(plain):
    (raw,) = rewards_of(plain, [REQUEST])
    normal = (raw - 0.5) / 2.0
    sigmoid = 1 / (1 + np.exp(-raw))
    texts = served.rendered(plain, REQUEST | {"tools": []})
    with app_of(plain) as app, app_of(plain, normalize=True) as normalized:

        def rewards(app, **flags):
            return ask(app, "/v1/rewards", REQUEST | flags).json()["rewards"]

        np.testing.assert_allclose(rewards(app), raw, **F32)
        np.testing.assert_allclose(rewards(app, use_activation=True), sigmoid, **F32)
        np.testing.assert_allclose(rewards(app, normalize=True), normal, **F32)
        both = rewards(app, normalize=True, use_activation=True)
        np.testing.assert_allclose(both, 1 / (1 + np.exp(-normal)), **F32)
        np.testing.assert_allclose(rewards(normalized), normal, **F32)
        np.testing.assert_allclose(rewards(normalized, normalize=False), raw, **F32)
        for flags, wanted in (
            ({"activation": True}, sigmoid),
            ({"activation": True, "use_activation": False}, raw),
            ({"activation": False}, raw),
        ):
            found = ask(app, "/classify", {"input": texts} | flags).json()["data"]
            np.testing.assert_allclose([d["probs"][0] for d in found], wanted, **F32)


def test_a_checkpoint_without_statistics_normalises_nothing(bos_model):
    with scorer_of(bos_model) as scorer:
        with app_of(scorer) as app:
            answer = ask(app, "/v1/rewards", REQUEST | {"normalize": True})
        assert answer.status_code == 422
        assert "no held-out reward_mean" in error_of(answer)["detail"]
        with pytest.raises(InputError, match="leave out --normalize"):
            make_app(scorer, ServeOptions(normalize=True))


# --- Refusals -------------------------------------------------------------------------------------


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
        ):
            answer = ask(app, path, body)
            assert (answer.status_code, error_of(answer)["reason"]) == (413, "too many rows")
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


# --- Tokens, queue, time-outs ---------------------------------------------------------------------


def get(app, path: str, **options) -> httpx.Response:
    async def run():
        async with client(app) as http:
            return await http.get(path, **options)

    return asyncio.run(run())


def test_a_token_keeps_all_but_health_closed(plain):
    with app_of(plain, token="sesame") as app:
        assert get(app, "/health").json()["status"] == "ok"
        for authorization in (None, "Bearer", "Bearer sesam", "Basic sesame", "Bearer sésame"):
            headers = {"authorization": authorization.encode()} if authorization else {}
            for path in FORMATS:
                answer = ask(app, path, REQUEST, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            assert get(app, "/metrics", headers=headers).status_code == 401
            assert get(app, "/nothing", headers=headers).status_code == 401
        good = {"authorization": "Bearer sesame"}
        assert ask(app, "/v1/rewards", REQUEST, headers=good).status_code == 200
        assert get(app, "/metrics", headers=good).status_code == 200


def test_blanks_around_a_token_do_not_count(plain):
    """As in a file that ends with a newline."""
    with app_of(plain, token=" sesame\n") as app:
        headers = {"authorization": "Bearer sesame"}
        assert ask(app, "/v1/rewards", REQUEST, headers=headers).status_code == 200


@pytest.mark.parametrize("token", ["", " \n", "open sesame", "s\x00same", "sésame"])
def test_a_token_that_no_header_carries_is_refused_at_the_start(token, monkeypatch):
    with pytest.raises(InputError, match="set it to a token, or not at all"):
        ServeOptions(token=token)
    if "\x00" not in token:  # no environment holds that
        monkeypatch.setenv("TOOLRM_SERVE_TOKEN", token)
        with pytest.raises(SystemExit, match="TOOLRM_SERVE_TOKEN is"):
            main(["--model", "none"])


class Gate:
    """A scorer's scoring that waits until it is let go, to fill the queue."""

    def __init__(self, scorer, monkeypatch):
        self.open, self.windows = threading.Event(), []
        score = scorer.score_sequences

        def gated(sequences):
            self.windows.append(len(sequences))
            assert self.open.wait(30)
            return score(sequences)

        monkeypatch.setattr(scorer, "score_sequences", gated)


async def _waiting(app, requests: int) -> None:
    """Until so many requests wait for the scoring thread."""
    name = f"toolrm_queued_requests {float(requests)}".encode()
    while name not in app.state.server.metrics.text():
        await asyncio.sleep(0.005)


def test_requests_of_many_connections_are_scored_together(plain, monkeypatch):
    gate = Gate(plain, monkeypatch)

    async def run(app):
        async with client(app) as http:
            first = asyncio.create_task(http.post("/v1/rewards", json=REQUEST))
            while not gate.windows:
                await asyncio.sleep(0.005)
            rest = [http.post("/get_reward", json={"query": ["Hi."]}) for _ in range(20)]
            tasks = [asyncio.create_task(post) for post in rest]
            await _waiting(app, 20)
            gate.open.set()
            return await asyncio.gather(first, *tasks)

    with app_of(plain) as app:
        answers = asyncio.run(run(app))
    assert {answer.status_code for answer in answers} == {200}
    assert gate.windows == [2, 20]


def test_a_full_queue_is_429_and_a_wait(plain, monkeypatch):
    gate = Gate(plain, monkeypatch)
    body = {"query": ["Quito " * 40]}  # 41 tokens

    async def run(app):
        async with client(app) as http:
            held = [asyncio.create_task(http.post("/get_reward", json=body)) for _ in range(5)]
            done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
            gate.open.set()
            return await asyncio.gather(*held), len(done)

    with app_of(plain, max_queued_tokens=100) as app:
        answers, _ = asyncio.run(run(app))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 0 < len(refused) < 5
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}


def test_too_many_at_once_are_503(plain, monkeypatch):
    gate = Gate(plain, monkeypatch)

    async def run(app):
        async with client(app) as http:
            held = [asyncio.create_task(http.post("/v1/rewards", json=REQUEST)) for _ in range(2)]
            while not gate.windows:
                await asyncio.sleep(0.005)
            third = await http.post("/v1/rewards", json=REQUEST)
            healthy = await http.get("/health")
            gate.open.set()
            return third, healthy, await asyncio.gather(*held)

    with app_of(plain, max_connections=2) as app:
        third, healthy, held = asyncio.run(run(app))
    assert (third.status_code, third.headers["retry-after"]) == (503, "1")
    assert healthy.status_code == 200
    assert {answer.status_code for answer in held} == {200}


def test_a_time_out_is_503_and_leaves_the_queue(plain, monkeypatch):
    gate = Gate(plain, monkeypatch)

    async def run(app):
        async with client(app) as http:
            both = [http.post("/v1/rewards", json=REQUEST) for _ in range(2)]
            answers = await asyncio.gather(*both)
            await _waiting(app, 0)
            gate.open.set()
            return answers

    with app_of(plain, time_out=0.5, window_seconds=0.001) as app:
        answers = asyncio.run(run(app))
    assert {(a.status_code, error_of(a)["reason"]) for a in answers} == {(503, "time-out")}


def test_a_window_that_fails_is_the_fault_of_the_request_that_fails_alone(plain, monkeypatch):
    score = plain.score_sequences

    def failing(sequences):
        if any(len(sequence) == 3 for sequence in sequences):
            raise RuntimeError("out of device memory")
        return score(sequences)

    monkeypatch.setattr(plain, "score_sequences", failing)

    async def run(app):
        async with client(app) as http:
            bodies = [{"input": [1, 2]}, {"input": [1, 2, 3]}, {"input": [1, 2, 3, 4]}]
            return await asyncio.gather(*(http.post("/classify", json=b) for b in bodies))

    with app_of(plain, window_seconds=0.2) as app:
        answers = asyncio.run(run(app))
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert error_of(answers[1])["reason"] == "scoring failed"


def test_metrics_count_what_happened(plain):
    with app_of(plain) as app:
        ask(app, "/v1/rewards", REQUEST)
        ask(app, "/secret/path", {})
        answer = get(app, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'toolrm_requests_total{endpoint="/v1/rewards",status="200"} 1.0',
        'toolrm_requests_total{endpoint="other",status="404"} 1.0',
        "toolrm_responses_scored_total 2.0",
        "toolrm_queued_tokens 0.0",
        "toolrm_batch_sequences_count 1.0",
        'toolrm_request_seconds_count{endpoint="/v1/rewards"} 1.0',
    ):
        assert line in answer.text
    assert "secret" not in answer.text


# --- Fuzz -----------------------------------------------------------------------------------------

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_TREES = st.recursive(_LEAVES, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=6)
_ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
_CALLS = st.fixed_dictionaries(
    {}, optional={"name": _LEAVES, "arguments": _TREES, "function": _TREES}
)
_MESSAGES = st.fixed_dictionaries(
    {"role": _ROLES | _LEAVES, "content": st.text() | _TREES},
    optional={"tool_calls": st.lists(_CALLS) | _TREES, "reasoning_content": _LEAVES},
)
_REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "id": _LEAVES,
        "messages": st.lists(_MESSAGES, max_size=3) | _TREES,
        "responses": st.lists(st.text() | _MESSAGES | st.lists(_CALLS), max_size=3) | _TREES,
        "tools": st.lists(_TREES, max_size=2) | _TREES,
        "use_activation": st.booleans() | _LEAVES,
        "normalize": st.booleans() | _LEAVES,
    },
)
_INPUT = st.fixed_dictionaries(
    {},
    optional={
        "input": st.text() | st.lists(st.text()) | st.lists(st.integers(0, 300)) | _TREES,
        "add_special_tokens": st.booleans() | _LEAVES,
        "truncate_prompt_tokens": _LEAVES,
    },
)
_BODIES = (
    _REQUESTS
    | st.fixed_dictionaries({"requests": st.lists(_REQUESTS, max_size=3) | _TREES})
    | st.fixed_dictionaries({"query": st.lists(st.text()) | _TREES})
    | _INPUT
    | _TREES
).map(json.dumps)


@pytest.fixture(scope="module")
def fuzzed(plain):
    with app_of(plain) as app, asyncio.Runner() as runner:
        yield app, runner


@settings(
    max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    path=st.sampled_from([*FORMATS]),
    body=_BODIES.map(lambda text: text.encode()) | st.binary(max_size=50),
)
def test_no_body_is_answered_with_500(fuzzed, path, body):
    app, runner = fuzzed

    async def post():
        async with client(app) as http:
            return await http.post(path, content=body)

    answer = runner.run(post())
    assert answer.status_code in (200, 400, 413, 422)
    if answer.status_code != 200:
        assert all(isinstance(text, str) for text in error_of(answer).values())
    elif path == "/get_reward":
        assert all(math.isfinite(reward) for reward in answer.json()["rewards"])


# --- A real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model):
    options = ("--max-tokens", "512", "--no-compile", "--time-out", "5")
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
        if close:
            return b""
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def _post(length: int, *headers: str) -> bytes:
    lines = ["POST /get_reward HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def test_clients_that_leave_or_send_half_do_no_harm(server):
    for _ in range(20):
        _raw(server, _post(100) + b'{"query"', close=True)
        body = json.dumps({"query": ["Hi. " * 100]}).encode()
        _raw(server, _post(len(body)) + body, close=True)
        _raw(server, b"\x00\xff" * 50, close=True)
    assert httpx.post(server.url + "/v1/rewards", json=REQUEST).status_code == 200


def test_half_a_body_is_given_up_in_time(server):
    began = time.monotonic()
    found = _raw(server, _post(100, "Connection: close") + b'{"query"', wait=30)
    assert b"503" in found.splitlines()[0]
    assert b"time-out" in found
    assert time.monotonic() - began < 20


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
    # Over-long, or over the server's five seconds: in words, either way.
    assert answer.status_code in (422, 503)
    assert error_of(answer)["reason"] in ("over-long", "time-out")


# --- The command ----------------------------------------------------------------------------------


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


def test_a_server_with_a_token_listens_elsewhere(model):
    options = ("--host", "0.0.0.0", "--no-compile", "--max-tokens", "512")
    with running(model, *options, TOOLRM_SERVE_TOKEN="sesame\n") as server:
        url = f"http://127.0.0.1:{server.port}/v1/rewards"
        assert httpx.post(url, json=REQUEST).status_code == 401
        headers = {"authorization": "Bearer sesame"}
        assert httpx.post(url, json=REQUEST, headers=headers).status_code == 200
    assert server.status == 0
    assert "sesame" not in "".join(server.lines)
