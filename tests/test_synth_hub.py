"""Sources and answers of a hub's data set, pinned to a revision or not."""

import json
import types

import pytest
from synth_files import config, row
from test_row_source import Hub

from toolrm_jax.errors import InputError
from toolrm_jax.row_source import RowSourceError
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.sources import check_options, open_source


class Revisions(Hub):
    """The same hub with rows: of each commit its own; "v1" and "main" are names of commits."""

    def __init__(self, monkeypatch, rows, **names):
        super().__init__(monkeypatch)
        self.rows, self.names = rows, names

    def dataset_info(self, name, *, revision, timeout):
        return types.SimpleNamespace(sha=self.names[revision or "main"])

    def load(self, path, **options):
        super().load(path, **options)
        return _Rows(self.rows[options["revision"]])


class _Rows(list):
    info = types.SimpleNamespace(splits=None)


def made_of(run, stage):
    return json.loads((run / stage / "summary.json").read_text())["content"]


def test_a_pinned_source_stays_what_it_is_when_the_hub_moves_on(tmp_path, monkeypatch, capsys):
    rows = {"a" * 40: [row(n) for n in range(5)], "b" * 40: [row(n) for n in range(9)]}
    hub = Revisions(monkeypatch, rows, v1="a" * 40, main="a" * 40)

    def examples(options):
        source = {"name": "s", "format": "normalised", "path": "org/name", "options": options}
        Pipeline(config(tmp_path, sources=(source,)), tmp_path / "run").run(("examples",))
        return capsys.readouterr().out.splitlines()[-1]

    assert examples({"revision": "v1"}) == "examples: 5 rows"
    hub.names["main"] = "b" * 40
    assert examples({"revision": "v1"}) == "examples: complete already, 5 rows"
    assert examples({}) == "examples: 9 rows"
    assert examples({"revision": "a" * 40}) == "examples: 5 rows"


def test_replayed_answers_are_of_their_revision(tmp_path, monkeypatch):
    said = {"id": "made/0", "model": "m", "license": "MIT"}
    rows = {"a" * 40: [said | {"text": "Old."}], "b" * 40: [said | {"text": "New."}]}
    rows["c" * 40] = [row(0)]
    Revisions(monkeypatch, rows, v1="a" * 40, main="b" * 40, examples="c" * 40)
    options = {"revision": "examples"}
    source = {"name": "s", "format": "normalised", "path": "org/name", "options": options}
    found = []
    for pinned in ({"revision": "v1"}, {}):
        pool = ({"kind": "replay", "path": "org/answers"} | pinned,)
        settings = config(tmp_path, sources=(source,), **{"answers.pool": pool})
        Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated", "answers"))
        found.append(made_of(tmp_path / "run", "3-answers"))
    assert len(set(found)) == 2


@pytest.mark.parametrize(
    ("form", "loads"),
    [
        *(("xlam", 1), ("xlam_irrelevance", 1), ("normalised", 1), ("openai", 1)),
        *(("toolrm_pairs", 1), ("fc_reward_bench", 1), ("nexusraven", 2)),
    ],
)
def test_every_source_that_a_hub_may_have_can_be_pinned(monkeypatch, form, loads):
    hub = Revisions(monkeypatch, {"a" * 40: [{}]}, v1="a" * 40)
    options = {"license": "MIT"} if form == "openai" else {}
    (found,) = open_source(form, "org/name", revision="v1", **options)
    assert found.reason == "not in the source's form"
    assert [commit for _, commit, *_ in hub.loaded] == ["a" * 40] * loads


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_file_has_no_revision(tmp_path, name):
    (tmp_path / name).write_text("[]")
    with pytest.raises(RowSourceError, match=r"A revision \('v1'\) is of a hub's data set"):
        list(open_source("normalised", tmp_path / name, revision="v1"))


def test_a_revision_is_text():
    with pytest.raises(InputError, match="source 'xlam': revision=7; expected text"):
        check_options("xlam", "org/name", {"revision": 7})
