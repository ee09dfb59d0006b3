"""Asking models: nothing is lost, nothing asked twice, every fault counted."""

import collections
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny
from faulty_server import NAMES, completion, faulty_server

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import to_row
from toolrm_jax.synth.endpoint_settings import EndpointError
from toolrm_jax.synth.generators import Pool
from toolrm_jax.synth.model_license import is_permissive

FAULTS = list(NAMES)
FAST = {"timeout": 3.0, "first_pause": 0.01, "longest_pause": 5.0}


def examples(count: int) -> list[Example]:
    made = []
    for number in range(count):
        messages = [{"role": "user", "content": f"Question {number}"}]
        tools = [{"name": "f", "description": "", "parameters": {"type": "object"}}]
        gold = [{"name": "f", "arguments": {}}]
        made.append(Example(f"q/{number}", "t", "MIT", tools, messages, gold, gold))
    return made


def entry(server, **changes) -> dict:
    member = {"kind": "endpoint", "model": "m", "license": "MIT", "url": server.url}
    return member | FAST | changes


def run(server, folder, count=18, reject=None, entries=None, **changes):
    """The answers of one run as rows, and its counts."""
    members = entries or [entry(server, **changes)]
    with Pool(members, seed=0, cache=folder / "cache.sqlite", reject=reject) as pool:
        rows = [to_row(answer) for answer in pool.answers(examples(count))]
        return rows, pool.counts()


def test_every_fault_is_counted_and_every_question_answered_once(tmp_path):
    with faulty_server(FAULTS) as server:
        rows, counts = run(server, tmp_path, samples=2, concurrency=36)
    assert [row["example_id"] for row in rows] == [f"q/{i // 2}" for i in range(36)]
    assert len({json.dumps(row["response"]) for row in rows}) == 36
    assert set(server.answers.values()) == {1}
    assert len(server.answers) == 36
    assert set(server.tries.values()) == {2}
    expected = collections.Counter()
    for fault, times in server.met.items():
        expected[f"m: {NAMES[fault]}"] += times
    assert {name: n for name, n in counts.items() if "fault" in name} == expected
    assert set(server.met) == set(FAULTS)
    assert (counts["m: asked"], counts["m: answers"]) == (72, 36)


def test_answers_are_those_of_the_questions(tmp_path):
    with faulty_server(["reset", "500"]) as server:
        rows, _ = run(server, tmp_path)
    said = {question[0]: completion(question) for question in server.answers}
    for number, row in enumerate(rows):
        text = said[f"Question {number}"]["choices"][0]["message"]["content"]
        assert row["response"] == [json.loads(text[len("<tool_call>") : -len("</tool_call>")])]


def test_a_second_run_asks_nothing_and_answers_the_same(tmp_path):
    with faulty_server(["500"]) as server:
        first, _ = run(server, tmp_path)
        tries = sum(server.tries.values())
        second, counts = run(server, tmp_path)
        assert sum(server.tries.values()) == tries
    assert second == first
    assert counts == {"m: answers": 18, "m: from cache": 18}


def test_retry_after_holds_back_the_question_and_those_after_it(tmp_path):
    with faulty_server(["429", ""]) as server:
        run(server, tmp_path, count=4, concurrency=1)
    first, again = server.times[next(q for q in server.times if q[0] == "Question 0")]
    assert again - first >= 1.0
    later = [times[0] for question, times in server.times.items() if question[0] != "Question 0"]
    assert min(later) - first >= 1.0


def test_concurrency_is_bounded(tmp_path):
    with faulty_server(delay=0.05) as server:
        run(server, tmp_path, count=30, concurrency=3)
    assert server.most == 3


def test_a_question_without_answer_is_reported_and_asked_again_by_the_next_run(tmp_path):
    rejected = []
    with faulty_server(["500", ""]) as server:
        rows, counts = run(
            server, tmp_path, count=6, tries=1, reject=lambda *why: rejected.append(why)
        )
        assert [row["example_id"] for row in rows] == ["q/1", "q/3", "q/5"]
        assert counts["m: no answer"] == len(rejected) == 3
        assert rejected[0] == ("m: no answer", "1 tries; status 500", "m, sample 0 of q/0")
        rows, counts = run(server, tmp_path, count=6, tries=1)
    assert len(rows) == 6
    assert set(server.answers.values()) == {1}


