"""What the commands of evaluation refuse, and that they do so before anything is scored."""

import json

import pytest
import tiny
from evaluate_rows import normal_rows, pair_row, pool_row, write

from toolrm_jax.evaluate import cases
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.scorers import RuleScorer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with pairs, pools, and a folder that is nobody's run."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "pairs.jsonl", [pair_row(n) for n in range(4)])
    write(folder / "rows.jsonl", normal_rows(4))
    write(folder / "pools.jsonl", [pool_row(n) for n in range(4)])  # of six samples each
    (folder / "taken").mkdir()
    (folder / "taken/notes.txt").write_text("mine")
    return folder


@pytest.fixture
def unscored(files, monkeypatch):
    """Fails a test in which a rule is asked for a score."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(RuleScorer, "score", lambda *_: pytest.fail("something was scored"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("best-of-n --data pools.jsonl --n 7 --output x", "--n 7: the largest pool .* has 6 sam"),
        ("best-of-n --data pools.jsonl --n 3 --output taken", "taken holds files but no result.js"),
        ("pairs --data pairs.jsonl --output taken", "taken holds files but no result.json"),
        ("fc-reward-bench --data pairs.jsonl --output taken", "taken holds files but no result"),
        ("robustness --data pairs.jsonl --output taken", "taken holds files but no result.json"),
        ("filter --data rows.jsonl --model m --output taken", "taken holds files but no result"),
        ("probe --model no/model --fit pairs.jsonl --output taken", "taken holds files but no con"),
    ],
)
@pytest.mark.usefixtures("unscored")
def test_what_is_known_beforehand_is_said_before_anything_is_scored(files, command, said):
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(command.split())
    assert (files / "taken/notes.txt").read_text() == "mine"
    assert not (files / "x").exists()


IDLE = {
    "pairs --fit pairs.jsonl --no-rules": "--fit is of a combination of rules, and --no-rules",
    "pairs --judge-model j": "--judge-model is of a judge: give --judge URL",
    "pairs --judge-key KEY": "--judge-key is of a judge",
    "robustness --judge-max-tokens 300": "--judge-max-tokens is of a judge",
    "pairs --judge-max-tokens 0": "--judge-max-tokens 0: expected a number from 1",
    "pairs --split train": "--split is of a hub's data set, and pairs.jsonl is a file",
    "pairs --subset=": "--subset is of a hub's data set, and pairs.jsonl is a file",
    "filter --split train": "--split is of a hub's data set, and rows.jsonl is a file",
    "filter --threshold 1 --per-source": "--per-source is of --keep",
    "filter --threshold nan": "--threshold nan: expected a number",
    "filter": "nothing to evaluate: give --model$",
    "pairs --no-rules": "nothing to evaluate: give --model, or leave out --no-rules$",
}


@pytest.mark.parametrize("command", IDLE)
@pytest.mark.usefixtures("unscored")
def test_options_that_would_do_nothing_are_refused(files, command):
    name, *options = command.split()
    data = "rows.jsonl" if name == "filter" else "pairs.jsonl"
    with pytest.raises(SystemExit, match=f"error: {IDLE[command]}"):
        main([name, "--data", data, "--output", "x", *options])
    assert not (files / "x").exists()


def test_a_share_and_a_threshold_are_not_both_given(files, capsys):
    command = ["filter", "--data", str(files / "rows.jsonl"), "--model", "m", "--output", "x"]
    with pytest.raises(SystemExit):
        main([*command, "--threshold", "1", "--keep", "0.5"])
    assert "argument --keep: not allowed with argument --threshold" in capsys.readouterr().err


@pytest.mark.parametrize("layers", ["99", "-1"])
def test_a_probe_of_layers_that_the_model_has_not_is_refused(files, tmp_path, layers):
    model = tiny.write_model(tmp_path / "lm")
    command = ["probe", "--model", str(model), "--fit", str(files / "pairs.jsonl")]
    command += ["--output", str(tmp_path / "probe"), "--layers", layers]
    with pytest.raises(SystemExit, match=f"error: --layers {layers}: .* has .*; expected 1 to"):
        main(command)


@pytest.mark.parametrize("samples", [10**9 - 3, 10**10, 10**20])
def test_pools_of_more_samples_than_can_be_drawn_from_are_rejected(tmp_path, samples):
    """The most that is read is drawn from: NumPy refuses one more."""
    rows = [pool_row(0), pool_row(1, rights=(True, False))]
    rows[1]["candidates"][0]["n_samples"] = samples
    data = write(tmp_path / "pools.jsonl", rows)
    main(["best-of-n", "--data", str(data), "--n", "2", "--output", str(tmp_path / "run")])
    (*_, reject) = [{}, *map(json.loads, (tmp_path / "run/rejects.jsonl").read_text().splitlines())]
    fits = samples + 2 <= cases.MOST_SAMPLES
    assert ("expected at most 999,999,999 under 'n_samples'" in reject.get("reason", "")) != fits


DAMAGED = {
    "not an object": lambda _: 7,
    "without scores": lambda row: {k: v for k, v in row.items() if k != "scores"},
    "with a field of another program": lambda row: {**row, "more": 1},
    "with a candidate of another form": lambda row: {**row, "candidates": ["x", "y"]},
    "with text for a score": lambda row: {**row, "scores": {"longer wins": ["a", "b"]}},
    "with too few scores": lambda row: {**row, "scores": {**row["scores"], "longer wins": [1.0]}},
    "without one of the scorers": lambda row: {**row, "scores": {}},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("line", [0, -1])
def test_a_damaged_run_is_no_run(files, tmp_path, damage, line):
    run = tmp_path / "run"
    main(["pairs", "--data", str(files / "pairs.jsonl"), "--output", str(run)])
    rows = list(map(json.loads, (run / "scores.jsonl").read_text().splitlines()))
    rows[line] = damage(rows[line])
    write(run / "scores.jsonl", rows)
    with pytest.raises(SystemExit, match=r"error: .*run: no run of an evaluation \("):
        main(["report", str(run), "--output", str(tmp_path / "report.html")])


@pytest.mark.parametrize("result", [[], {}, {"seed": 0, "data": {}}, {"data": 1}])
def test_a_result_of_another_program_is_no_run(files, tmp_path, result):
    run = tmp_path / "run"
    main(["pairs", "--data", str(files / "pairs.jsonl"), "--output", str(run)])
    found = json.loads((run / "result.json").read_text())
    changed = {**found, **result} if result and isinstance(result, dict) else result
    (run / "result.json").write_text(json.dumps(changed))
    with pytest.raises(SystemExit, match=r"error: .*run: no run of an evaluation \("):
        main(["compare", str(run), str(run)])
