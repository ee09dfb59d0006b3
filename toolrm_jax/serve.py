"""Serves rewards over HTTP: `python -m toolrm_jax.serve --model DIR`; endpoints in docs/serve.md.

    POST /v1/rewards     ours: tools, messages, responses
    POST /get_reward     as OpenRLHF asks
    POST /classify       as vLLM answers, and verl asks
    POST /v1/embeddings  as SGLang answers
    GET  /health, GET /metrics (Prometheus)

    python -m toolrm_jax.serve --model runs/quickstart/model/export
    TOOLRM_SERVE_TOKEN=... python -m toolrm_jax.serve --model DIR --host 0.0.0.0

SIGTERM ends it: nothing new is accepted, what was accepted is answered, the exit status is 0.
Before the port opens, while models are loaded and compiled, there is nothing to finish: 130 after
Ctrl-C, 143 after SIGTERM. 1: it cannot serve, and the message says why; 2: wrong usage.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

from toolrm_jax.errors import InputError, reported
from toolrm_jax.request_tokens import POLICIES
from toolrm_jax.reward_client import TOKEN_VARIABLE as TOKEN
from toolrm_jax.reward_client import bearer_token
from toolrm_jax.score import DEFAULT_BATCH_TOKENS, out_of_memory

try:
    import uvicorn

    from toolrm_jax.reward_app import RewardServer, ServeOptions, make_app
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"The reward server needs the package {error.name}: pip install 'toolrm_jax[serve]'"
    ) from error

# After SIGTERM clients on their way in are told so (503) until none has come or gone for the first
# number of uvicorn's ticks, ten a second; then the port closes, or after the second number of them.
# A fixed second cut off clients that had just connected, on two busy cores.
_QUIET_TICKS, _MOST_TICKS = 10, 100
_KEEP_ALIVE_SECONDS = 75


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Until the server is up, whose own handler takes over: by default it would end without a word.
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with reported():
            serve(args)
    except KeyboardInterrupt as stop:
        _say("interrupted: no request is under way")
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except RuntimeError as error:
        _say(f"error: {out_of_memory(error)}")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM where a Ctrl-C would interrupt."""


def _terminated(*_: Any) -> None:
    raise _Terminated


def serve(args: argparse.Namespace) -> None:
    """Serves until a signal ends it."""
    options = _options(args, bearer_token(os.environ.get(TOKEN), TOKEN))
    # Bound first: a port that is taken is known before minutes go into loading. It opens later.
    with _bound(args.host, args.port) as bound:
        from toolrm_jax.compilation_cache import keeps_programs
        from toolrm_jax.scorer import Scorer

        settings = {name: getattr(args, name) for name in ("dtype", "max_tokens", "over_long")}
        settings |= {name: getattr(args, name) for name in ("raw", "batch_tokens", "cache_dir")}
        with Scorer.from_pretrained(args.model, **settings) as scorer:
            app = make_app(scorer, options)
            if args.compile:
                kept = " (kept on disk)" if keeps_programs() else ""
                _say(f"compiling up to {len(scorer.plan.programs())} programs{kept}")
                scorer.compile()
            line = f"serving {args.model} ({args.dtype}) at {_url(bound)}"
            config = uvicorn.Config(
                app,
                lifespan="on",
                http="h11",
                ws="none",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(options.time_out) + 5,
            )
            _Server(config, app.state.server, lambda: _say(line)).run(sockets=[bound])


class _Server(uvicorn.Server):
    """uvicorn's, with a quiet second between a signal and the closed port, and exit status 0."""

    def __init__(self, config: uvicorn.Config, rewards: RewardServer, ready: Callable[[], None]):
        super().__init__(config)
        self._rewards, self._ready = rewards, ready
        self._ticks = self._quiet_ticks = 0  # since the signal, and since anyone came or went
        self._seen: tuple[int, set] = (0, set())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own raises the signal again at the end, and the status would not be 0.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._ready()

    def _on_signal(self, number: int) -> None:
        if not self._rewards.closing:
            _say("shutting down: finishing what was accepted")
            self._rewards.begin_closing()
        elif number == signal.SIGINT:  # Ctrl-C again: at once
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._rewards.closing:
            seen = (self.server_state.total_requests, set(self.server_state.connections))
            self._quiet_ticks = self._quiet_ticks + 1 if seen == self._seen else 0
            self._ticks, self._seen = self._ticks + 1, seen
            self.should_exit |= self._quiet_ticks >= _QUIET_TICKS or self._ticks >= _MOST_TICKS
        return await super().on_tick(counter)


