"""Rows: split without shared tools, mix, length balance, repeatability, files."""

import ast
import collections
import importlib
import json
import os
import pathlib
import random
import re

import pytest
from bfcl_samples import CATEGORIES, write_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax import assets, bfcl_pairs
from toolrm_jax.bfcl import CATEGORIES as CATEGORIES_OF_BFCL
from toolrm_jax.bfcl import read_tasks
from toolrm_jax.examples import Example
from toolrm_jax.pair_report import PairReport
from toolrm_jax.pairs import MIX, PairsError, build, pairs_of, read_rows, write_rows
from toolrm_jax.splits import components, join, keys, split
from toolrm_jax.tool_calls import ErrorType, exact_reference, judge

CITIES = ["Oslo", "Rome", "Bern", "Lima", "Kyiv", "Cork", "Nice", "Bath", "Riga", "Doha"]


def synthetic(count):
    """Tasks with one or two calls, each with a tool of its own, and some that call nothing."""
    rng = random.Random(5)
    tasks = []
    for n in range(count):
        tools = [_tool(f"book_trip_{n}", "trip"), _tool(f"cancel_trip_{n}", "cancellation")]
        here, there = rng.sample(CITIES, 2)
        nights = rng.randrange(2, 30)
        text = f"Book a trip from {here} to {there} for {nights} nights, and tell Mr Smith."
        calls = [
            {
                "name": tools[n % 2]["name"],
                "arguments": {"to": city, "nights": nights, "kind": "bus"},
            }
            for city in ((there, here) if n % 3 == 0 else (there,))
        ]
        gold = [] if n % 4 == 3 else calls
        messages = [{"role": "user", "content": text}]
        tasks.append(
            Example(f"own/{n}", "own", "MIT", tools, messages, _open_reference(gold), gold)
        )
    return tasks


def _tool(name, what):
    properties = {
        "to": {"type": "string", "description": "Where to."},
        "nights": {"type": "integer", "description": "How many."},
        "kind": {"type": "string", "enum": ["bus", "train", "ship"]},
        "insured": {"type": "boolean", "default": False},
        "meals": {"type": "string", "enum": ["none", "half", "full"], "default": "none"},
    }
    parameters = {"type": "object", "properties": properties, "required": ["to"]}
    return {"name": name, "description": what, "parameters": parameters}


def _open_reference(gold):
    wanted = exact_reference(gold)
    for call in wanted:
        call["arguments"] |= {"insured": ["", False], "meals": ["", "none"]}
    return wanted


@pytest.fixture(scope="module")
def built():
    tasks = synthetic(400)
    return {task.id: task for task in tasks}, *build(tasks, seed=3)


def test_train_and_heldout_share_no_task_and_no_tool(built):
    _, train, heldout, report = built
    for of in (lambda row: {row["id"]}, lambda row: {tool["name"] for tool in row["tools"]}):
        assert not set().union(*map(of, train)) & set().union(*map(of, heldout))
    assert report.train.task_ids == [row["id"] for row in train]
    assert report.heldout.task_ids == [row["id"] for row in heldout]


def test_the_right_side_is_right_and_every_wrong_side_is_wrong_as_it_says(built):
    tasks, train, heldout, _ = built
    for row, right, wrong, error in pairs_of(train + heldout):
        task = tasks[row["id"]]
        assert judge(right, task.reference, task.tools).right
        assert judge(wrong, task.reference, task.tools).error_type == error


def test_wrong_responses_of_a_prompt_are_distinct_and_at_most_k(built):
    tasks, train, *_ = built
    for row in train:
        seen = {json.dumps(wrong["response"], sort_keys=True) for wrong in row["rejected"]}
        assert len(seen) == len(row["rejected"]) <= 3
    assert max(len(row["rejected"]) for row in train) == 3
    one, *_ = build(list(tasks.values()), seed=3, wrong_per_task=1)
    assert {len(row["rejected"]) for row in one} == {1}


def test_the_mix_and_the_lengths_are_met(built):
    *_, report = built
    for error, share in report.train.wanted.items():
        assert report.train.got[error] / report.train.wrong == pytest.approx(share, abs=0.02)
    assert sum(report.train.got.values()) == sum(report.train.kinds.values())
    # Calls left out make the right side the longer, so their number is left alone here. Of the
    # others, the surplus of longer right sides is a tenth at most, or three pairs of a rare type.
    for error in set(MIX) - {ErrorType.CALL_COUNT}:
        count = report.train.got[error]
        surplus = 2 * report.train.right_longer[error] - count
        assert abs(surplus) <= max(3, 0.1 * count), error


