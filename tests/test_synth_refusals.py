"""A server that refuses questions: all of them, for its own fault, or some, for theirs."""

import json
import re

import pytest
from faulty_server import faulty_server
from synth_files import config, row, write_rows
from test_synth_endpoint import entry, examples, run

from toolrm_jax.synth.answer_cache import AnswerCache, key
from toolrm_jax.synth.chat_request import request_body
from toolrm_jax.synth.endpoint_settings import EndpointError
from toolrm_jax.synth.members import member_settings
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.stage import StageError
from toolrm_jax.synth.synth_config import SynthError

ASKED = ("examples", "obfuscated", "answers")


def pipeline(tmp_path, members, **fields) -> Pipeline:
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(30)])
    return Pipeline(config(rows, **fields, **{"answers.pool": tuple(members)}), tmp_path / "run")


def answered(tmp_path) -> dict:
    return json.loads((tmp_path / "run/3-answers/summary.json").read_text())


def test_a_server_that_refuses_everything_ends_the_run_and_once_mended_it_goes_on(tmp_path):
    with faulty_server(echo="tool parser") as server, faulty_server() as other:
        server.always = "400"
        members = [
            entry(other, model="sound"),
            entry(server, model="bare", give_up_after=5, concurrency=2),
        ]
        said = (
            f"endpoint of 'bare' at {re.escape(server.url)}: it has answered nothing yet, and of "
            r'the last 5 questions none; .*refused with status 400: {"error": "no tool parser"}\. '
            ".*mend the server, and the same command goes on"
        )
        for times in (1, 2):
            with pytest.raises(EndpointError, match=said):
                pipeline(tmp_path, members).run(ASKED)
            assert sum(server.tries.values()) <= 6 * times
        server.always = ""
        pipeline(tmp_path, members).run(ASKED)
    assert answered(tmp_path)["counts"]["bare: answers"] == 30
    assert answered(tmp_path)["rejected"] == {}


def test_few_questions_all_refused_stay_open_until_the_server_is_mended(tmp_path, caplog):
    with faulty_server(echo="tool parser") as server:
        server.always = "400"
        members = [entry(server, give_up_after=100)]
        with pytest.raises(StageError, match="30 of 30 are still open: 30 x m: refused"):
            pipeline(tmp_path, members).run(ASKED)
        assert f'm at {server.url}: refused: status 400: {{"error": "no tool' in caplog.text
        server.always = ""
        pipeline(tmp_path, members).run(ASKED)
    assert answered(tmp_path)["counts"]["m: answers"] == 30


def test_a_model_that_refuses_much_is_named_though_the_others_answer(tmp_path):
    with faulty_server(["400", ""], echo="room") as server, faulty_server() as other:
        sound = [entry(other, model=f"sound {n}") for n in range(3)]
        said = (
            r"Model 'picky': 15 of 30 questions brought nothing that can be used, 50\.0%: "
            r'15 x picky: refused \(the first: status 400: {"error": "no room"}\)\. At most 20\.0%'
            ".*retry_refused"
        )
        for _ in range(2):  # a stage that is complete is not taken either
            with pytest.raises(SynthError, match=said):
                pipeline(tmp_path, [*sound, entry(server, model="picky")]).run(ASKED)
        assert sum(server.tries.values()) == 30
        pipeline(tmp_path, [*sound, entry(server, model="picky", retry_refused=True)]).run(ASKED)
        assert sum(server.tries.values()) == 45
    assert answered(tmp_path)["rejected"] == {}


def test_refusals_in_a_row_do_not_end_the_run_once_the_model_has_answered(tmp_path):
    with faulty_server([""] * 4 + ["400"] * 14, echo="room") as server:
        rejected, more = [], {"give_up_after": 5, "concurrency": 1}
        rows, _ = run(server, tmp_path, reject=lambda *why: rejected.append(why[0]), **more)
    assert (len(rows), rejected) == (4, ["m: refused"] * 14)


def test_what_a_model_without_any_answer_is_kept_to_have_refused_is_asked_again(tmp_path):
    """Earlier versions kept it: their caches may be of a server that was set up wrongly."""
    with faulty_server() as server:
        settings = member_settings(entry(server))
        with AnswerCache(tmp_path / "cache.sqlite") as cache:
            for example in examples(18):
                asked = request_body(example, settings, 0, 0)
                cache.put(key("m", asked, 0), "m", {"refused": "status 400: no parser"})
        assert len(run(server, tmp_path)[0]) == 18
