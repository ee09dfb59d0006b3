"""The reward server as an ASGI app: each endpoint is a thin view of one scoring path.

    socket -> Door: token, how many at once, counts
                -> endpoint: body (bounded) -> threads: JSON, tokens -> RewardBatcher -> JSON
    GET /health, GET /metrics

What cannot be answered with rewards is {"error": {"reason", "detail"}} with its status: 400 not
JSON, 401 no token, 404, 405, 413 too big, 422 rejected, 429 the queue is full (with Retry-After),
503 shutting down, too many at once, or out of time.

    app = make_app(scorer, ServeOptions(model="my-rm"))
    uvicorn.run(app)
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolrm_jax.errors import InputError
from toolrm_jax.reward_batcher import RewardBatcher
from toolrm_jax.reward_client import bearer_token
from toolrm_jax.score_request import BODY_TOO_BIG, CANNOT_RENDER
from toolrm_jax.scorer import Scorer
from toolrm_jax.serve_metrics import CONTENT_TYPE, ServeMetrics
from toolrm_jax.text_tokens import TextTokenizer
from toolrm_jax.wire_formats import (
    FORMATS,
    Asked,
    Reader,
    WireError,
    WireFormat,
    parse_json,
    statistics_of,
)

_log = logging.getLogger(__name__)

# Of a body that is not wanted, this much is read and thrown away, for this long, before the answer:
# closing on a client that still sends would take the answer from it (a reset).
_DISCARD_BYTES = 64 * 2**20
_DISCARD_SECONDS = 10.0
_DISCARD_IDLE_SECONDS = 1.0  # a client that has stopped sending is waiting
# When the server closes, bodies on their way have this long to become whole: a client that is cut
# while it sends may not see the answer.
_LAST_BODIES_SECONDS = 5.0
# Bodies of all requests together, in largest bodies.
_BODIES_HELD = 8
# Threads that read bodies, but for those larger than this many bytes (a tenth of a second's work).
_READING_THREADS = 2
_LARGE_BODY = 128 * 1024
# For the count only: the client is gone.
_CLIENT_GONE = 499


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """What a server is called, and its limits.

    Attributes:
      model, dtype: as the answers and /health name them.
      token: that clients must send ("Authorization: Bearer ..."), without the blanks around it;
        None: anybody may ask.
      max_body_bytes: of one request; all together may hold eight times as much.
      max_rows: sequences of one request.
      max_queued_tokens: of all requests that wait or are being scored.
      time_out: seconds from a request's headers to its answer.
      window_seconds: how long a request waits for others to be scored with.
      max_connections: requests at once.
      normalize: rewards are normalised where a request does not say.
    """

    model: str = "model"
    dtype: str = "bfloat16"
    token: str | None = None
    max_body_bytes: int = 10 * 2**20
    max_rows: int = 1024
    max_queued_tokens: int = 2**20
    time_out: float = 120.0
    window_seconds: float = 0.005
    max_connections: int = 512
    normalize: bool = False

    def __post_init__(self):
        object.__setattr__(self, "token", bearer_token(self.token, "The server's token"))


def make_app(scorer: Scorer, options: ServeOptions) -> Starlette:
    """The app; `app.state.server` is its RewardServer.

    Raises:
      InputError: rewards are to be normalised, and the checkpoint has no statistics.
    """
    server = RewardServer(scorer, options)
    routes = [Route(path, server.answer, methods=["POST"]) for path in FORMATS]
    routes += [Route("/health", server.health), Route("/metrics", server.metrics_text)]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    app = Starlette(
        routes=routes,
        middleware=[Middleware(Door, server=server, paths=frozenset(r.path for r in routes))],
        exception_handlers={WireError: _on_wire_error, HTTPException: _on_http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


class RewardServer:
    """The endpoints, and what they share.

    Attributes:
      closing: no new request is accepted; set by `begin_closing`.
    """

    def __init__(self, scorer: Scorer, options: ServeOptions):
        self.options, self.max_tokens = options, scorer.max_tokens
        self.closing = False
        self.metrics = ServeMetrics()
        self._reader = _reader(scorer, options)
        self._batcher = RewardBatcher(
            scorer.score_sequences,
            max_queued_tokens=options.max_queued_tokens,
            window_tokens=4 * scorer.plan.batch_tokens,
            window_seconds=options.window_seconds,
            on_window=self.metrics.window,
        )
        watch, batcher = self.metrics.watch, self._batcher
        watch("toolrm_queued_tokens", "Waiting or being scored.", lambda: batcher.queued_tokens)
        watch("toolrm_queued_requests", "Waiting.", lambda: batcher.queued_requests)
        # Tokenizers let go of the interpreter while they work. Large bodies are read one at a time,
        # by a thread of their own: they neither hold up small ones nor fill the memory together.
        self._reading = _threads(_READING_THREADS, "reading")
        self._reading_large = _threads(1, "reading-large")
        self._held = 0  # bytes of bodies
        self._arriving: set[asyncio.Timeout] = set()  # of bodies that are not whole yet

    def begin_closing(self) -> None:
        """Accepts nothing more; what is accepted is finished, if its body is soon whole. Call it in
        the event loop."""
        self.closing = True
        for limit in self._arriving:
            limit.reschedule(asyncio.get_running_loop().time() + _LAST_BODIES_SECONDS)
        self._arriving.clear()

    def close(self) -> None:
        """Finishes what is accepted and ends the threads; no body may be arriving any more."""
        self.closing = True
        self._batcher.close()
        self._reading.shutdown()
        self._reading_large.shutdown()

    # --- endpoints --------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        """Any of the four formats, by its path."""
        if self.closing:
            raise _shutting_down()
        wire, seconds = FORMATS[request.scope["path"]], self.options.time_out
        try:
            async with asyncio.timeout(seconds):
                return await self._answered(request, wire)
        except TimeoutError:
            raise WireError(503, "time-out", f"no answer within {seconds:g} seconds") from None
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        except MemoryError:
            raise WireError(503, "out of memory", "ask for less at once") from None
        except RecursionError:
            raise WireError(422, CANNOT_RENDER, "it is nested too deeply") from None

    async def health(self, request: Request) -> Response:
        """Ready for rewards? Open to all."""
        if self.closing:
            raise _shutting_down()
        found = {"status": "ok", "model": self.options.model, "dtype": self.options.dtype}
        return _json(found | {"max_tokens": self.max_tokens})

    async def metrics_text(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    # --- one request ------------------------------------------------------------------------------

    async def _answered(self, request: Request, wire: WireFormat) -> Response:
        async with self._body(request) as body:
            asked = await _unless_gone(request, self._read(wire, body))
            outcomes = await _unless_gone(request, self._batcher.rewards(asked.sequences()))
            return _json(wire.write(asked, asked.regrouped(outcomes), self.options.model))

    async def _read(self, wire: WireFormat, body: bytes) -> Asked:
        def read() -> Asked:
            return wire.read(parse_json(body), self._reader)

        threads = self._reading if len(body) <= _LARGE_BODY else self._reading_large
        return await asyncio.get_running_loop().run_in_executor(threads, read)

    @contextlib.asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, counted among those that are held while this is open."""
        most, size, parts = self.options.max_body_bytes, 0, []
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and len(declared) < 20 and int(declared) > most:
            raise _too_big(int(declared), most)
        try:
            async with self._unless_closing():
                async for part in request.stream():
                    size += len(part)
                    self._held += len(part)
                    if size > most:
                        raise _too_big(size, most)
                    if self._held > _BODIES_HELD * most:
                        raise WireError(429, "queue is full", "too many bodies are being read", 1)
                    parts.append(part)
            yield b"".join(parts)
        finally:
            self._held -= size

    @contextlib.asynccontextmanager
    async def _unless_closing(self) -> AsyncIterator[None]:
        """What happens in here is given up soon after the server closes: a client that sends half a
        body would hold it up until the time-out."""
        try:
            async with asyncio.timeout(None) as limit:
                self._arriving.add(limit)
                try:
                    yield
                finally:
                    self._arriving.discard(limit)
        except TimeoutError:
            raise _shutting_down() from None


