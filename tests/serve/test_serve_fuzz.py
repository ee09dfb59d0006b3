"""No body is answered with 500."""

import asyncio
import json
import math

import pytest
from app_requests import app_of, error_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import client

from toolrm_jax.wire_formats import FORMATS

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