def test_few_corruptions_are_discarded_and_all_are_counted(built):
    *_, report = built
    assert report.discarded.total() < 0.05 * report.made.total()
    assert set(report.train.kinds) <= set(report.made)


def test_tasks_that_call_nothing_are_cut_to_their_share_and_counted(built):
    tasks, train, heldout, report = built
    assert report.train.no_call_tasks == sum(not tasks[row["id"]].gold for row in train)
    for side, rows in ((report.train, train), (report.heldout, heldout)):
        assert side.no_call_tasks / len(rows) == pytest.approx(0.06, abs=0.01)
    left_out = report.left_out + report.train.left_out + report.heldout.left_out
    assert len(train) + len(heldout) + left_out.total() == 400


def test_silence_is_as_often_wrong_as_right(built):
    _, train, heldout, report = built
    for side, rows in ((report.train, train), (report.heldout, heldout)):
        kinds = [wrong["kind"] for row in rows for wrong in row["rejected"]]
        assert side.silence["silent"] == kinds.count("invented_call") > 0
        assert side.silence["calling"] == kinds.count("no_call")
        assert side.silence["calling"] == pytest.approx(side.silence["silent"], abs=3)


def test_the_number_of_arguments_tells_little_of_a_wrong_value(built):
    _, train, *_ = built
    counts = [
        [sum(len(call["arguments"]) for call in calls) for calls in (right, wrong)]
        for _, right, wrong, error in pairs_of(train)
        if error == ErrorType.VALUE
    ]
    more = sum(right > wrong for right, wrong in counts)
    fewer = sum(right < wrong for right, wrong in counts)
    assert more > 10
    assert more / (more + fewer) == pytest.approx(0.5, abs=0.1)


def test_right_answers_sometimes_spell_out_what_may_be_left_out(built):
    _, train, *_ = built
    spelled = [
        "meals" in call["arguments"]
        for row in train
        if isinstance(row["chosen"], list)
        for call in row["chosen"]
    ]
    assert 0.1 < sum(spelled) / len(spelled) < 0.5


def test_a_turn_that_calls_nothing_is_sometimes_empty_and_sometimes_in_words():
    _, train, *_ = (None, *build(synthetic(400), seed=3, no_call_share=0.2))
    turns = [row["chosen"] for row in train if isinstance(row["chosen"], str)]
    assert 0.25 < sum(turn == "" for turn in turns) / len(turns) < 0.75


def test_rows_depend_on_the_seed_and_the_tasks_but_not_on_their_order(built):
    tasks, train, heldout, report = built
    shuffled = list(tasks.values())
    random.Random(9).shuffle(shuffled)
    again = build(shuffled, seed=3)
    assert json.dumps(again[:2]) == json.dumps((train, heldout))
    assert again[2].to_json() == report.to_json()
    assert build(shuffled, seed=4)[0] != train


def test_the_report_prints_every_error_type_and_every_discard_and_is_plain_json(built):
    *_, report = built
    assert all(str(error) in report.table() for error in MIX)
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    made = collections.Counter({"near_date": 200, "cut_text": 50, "scale": 7})
    printed = PairReport(made=made, discarded=collections.Counter(near_date=2, cut_text=1)).table()
    assert "discarded by the judge: 1.17% of 257 made" in printed
    assert re.search(r"cut_text +2\.00%  \(1 of 50\)\n +near_date +1\.00%  \(2 of 200\)", printed)
    assert "scale" not in printed


def test_the_bundled_samples_build(tmp_path):
    tasks, _ = read_tasks(write_samples(tmp_path / "data"), CATEGORIES)
    train, heldout, _ = build(tasks, seed=0, heldout_share=0.3, no_call_share=0.5)
    assert len(train) + len(heldout) == len(tasks)


# Splits


@settings(deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=40),
    st.integers(0, 5),
)
def test_any_split_keeps_components_whole(catalogues, seed):
    tasks = [
        Example(f"t/{n}", "t", "MIT", [{"name": f"f{i}"} for i in sorted(tools)], [], [], [])
        for n, tools in enumerate(catalogues)
    ]
    train, heldout = split(tasks, seed=seed, heldout_share=0.3)
    assert sorted(t.id for t in train + heldout) == sorted(t.id for t in tasks)
    assert len(heldout) <= 0.3 * len(tasks) + 0.5
    sides = {task.id: side for side, tasks in enumerate((train, heldout)) for task in tasks}
    for group in components(tasks):
        assert len({sides[task.id] for task in group}) == 1


