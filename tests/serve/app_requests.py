"""Requests to the server's app, in this process."""

import asyncio
import contextlib
import json

import httpx
import numpy as np
import served
from served import client, requests, rewards_of

from toolrm_jax.reward_app import ServeOptions, make_app

STATISTICS = {"heldout": {"reward_mean": 0.5, "reward_std": 2.0}}


USER = {"role": "user", "content": "Rain in Rome?"}


REQUEST = {"messages": [USER], "responses": ["Yes.", "No."]}


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