def _options(args: argparse.Namespace, token: str | None) -> ServeOptions:
    if token is None and not args.allow_unauthenticated and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host} lets other machines in, and nothing keeps them out: set {TOKEN} "
            f"to a token that clients must send, or say --allow-unauthenticated."
        )
    return ServeOptions(
        model=args.model,
        dtype=args.dtype,
        token=token,
        max_body_bytes=int(args.max_body_mb * 2**20),
        max_rows=args.max_rows,
        max_queued_tokens=args.max_queued_tokens,
        time_out=args.time_out,
        window_seconds=args.window_ms / 1000,
        max_connections=args.max_connections,
        normalize=args.normalize,
    )


def is_loopback(host: str) -> bool:
    """Can only this machine reach it?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, but does not listen yet."""
    bound = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if bound is not None:
            bound.close()
        raise InputError(
            f"--host {host} --port {port} cannot be bound: {error}. Is another server there? "
            f"--port 0 takes a free one."
        ) from None
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolrm_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag: str, words: str, **settings) -> None:
        shown = "" if settings.get("default") in (None, False) else " (default: %(default)s)"
        parser.add_argument(flag, help=words + shown, **settings)

    add("--model", "a training workdir, a Hugging Face directory or hub id", required=True)
    add("--host", "address to listen at", default="127.0.0.1")
    add("--port", "port to listen at; 0: a free one, which is printed", type=_port, default=8000)
    switch = {"action": "store_true", "default": False}
    add("--allow-unauthenticated", f"listen beyond loopback even without {TOKEN}", **switch)
    add("--dtype", "compute type", default="bfloat16", choices=("bfloat16", "float32"))
    limit = "longest prompt and response, in tokens (default: the model's limit, at most 8192)"
    add("--max-tokens", limit, type=_positive)
    long = "conversations longer than --max-tokens are rejected, or lose their oldest turns"
    add("--over-long", long, default="reject", choices=POLICIES)
    add("--raw", "render text responses as they stand, without parsing", **switch)
    scale = (
        "where a request does not say, normalise rewards by the checkpoint's held-out statistics"
    )
    add("--normalize", scale, **switch)
    batch = f"tokens of a batch, over all devices (default: {DEFAULT_BATCH_TOKENS})"
    add("--batch-tokens", batch, type=_positive)
    cache = 'folder of compiled programs; "none": keep none (default: ~/.cache/toolrm_jax/compiled)'
    add("--cache-dir", cache)
    parser.add_argument("--no-compile", dest="compile", action="store_false",
                        help="open at once, and compile each program when it is first needed "
                             "(default: all before the port opens)")  # fmt: skip
    add("--max-body-mb", "largest body, in MiB", type=_amount, default=10)
    add("--max-rows", "most responses or texts of a request", type=_positive, default=1024)
    queue = "most tokens of all requests that wait or are being scored"
    add("--max-queued-tokens", queue, type=_positive, default=2**20)
    add("--time-out", "seconds until a request is given up", type=_amount, default=120)
    window = "milliseconds that a request waits for others to be scored with; 0: none"
    add("--window-ms", window, type=_amount_or_none, default=5)
    add("--max-connections", "most requests at once", type=_positive, default=512)
    return parser


def _positive(text: str) -> int:
    number = _number(int, text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _amount(text: str) -> float:
    number = _number(float, text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def _amount_or_none(text: str) -> float:
    return 0.0 if _number(float, text) == 0 else _amount(text)


def _number(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        words = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r}: expected {words}") from None


def _port(text: str) -> int:
    number = _number(int, text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 65535")
    return number


if __name__ == "__main__":
    sys.exit(main())