def of_tools(task_id, *names, request=""):
    messages = [{"role": "user", "content": request}]
    return Example(task_id, "t", "MIT", [{"name": name} for name in names], messages, [], [])


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (of_tools("1", "a.get_area"), of_tools("2", "a.get_area"), True),
        (of_tools("1", "finance.future_value"), of_tools("2", "financials.futureValue"), True),
        (of_tools("1", "f", request="3x^2 + 2x?"), of_tools("2", "g", request="3X^2+2x"), True),
        (of_tools("1", "a.get_area"), of_tools("2", "a.get_volume"), False),
        (of_tools("1", "f", request="Hi"), of_tools("2", "g", request="Ho"), False),
    ],
)
def test_tasks_hang_together_by_tool_by_last_segment_and_by_request(one, other, together):
    assert len(components([one, other])) == (1 if together else 2)


def test_other_tasks_join_the_side_they_hang_on_and_none_that_hangs_on_both():
    sides = [[of_tools("1", "a")], [of_tools("2", "b")]]
    others = [of_tools("3", "a"), of_tools("4", "b"), of_tools("5", "a", "b"), of_tools("6", "a")]
    others += [of_tools(str(n), f"x{n}") for n in range(7, 10)]
    left = join(sides, others, [2, 3], seed=0)
    assert sum(left.values()) == 2 + len(others) - 7
    assert left["they share a tool or request with both sides"] == 1
    assert [len(side) for side in sides] == [3, 4]
    assert not set.union(*map(keys, sides[0])) & set.union(*map(keys, sides[1]))


def test_a_share_outside_its_range_is_an_error():
    with pytest.raises(ValueError, match=r"heldout_share is 1\.0; expected"):
        split([], seed=0, heldout_share=1.0)
    with pytest.raises(ValueError, match="wrong_per_task is 0; expected at least 1"):
        build([], seed=0, wrong_per_task=0)


# Files


def test_rows_survive_the_file_and_no_half_file_is_left(built, tmp_path):
    _, train, *_ = built
    file = tmp_path / "deep" / "train.jsonl"
    write_rows(file, train)
    assert read_rows(file) == train

    def failing():
        yield train[0]
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_rows(file, failing())
    assert read_rows(file) == train
    assert [entry.name for entry in file.parent.iterdir()] == ["train.jsonl"]


ROW = {
    "id": "a",
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "messages": [{"role": "user", "content": "hi"}],
    "chosen": "",
    "rejected": [{"response": [], "error_type": "Parsing error", "kind": "x"}],
}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: expected one JSON object a line"),
        ("[]", "line 2: expected an object, found list"),
        (json.dumps({**ROW, "id": 3}), "line 2: expected a string under 'id', found 3"),
        (json.dumps({**ROW, "messages": []}), "line 2: expected at least one message"),
        (json.dumps({**ROW, "chosen": None}), "line 2: .* under 'chosen', found None"),
        (json.dumps({**ROW, "rejected": []}), "line 2: 'rejected' is empty"),
        (json.dumps({**ROW, "rejected": ["x"]}), r"line 2: .*'rejected\[0\]', found 'x'"),
        (
            json.dumps({**ROW, "tools": [{"name": "f", "parameters": {"type": "dict"}}]}),
            "line 2: tool 'f': parameters.type",
        ),
    ],
)
def test_a_malformed_row_gets_an_error_with_file_and_line(tmp_path, line, said):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + line + "\n")
    with pytest.raises(PairsError, match=f"rows.jsonl, {said}"):
        read_rows(file)


def test_a_missing_or_empty_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl not found"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(PairsError, match="expected at least one row"):
        read_rows(tmp_path / "empty.jsonl")


# BFCL's pairs


