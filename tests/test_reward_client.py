"""The HTTP client against a small server that keeps to the reward server's contract."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import tiny

from toolrm_jax import reward_client
from toolrm_jax.reward_client import RewardClient, RewardServerError


class Server:
    """Answers with the number of characters in a response, or as `plan` says, one entry a POST."""

    def __init__(self, plan=(), most=10**6):
        self.plan, self.most = list(plan), most
        self.bodies, self.headers = [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append(body)
                server.headers.append(dict(self.headers))
                status, answer, headers = server.answer(self.path, body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                with contextlib.suppress(OSError):  # a client that no longer waits
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path, body):
        if self.plan:
            step = self.plan.pop(0)
            if callable(step):
                step = step()
            if step is not None:
                return step
        if path == "/get_reward":
            return self.texts(body["query"])
        if len(body["requests"]) > self.most:
            return refused(413, "too many rows")
        return 200, {"model": "m", "results": [self.result(r) for r in body["requests"]]}, {}

    def texts(self, texts):
        if any(len(text) > 100 for text in texts):
            return refused(422, "over-long")
        rewards = [float(len(text)) for text in texts]
        return 200, {"rewards": rewards, "scores": rewards, "extra_logs": {}}, {}

    def result(self, request):
        if any("bad" in response for response in request["responses"]):
            return {"id": None, "error": {"reason": "over-long", "detail": "9 tokens"}}
        rewards = [float(len(response)) for response in request["responses"]]
        tokens = [1] * len(rewards)
        return {"id": None, "rewards": rewards, "tokens": tokens, "dropped_messages": 0}


def refused(status, reason, **headers):
    return status, {"error": {"reason": reason, "detail": "because"}}, headers


@contextlib.contextmanager
def serving(*plan, **options):
    server = Server(plan, **options)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """What the client would have slept; it does not."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(reward_client.TOKEN_VARIABLE, raising=False)
    slept = []

    class Clock:
        sleep = staticmethod(slept.append)

    monkeypatch.setattr(reward_client, "time", Clock)
    return slept


def asked(*responses):
    messages = [{"role": "user", "content": "Hi"}]
    return [{"tools": [], "messages": messages, "responses": [r]} for r in responses]


def test_rewards_come_in_order_over_many_bodies():
    words = ["x" * (n % 17) for n in range(100)]
    with serving() as server:
        found = RewardClient(server.url, rows=7, connections=3).score(asked(*words))
    assert found == [[float(len(word))] for word in words]
    assert sorted(len(body["requests"]) for body in server.bodies) == [2, *[7] * 14]


def test_a_body_holds_no_more_bytes_than_it_may():
    with serving() as server:
        RewardClient(server.url, body_bytes=1000).score(asked(*["x" * 300] * 6))
    assert [len(body["requests"]) for body in server.bodies] == [2, 2, 2]


def test_a_rejected_request_costs_only_itself():
    with serving() as server:
        first, second = RewardClient(server.url).score(asked("fine", "bad"))
    assert first == [4.0]
    assert (second.reason, second.detail) == ("over-long", "9 tokens")


def test_a_body_that_is_too_large_is_halved():
    with serving(most=3) as server:
        found = RewardClient(server.url).score(asked("a", "bb", "ccc", "d", "ee"))
    assert found == [[1.0], [2.0], [3.0], [1.0], [2.0]]
    with serving(most=0) as server:
        (found,) = RewardClient(server.url).score(asked("a"))
    assert found.reason == "too many rows"


def test_an_over_long_text_costs_only_itself():
    with serving() as server:
        found = RewardClient(server.url).score_texts(["a", "b" * 101, "ccc"])
    assert [found[0], found[2]] == [[1.0], [3.0]]
    assert found[1].reason == "over-long"


def test_a_busy_server_is_asked_again_when_it_says(pauses):
    plan = [refused(429, "queue full", **{"Retry-After": "3"}), refused(503, "stopping")]
    with serving(*plan) as server:
        assert RewardClient(server.url).score(asked("four")) == [[4.0]]
    assert 3 <= pauses[0] <= 3.75
    assert 1 <= pauses[1] <= 1.25  # doubled once
    assert len(server.bodies) == 3


SLOW = [refused(503, "time-out"), (504, b"<html>Gateway Time-out</html>", {})]


@pytest.mark.parametrize("slow", SLOW)
def test_a_body_that_takes_too_long_is_halved(slow, pauses):
    """The same body would take as long again."""
    with serving(slow, slow) as server:
        found = RewardClient(server.url).score(asked("a", "bb", "ccc", "d"))
    assert found == [[1.0], [2.0], [3.0], [1.0]]
    assert [len(body["requests"]) for body in server.bodies] == [4, 2, 1, 1, 2]
    assert pauses == []


def test_a_body_without_an_answer_in_time_is_halved():
    with serving(lambda: time.sleep(0.6)) as server:
        assert RewardClient(server.url, timeout=0.2).score_texts(["a", "bb"]) == [[1.0], [2.0]]
    assert [len(body["query"]) for body in server.bodies] == [2, 1, 1]


