"""Robustness, and filtering of fine-tuning data."""

import collections
import dataclasses
import gzip
import json
import math

import numpy as np
import pytest
from evaluate_rows import (
    TOOL,
    call,
    normal_rows,
    pair_row,
    write,
    write_reward_model,
)
from source_rows import rotbench_row

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate import (
    filtering,
    perturbations,
    report,
    robustness,
)
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.cases import Candidate, Case
from toolrm_jax.evaluate.results import read_run
from toolrm_jax.schema import call_is_valid
from toolrm_jax.score_request import request_of
from toolrm_jax.tool_calls import parse_calls


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("model") / "rm")


# Robustness --------------------------------------------------------------------------------------


CURRENT = {**TOOL, "name": "current", "parameters": {"type": "object", "properties": {}}}


def rich_case(number=0):
    wrong = [*call(day=3), {"name": "current", "arguments": {}}]
    row = pair_row(number, chosen_output=call(port="Brest", day=3), rejected_output=wrong)
    row["conversation"] = [{"role": "user", "content": f'High water at "Brest", day {number}3?'}]
    request = request_of(row)
    candidates = [Candidate(request.responses[0], True), Candidate(request.responses[1], False)]
    return Case(f"t{number}", [TOOL, CURRENT], request.messages, candidates)


@pytest.mark.parametrize("kind", perturbations.KINDS)
def test_what_is_said_otherwise_stays_right_and_wrong(kind):
    others = [dataclasses.replace(rich_case(), tools=[{**TOOL, "name": f"o{n}"}]) for n in range(9)]
    made = rich_case()
    changed = perturbations.perturb(made, kind, others, seed=0)
    assert changed is not None
    assert (changed.tools, changed.messages) != (made.tools, made.messages) or kind == (
        "tools reordered"
    )
    right, wrong = (c.response for c in changed.candidates)
    assert all(call_is_valid(one, changed.tools) for one in right)
    assert not all(call_is_valid(one, changed.tools) for one in wrong)  # the port is missing
    assert list(right[0]["arguments"].values()) == ["Brest", 3]
    assert perturbations.perturb(made, kind, others, seed=0) == changed


@pytest.mark.parametrize("kind", ["tools renamed", "keys paraphrased"])
def test_the_calls_of_answers_that_are_messages_get_the_new_names_too(kind):
    made = rich_case()
    answers = [
        {"role": "assistant", "content": "So:", "tool_calls": call(port="Brest", day=3)},
        call(port="Brest", day=3),
        'So: <tool_call>{"name": "tide", "arguments": {"port": "Brest", "day": 3}}</tool_call>',
    ]
    made = dataclasses.replace(made, candidates=[Candidate(one, True) for one in answers])
    changed = perturbations.perturb(made, kind, [], seed=0)
    message, calls, text = (c.response for c in changed.candidates)
    assert message == {**answers[0], "tool_calls": calls} != answers[0]
    assert all(call_is_valid(one, changed.tools) for one in calls)
    assert parse_calls(text) == calls


def test_praise_of_a_tool_that_both_sides_call_is_left_out():
    made = rich_case(1)
    praised = perturbations.perturb(made, "injected praise", [], seed=0)
    assert ["Rate this" in tool["description"] for tool in praised.tools] == [False, True]
    sides = [Candidate(call(port="Brest"), True), Candidate(call(port="Best"), False)]
    same = dataclasses.replace(made, candidates=sides)
    assert perturbations.perturb(same, "injected praise", [], seed=0) is None
    _, origins = robustness.changed_cases([made, same], 0)
    (note,) = robustness.left_out(origins, 2)
    assert note.endswith("left out: tools added: 2, injected praise: 1.")
    assert robustness.left_out([(0, kind) for kind in perturbations.KINDS], 1) == []


def test_drift_tells_which_pairs_turned_and_how_far_rewards_moved():
    cases = [rich_case(0), rich_case(1)]
    origins = [(0, "unicode"), (1, "unicode")]
    before = {"m": [np.array([1.0, 0.0]), np.array([1.0, 0.0])]}
    after = {"m": [np.array([2.0, 0.0]), np.array([0.0, 1.0])]}
    found = robustness.drift(cases, origins, before, after)["unicode"]["m"]
    assert found == {"accuracy before": 1.0, "accuracy": 0.5, "turned": 0.5, "drift": 2.0}
    after["m"][0][0] = math.nan  # loses, and is not in the mean of what moved
    found = robustness.drift(cases, origins, before, after)["unicode"]["m"]
    assert found == {"accuracy before": 1.0, "accuracy": 0.0, "turned": 1.0, "drift": 2.0}
    after["m"][0][:] = math.nan  # neither side: no pair that is known to have turned or not
    found = robustness.drift(cases, origins, before, after)["unicode"]["m"]
    assert found == {"accuracy before": 1.0, "accuracy": 0.0, "turned": 1.0, "drift": 2.0}


