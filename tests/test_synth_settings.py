"""What a changed config changes, and what a config is answered with that cannot be right."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_server import faulty_server
from synth_files import config, row, write_rows

from toolrm_jax.errors import InputError
from toolrm_jax.row_source import RowSourceError
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.shards import read_shard
from toolrm_jax.synth.synth_config import SynthError, check


def summary(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "summary.json").read_text())


def rows_of(run: Path, stage: str) -> list[dict]:
    shards = summary(run, stage)["shards"]
    return [found for shard in shards for found in read_shard(run / stage / shard["name"])]


def source(path: Path, form: str = "normalised", **fields: Any) -> dict:
    return {"name": path.name.split(".")[0], "format": form, "path": str(path), **fields}


def chat(*requests: str) -> dict:
    """A dialogue in which nothing is called."""
    turns = [{"role": "user", "content": text} for text in requests]
    said = [m for turn in turns for m in (turn, {"role": "assistant", "content": "I see."})]
    return {"messages": said, "tools": row(0)["tools"]}


def test_another_option_of_an_evaluation_set_redoes_what_is_left_out(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(6)])
    request = row(0)["conversation"][0]["content"]
    held = write_rows(tmp_path / "held.jsonl.gz", [chat(request, "And by bus, if that is so?")])
    for turns, left in (("last", 0), ("all", 1)):
        sets = (source(held, "openai", options={"license": "MIT", "turns": turns}),)
        settings = config(rows, **{"overlap.evaluation": sets})
        Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
        assert summary(tmp_path / "run", "2-obfuscated")["rows"] == 6 - left


def test_of_a_task_in_two_sources_under_one_id_the_first_sources_is_kept(tmp_path):
    """As configs/synth/local.py wants it: with the tools that the models were offered."""
    extra = {"name": "extra", "description": "", "parameters": {"type": "object"}}
    more = [{**row(0), "tools": [*row(0)["tools"], extra]}]
    plain = write_rows(tmp_path / "plain.jsonl.gz", [row(0)])
    other = write_rows(tmp_path / "other.jsonl.gz", more)
    for first, second, tools in ((plain, other, 0), (other, plain, 1)):
        settings = config(first, sources=(source(first), source(second)))
        Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
        (kept,) = rows_of(tmp_path / "run", "2-obfuscated")
        assert len(kept["tools"]) == len(row(0)["tools"]) + tools


def test_two_files_whose_different_rows_have_one_id_lose_none(tmp_path, capsys):
    chats = [chat(row(n)["conversation"][0]["content"]) for n in range(60)]
    files = [
        write_rows(tmp_path / f"{name}.jsonl.gz", some)
        for name, some in (("a", chats[:30]), ("b", chats[30:]), ("c", chats[:1]))
    ]
    sources = tuple(source(file, "openai", options={"license": "MIT"}) for file in files)
    settings = config(files[0], sources=sources)
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
    assert "obfuscated: 60 rows; left out: 1 x the same id\n" in capsys.readouterr().out
    ids = [found["id"] for found in rows_of(tmp_path / "run", "2-obfuscated")]
    assert sorted(ids) == sorted(f"{name}/openai/{n}/1" for name in "ab" for n in range(1, 31))


@pytest.mark.parametrize("near", [False, True])
def test_rows_of_one_file_that_have_one_id_are_told_apart_but_for_the_same(tmp_path, near):
    rows = [row(n) | {"id": "one"} for n in (0, 3, 6, 0)] + [row(9) | {"id": "made/one"}]
    file = write_rows(tmp_path / "made.jsonl.gz", rows)
    settings = config(file, **{"overlap.near_duplicates": near})
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
    ids = {found["id"] for found in rows_of(tmp_path / "run", "2-obfuscated")}
    assert ids == {"made/one", "made/one~2", "made/one~3", "made/one~4"}
    counts = summary(tmp_path / "run", "2-obfuscated")["counts"]
    assert counts["left out: the same id"] == 1


def test_what_was_answered_to_an_id_of_two_tasks_is_used_for_neither(tmp_path):
    answer = {"id": "made/0", "model": "m", "license": "MIT", "text": "No."}
    answers = write_rows(tmp_path / "answers.jsonl.gz", [answer, answer | {"id": "made/3"}])
    files = [
        write_rows(tmp_path / f"{name}.jsonl.gz", rows)
        for name, rows in (("a", [row(0), row(3)]), ("b", [row(6) | {"id": "made/0"}]))
    ]
    pool = ({"kind": "replay", "path": str(answers)},)
    settings = config(files[0], sources=tuple(map(source, files)), **{"answers.pool": pool})
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated", "answers"))
    found = {r["id"]: len(r["answers"]) for r in rows_of(tmp_path / "run", "3-answers")}
    assert found == {"a/made/0": 0, "made/3": 1, "b/made/0": 0}


def test_nor_is_it_where_one_of_the_two_is_kept_under_the_id_of_its_repeat(tmp_path):
    answer = {"model": "m", "license": "MIT", "text": "No."}
    answers = write_rows(tmp_path / "answers.jsonl.gz", [answer | {"id": i} for i in "xxxy"])
    rows = [row(0) | {"id": "x"}, row(0) | {"id": "y"}, row(3) | {"id": "x"}]
    file = write_rows(tmp_path / "rows.jsonl.gz", rows)
    pool = ({"kind": "replay", "path": str(answers)},)
    Pipeline(config(file, **{"answers.pool": pool}), tmp_path / "run").run(
        ("examples", "obfuscated", "answers")
    )
    assert sorted(len(r["answers"]) for r in rows_of(tmp_path / "run", "3-answers")) == [0, 1]


def test_the_card_is_written_anew_where_the_pairs_are_the_same_but_not_what_it_tells(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(60)])
    apart = write_rows(tmp_path / "apart.jsonl.gz", [chat("Is it far to the sea?")])
    more = write_rows(
        tmp_path / "more.jsonl.gz", [*(row(n) for n in range(60)), row(60) | {"tools": []}]
    )
    run, sets = tmp_path / "run", (source(apart, "openai", options={"license": "MIT"}),)
    pairs, cards = set(), []
    for file, changed in ((rows, {}), (rows, {"overlap.evaluation": sets}), (more, {})):
        Pipeline(config(file, **changed), run).run()
        pairs.add(summary(run, "5-pairs")["content"])
        cards.append(json.loads((run / "dataset/card.json").read_text()))
    assert len(pairs) == 1
    assert [len(card["config"]["overlap"]["evaluation"]) for card in cards] == [0, 1, 0]
    assert [card["stages"]["examples"]["rejected"] for card in cards] == [{}, {}, {"no tools": 1}]
    assert "| examples | no tools | 1 |" in (run / "dataset/README.md").read_text()


def test_rejects_and_empty_files_are_told_of_each_source(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(30)])
    empty = write_rows(tmp_path / "empty.jsonl.gz", [])
    broken = write_rows(tmp_path / "broken.jsonl.gz", [row(30), "no JSON"])
    for file, said in (
        (empty, "Source 'empty' has no example: 0 were read of"),
        (broken, r"Source 'broken': 1 of 2 that were read were rejected, 50\.0%; at most 20\.0%"),
    ):
        settings = config(rows, sources=(source(rows), source(file)))
        with pytest.raises(SynthError, match=said):
            Pipeline(settings, tmp_path / "run").run()
        with pytest.raises(SynthError, match=said):  # nor does a later stage take it
            Pipeline(settings, tmp_path / "run").run(("obfuscated",))
    settings = config(rows, sources=(source(rows), source(broken)), most_rejects=0.5)
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))


def test_a_run_without_pairs_fails_and_leaves_the_data_set_that_is_there(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(30)])
    run = tmp_path / "run"
    Pipeline(config(rows), run).run()
    before = (run / "dataset/card.json").read_text()
    answer = {"id": "another", "model": "m", "license": "MIT", "text": "No."}
    answers = write_rows(tmp_path / "answers.jsonl.gz", [answer])
    settings = config(rows, **{"answers.pool": ({"kind": "replay", "path": str(answers)},)})
    said = (
        "No pair was chosen.*answers: 30 rows; left out: 1 x replay: to examples that were left "
        "out, or are of no source.*pairs: 0 rows; left out: 30 x examples without a wrong answer"
    )
    for _ in range(2):
        with pytest.raises(SynthError, match=said):
            Pipeline(settings, run).run()
    assert (run / "dataset/card.json").read_text() == before


def test_what_a_later_stage_could_not_open_or_replace_is_found_before_the_first(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(0)])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("Not to be lost.")
    absent, pool = tmp_path / "absent.jsonl", "answers.pool"
    for fields, error, said in (
        ({"overlap.evaluation": (source(absent),)}, RowSourceError, "No input at .*absent.jsonl"),
        ({pool: ({"kind": "replay", "path": str(absent)},)}, RowSourceError, "No input at"),
        (
            {"output.folder": str(tmp_path / "mine")},
            FileExistsError,
            "holds files but no card.json, so it is no data set to be replaced",
        ),
    ):
        pipeline = Pipeline(config(rows, **fields), tmp_path / "run")
        with pytest.raises(error, match=said):
            pipeline.run()
        assert not (tmp_path / "run").exists()


GOOD = {"name": "a", "format": "normalised", "path": "a.gz"}
ENDPOINT = {"kind": "endpoint", "model": "m", "license": "MIT", "url": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sources": ("abc",)}, r"config.sources\[0\]: expected an object .*, found 'abc'"),
        ({"sources": ({**GOOD, "obfuscate": "0.5"},)}, r"\[0\].obfuscate='0.5': it must be a numb"),
        ({"sources": (GOOD, {**GOOD, "path": 3})}, r"config.sources\[1\].path=3: it must be text"),
        ({"sources": ({**GOOD, "options": "x"},)}, "options='x': it must be an object"),
        ({"overlap.evaluation": ({**GOOD, "format": "norm"},)}, "No source is called 'norm'"),
        ({"overlap.evaluation": ({**GOOD, "options": {"x": 1}},)}, "unexpected keyword argument"),
        ({"answers.pool": ("corruption",)}, r"answers.pool\[0\]: expected an object"),
        ({"selection.quotas.single": -1}, "quotas.single=-1: it must be a whole number, 0 or more"),
        ({"selection.model_cap": -0.1}, "model_cap=-0.1: expected 0 to 1"),
        ({"selection.model_caps": (("corruption", 2.0),)}, "'corruption'=2.0: expected 0 to 1"),
        ({"selection.error_caps": (("Parsing error", -1.0),)}, "expected 0 to 1"),
        ({"selection.mix": (("Parsing error", -1.0), ("Unexpected parameter", 2.0))}, "0 or more"),
        ({"selection.mix": ("Parsing error",)}, r"mix\[0\]='Parsing error': expected a name"),
        ({"selection.mix": ("Parsing error", 0.5)}, "mix.0.='Parsing error': expected a name and"),
        ({"selection.error_caps": (("Parsing error", "x"),)}, r"error_caps\[0\]=.*expected a name"),
        ({"selection.model_caps": (("corruption",),)}, r"model_caps\[0\]=.*expected a name"),
        ({"most_rejects": 2}, "config.most_rejects=2.0: it is a share, from 0 to 1"),
        ({"most_rejects": -0.1}, "config.most_rejects=-0.1: it is a share"),
        ({"answers.most_open": 5}, "config.answers.most_open=5.0: it is a share, from 0 to 1"),
        ({"answers.cache": "gs://bucket/a.sqlite"}, "config.answers: cache=gs://.* is in a buck"),
        ({"answers.cache": "gs:/bucket/a.sqlite"}, "config.answers: gs:/bucket.*slash is missing"),
        ({"answers.pool": (ENDPOINT, ENDPOINT)}, "config.answers: Two endpoints .* the name 'm'"),
        ({"selection.model_caps": (("n", 0.5),)}, "'n', which no member .*expected of: corruption"),
        ({"selection.model_caps": (("corruption", 0.5),), "answers.pool": (ENDPOINT,)}, "of: m."),
        ({"selection.model_cap": 0.4}, "model_cap=0.4: .* 1 members .* add up to 40% of the pairs"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(fields, said):
    with pytest.raises(SynthError, match=said):
        check(config(Path("a.gz"), **fields))


REPLAY = {"kind": "replay", "path": "a.gz"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({**REPLAY, "rows_a_group": "4"}, "of a.gz: rows_a_group='4'; expected a whole number, at"),
        ({**REPLAY, "no_call_share": "x"}, "no_call_share='x'; expected 0 to 1"),
        ({**REPLAY, "min_right_rate": None}, "min_right_rate=None; expected 0 to 1"),
        ({**REPLAY, "sound_gold": "no"}, "sound_gold='no'; expected True or False"),
        ({**REPLAY, "path": 3}, "path=3; expected a name"),
        ({**ENDPOINT, "samples": 1.5}, "samples=1.5; expected a whole number"),
        ({**ENDPOINT, "budget_requests": "9"}, "budget_requests='9'; expected a whole number, or"),
    ],
)
def test_a_member_of_the_pool_that_cannot_be_right_is_refused(entry, said):
    with pytest.raises(InputError, match=said):
        check(config(Path("a.gz"), **{"answers.pool": (entry,)}))


def test_what_this_machine_lacks_is_found_before_the_first_stage(tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(6)])
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.sqlite").write_text("This is no database, but a text of some length." * 20)
    (tmp_path / "empty").mkdir()
    keyed = {**ENDPOINT, "key_variable": "THE_KEY"}
    empty = {"name": "held", "format": "normalised", "path": str(tmp_path / "empty")}

    def refused(said, **fields):
        with pytest.raises(InputError, match=said):
            Pipeline(config(rows, **fields), tmp_path / "run").run()
        assert not (tmp_path / "run").exists()

    pool = "answers.pool"
    refused("the environment's THE_KEY is not set", **{pool: (keyed,)})
    caches = {"file/answers.sqlite": "Not a directory|File exists", "bad.sqlite": "not a database"}
    for name, said in caches.items():
        cache = {"answers.cache": str(tmp_path / name)}
        refused(
            f"cache {tmp_path / name} cannot be used: .*({said})", **{pool: (ENDPOINT,)} | cache
        )
    refused("empty.* is a folder, and as a data set", **{"overlap.evaluation": (empty,)})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "httpx", None)
        refused(r"needs httpx: pip install 'toolrm_jax\[synth\]'", **{pool: (ENDPOINT,)})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        refused(r"plots need matplotlib. Run: pip install 'toolrm_jax\[synth\]'")


def test_a_key_is_wanted_only_by_a_run_that_asks(tmp_path, monkeypatch):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(6)])
    barred = {**ENDPOINT, "model": "other", "license": "llama3.1", "key_variable": "OTHER_KEY"}
    monkeypatch.setenv("THE_KEY", "secret")
    with faulty_server() as server:
        keyed = {**ENDPOINT, "url": server.url, "key_variable": "THE_KEY"}
        settings = config(rows, **{"answers.pool": (keyed, barred)})
        Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated", "answers"))
    monkeypatch.delenv("THE_KEY")
    Pipeline(settings, tmp_path / "run").run(("answers", "judged"))
    with pytest.raises(InputError, match="THE_KEY is not set"):
        Pipeline(settings, tmp_path / "other").run(("examples", "obfuscated", "answers"))


def test_no_stage_at_all_is_told(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(0)])
    with pytest.raises(SynthError, match="--stages names no stage; there are examples, obfus"):
        Pipeline(config(rows), tmp_path / "run").run([])


def test_a_cap_of_a_model_that_nothing_was_replayed_of_is_told(tmp_path, capsys):
    rows = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(12)])
    answer = {"id": "made/0", "model": "m", "license": "MIT", "text": "No."}
    answers = write_rows(tmp_path / "answers.jsonl.gz", [answer])
    pool = ({"kind": "corruption"}, {"kind": "replay", "path": str(answers)})
    caps = (("m", 0.5), ("typo", 0.5))
    settings = config(rows, **{"answers.pool": pool, "selection.model_caps": caps})
    Pipeline(settings, tmp_path / "run").run()
    assert "pairs: no wrong answer is of typo (model_caps)" in capsys.readouterr().out