def test_a_refused_question_is_kept_as_such(tmp_path):
    with faulty_server(["400", ""], echo="room") as server:
        rejected = []
        rows, _ = run(server, tmp_path, count=4, reject=lambda *why: rejected.append(why))
        assert [row["example_id"] for row in rows] == ["q/1", "q/3"]
        assert rejected[0][:2] == ("m: refused", 'status 400: {"error": "no room"}')
        assert run(server, tmp_path, count=4)[0] == rows
        assert set(server.tries.values()) == {1}
        assert len(run(server, tmp_path, count=4, retry_refused=True)[0]) == 4


@pytest.mark.parametrize(("status", "remedy"), [("401", "key_variable"), ("404", "served_as")])
def test_a_server_that_cannot_be_used_ends_the_run_at_once(tmp_path, status, remedy):
    with (
        faulty_server([status]) as server,
        pytest.raises(EndpointError, match=f"answered {status}.*{remedy}"),
    ):
        run(server, tmp_path)


def test_a_server_that_is_down_ends_the_run(tmp_path):
    with faulty_server() as server:
        pass
    with pytest.raises(EndpointError, match="5 questions in a row got no answer in 2 tries each"):
        run(server, tmp_path, tries=2, give_up_after=5)


def test_budgets_hold_over_runs(tmp_path):
    with faulty_server() as server:
        rows, counts = run(server, tmp_path, budget_requests=5)
        assert [row["example_id"] for row in rows] == [f"q/{i}" for i in range(5)]
        assert counts["m: over budget"] == 13
        assert run(server, tmp_path, budget_requests=5)[0] == rows
        assert len(server.answers) == 5
        # An answer takes ten tokens; those under way when the budget is used up are still taken.
        rows, _ = run(server, tmp_path, budget_tokens=80, concurrency=2)
        assert 8 <= len(rows) <= 9


def test_retries_are_logged_and_no_more_than_a_line_at_a_time(tmp_path, caplog, monkeypatch):
    from toolrm_jax.synth import endpoint

    with faulty_server(["500"]) as server:
        run(server, tmp_path)
        (line,) = (record.getMessage() for record in caplog.records)
        assert re.fullmatch(rf"m at {server.url}: status 500, try 1 of 6; the next in 0\.0 s", line)
        caplog.clear()
        monkeypatch.setattr(endpoint, "_SAID_EVERY", 0.0)
        run(server, tmp_path / "each", send_seed=False)
    assert len(caplog.records) == 18


def test_every_request_counts_for_a_budget_be_it_in_vain(tmp_path):
    with faulty_server(["500", "", ""]) as server:  # every third question needs two requests
        rows, counts = run(server, tmp_path, budget_requests=5, concurrency=1)
        assert sum(server.tries.values()) == 5
        assert (len(rows), counts["m: asked"], counts["m: over budget"]) == (3, 5, 15)
        # The second question to fail has had one request; two more are for it and the next.
        rows, _ = run(server, tmp_path, budget_requests=7, concurrency=1)
        assert sum(server.tries.values()) == 7
        assert len(rows) == 5


def test_what_ended_a_run_counts_for_its_budget(tmp_path):
    with faulty_server(["401", ""]) as server:
        with pytest.raises(EndpointError, match="401"):
            run(server, tmp_path, budget_requests=2, concurrency=1)
        rows, _ = run(server, tmp_path, budget_requests=2, concurrency=1)
        assert sum(server.tries.values()) == 2
        assert len(rows) == 1


def test_a_server_that_counts_no_tokens_ends_a_run_with_a_budget_of_them(tmp_path, monkeypatch):
    import faulty_server as module

    uncounted = {"choices": completion(("Question", 0))["choices"]}
    monkeypatch.setattr(module, "completion", lambda _: uncounted)
    with faulty_server() as server:
        with pytest.raises(EndpointError, match=r"usage\.total_tokens.*Set budget_requests"):
            run(server, tmp_path, budget_tokens=1, concurrency=2)
        assert len(server.answers) <= 2
        rows, counts = run(server, tmp_path)
    assert len(rows) == 18
    assert counts["m: from cache"] in (1, 2)


