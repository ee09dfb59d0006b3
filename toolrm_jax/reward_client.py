"""Asks the project's reward server over HTTP. No JAX and no third-party package in here.

    requests --cut into bodies--> POST {url}/v1/rewards --> rewards, or why there are none
    texts    --cut into bodies--> POST {url}/get_reward

A trainer's batch is cut into bodies of bounded rows and bytes, a few of which are under way at a
time. An answer decides what becomes of its body:

    200                         rewards, and requests rejected one by one
    413, 422                    the body is halved and asked again; a single request is rejected
    504, 503 "time-out",        the body is halved and asked again: whole, it would take as long
    no answer in time           again; a single request is asked again as the next ones are
    429, 502, 503               asked again after a pause (Retry-After, else doubling), a bounded
                                number of times
    anything else               RewardServerError, at once

    >>> client = RewardClient("http://127.0.0.1:8000")
    >>> client.score([{"tools": tools, "messages": messages, "responses": [calls, "None fits."]}])
    [[1.25, -0.5]]
"""

import concurrent.futures
import http.client
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.score_request import BODY_TOO_BIG, NOT_JSON, Rejected

TOKEN_VARIABLE = "TOOLRM_SERVE_TOKEN"

_OTHER_FORM = "refused"
_TOO_LARGE = (413, 422)
_GATEWAY_TIME_OUT = 504
_BUSY = (429, 502, 503, _GATEWAY_TIME_OUT)
_TIME_OUT = "time-out"  # the server's reason
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0


