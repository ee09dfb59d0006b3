"""A chat-completion server that misbehaves by plan, and keeps count of what it was asked.

with faulty_server(["429", "time-out", ...]) as server:
    ...  # question i meets fault i % len(faults) once, then gets its answer
    server.answers[question], server.tries[question]
    server.always = "400"  # from here on every try meets it; "": mended

A question is the last user message and the seed. Its answer depends on it alone.
"""

import collections
import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What the client should call each fault.
NAMES = {
    "429": "fault: status 429",
    "500": "fault: status 500",
    "time-out": "fault: time-out",
    "trickle": "fault: time-out",
    "truncated": "fault: broken JSON",
    "html": "fault: another content type",
    "no completion": "fault: no completion",
    "short": "fault: connection: RemoteProtocolError",
    "reset": "fault: connection: ReadError",
}


class FaultyServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections beyond Python's five would be reset by the kernel

    def handle_error(self, *_) -> None:
        """Clients that hang up leave no trace on the console."""

    def __init__(self, faults: list[str], *, hold: float, delay: float, echo: str = ""):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.hold, self.delay, self.echo = faults, hold, delay, echo
        self.always = ""
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.tries: collections.Counter = collections.Counter()
        self.answers: collections.Counter = collections.Counter()
        self.met: collections.Counter = collections.Counter()
        self.times: dict = collections.defaultdict(list)
        self.headers: set = set()
        self.under_way = self.most = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def fault(self, question: tuple) -> str:
        """The fault that a question meets at this try; "" for none."""
        with self.lock:
            self.tries[question] += 1
            self.times[question].append(time.monotonic())
            if self.always:
                return self.always
            number = int("".join(filter(str.isdigit, question[0])) or 0)
            if not self.faults or self.tries[question] > 1:
                return ""
            fault = self.faults[number % len(self.faults)]
            self.met[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
        try:
            self._answer()
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.add(self.headers.get("Authorization"))
        question = (body["messages"][-1]["content"], body.get("seed"))
        fault = self.server.fault(question)
        reply = json.dumps(completion(question)).encode()
        if fault == "429":
            self._send(b"{}", status=429, extra={"Retry-After": "1"})
        elif fault in ("500", "401", "400", "404"):
            self._send(b'{"error": "no %s"}' % self.server.echo.encode(), status=int(fault))
        elif fault == "time-out":
            self.server.ended.wait(self.server.hold)
            self.close_connection = True
        elif fault == "truncated":
            self._send(reply[:-20])
        elif fault == "html":
            self._send(reply, kind="text/html")
        elif fault == "no completion":
            self._send(b'{"choices": []}')
        elif fault in ("short", "trickle"):
            self._start(len(reply), "application/json")
            self.wfile.write(reply[:10])
            for at in range(10, 20 if fault == "trickle" else 10):
                self.server.ended.wait(self.server.hold / 10)
                self.wfile.write(reply[at : at + 1])
            self.close_connection = True
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.rfile.close()  # it keeps the socket open
            self.connection.close()
            self.close_connection = True
        else:
            time.sleep(self.server.delay)
            with self.server.lock:
                self.server.answers[question] += 1
            self._send(reply)

    def _start(self, length: int, kind: str, status: int = 200, extra: dict | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(length), **(extra or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, body: bytes, kind: str = "application/json", **how) -> None:
        self._start(len(body), kind, **how)
        self.wfile.write(body)


def completion(question: tuple) -> dict:
    """The answer to a question: calls of its own, as Hermes's text."""
    value = hashlib.sha256(repr(question).encode()).hexdigest()[:8]
    call = json.dumps({"name": "f", "arguments": {"value": value}})
    message = {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"total_tokens": 10}}


@contextlib.contextmanager
def faulty_server(
    faults: list[str] | None = None, *, hold: float = 6.0, delay: float = 0.0, echo: str = ""
) -> Iterator[FaultyServer]:
    """A running server; `hold` seconds are longer than any patience, `delay` is an answer's."""
    server = FaultyServer(faults or [], hold=hold, delay=delay, echo=echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
