"""Pairs in the terminal: what is marked, what can be asked for, and what is said if it is not."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_gcs import FakeGcs
from synth_files import config, finished_run, row, write_rows

from toolrm_jax.synth import show
from toolrm_jax.synth.output import dataset_rows
from toolrm_jax.synth.pipeline import Pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("synth"))


def test_show_marks_what_differs(made, capsys):
    assert show.main([str(made), "--error-type", "Parameter value error", "--limit", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("right    ") >= 2
    assert "[-" in shown
    assert "{+" in shown
    assert "Parameter value error" in shown
    assert "Incorrect function name" not in shown


def test_show_says_whose_the_right_side_is():
    sides = {"chosen": [], "rejected": [{"response": "No.", "model": "wrong one"}]}
    row_ = {"id": "a", "tools": [], "messages": [], **sides}
    by = {"model": "right one", "license": "MIT"}
    assert "of right one" in show.pair_text({**row_, "chosen_by": by}, show.Style(False))
    assert "of right one" not in show.pair_text({**row_, "chosen_by": None}, show.Style(False))


def test_show_says_what_it_cannot_find(made, tmp_path, capsys):
    assert show.main([str(tmp_path)]) == 1
    assert "error: No data set at" in capsys.readouterr().err
    assert show.main([str(made), "--id", "absent"]) == 1
    assert "No pair matches. --id: no row has the id 'absent'." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--source", "mead", "--source: there is no 'mead'. Did you mean 'made'? There are: "),
        ("--kind", "near", "--kind: there is no 'near'. Did you mean 'near_number'? There are: "),
        ("--model", "gpt", "--model: there is no 'gpt'. There are: 'corruption'."),
        ("--turn", "single", "No pair matches all of --turn, --kind."),
    ],
)
def test_show_says_what_there_is_of_what_was_asked_for(made, capsys, option, value, said):
    kind = ["--kind", "invented_call"] if option == "--turn" else []
    assert show.main([str(made), option, value, *kind]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--turns", "--lines"])
def test_show_refuses_a_number_below_0(made, capsys, option):
    with pytest.raises(SystemExit):
        show.main([str(made), option, "-1"])
    assert f"argument {option}: '-1': expected a whole number, 0 or more" in capsys.readouterr().err


def test_show_takes_all_turns_for_0_and_says_how_many_it_leaves_out():
    turns = [{"role": "user", "content": f"said {n}"} for n in range(6)]
    row_ = {"id": "a", "tools": [], "messages": turns, "chosen": [], "rejected": []}
    said = [show.pair_text(row_, show.Style(False), turns=turns) for turns in (0, 2, 6, 9)]
    assert [text.count("said") for text in said] == [6, 2, 6, 6]
    assert [re.findall(r"\d+ earlier turns", text) for text in said] == [
        [],
        ["4 earlier turns"],
        [],
        [],
    ]


def test_show_finds_a_pair_by_the_id_that_parquet_has(made, capsys):
    pairs = pq.read_table(made / "dataset/parquet").to_pylist()
    numbered = [pair for pair in pairs if pair["id"].endswith("#1")]
    assert numbered
    for pair in numbered[:5]:
        assert show.main([str(made), "--id", pair["id"]]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(pair["id"].removesuffix("#1") + "   ")
        assert shown.count("\nwrong ") == 1
        assert f"{pair['error_type']}, {pair['kind']}" in shown


def test_show_reads_a_data_set_in_a_bucket(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TOOLRM_CACHE_DIR", str(tmp_path / "cache"))
    assert show.main([str(made / "dataset"), "--limit", "3"]) == 0
    here = capsys.readouterr().out
    with FakeGcs() as store, store.reached():
        store.put_folder(made / "dataset", "sets/first")
        assert show.main(["gs://bucket/sets/first", "--limit", "3"]) == 0
        assert capsys.readouterr().out == here
        assert show.main(["gs://bucket/sets/first", "--reveal"]) == 1
        assert "Name it: --workdir=DIR" in capsys.readouterr().err
        assert show.main(["gs://bucket/sets/first", "--reveal", "--workdir", str(made)]) == 0
        assert show.main(["gs://bucket/sets/none"]) == 1
        assert "No data set at gs://bucket/sets/none" in capsys.readouterr().err


def test_show_says_which_error_types_there_are(made, capsys):
    assert show.main([str(made), "--error-type", "value"]) == 1
    said = capsys.readouterr().err
    assert "Did you mean 'Parameter value type error' or 'Parameter value error'?" in said
    assert "'Incorrect number of function calls'" in said
    assert show.main([str(made), "--error-type", "Missing required paramter"]) == 1
    assert "Did you mean 'Missing required parameter'?" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["k-way", "pairs"])
def test_show_reveals_the_original_names(made, tmp_path, capsys, form):
    workdir = made
    if form == "pairs":
        source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(20)])
        workdir = tmp_path / "run"
        Pipeline(config(source, **{"output.form": form}), workdir).run()
    rows = list(dataset_rows(workdir / "dataset"))
    hidden = [r for r in rows if "find_restaurant" not in {tool["name"] for tool in r["tools"]}]
    assert 0 < len(hidden) < len(rows)
    arguments = [str(workdir), "--limit", "0"]
    assert show.main(arguments) == 0
    plain = capsys.readouterr().out
    assert show.main([*arguments, "--reveal"]) == 0
    shown = capsys.readouterr().out
    tools = re.findall(r"find_restaurant\((\w+\??), (\w+\??), (\w+\??)\)", shown)
    assert [set(names) for names in tools] == [{"city", "dish?", "guests?"}] * len(rows)
    names = [
        name for r in hidden for tool in r["tools"] for name in tool["parameters"]["properties"]
    ]
    assert all(name in plain and name not in shown for name in names)
    # From the data set alone, too, where it lies in its workdir; else the workdir is to be named.
    assert show.main([str(workdir / "dataset"), *arguments[1:], "--reveal"]) == 0
    assert capsys.readouterr().out == shown
    shutil.copytree(workdir / "dataset", tmp_path / "other" / "made")
    arguments[0] = str(tmp_path / "other" / "made")
    assert show.main([*arguments, "--reveal"]) == 1
    assert "Name the workdir: --workdir=DIR" in capsys.readouterr().err
    assert show.main([*arguments, "--reveal", "--workdir", str(workdir)]) == 0
    assert capsys.readouterr().out == shown


def test_show_reveals_no_names_of_another_run(made, tmp_path, capsys):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(150)])
    Pipeline(config(source, seed=7), tmp_path / "run").run(("examples", "obfuscated"))
    arguments = ["--limit", "0", "--reveal", "--workdir", str(tmp_path / "run")]
    assert show.main([str(made), *arguments]) == 1
    assert "of different runs" in capsys.readouterr().err


def test_show_says_which_data_set_it_shows_and_whether_a_later_run_made_another(tmp_path, capsys):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(30)])
    workdir = tmp_path / "run"
    Pipeline(config(source), workdir).run()
    capsys.readouterr()
    assert show.main([str(workdir)]) == 0
    said = capsys.readouterr().err
    assert f"Shown: {workdir / 'dataset'}, made 20" in said
    assert "later run" not in said
    elsewhere = tmp_path / "elsewhere"
    Pipeline(config(source, seed=1, **{"output.folder": str(elsewhere)}), workdir).run()
    capsys.readouterr()
    assert show.main([str(workdir)]) == 0
    assert f"A later run made {workdir / '5-pairs'} anew" in capsys.readouterr().err
    assert show.main([str(elsewhere)]) == 0
    assert capsys.readouterr().err == ""


def test_show_prints_no_control_characters():
    text = show.response_text([{"name": "f\x1b[2J", "arguments": {"x": "\x07"}}])
    assert "\x1b" not in text
    assert "\x07" not in text
