"""What the tests of the server share: a tiny model, requests, texts, and a server process.

with running(model, "--dtype", "float32") as server:
    httpx.post(server.url + "/v1/rewards", json=...)
assert server.status == 0
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import jax
import numpy as np
import tiny
from processes import without_torch

from toolrm_jax.scorer import Scorer

F32 = {"rtol": 1e-5, "atol": 1e-5}


def scorer_of(path, **options) -> Scorer:
    """On one device, in float32."""
    options = {"dtype": "float32", "devices": jax.devices()[:1]} | options
    return Scorer.from_pretrained(path, **options)


def requests(count: int, repeat: int = 3) -> list[dict]:
    """Requests of ours with 1 to 5 responses and of several lengths."""
    found = []
    for number, row in enumerate(tiny.rows("train", count)):
        responses = [row["chosen"], *(wrong["response"] for wrong in row["rejected"]), "None fits."]
        messages = [{"role": "system", "content": "Be brief. " * (number % 7 * repeat)}]
        found.append(
            {
                "id": row["id"],
                "tools": row["tools"],
                "messages": messages + row["messages"],
                "responses": responses[: 1 + number % 5],
            }
        )
    return found


def rendered(scorer: Scorer, request: dict) -> list[str]:
    """Each response's whole conversation as text."""
    renderer = scorer.tokenize.renderer
    return [
        renderer.text(request["tools"], request["messages"], response)
        for response in request["responses"]
    ]


def rewards_of(scorer: Scorer, asked: list[dict]) -> list[np.ndarray]:
    """By the library, request by request."""
    return [scored.rewards for scored in scorer.score(asked)]


def start(model, *options: str, **environment: str) -> subprocess.Popen:
    """A server's process, at a free port; it may not be ready."""
    env = os.environ | without_torch() | environment
    env |= {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    command = ["--model", str(model), "--port", "0", "--dtype", "float32", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "toolrm_jax.serve", *command],
        cwd=tiny.ROOT,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )


class Server:
    """A server process; `status` is its exit status once it has ended."""

    def __init__(self, model, *options: str, **environment: str):
        self.process = start(model, *options, **environment)
        self.lines: list[str] = []
        self.url = self._wait_for_url()
        self.port = int(self.url.rpartition(":")[2])
        # Read on: a full pipe would stop the server.
        threading.Thread(target=self.lines.extend, args=(self.process.stderr,), daemon=True).start()

    def _wait_for_url(self) -> str:
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"http://\S+", line):
                return found[0]
        raise AssertionError("no server: " + "".join(self.lines))

    def memory(self) -> int:
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    @property
    def status(self) -> int | None:
        return self.process.poll()


@contextlib.contextmanager
def running(model, *options: str, **environment: str) -> Iterator[Server]:
    """A server for the length of a block; ended by SIGTERM."""
    server = Server(model, *options, **environment)
    try:
        yield server
        server.terminate()
        server.process.wait(60)
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stderr.close()


def client(app, **options) -> httpx.AsyncClient:
    """Speaks to an app in this process."""
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://test", **options)
