"""Tokens, the queue, time-outs."""

import asyncio
import threading
import time

import httpx
import numpy as np
import pytest
from app_requests import REQUEST, app_of, ask, error_of
from served import F32, client

from toolrm_jax import reward_app
from toolrm_jax.errors import InputError
from toolrm_jax.reward_app import ServeOptions
from toolrm_jax.reward_batcher import RewardBatcher
from toolrm_jax.score_plan import Work
from toolrm_jax.scorer import SequenceScores
from toolrm_jax.serve import main
from toolrm_jax.wire_formats import FORMATS


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


def test_a_large_request_that_is_given_up_frees_the_server(plain, monkeypatch):
    """It is scored in slices, and not on when its time is up; who came later is answered."""
    calls, window = [], 4 * plain.plan.batch_tokens

    def slow(sequences):
        calls.append(sum(map(len, sequences)))
        time.sleep(0.4 * calls[-1] / window)
        return SequenceScores(np.ones(len(sequences), np.float32), {}, Work())

    monkeypatch.setattr(plain, "score_sequences", slow)
    large = {"input": [[3 + n % 97, *[5] * 499] for n in range(1000)]}  # 30 windows, 12 seconds

    async def run(app):
        async with client(app) as http:
            first = asyncio.create_task(http.post("/classify", json=large))
            while not calls:
                await asyncio.sleep(0.005)
            small = await http.post("/v1/rewards", json=REQUEST)
            return await first, small

    with app_of(plain, time_out=2.0) as app:
        first, small = asyncio.run(run(app))
    assert (first.status_code, error_of(first)["reason"]) == (503, "time-out")
    assert small.status_code == 200
    assert max(calls) <= window
    assert len(calls) < 10


def test_a_request_in_slices_has_the_rewards_of_one_window(plain):
    """Responses that share their prompt stay together as far as a window goes."""
    prompts = [[3 + n, *range(10, 110)] for n in range(3)]
    sequences = [[*prompt, *range(20, 20 + n)] for prompt in prompts for n in range(1, 9)]
    windows = []

    async def run():
        batcher = RewardBatcher(
            plain.score_sequences,
            max_queued_tokens=10**6,
            window_tokens=150,
            on_window=lambda count, tokens: windows.append(count),
        )
        try:
            return await batcher.rewards(sequences)
        finally:
            await asyncio.to_thread(batcher.close)

    found = asyncio.run(run())
    np.testing.assert_allclose(found, plain.score_sequences(sequences).rewards, **F32)
    assert windows == [8, 8, 8]  # 101 tokens once, and 36 of the responses


def test_half_a_body_does_not_hold_up_closing(plain, monkeypatch):
    """It is told so soon; what is whole is answered."""
    gate = Gate(plain, monkeypatch)
    monkeypatch.setattr(reward_app, "_LAST_BODIES_SECONDS", 0.2)

    async def half():
        yield b'{"query"'
        await asyncio.sleep(30)

    async def run(app):
        async with client(app) as http:
            whole = asyncio.create_task(http.post("/v1/rewards", json=REQUEST))
            part = asyncio.create_task(http.post("/get_reward", content=half()))
            while not gate.windows:
                await asyncio.sleep(0.005)
            app.state.server.begin_closing()
            answer = await asyncio.wait_for(part, 10)
            gate.open.set()
            return answer, await whole

    with app_of(plain) as app:
        part, whole = asyncio.run(run(app))
    assert (part.status_code, error_of(part)["reason"]) == (503, "shutting down")
    assert whole.status_code == 200


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