class RewardServerError(InputError):
    """The server gave no rewards; the message says what it answered, and what to do.

    `status` is its HTTP status, None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class TokenError(InputError, ValueError):
    """A bearer token that no header can carry; the message says where it is from."""


def bearer_token(text: str | None, where: str) -> str | None:
    """The token without the blanks around it, as files with a newline at their end give it; None
    where there is none. Raises TokenError."""
    if text is None:
        return None
    token = text.strip()
    if token and token.isascii() and token.isprintable() and " " not in token:
        return token
    found = "empty" if not token else "not of printable ASCII characters without blanks"
    raise TokenError(f"{where} is {found}: set it to a token, or not at all.")


class RewardClient:
    """One reward server; may be used from several threads.

    Args:
      url: of the server, without the endpoint: "http://127.0.0.1:8000".
      token: the bearer token; default: the environment's TOOLRM_SERVE_TOKEN, else none is sent.
        Blanks around it are taken off; one that is empty or not printable is refused.
      timeout: seconds to wait for an answer; longer than the server's own --time-out (120).
      tries: how often a body is sent at most.
      rows: requests a body at most.
      body_bytes: of a body at most; a single larger request is sent as it is.
      connections: bodies under way at a time.
      end_text: what ends a turn in the policy's texts, say "<|im_end|>": needed for prompts that
        are plain text, see `reward_functions`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 150.0,
        tries: int = 8,
        rows: int = 64,
        body_bytes: int = 1 << 20,
        connections: int = 4,
        end_text: str | None = None,
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}: expected one such as 'http://127.0.0.1:8000'.")
        limits = {"tries": tries, "rows": rows, "connections": connections, "timeout": timeout}
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"{name}={value}: expected a positive number.")
        self.url, self.end_text = url.rstrip("/"), end_text
        if token is not None:
            self._token = bearer_token(token, "token")
        else:
            self._token = bearer_token(os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE)
        self._timeout, self._tries, self._rows = timeout, tries, rows
        self._body_bytes, self._connections = body_bytes, connections

    def score(self, requests: Sequence[dict[str, Any]]) -> list[list[float] | Rejected]:
        """The rewards of each request's responses, in order, or why it has none.

        Args:
          requests: {"tools", "messages", "responses"} each, perhaps an "id", and no other fields.

        Raises:
          RewardServerError: the server cannot be reached, refuses, or answers something else.
        """
        return self._ask("/v1/rewards", "requests", requests)

    def score_texts(self, texts: Sequence[str]) -> list[list[float] | Rejected]:
        """The same for whole conversations that are text already: one reward each."""
        return self._ask("/get_reward", "query", texts)

    def _ask(self, endpoint: str, field: str, items: Sequence[Any]) -> list[list[float] | Rejected]:
        found: list[list[float] | Rejected | None] = [None] * len(items)
        encoded: list[tuple[int, bytes]] = []
        for number, item in enumerate(items):
            try:
                encoded.append((number, json.dumps(item, allow_nan=False).encode()))
            except (TypeError, ValueError, RecursionError) as error:
                found[number] = Rejected(NOT_JSON, str(error))
        bodies = list(self._bodies(encoded))

        def answers(body: list[tuple[int, bytes]]) -> list[list[float] | Rejected]:
            return self._answers(endpoint, field, [text for _, text in body])

        with concurrent.futures.ThreadPoolExecutor(self._connections) as pool:
            for body, rewards in zip(bodies, pool.map(answers, bodies), strict=True):
                for (number, _), reward in zip(body, rewards, strict=True):
                    found[number] = reward
        return found  # type: ignore[return-value]  # every place is filled

    def _bodies(self, encoded: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        body: list[tuple[int, bytes]] = []
        size = 0
        for number, text in encoded:
            if body and (len(body) == self._rows or size + len(text) > self._body_bytes):
                yield body
                body, size = [], 0
            body.append((number, text))
            size += len(text)
        if body:
            yield body

    def _answers(
        self, endpoint: str, field: str, items: list[bytes]
    ) -> list[list[float] | Rejected]:
        body = b'{"%s": [%s]}' % (field.encode(), b", ".join(items))
        status, answer = self._post(endpoint, body, single=len(items) == 1)
        if status in _TOO_LARGE or _is_slow(status, answer):
            if len(items) == 1:
                return [_refused(status, answer)]
            half = len(items) // 2
            parts = (items[:half], items[half:])
            return [found for part in parts for found in self._answers(endpoint, field, part)]
        read = _read_results if field == "requests" else _read_texts
        try:
            return read(answer, len(items))
        except (KeyError, TypeError, ValueError) as error:
            raise RewardServerError(
                f"{self.url}{endpoint} answered {_short(answer)} ({error}), not rewards for "
                f"{len(items)} rows. Is it a toolrm_jax reward server?",
                status,
            ) from None

    def _post(self, endpoint: str, body: bytes, single: bool) -> tuple[int, Any]:
        """Status (200, too large, or, unless `single`, too slow) and answer; asks again while the
        server is busy."""
        request = urllib.request.Request(
            self.url + endpoint, body, {"Content-Type": "application/json"}
        )
        if self._token:
            # Unredirected: the token goes to this server and to no other.
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        for attempt in range(1, self._tries + 1):
            wanted = None
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as answered:
                    return answered.status, _json_of(answered.read())
            except urllib.error.HTTPError as error:
                with error:
                    status, answer = error.code, _json_of(error.read())
                if status in _TOO_LARGE or (_is_slow(status, answer) and not single):
                    return status, answer
                if status not in _BUSY:
                    raise RewardServerError(self._refusal(status, answer), status) from None
                trouble = f"answered {status}: {_error_of(answer)}"
                wanted = error.headers.get("Retry-After")
            except (OSError, http.client.HTTPException) as error:
                # While it connects, the time-out is a URLError: that says nothing about the body.
                if isinstance(error, TimeoutError) and not single:
                    return _GATEWAY_TIME_OUT, None
                status, trouble = None, f"gave no answer ({error or type(error).__name__})"
            if attempt < self._tries:
                time.sleep(_pause(attempt, wanted))
        raise RewardServerError(
            f"{self.url} {trouble}, the last of {self._tries} tries. Is the server up, and large "
            f"enough for the load? Ask with fewer connections or more tries, or a longer timeout.",
            status,
        )

    def _refusal(self, status: int, answer: Any) -> str:
        remedy = f" Set {TOKEN_VARIABLE} or token=." if status in (401, 403) else ""
        return f"{self.url} answered {status}: {_error_of(answer)}.{remedy}"


def _pause(attempt: int, wanted: str | None) -> float:
    """Seconds to wait: what the server asks for, else doubling; with a share by chance, so that
    clients that were refused together do not come back together."""
    try:
        seconds = float(wanted)  # type: ignore[arg-type]
        if not seconds >= 0:
            raise ValueError
    except (TypeError, ValueError):  # none, or a date
        seconds = _FIRST_PAUSE * 2 ** (attempt - 1)
    return min(seconds, _LONGEST_PAUSE) * random.uniform(1.0, 1.25)


def _json_of(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _error_of(answer: Any) -> Rejected:
    """What the server says is wrong, in its own form or in whatever other."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and "reason" in error:
        return Rejected(str(error["reason"]), str(error.get("detail", "")))
    return Rejected(_OTHER_FORM, _short(answer))


def _is_slow(status: int, answer: Any) -> bool:
    """Has the body taken longer than the server, or a proxy before it, waits?"""
    return status == _GATEWAY_TIME_OUT or (status == 503 and _error_of(answer).reason == _TIME_OUT)


def _refused(status: int | None, answer: Any) -> Rejected:
    """Why a single item is refused; a proxy that takes no body of its size says so in no form."""
    found = _error_of(answer)
    if status == 413 and found.reason == _OTHER_FORM:
        return Rejected(BODY_TOO_BIG, found.detail)
    return found


def _read_results(answer: Any, count: int) -> list[list[float] | Rejected]:
    results = answer["results"]
    if len(results) != count:
        raise ValueError(f"{len(results)} results")
    return [
        _error_of(result) if "error" in result else [_finite(r) for r in result["rewards"]]
        for result in results
    ]


def _read_texts(answer: Any, count: int) -> list[list[float] | Rejected]:
    if len(answer["rewards"]) != count:
        raise ValueError(f"{len(answer['rewards'])} rewards")
    return [[_finite(reward)] for reward in answer["rewards"]]


def _finite(reward: Any) -> float:
    if isinstance(reward, bool) or not math.isfinite(reward):
        raise ValueError(f"a reward of {reward}")
    return float(reward)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