def test_answers_cut_off_are_left_out_and_counted(tmp_path, monkeypatch):
    import faulty_server as module

    def cut(question):
        reply = completion(question)
        reply["choices"][0]["finish_reason"] = "length"
        return reply

    monkeypatch.setattr(module, "completion", cut)
    with faulty_server() as server:
        rows, counts = run(server, tmp_path)
        assert (rows, counts["m: cut off"]) == ([], 18)
        rows, _ = run(server, tmp_path, keep_cut=True)
    assert len(rows) == 18


def saying(monkeypatch, message, end="stop"):
    choice = {"message": message, "finish_reason": end}
    monkeypatch.setattr("faulty_server.completion", lambda _: {"choices": [choice]})


@pytest.mark.parametrize("message", [{"content": None}, {"content": "I can"}, {"tool_calls": []}])
def test_what_a_servers_filter_withheld_is_no_silence(tmp_path, monkeypatch, message):
    saying(monkeypatch, message, end="content_filter")
    rejected = []
    with faulty_server() as server:
        rows, counts = run(server, tmp_path, reject=lambda *why: rejected.append(why[0]))
    assert (rows, counts["m: filtered"]) == ([], 18)
    assert rejected == ["m: filtered"] * 18


@pytest.mark.parametrize("content", [{"text": "x"}, 3, [{"type": "image_url"}], ["x"]])
def test_content_that_is_no_text_is_no_completion(tmp_path, monkeypatch, content):
    saying(monkeypatch, {"content": content})
    with faulty_server() as server:
        rows, counts = run(server, tmp_path, tries=2)
    assert (rows, counts["m: fault: no completion"], counts["m: no answer"]) == ([], 36, 18)


@pytest.mark.parametrize(
    "message", [{"content": [{"type": "text", "text": "No."}]}, {"content": None, "refusal": "No."}]
)
def test_parts_and_refusals_are_kept_as_words(tmp_path, monkeypatch, message):
    saying(monkeypatch, message)
    with faulty_server() as server:
        for _ in range(2):  # from the server, and from the cache
            rows, _ = run(server, tmp_path)
            assert [found["response"] for found in rows] == ["No."] * 18


def test_models_without_a_permissive_licence_are_not_asked(tmp_path):
    with faulty_server() as server:
        rows, counts = run(server, tmp_path, license="llama3.1", samples=2)
        assert (rows, counts, server.tries) == ([], {"m: left out: llama3.1": 36}, {})
        rows, _ = run(server, tmp_path, license="llama3.1", permissive=True)
    assert len(rows) == 18


@pytest.mark.parametrize(
    ("license", "lets_in"),
    [
        *((name, True) for name in ("Apache 2.0 license", "Apache License 2.0", "apache-2.0")),
        *((name, True) for name in ("Apache License, Version 2.0", "Apache v2.0", "apache2")),
        *((name, True) for name in ("license:apache-2.0", "The MIT License", "MIT Licence")),
        *((name, True) for name in ("BSD 3-Clause License", "CC BY 4.0", "The Unlicense", "CC0")),
        *((name, False) for name in ("Modified MIT", "apache-2.0 with changes", "CC-BY-NC-4.0")),
        *((name, False) for name in ("Llama 3.1 license", "apache", "Apache 1.1", "the license")),
        *((name, False) for name in ("cc-by-sa-4.0", "CC BY 3.0", "unknown", "gemma", "other")),
    ],
)
def test_a_permissive_licence_is_known_however_it_is_spelt(license, lets_in):
    assert is_permissive(license) is lets_in


def test_the_key_is_sent_and_nowhere_written(tmp_path, monkeypatch, caplog, capfd):
    secret = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", secret)
    caplog.set_level(logging.DEBUG)
    rejected = []
    with faulty_server(["400", "500", "reset", ""], echo=secret) as server:
        run(
            server,
            tmp_path,
            key_variable="MY_KEY",
            reject=lambda *why: rejected.append(why),
        )
    assert server.headers == {f"Bearer {secret}"}
    assert rejected[0][1] == 'status 400: {"error": "no [key]"}'
    with faulty_server(["401"], echo=secret) as server, pytest.raises(EndpointError) as error:
        run(server, tmp_path / "other", key_variable="MY_KEY")
    assert "MY_KEY" in str(error.value)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in (str(error.value), str(rejected), caplog.text, *capfd.readouterr()):
        assert secret not in text
    assert len(written) > 1000
    assert secret.encode() not in written


