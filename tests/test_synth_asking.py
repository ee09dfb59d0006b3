"""A synthesis that asks servers: killed, left with open questions, told to ask again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
from faulty_server import faulty_server
from synth_files import config, contents, row, write_rows
from test_synth_endpoint import FAST

from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.shards import read_shard
from toolrm_jax.synth.stage import StageError
from toolrm_jax.synth.synth_config import SynthError

ASKING = """
import sys
from pathlib import Path
from synth_files import config
from test_synth_endpoint import FAST
from toolrm_jax.synth.pipeline import Pipeline
made = config(Path(sys.argv[1]), shard_rows=10)
entry = {"kind": "endpoint", "model": "m", "license": "MIT", "url": sys.argv[4], "samples": 2}
made.answers.pool = (entry | FAST, {"kind": "corruption"})
made.answers.cache = sys.argv[3]
Pipeline(made, sys.argv[2]).run()
"""


def test_a_run_that_asks_and_is_killed_ends_with_the_files_of_one_that_was_not(tmp_path):
    """SIGKILL while a server with faults is asked; what differs is said, and not in the files."""
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(45)])
    path = os.pathsep.join((str(tiny.ROOT), str(tiny.ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": path}
    with faulty_server(["", "500", "", "truncated", "html"], delay=0.01) as server:

        def start(name: str, cache: str = "cache.sqlite") -> subprocess.Popen:
            where = [str(source), str(tmp_path / name), str(tmp_path / cache), server.url]
            command = [sys.executable, "-c", ASKING, *where]
            return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

        for answered in (20, 50):
            process = start("killed")
            while len(server.answers) < answered and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        resumed = start("killed")
        assert "from cache" in resumed.communicate()[0]
        assert resumed.returncode == 0
        assert len(server.answers) == 90
        twice = sum(n - 1 for n in server.answers.values())
        assert twice <= 2 * 8  # what was under way when a run was killed, at most
        whole = start("whole")
        said = whole.communicate()[0]
        assert whole.returncode == 0
        assert "asked" not in said
        assert sum(server.answers.values()) == 90 + twice
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    card = json.loads((tmp_path / "whole/dataset/card.json").read_text())
    faults = {what: n for what, n in card["asked"]["m"].items() if what.startswith("fault")}
    assert set(faults) == {"fault: status 500", "fault: broken JSON", "fault: another content type"}
    assert "| m | asked |" in (tmp_path / "whole/dataset/README.md").read_text()


def asking(tmp_path, server, **endpoint):
    """A pipeline that asks a server twice for each of 20 examples."""
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(20)])
    made = config(source, shard_rows=5)
    entry = {"kind": "endpoint", "model": "m", "license": "MIT", "url": server.url, "samples": 2}
    made.answers.pool = (entry | FAST | endpoint,)
    return made


def test_questions_that_got_no_answer_are_asked_by_the_next_run(tmp_path):
    # Every third question fails once, and is tried once a run.
    with faulty_server(["500", "", ""]) as server:
        made = asking(tmp_path, server, tries=1)
        with pytest.raises(StageError, match=r"of 40 are still open: .* x m: no answer"):
            Pipeline(made, tmp_path / "run").run()
        assert 3 <= len(server.answers) < 40
        assert not (tmp_path / "run/3-answers/summary.json").exists()
        listed = list(read_shard(tmp_path / "run/rejects-answers.jsonl.zst"))
        assert [reject["reason"] for reject in listed] == ["m: no answer"] * (
            40 - len(server.answers)
        )
        Pipeline(made, tmp_path / "run").run(("answers",))
        assert set(server.answers.values()) == {1}
        assert len(server.answers) == 40
        assert list(read_shard(tmp_path / "run/rejects-answers.jsonl.zst")) == []


def test_a_budget_that_is_used_up_may_be_raised_or_accepted(tmp_path):
    with faulty_server() as server:
        made = asking(tmp_path, server, budget_requests=30)
        with pytest.raises(StageError, match="10 of 40 are still open: 10 x m: over budget"):
            Pipeline(made, tmp_path / "run").run()
        with made.unlocked():
            made.answers.most_open = 0.25
        Pipeline(made, tmp_path / "run").run()
        card = json.loads((tmp_path / "run/dataset/card.json").read_text())
        assert card["stages"]["answers"]["left_open"] == {"m: over budget": 10}
        assert (
            "left open: m: over budget | 10 |" in (tmp_path / "run/dataset/README.md").read_text()
        )
        assert sum(server.answers.values()) == 30
        with made.unlocked():  # what was accepted once is not for good
            made.answers.most_open = 0.0
            made.answers.pool = ({**made.answers.pool[0], "budget_requests": 50},)
        with pytest.raises(SynthError, match="Stage 'answers' is not complete"):
            Pipeline(made, tmp_path / "run").run(("judged",))
        Pipeline(made, tmp_path / "run").run()
        assert set(server.answers.values()) == {1}
        assert len(server.answers) == 40
        summary = json.loads((tmp_path / "run/3-answers/summary.json").read_text())
        assert summary["left_open"] == {}


def test_a_run_says_first_which_models_it_does_not_ask_and_why(tmp_path, capsys):
    with faulty_server() as server:
        made = asking(tmp_path, server)
        asked = made.answers.pool[0]
        with made.unlocked():
            made.answers.pool = (
                asked,
                {**asked, "model": "llama", "license": "llama3.1"},
                {**asked, "model": "no", "permissive": False},
            )
        Pipeline(made, tmp_path / "run").run(("examples", "obfuscated", "answers"))
    said = capsys.readouterr().out
    assert (
        "answers: llama is not asked: license='llama3.1' is not known as permissive; "
        "permissive=True in its entry vouches for it\n"
        "answers: no is not asked: its entry says permissive=False\n"
    ) in said
    assert said.index("llama is not asked") < said.index("m: asked")


def test_what_a_server_refused_is_asked_again_where_that_is_wanted(tmp_path):
    with faulty_server(["400", "", "", "", "", ""]) as server:
        made = asking(tmp_path, server)
        Pipeline(made, tmp_path / "run").run()
        assert len(server.answers) < 40
        with made.unlocked():
            made.answers.pool = ({**made.answers.pool[0], "retry_refused": True},)
        Pipeline(made, tmp_path / "run").run(("answers",))
        assert len(server.answers) == 40
        assert set(server.answers.values()) == {1}