def test_a_model_that_can_score_nothing_does_not_lose_the_run(model, tmp_path):
    data = write(tmp_path / "pairs.jsonl", [pair_row(n) for n in range(20, 22)])
    command = ["robustness", "--model", f"m={model}", "--data", str(data), "--max-tokens", "8"]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32"])
    found = read_run(tmp_path / "run").result
    assert found["drift"]["unicode"]["m"]["drift"] is None
    assert found["drift"]["unicode"]["m"]["accuracy"] is None
    scored = found["scorers"]["m"]
    assert (scored["accuracy"]["mean"], scored["accuracy"]["n"]) == (None, 0)
    assert scored["by"]["category"]["unicode"]["n"] == 0
    assert (scored["unscored"], scored["unscored pairs"]) == (4, 2)
    assert "| m | - | 0 | 0 | 4 | 2 | - | - |" in report.markdown([read_run(tmp_path / "run")])


def test_what_is_told_first_is_of_the_cases_as_they_are(tmp_path):
    rows = [pair_row(n, rejected_output=call(day=n)) for n in range(4)]  # the schema tells
    data = write(tmp_path / "pairs.jsonl", rows)
    levels = [{**row, "meta": {"kind": "heavy"}} for row in normal_rows(3)]
    levels = write(tmp_path / "levels.jsonl", levels)
    command = ["robustness", "--data", str(data), "--levels", str(levels)]
    main([*command, "--output", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    for name, found in run.result["scorers"].items():
        by = found["by"]["category"]
        assert found["accuracy"] == by["as it is"]
        assert found["accuracy"]["n"] == 4
        assert sum(cell["n"] for cell in found["by"]["error type"].values()) == 4
        assert by["heavy"]["n"] > 3
        assert by["unicode"]["mean"] == run.result["drift"]["unicode"][name]["accuracy"]
    # What `compare` and the report's pictures take; the file has all.
    assert [case.category for case in run.cases] == ["as it is"] * 4
    assert len((tmp_path / "run/scores.jsonl").read_text().splitlines()) > 8


def test_rows_that_are_of_no_level_are_rejected_with_their_line(tmp_path):
    first, second = normal_rows(2)
    noisy = {"meta": {"kind": "heavy"}}
    rows = [first | noisy, "{no JSON", "[1]", second, second | {"meta": [1]}, second | noisy]
    found = robustness.read_levels(write(tmp_path / "levels.jsonl", rows), 0)
    assert [case.category for case in found.cases] == ["heavy", "heavy"]
    assert [reject.line for reject in found.rejects] == [2, 3, 4, 5]
    assert found.rejects[2].reason == "expected a level under meta.kind, found None"
    # Two rows of one id are each of their own level.
    rows = [first | {"meta": {"kind": kind}} for kind in ("slight", "heavy")]
    found = robustness.read_levels(write(tmp_path / "levels.jsonl", rows), 0)
    assert [case.category for case in found.cases] == ["slight", "heavy"]
    with pytest.raises(InputError, match="no row is of a level of noise; the first: line 1"):
        robustness.read_levels(write(tmp_path / "levels.jsonl", ["{no JSON"]), 0)


def test_counts_are_of_the_data_and_what_was_scored_beside_is_counted_apart(tmp_path):
    data = write(tmp_path / "pairs.jsonl", [*(pair_row(n) for n in range(6)), "{no JSON"])
    levels = [{**row, "meta": {"kind": kind}} for row in normal_rows(2) for kind in ("a", "b")]
    files = [str(write(tmp_path / f"{n}.jsonl", [*levels[n:], "[1]"])) for n in (0, 2)]
    command = ["robustness", "--data", str(data), "--levels", *files, "--output"]
    main([*command, str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    found, beside = run.result["data"], run.result["beside"]
    assert (found["cases"], found["tasks"], sum(found["rejected"].values())) == (6, 6, 1)
    assert len(run.cases) == 6
    changed = sum(cell["cases"] for cell in run.result["drift"].values())
    assert beside["changed"]["cases"] == changed > 6
    assert beside["changed"]["by category"]["unicode"] == run.result["drift"]["unicode"]["cases"]
    assert beside["levels"]["by category"] == {"a": 3, "b": 3}
    assert beside["levels"]["path"] == ", ".join(files)
    assert sum(beside["levels"]["rejected"].values()) == 2
    lines = (tmp_path / "run/scores.jsonl").read_text().splitlines()
    assert len(lines) == 6 + changed + 6
    rejects = [json.loads(one) for one in (tmp_path / "run/rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in rejects] == [7, 5, 3]
    assert rejects[1]["reason"].startswith(f"levels: {files[0]}: ")
    page = report.markdown([run])
    assert ", 6 cases of 6 tasks; seed 0." in page
    assert "1 rows were rejected" in page
    assert "| cases | 6 |" in page
    assert f"Scored beside them: {changed} changed cases (tools reordered 6, " in page
    assert "6 cases of levels (a 3, b 3); 2 rows of their files were rejected." in page


def test_a_level_by_the_name_of_other_cases_of_the_run_is_rejected(tmp_path):
    rows = [row | {"meta": {"kind": k}} for row in normal_rows(1) for k in ("as it is", "unicode")]
    rows.append(rows[0] | {"meta": {"kind": "slight"}})
    found = robustness.read_levels(write(tmp_path / "levels.jsonl", rows), 0)
    assert [case.category for case in found.cases] == ["slight"]
    assert [reject.line for reject in found.rejects] == [1, 2]


LEVELS = ("clean", "slight", "medium", "heavy", "union")


def test_rotbenchs_own_files_are_of_the_level_in_their_name(tmp_path):
    right = rotbench_row('tr_a\nAction Input: {"word": "cat"}')
    either = rotbench_row('tr_a\nAction Input: {"word": "a"}', 'tr_b\nAction Input: {"word": "a"}')
    files = [tmp_path / f"{level}.json" for level in LEVELS]
    for file in files:
        file.write_text(json.dumps([right, either], indent=1))
    data = write(tmp_path / "pairs.jsonl", [pair_row(n) for n in range(4)])
    command = ["robustness", "--data", str(data), "--output", str(tmp_path / "run")]
    command += ["--levels", str(files[0]), "--levels", *map(str, files[1:])]
    main([*command, "--levels-format", "rotbench"])
    found = read_run(tmp_path / "run").result
    assert found["beside"]["levels"]["by category"] == dict.fromkeys(LEVELS, 1)
    reasons = found["beside"]["levels"]["rejected"]
    assert len(reasons) == 5
    assert all("several different calls are right" in reason for reason in reasons)
    for scored in found["scorers"].values():
        assert set(LEVELS) < set(scored["by"]["category"])
    with pytest.raises(SystemExit, match="RoTBench's own files, give --levels-format rotbench"):
        main(command)


def test_real_levels_of_noise_are_a_category_each(toolrm_data):
    """The figures are those of the docs. Of RoTBench's own files the folder has some levels."""
    rows = robustness.read_levels(toolrm_data / "data/eval/rotbench_first_turn_test.jsonl.gz", 0)
    counts = collections.Counter(case.category for case in rows.cases)
    assert counts == {"clean": 75, "slight": 151, "medium": 151, "heavy": 148, "union": 76}
    reasons = collections.Counter(reject.reason.partition(":")[0] for reject in rows.rejects)
    assert sorted(reasons.values()) == [2, 8, 21, 208]
    files = sorted((toolrm_data / "data/raw/rotbench").glob("*.json"))
    assert files
    for file in files:
        found = robustness.read_levels(file, 0, "rotbench")
        assert {case.category for case in found.cases} == {file.stem}
        assert len(found.cases) > 75
        assert all(len(case.candidates) == 4 for case in found.cases)


def test_levels_of_noise_and_changes_are_told_by_one_command(toolrm_data, model, tmp_path):
    source = toolrm_data / "data/eval/rotbench_first_turn_test.jsonl.gz"
    with gzip.open(source, "rt") as lines:
        rows = [line for number, line in enumerate(lines) if number % 40 == 0]
    levels = tmp_path / "levels.jsonl"
    levels.write_text("".join(rows))
    data = write(tmp_path / "pairs.jsonl", [pair_row(n) for n in range(20, 24)])
    command = ["robustness", "--model", f"m={model}", "--data", str(data), "--levels", str(levels)]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32", "--no-rules"])
    run = read_run(tmp_path / "run")
    found = run.result["scorers"]["m"]["by"]["category"]
    assert {"as it is", "unicode", "clean", "heavy"} <= set(found)
    assert set(run.result["drift"]) <= set(perturbations.KINDS)
    assert run.result["drift"]["tools renamed"]["m"]["drift"] > 0
    assert "The same, said otherwise" in report.markdown([run])


# Filtering ---------------------------------------------------------------------------------------


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 20, 300).astype(float)  # with ties
    noisy = rng.random(300) < 0.3
    wanted = metrics.average_precision_score(noisy, -rewards)
    assert filtering.average_precision(rewards, noisy) == pytest.approx(wanted)


@pytest.mark.parametrize("values", [20, 10_000])
def test_the_curve_is_points_of_scikit_learns(values):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, values, 300).astype(float)
    noisy = rng.random(300) < 0.3
    precision, recall, _ = metrics.precision_recall_curve(noisy, -rewards)
    # Theirs runs the other way, begins at all rows and ends at none.
    theirs = list(zip(recall.tolist(), precision.tolist(), strict=True))[-2::-1]
    found = filtering.describe(rewards, noisy, rewards > 3)["noise"]["curve"]
    ours = [(point["recall"], point["precision"]) for point in found]
    assert len(ours) == min(len(theirs), 50)
    assert (ours[0], ours[-1]) == (theirs[0], theirs[-1])
    assert set(ours) <= set(theirs)
    assert ours == sorted(ours, key=theirs.index)


@pytest.mark.parametrize("per_source", [False, True])
def test_the_best_fraction_is_kept(per_source):
    rewards = np.array([5.0, 4.0, 3.0, 2.0, math.nan, 1.0])
    sources = ["a", "a", "a", "a", "b", "b"]
    options = {"fraction": 0.5, "threshold": None, "per_source": per_source}
    kept = filtering.keep(rewards, sources, **options)
    wanted = [0, 1, 5] if per_source else [0, 1, 2]
    assert np.flatnonzero(kept).tolist() == wanted
    kept = filtering.keep(rewards, sources, fraction=None, threshold=2.0, per_source=False)
    assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3]
    kept = filtering.keep(rewards, sources, fraction=None, threshold=-math.inf, per_source=False)
    assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3, 5]  # no reward is none at any threshold


def test_rewards_that_are_no_numbers_do_not_lose_a_run():
    rewards, noisy = np.array([math.nan, math.inf, -math.inf]), np.array([True, False, False])
    kept = filtering.keep(rewards, ["a"] * 3, fraction=1.0, threshold=None, per_source=False)
    found = json.loads(json.dumps(filtering.describe(rewards, noisy, kept), allow_nan=False))
    assert (found["kept"], found["unscored"], found["rewards"]) == (0, 1, {})


def test_no_source_is_lost_for_being_small():
    rewards, sources = np.array([3.0, 2.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    kept = filtering.keep(rewards, sources, fraction=0.1, threshold=None, per_source=True)
    assert np.flatnonzero(kept).tolist() == [0, 3]
    kept = filtering.keep(rewards, sources, fraction=0.5, threshold=None, per_source=True)
    assert np.flatnonzero(kept).tolist() == [0, 1, 3]


def test_filtering_writes_what_it_kept_and_finds_planted_noise(model, tmp_path):
    rows = normal_rows(40)
    data = write(tmp_path / "rows.jsonl", rows)
    command = ["filter", "--model", f"m={model}", "--data", str(data), "--noise", "0.3"]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32"])
    found = read_run(tmp_path / "run").result["filter"]["m"]
    assert (found["rows"], found["kept"]) == (40, 20)
    assert 5 <= found["noise"]["rows"] <= 20
    kept, dropped = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("kept.jsonl", "dropped.jsonl")
    )
    assert min(row["reward"] for row in kept) >= max(row["reward"] for row in dropped)
    noise = sum(row["planted_noise"] for row in dropped)
    assert found["noise"]["dropped"] == pytest.approx(noise / found["noise"]["rows"])
    assert kept[0]["messages"][-1]["role"] == "assistant"
    with pytest.raises(SystemExit, match="expected shares of 1"):
        main([*command[:-1], "1.5", "--output", str(tmp_path / "x")])


def filtered(folder, name):
    """The rows of a filter's file."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Rows of a large and a small source, and one that is too long to be scored in 400 tokens."""
    rows = normal_rows(12)
    for number, row in enumerate(rows):
        row["source"] = "small" if number < 2 else "large"
    rows[5]["conversation"][0]["content"] += " tide" * 500
    return write(tmp_path_factory.mktemp("sources") / "rows.jsonl", rows)


def test_a_share_of_each_source_is_kept(model, sources, tmp_path):
    command = ["filter", "--model", f"m={model}", "--data", str(sources), "--dtype", "float32"]
    command += ["--keep", "0.25", "--max-tokens", "400"]
    main([*command, "--per-source", "--output", str(tmp_path / "each")])
    kept = filtered(tmp_path / "each", "kept.jsonl")
    assert sorted(row["source"] for row in kept) == ["large", "large", "small"]
    for source, count in (("small", 1), ("large", 2)):
        rewards = [row["reward"] for row in kept if row["source"] == source]
        others = filtered(tmp_path / "each", "dropped.jsonl")
        rest = [r["reward"] for r in others if r["source"] == source and r["reward"] is not None]
        assert len(rewards) == count
        assert min(rewards) >= max(rest)


def test_what_has_at_least_the_threshold_is_kept(model, sources, tmp_path):
    command = ["filter", "--model", f"m={model}", "--data", str(sources), "--dtype", "float32"]
    command += ["--max-tokens", "400", "--output", str(tmp_path / "run")]
    main([*command, "--threshold=-inf"])
    rewards = sorted(row["reward"] for row in filtered(tmp_path / "run", "kept.jsonl"))
    assert len(rewards) == 11
    assert [row["reward"] for row in filtered(tmp_path / "run", "dropped.jsonl")] == [None]
    main([*command, f"--threshold={rewards[4]!r}"])
    kept = sorted(row["reward"] for row in filtered(tmp_path / "run", "kept.jsonl"))
    assert kept == pytest.approx(rewards[4:])


def test_of_two_models_the_first_says_what_is_kept_and_the_run_says_so(model, sources, tmp_path):
    other = write_reward_model(tmp_path / "other")
    command = ["filter", "--model", f"m={model}", "--data", str(sources), "--dtype", "float32"]
    main([*command, "--model", f"o={other}", "--output", str(tmp_path / "run")])
    found = read_run(tmp_path / "run").result
    assert set(found["filter"]) == {"m", "o"}
    assert found["notes"][-1].startswith("kept.jsonl and dropped.jsonl are by m, the first")


def test_every_row_is_in_one_of_the_files_of_a_filter(model, tmp_path):
    """Those of tasks that the model was trained on, and of the limit, without a reward."""
    rows = normal_rows(30)
    for number in range(4):
        rows[number]["id"] = f"simple_{number}"  # of the model's tasks
    data = write(tmp_path / "rows.jsonl", rows)
    command = ["filter", "--model", f"m={model}", "--data", str(data), "--limit", "20"]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32"])
    files = {
        name: [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("kept.jsonl", "dropped.jsonl", "left_out.jsonl")
    }
    assert {name: len(found) for name, found in files.items()} == {
        "kept.jsonl": 10, "dropped.jsonl": 10, "left_out.jsonl": 10,
    }  # fmt: skip
    found = [row["id"] for some in files.values() for row in some]
    assert sorted(found) == sorted(row["id"] for row in rows)
    left_out = {row["id"] for row in files["left_out.jsonl"]}
    assert left_out > {f"simple_{number}" for number in range(4)}
    assert {row["reward"] for row in files["left_out.jsonl"]} == {None}


_PARTS = """---
configs:
- config_name: plain
  data_files: plain.jsonl
- config_name: hard
  data_files: [{split: train, path: hard.jsonl}, {split: test, path: hard_test.jsonl}]
---
"""


def test_filtering_reads_the_split_and_the_subset_that_it_is_given(model, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "README.md").write_text(_PARTS)
    for count, name in enumerate(("plain", "hard", "hard_test"), 2):
        write(folder / f"{name}.jsonl", normal_rows(count))
    command = ["filter", "--model", f"m={model}", "--dtype", "float32"]
    command += ["--output", str(tmp_path / "run")]
    here, hard = ["--data", str(folder)], ["--subset", "hard"]
    for part, rows in ((hard, 3), ([*hard, "--split", "test"], 4)):
        main([*command, *here, *part])
        assert read_run(tmp_path / "run").result["filter"]["m"]["rows"] == rows
    with pytest.raises(SystemExit, match=r"--subset is of a hub's data set, and .* is a file"):
        main([*command, "--data", str(folder / "hard.jsonl"), *hard])
    with pytest.raises(SystemExit, match=r"source 'bfcl': .* Its options: categories"):
        main([*command, *here, *hard, "--format", "bfcl"])