class Door:
    """What every request passes: is there room, may it come in; counted on its way out."""

    def __init__(self, app: ASGIApp, server: RewardServer, paths: frozenset[str]):
        self.app, self.server, self.paths = app, server, paths
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, visit = time.monotonic(), _Visit(scope, receive, send, self.server)
        self._inside += 1
        try:
            refusal = self._refusal(scope)
            app = self.app if refusal is None else _error_response(refusal)
            await app(scope, visit.receive, visit.send)
        finally:
            self._inside -= 1
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.server.metrics.request(path, visit.status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> WireError | None:
        if scope["path"] == "/health":
            return None
        options = self.server.options
        if options.token is not None and not _authorised(scope, options.token):
            return WireError(401, "not authorised", "send 'Authorization: Bearer <token>'")
        if self._inside > options.max_connections:
            most = options.max_connections
            return WireError(503, "too many requests at once", f"at most {most} are answered", 1)
        return None


class _Visit:
    """One request's two directions; nothing is answered before its body is read or given up."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, server: RewardServer):
        self._receive, self._send, self._server = receive, send, server
        self.status = 500  # until there is an answer
        self._read = False
        # It sends its body only if it is told to: an early answer is answer enough.
        self._waits = any(
            name == b"expect" and value.lower() == b"100-continue"
            for name, value in scope["headers"]
        )

    async def receive(self) -> Message:
        message = await self._receive()
        self._waits = False
        self._read = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self._discard_rest()
            if not self._read or self._server.closing:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
        await self._send(message)

    async def _discard_rest(self) -> None:
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while not self._read and not self._waits and size < _DISCARD_BYTES:
                    message = await asyncio.wait_for(self.receive(), _DISCARD_IDLE_SECONDS)
                    size += len(message.get("body", b""))


def _reader(scorer: Scorer, options: ServeOptions) -> Reader:
    statistics = statistics_of(scorer.about)
    if options.normalize and statistics is None:
        raise InputError(
            f"{options.model}: rewards are to be normalised, and the checkpoint has no reward_mean "
            f"and reward_std (toolrm.json of a training run's export has): leave out --normalize."
        )
    return Reader(
        scorer.tokenize,
        TextTokenizer(scorer.tokenizer, scorer.max_tokens),
        options.max_rows,
        statistics,
        options.normalize,
    )


def _threads(count: int, name: str) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix=name)


async def _unless_gone(request: Request, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the coroutine gives; it is cancelled when the client leaves (ClientDisconnect)."""
    work = asyncio.ensure_future(coroutine)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _authorised(scope: Scope, token: str) -> bool:
    given = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, credentials = given.partition(b" ")
    # In constant time: how long it takes must not tell how much of a guess is right.
    same = hmac.compare_digest(credentials.strip(), token.encode())
    return same and scheme.lower() == b"bearer"


def _shutting_down() -> WireError:
    return WireError(503, "shutting down", "the server accepts nothing more")


def _too_big(size: int, most: int) -> WireError:
    return WireError(413, BODY_TOO_BIG, f"{size} bytes or more; at most {most} are read")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII: ids and details may hold half surrogate pairs, as JSON may.
    content = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, media_type="application/json")


def _error_response(error: WireError) -> Response:
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(error.body(), error.status, headers)


async def _on_wire_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)
    return _error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not by this method."""
    assert isinstance(error, HTTPException)
    offered = ", ".join(["/health", "/metrics", *FORMATS])
    reasons = {404: "no such path", 405: "wrong method"}
    detail = f"{request.method} {request.scope['path']}; there is POST, or GET, of {offered}"
    wire = WireError(error.status_code, reasons.get(error.status_code, "refused"), detail)
    response = _error_response(wire)
    response.headers.update(error.headers or {})
    return response