@pytest.mark.parametrize("key", ["e", "none", "f"])
def test_an_answer_that_holds_the_key_stays_as_it_was_said(tmp_path, monkeypatch, key):
    import faulty_server as module

    said = "None of my tools fits; nonexistent."
    reply = {"choices": [{"message": {"content": said}}], "usage": {"total_tokens": 9}}
    monkeypatch.setattr(module, "completion", lambda _: reply)
    monkeypatch.setenv("MY_KEY", key)
    with faulty_server() as server:
        rows, _ = run(server, tmp_path, count=2, key_variable="MY_KEY")
    assert [row["response"] for row in rows] == [said] * 2


@pytest.mark.parametrize("value", ["", "two words", "line\nbreak", "ключ"])
def test_a_key_that_cannot_be_used_is_named_by_its_variable(tmp_path, monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with faulty_server() as server, pytest.raises(InputError, match="MY_KEY") as error:
        run(server, tmp_path, key_variable="MY_KEY")
    assert not value or value not in str(error.value)


@pytest.mark.parametrize("key", ["sk-0123abcd", "hf_0123abcd", "two words", 5])
def test_a_key_in_place_of_its_variables_name_is_not_repeated(tmp_path, key):
    with faulty_server() as server, pytest.raises(InputError, match="key_variable") as error:
        run(server, tmp_path, key_variable=key)
    assert str(key) not in str(error.value).replace(server.url, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "oracle"}, "expected one of endpoint, replay, corruption"),
        ({"sampels": 3}, "sampels"),
        ({"url": "localhost"}, "expected one such as"),
        ({"url": "http://me:pw@localhost/v1"}, "key_variable"),
        ({"temperature": 0, "samples": 2}, "temperature 0"),
        ({"extra": {"stream": True}}, "stream"),
        ({"tries": 0}, "tries=0"),
        ({"samples": "3"}, "samples='3'; expected a number"),
        ({"permissive": "no"}, "permissive='no'; expected True, False, or None"),
        ({"permissive": 1}, "permissive=1; expected True"),
    ],
)
def test_a_bad_entry_is_explained(tmp_path, changes, message):
    member = {"kind": "endpoint", "model": "m", "license": "MIT", "url": "http://localhost/v1"}
    with pytest.raises(InputError, match=message) as error:
        Pool([member | changes], seed=0, cache=tmp_path / "cache.sqlite")
    assert "pw" not in str(error.value)


PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_synth_endpoint import entry, run
import types
rows, counts = run(types.SimpleNamespace(url=sys.argv[1]), Path(sys.argv[2]), count=60,
                   concurrency=4)
print(json.dumps([rows, counts]))
"""


def test_a_killed_run_goes_on_without_asking_twice(tmp_path):
    command = [sys.executable, "-c", PROGRAM]
    here = str(tiny.ROOT / "tests")
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    with faulty_server(["", "500", "short"], delay=0.05) as server:
        arguments = [*command, server.url, str(tmp_path / "killed"), here]
        process = subprocess.Popen(arguments, cwd=tiny.ROOT, env=env)
        deadline = time.monotonic() + 60
        while len(server.answers) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(0.3)  # what the server was still answering
        before = server.answers.copy()
        assert 20 <= len(before) < 60
        rows, counts = run(server, tmp_path / "killed", count=60, concurrency=4)
        twice = [question for question, n in server.answers.items() if n > 1]
        # Only what was under way when the run was killed has no answer in the cache.
        assert len(twice) <= 4
        assert counts["m: from cache"] >= len(before) - 4
    with faulty_server() as server:
        uninterrupted, _ = run(server, tmp_path / "whole", count=60)
    assert rows == uninterrupted
    assert len(rows) == 60
