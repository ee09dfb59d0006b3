"""No body is answered with 500, and those with little wrong in them reach the model."""

import asyncio
import collections
import json
import math
import os
import random
import time

import httpx
import pytest
from app_requests import app_of, ask, error_of
from body_mutations import VALID, mutated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import client, scorer_of

from toolrm_jax.wire_formats import FORMATS

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_TREES = st.recursive(_LEAVES, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=6)
# Of the bodies of an endpoint at least so many are scored.
_SCORED = 0.25


def rewards_of_answer(path: str, body, answer: httpx.Response) -> list[float]:
    """The rewards in an answer to a body: as many as it asks for, all finite."""
    found = answer.json()
    if path == "/v1/rewards" and "results" in found:
        pairs = list(zip(body["requests"], found["results"], strict=True))
        assert all("error" in r or len(r["rewards"]) == len(q["responses"]) for q, r in pairs)
        return [reward for _, result in pairs for reward in result.get("rewards", [])]
    if path in ("/v1/rewards", "/get_reward"):
        asked = body["responses"] if path == "/v1/rewards" else body["query"]
        assert len(found["rewards"]) == len(asked)
        return found["rewards"]
    field = "probs" if path == "/classify" else "embedding"
    assert found["data"]
    return [data[field][0] for data in found["data"]]


async def _post(app, path: str, body) -> httpx.Response:
    content = json.dumps(body).encode()
    async with client(app) as http:
        try:
            return await http.post(path, content=content)
        except Exception as error:  # the app's own: a real server would answer 500
            raise AssertionError(f"{path} {content[:2000].decode()}") from error


async def fuzz(app, rng: random.Random, count: int, seconds: float = math.inf) -> dict[str, float]:
    """Posts mutated bodies; the share of each endpoint's answers that hold rewards."""
    asked, scored = collections.Counter(), collections.Counter()
    over = time.monotonic() + seconds
    while sum(asked.values()) < count and time.monotonic() < over:
        path = rng.choice([*FORMATS])
        body = mutated(rng, path)
        answer = await _post(app, path, body)
        words = f"{path} {json.dumps(body)[:2000]}: {answer.status_code} {answer.text[:500]}"
        assert answer.status_code in (200, 413, 422), words
        asked[path] += 1
        if answer.status_code == 200:
            rewards = rewards_of_answer(path, body, answer)
            assert all(map(math.isfinite, rewards)), words
            scored[path] += bool(rewards)
        else:
            assert all(isinstance(text, str) and text for text in error_of(answer).values()), words
    return {path: scored[path] / asked[path] for path in FORMATS}


@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in VALID.items() for body in bodies]
)
def test_the_bodies_that_are_mutated_are_scored(plain, path, body):
    with app_of(plain) as app:
        answer = ask(app, path, body)
    assert answer.status_code == 200, answer.text
    assert rewards_of_answer(path, body, answer)


def test_mutated_bodies_are_scored_or_refused(plain):
    with app_of(plain, window_seconds=0) as app:
        shares = asyncio.run(fuzz(app, random.Random(0), 1200))
    assert min(shares.values()) >= _SCORED, shares


@pytest.mark.slow
@pytest.mark.parametrize("over_long", ["reject", "drop-oldest-turns"])
def test_other_bodies_every_time(bos_model, over_long):
    """For a minute; TOOLRM_FUZZ_SEED repeats a run by the seed that it printed."""
    seed = int(os.environ.get("TOOLRM_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    print(f"\nTOOLRM_FUZZ_SEED={seed}")
    with (
        scorer_of(bos_model, max_tokens=512, over_long=over_long) as scorer,
        app_of(scorer, window_seconds=0) as app,
    ):
        shares = asyncio.run(fuzz(app, random.Random(seed), 10**6, seconds=60))
    assert min(shares.values()) >= _SCORED, shares


@pytest.fixture(scope="module")
def fuzzed(plain):
    with app_of(plain) as app, asyncio.Runner() as runner:
        yield app, runner


@settings(
    max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(
    path=st.sampled_from([*FORMATS]),
    body=_TREES.map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=50),
)
def test_what_is_no_body_at_all_is_refused(fuzzed, path, body):
    app, runner = fuzzed

    async def post():
        async with client(app) as http:
            return await http.post(path, content=body)

    answer = runner.run(post())
    assert answer.status_code in (400, 422)
    assert all(isinstance(text, str) for text in error_of(answer).values())
