"""Under load every accepted request is answered once and rightly; SIGTERM loses none of them."""

import asyncio
import gc
import json
import random
import time
import tracemalloc

import httpx
import numpy as np
import pytest
import served
import tiny
from served import F32, client, requests, rewards_of, running, scorer_of

from toolrm_jax.reward_app import ServeOptions, make_app

CLIENTS = 64
OPTIONS = ("--max-tokens", "512", "--time-out", "60")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def posts(model):
    """(path, body, rewards) of mixed sizes, in all four formats."""
    with scorer_of(model, max_tokens=512) as scorer:
        asked = requests(40, repeat=6)
        rewards = [scored.tolist() for scored in rewards_of(scorer, asked)]
        texts = [served.rendered(scorer, request) for request in asked]
    found = [("/v1/rewards", request, r) for request, r in zip(asked, rewards, strict=True)]
    flat = [reward for of_one in rewards[:10] for reward in of_one]
    found.append(("/v1/rewards", {"requests": asked[:10]}, flat))
    for own, values in zip(texts, rewards, strict=True):
        found.append(("/get_reward", {"query": own}, values))
        found.append(("/classify", {"input": own, "use_activation": False}, values))
        found.append(("/v1/embeddings", {"input": own[0]}, values[:1]))
    return [(path, json.dumps(body).encode(), values) for path, body, values in found]


def rewards_in(path: str, answer: dict) -> list[float]:
    """The rewards of an answer, in whichever format."""
    if path == "/classify":
        return [data["probs"][0] for data in answer["data"]]
    if path == "/v1/embeddings":
        return [data["embedding"][0] for data in answer["data"]]
    if "results" in answer:
        return [reward for result in answer["results"] for reward in result["rewards"]]
    return answer["rewards"]


async def load(url: str, posts: list, count: int, seed: int) -> tuple[list, list[float]]:
    """`count` requests by 64 clients: (post, answer) of each, and how long each took."""
    rng = random.Random(seed)
    waiting = iter([rng.choice(posts) for _ in range(count)])
    answered, seconds = [], []

    async def one_client():
        # Each with a connection of its own, kept.
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            for post in waiting:
                began = time.monotonic()
                answered.append((post, await http.post(post[0], content=post[1])))
                seconds.append(time.monotonic() - began)

    await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
    return answered, seconds


def assert_right(answered: list) -> None:
    for (path, _, rewards), answer in answered:
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(rewards_in(path, answer.json()), rewards, **F32)


def counted(url: str) -> float:
    """Answers with status 200, as /metrics says."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("toolrm_requests_total")]
    return sum(float(line.split()[-1]) for line in found if 'status="200"' in line)


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_64_clients_get_their_own_rewards_and_memory_stays_flat(model, posts, count):
    # In one arena freed memory is used again, whichever thread freed it: the peak stands still.
    with running(model, *OPTIONS, MALLOC_ARENA_MAX="1") as server:
        asyncio.run(load(server.url, posts, 600, seed=0))  # warm: buffers of all sizes, threads
        answers, seconds, memory = counted(server.url), [], []
        for part in range(1, 9):
            answered, took = asyncio.run(load(server.url, posts, count // 8, seed=part))
            assert_right(answered)
            seconds += took
            memory.append(server.memory())
        p50, p99 = np.percentile(seconds, [50, 99])
        grown = max(memory[4:]) - max(memory[:4])
        print(f"\n{len(seconds):,} requests: p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, "
              f"memory {memory[0] / 2**20:.0f} MiB {grown / 2**20:+.1f} MiB")  # fmt: skip
        assert counted(server.url) - answers == len(seconds) + 1  # and /metrics itself
    assert server.status == 0
    assert grown < 4 * 2**20


def test_nothing_of_a_request_is_kept(model, posts):
    """To 256 bytes of what Python and NumPy ask for: less than its body or its tokens."""
    some = posts[::8]
    with scorer_of(model, max_tokens=512) as scorer:
        app = make_app(scorer, ServeOptions())

        async def ask(chosen: list) -> None:
            async with client(app) as http:
                for path, body, _ in chosen:
                    assert (await http.post(path, content=body)).status_code == 200

        def memory_after(chosen: list) -> int:
            asyncio.run(ask(chosen))
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        asyncio.run(ask(some))  # compiles
        tracemalloc.start()
        try:
            sizes = [memory_after(some * 5) for _ in range(3)]
        finally:
            tracemalloc.stop()
            app.state.server.close()
    print(f"\nkept of {5 * len(some)} requests each: {np.diff(sizes)} bytes")
    assert sizes[2] - sizes[1] < 256 * 5 * len(some)


def test_sigterm_during_load_loses_no_accepted_request(model, posts):
    """Each is answered with its rewards, or told that it was not accepted; then nothing listens."""
    rng = random.Random(2)

    async def one_client(url: str, outcomes: list):
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            while True:
                post = rng.choice(posts)
                try:
                    answer = await http.post(post[0], content=post[1])
                except httpx.ConnectError:
                    return  # the port is closed
                outcomes.append((post, answer))
                if answer.status_code != 200:
                    return

    async def run(server) -> list:
        outcomes: list = []
        clients = [asyncio.create_task(one_client(server.url, outcomes)) for _ in range(CLIENTS)]
        while len(outcomes) < 200:
            await asyncio.sleep(0.01)
        server.terminate()
        # A connection that is cut while it waits for its answer fails the test here.
        await asyncio.gather(*clients)
        return outcomes

    with running(model, *OPTIONS) as server:
        outcomes = asyncio.run(run(server))
        assert server.process.wait(30) == 0
    refused = [answer for _, answer in outcomes if answer.status_code != 200]
    assert_right([(post, answer) for post, answer in outcomes if answer.status_code == 200])
    assert {answer.status_code for answer in refused} <= {503}
    assert all(a.json()["error"]["reason"] == "shutting down" for a in refused)


def test_after_sigterm_the_port_stays_open_while_clients_come(model):
    with running(model, *OPTIONS) as server, httpx.Client(base_url=server.url) as http:
        server.terminate()
        time.sleep(0.2)
        for _ in range(8):  # longer than the quiet second after which it closes
            assert http.post("/v1/rewards", content=b"{}").status_code == 503
            time.sleep(0.3)
        assert server.process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            http.get("/health")