@pytest.mark.parametrize("slow", SLOW)
def test_a_single_request_that_takes_too_long_is_asked_again(slow, pauses):
    with serving(slow) as server:
        assert RewardClient(server.url).score(asked("a")) == [[1.0]]
    assert len(pauses) == 1
    with serving(*[slow] * 9) as server, pytest.raises(RewardServerError, match="last of 2 tries"):
        RewardClient(server.url, tries=2).score(asked("a", "b"))
    assert [len(body["requests"]) for body in server.bodies] == [2, 1, 1]


def test_pauses_are_bounded():
    wanted = [reward_client._pause(50, None), reward_client._pause(1, "86400")]
    assert max(wanted) <= 1.25 * reward_client._LONGEST_PAUSE


@pytest.mark.parametrize("date", ["Wed, 21 Oct 2026 07:28:00 GMT", "-5", "nan"])
def test_a_retry_after_that_is_no_number_of_seconds_is_not_followed(date):
    assert 0.5 <= reward_client._pause(1, date) <= 0.625


def test_tries_are_bounded(pauses):
    with (
        serving(*[refused(503, "stopping")] * 5) as server,
        pytest.raises(RewardServerError, match=r"answered 503: stopping.*the last of 3 tries"),
    ):
        RewardClient(server.url, tries=3).score(asked("a"))
    assert len(pauses) == 2


def test_a_server_that_does_not_answer_in_time_is_asked_again():
    def slow():
        time.sleep(0.6)

    with serving(slow) as server:
        assert RewardClient(server.url, timeout=0.2).score(asked("a")) == [[1.0]]
    assert len(server.bodies) == 2


def test_where_there_is_no_server_the_error_says_so():
    with serving() as server:
        url = server.url
    with pytest.raises(RewardServerError, match=r"no answer .*refused.*Is the server up"):
        RewardClient(url, tries=2).score(asked("a"))


@pytest.mark.parametrize(
    ("status", "reason", "said"),
    [(400, "not JSON", "400: not JSON: because"), (401, "no token", "Set TOOLRM_SERVE_TOKEN")],
)
def test_a_refusal_is_not_repeated(status, reason, said, pauses):
    with (
        serving(*[refused(status, reason)] * 2) as server,
        pytest.raises(RewardServerError, match=said) as caught,
    ):
        RewardClient(server.url).score(asked("a"))
    assert (caught.value.status, len(server.bodies), pauses) == (status, 1, [])


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        {"results": []},
        {"results": [{"rewards": [None]}]},
        {"results": [{"rewards": "x"}]},
        {"results": [[]]},
    ],
)
def test_an_answer_that_holds_no_rewards_is_an_error(answer):
    with (
        serving((200, answer, {})) as server,
        pytest.raises(RewardServerError, match="Is it a toolrm_jax reward server"),
    ):
        RewardClient(server.url).score(asked("a"))


def test_the_token_is_sent_where_there_is_one(monkeypatch):
    with serving() as server:
        RewardClient(server.url).score(asked("a"))
        RewardClient(server.url, token="mine").score(asked("a"))
        monkeypatch.setenv(reward_client.TOKEN_VARIABLE, "theirs")
        RewardClient(server.url).score(asked("a"))
    sent = [headers.get("Authorization") for headers in server.headers]
    assert sent == [None, "Bearer mine", "Bearer theirs"]


def test_blanks_around_a_token_are_not_sent(monkeypatch):
    monkeypatch.setenv(reward_client.TOKEN_VARIABLE, " theirs\n")
    with serving() as server:
        RewardClient(server.url).score(asked("a"))
        RewardClient(server.url, token="mine\n").score(asked("a"))
    sent = [headers.get("Authorization") for headers in server.headers]
    assert sent == ["Bearer theirs", "Bearer mine"]


@pytest.mark.parametrize("token", ["", "\n", "a b", "a\nb", "é"])
def test_a_token_that_no_header_carries_is_refused(token):
    with pytest.raises(reward_client.TokenError, match=r"token is .*: set it to a token"):
        RewardClient("http://127.0.0.1:9", token=token)


def test_a_proxy_that_takes_no_body_of_its_size_is_understood():
    with serving((413, b"<html>Request Entity Too Large</html>", {})) as server:
        (found,) = RewardClient(server.url).score(asked("a"))
    assert found.reason == "body too big"


def test_what_is_no_json_is_rejected_without_asking():
    odd = [{"content": float("nan")}, {"content": {1, 2}}]
    with serving() as server:
        found = RewardClient(server.url).score(odd)
    assert [f.reason for f in found] == ["not JSON", "not JSON"]
    assert server.bodies == []


def test_a_batch_of_none_asks_nothing():
    with serving() as server:
        assert RewardClient(server.url).score([]) == []
    assert server.bodies == []


@pytest.mark.parametrize(("url", "options"), [("localhost:1", {}), ("http://x", {"tries": 0})])
def test_options_that_cannot_be_are_refused(url, options):
    with pytest.raises(ValueError, match="expected"):
        RewardClient(url, **options)


def test_a_trainer_over_http_needs_neither_jax_nor_torch():
    program = (
        "import sys; import toolrm_jax.reward_functions, toolrm_jax.reward_client; "
        "print(sorted({'jax', 'flax', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