def imports_of(module):
    tree = ast.parse(pathlib.Path(module.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    package = [alias.name for node in nodes if node.module == "toolrm_jax" for alias in node.names]
    inner = [node.module or "" for node in nodes]
    return {
        *package,
        *(name.removeprefix("toolrm_jax.") for name in inner if "toolrm_jax." in name),
    }


def test_the_digest_covers_every_module_that_makes_the_pairs():
    todo, seen = {"pairs", "bfcl"}, set()
    while todo:
        name = todo.pop()
        seen.add(name)
        todo |= imports_of(importlib.import_module(f"toolrm_jax.{name}")) - seen
    assert seen == {path.stem for path in bfcl_pairs.GENERATORS}


@pytest.fixture
def small_bfcl(tmp_path, monkeypatch):
    """BFCL's data directory replaced by a few samples, one of which is dropped."""
    data_dir = write_samples(tmp_path / "data")
    for category in CATEGORIES_OF_BFCL:
        for folder in ("", "possible_answer/"):
            file = data_dir / f"{folder}BFCL_v4_{category}.json"
            if not file.exists():
                file.write_text("")
    file = data_dir / "BFCL_v4_irrelevance.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["function"] = []
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    monkeypatch.setattr(bfcl_pairs, "fetch", lambda: None)
    monkeypatch.setattr(bfcl_pairs, "bfcl_data_dir", lambda: data_dir)
    return tmp_path / "pairs"


def test_pairs_are_built_once_and_dropped_tasks_are_reported(small_bfcl, capsys):
    files = bfcl_pairs.ensure_pairs(small_bfcl)
    assert "left out: " in (printed := capsys.readouterr().out)
    assert "1 no tools" in printed
    assert json.loads(files.report.read_text())["left_out"]["no tools"] == 1
    assert {file.name for file in small_bfcl.iterdir()} == {
        "train.jsonl",
        "heldout.jsonl",
        "report.json",
    }
    before = os.stat(files.train).st_mtime_ns
    assert bfcl_pairs.ensure_pairs(small_bfcl) == files
    assert os.stat(files.train).st_mtime_ns == before
    assert not capsys.readouterr().out


@pytest.mark.parametrize("change", ["seed", "generator", "version", "older report"])
def test_pairs_of_other_settings_or_of_another_generator_are_built_anew(
    small_bfcl, monkeypatch, tmp_path, capsys, change
):
    files = bfcl_pairs.ensure_pairs(small_bfcl)
    capsys.readouterr()
    seed = 1 if change == "seed" else 0
    if change == "generator":
        changed = tmp_path / "pairs.py"
        changed.write_text("changed")
        monkeypatch.setattr(bfcl_pairs, "GENERATORS", (changed, *bfcl_pairs.GENERATORS[1:]))
    if change == "version":
        monkeypatch.setitem(bfcl_pairs.WHEELS, "bfcl-eval", "1999.1.1")
    if change == "older report":
        files.report.write_text("{}")
    bfcl_pairs.ensure_pairs(small_bfcl, seed=seed)
    assert "train: " in capsys.readouterr().out


# The real tasks


@pytest.fixture(scope="module")
def real():
    try:
        data_dir = assets.bfcl_data_dir()
    except assets.AssetError as error:
        pytest.skip(f"BFCL's data is not here: {error}")
    tasks, dropped = read_tasks(data_dir)
    return tasks, dropped, *build(tasks, seed=0)


@pytest.mark.slow
def test_the_real_tasks_are_read_split_and_corrupted_as_promised(real):
    tasks, dropped, train, heldout, report = real
    assert len(tasks) > 3500
    assert dropped.total() < 40
    assert len(heldout) > 400
    for kind in report.made:
        assert report.discard_rate(kind) < 0.05, kind
    for side in (report.train, report.heldout):
        assert set(side.got) == set(MIX)
        for error, share in side.wanted.items():
            assert side.got[error] / side.wrong == pytest.approx(share, abs=0.02)
    sides = [set().union(*(keys_of_row(row) for row in rows)) for rows in (train, heldout)]
    assert not sides[0] & sides[1]


def keys_of_row(row):
    """What no two sides may share: ids, tools, last segments of their names, requests."""
    names = {tool["name"] for tool in row["tools"]}
    segments = {"." + name.rpartition(".")[2].lower().replace("_", "") for name in names}
    texts = [m["content"] for m in row["messages"] if m["role"] == "user"]
    return {row["id"], *names, *segments, "".join(re.findall(r"\w+", " ".join(texts).lower()))}


# A dropped call or optional argument makes the right side the longer, and an argument too many
# the shorter; what can be balanced is.
LOOSER = {
    ErrorType.CALL_COUNT: 0.12,
    ErrorType.MISSING_OPTIONAL: 0.1,
    ErrorType.UNEXPECTED: 0.15,
    ErrorType.PARSING: 0.1,
}


@pytest.mark.slow
@pytest.mark.parametrize("error", MIX)
def test_length_tells_little_within_an_error_type(real, error):
    *_, report = real
    for side in (report.train, report.heldout):
        allowed = LOOSER.get(error, 0.05)
        assert side.share_right_longer(error) == pytest.approx(0.5, abs=allowed)


@pytest.mark.slow
def test_what_the_form_alone_gives_away_is_balanced_over_the_real_tasks(real):
    *_, report = real
    for side in (report.train, report.heldout):
        assert side.silence["calling"] == pytest.approx(side.silence["silent"], abs=3)
        names = side.kinds["renamed_tool"] + side.kinds["sibling_tool"]
        assert side.kinds["renamed_tool"] < 0.15 * names
