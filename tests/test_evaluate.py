"""The commands of evaluation: runs, comparisons, the report."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny
from evaluate_rows import TOOL, call, case, pair_row, pool_row, write, write_reward_model
from markdown_it import MarkdownIt

from toolrm_jax.evaluate import (
    best_of_n,
    drawing,
    options,
    report,
)
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.cards import data_counts
from toolrm_jax.evaluate.cases import Candidate, Case, read_pools
from toolrm_jax.evaluate.results import Run, read_run
from toolrm_jax.evaluate.scorers import ModelScorer
from toolrm_jax.tool_calls import parse_calls


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("model") / "rm")


GREEDY = Candidate("x", True, greedy=True)


def made_run(cases=(), scores=None, **figures):
    """A run as it is read, with these figures."""
    data = {"path": "d", "sha256": "0" * 64, "cases": 0, "tasks": 0, "rejected": {}}
    about = {"what": "w", "command": "c", "versions": {}, "seed": 0, "data": data}
    return Run("r", {**about, **figures}, list(cases), scores or {})


# The commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the rules on pairs and on pools."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = ("Parameter value error", "Incorrect function name")
    rows = [pair_row(n, error_type=kinds[n % 2]) for n in range(30)]
    rows[3]["rejected_output"] = call(day=3)
    rows[4]["rejected_output"] = [{"name": "tide", "arguments": {"port": "<b>&Brest"}}]
    # What some take for the end of a line.
    rows[5]["conversation"] = [{"role": "user", "content": "High water\u2028at Brest?"}]
    pairs = write(folder / "pairs.jsonl", [*rows, "no JSON"])
    pools = write(folder / "pools.jsonl", [pool_row(n) for n in range(12)])
    fit = write(folder / "fit.jsonl", [pair_row(100 + n) for n in range(5)])
    options = ["--fit", str(fit)]
    main(["fc-reward-bench", "--data", str(pairs), "--output", str(folder / "a"), *options])
    main(["best-of-n", "--data", str(pools), "--output", str(folder / "b"), "--n", "3"])
    return folder


def test_a_run_says_what_it_was_made_from(runs):
    run = read_run(runs / "a")
    about = run.result["data"]
    assert (about["cases"], about["tasks"], sum(about["rejected"].values())) == (30, 30, 1)
    assert run.result["versions"]["toolrm_jax"]
    assert run.result["command"].startswith("python -m toolrm_jax.evaluate")
    assert set(run.result["scorers"]) == set(run.scores)
    assert "best combination of rules" in run.scores
    schema = run.result["scorers"]["schema-valid wins"]
    assert schema["accuracy"]["mean"] == pytest.approx((1 + 29 * 0.5) / 30)
    assert "calibration" not in schema
    (reject,) = map(json.loads, (runs / "a/rejects.jsonl").read_text().splitlines())
    assert reject["line"] == 31


def test_rules_are_fitted_on_other_tasks_than_those_that_they_score(runs, tmp_path):
    rows = [pair_row(n) for n in range(28, 34)]
    two_right = {"chosen": ["At 3.", "At three."], "rejected": "At 4.", "prompt": "High water?"}
    both = write(tmp_path / "both.jsonl", [*rows, two_right, "no JSON"])
    command = ["fc-reward-bench", "--data", str(runs / "pairs.jsonl"), "--output"]
    main([*command, str(tmp_path / "run"), "--fit", str(both)])
    (note,) = read_run(tmp_path / "run").result["notes"]
    assert note.startswith(f"best combination of rules: fitted on 5 cases of {both} (SHA-256 ")
    assert note.endswith(
        ", without 2 tasks that are scored here, 0 cases without a right or a wrong answer, and 1 "
        "rows that were rejected."
    )
    with pytest.raises(SystemExit, match="30 of 30 tasks are evaluated on"):
        main([*command, str(tmp_path / "none"), "--fit", str(runs / "pairs.jsonl")])
    assert not (tmp_path / "none").exists()


def test_pools_that_were_built_to_have_both_are_labelled_so(runs, tmp_path):
    run = read_run(runs / "b")
    (note,) = (note for note in run.result["notes"] if "as if chosen so" in note)
    assert note.startswith("All 12 pools of the file have a right and a wrong candidate")
    mixed = [pool_row(0), pool_row(1), pool_row(2, rights=(False, False, False))]
    path = write(tmp_path / "mixed.jsonl", mixed)
    command = ["best-of-n", "--data", str(path), "--n", "2", "--limit", "1"]
    main([*command, "--output", str(tmp_path / "run")])
    found = read_run(tmp_path / "run").result
    assert not found["pools"]["built to have right and wrong"]
    assert not any("chosen" in note for note in found["notes"])
    curve = run.result["best of n"]["distinct"]["curves"]["oracle"]
    assert [round(point["mean"], 3) for point in curve] == [0.333, 0.667, 1.0]
    assert run.result["best of n"]["sampled"]["curves"]["majority"][0]["error"] > 0


def test_compare_matches_pairs_and_refuses_what_has_none_in_common(runs, capsys):
    a, b = str(runs / "a"), str(runs / "b")
    main(
        [
            "compare",
            a,
            a,
            "--a",
            "verbatim arguments win",
            "--b",
            "schema-valid wins",
            "--json",
            "--seed",
            "7",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 30
    assert found["command"].startswith("python -m toolrm_jax.evaluate")
    assert (found["seed"], found["best of n"]) == (7, {})
    assert found["versions"]["toolrm_jax"]
    assert found["a"]["data sha256"] == read_run(a).result["data"]["sha256"]
    assert found["difference"]["mean"] == pytest.approx(
        found["a"]["accuracy"] - found["b"]["accuracy"]
    )
    with pytest.raises(SystemExit, match="no pair in common"):
        main(["compare", a, b])
    with pytest.raises(SystemExit, match="no scorer 'x'; it has: "):
        main(["compare", a, a, "--a", "x"])
    with pytest.raises(SystemExit, match="no run of an evaluation"):
        main(["report", str(runs), "--output", str(runs / "x.html")])


def test_the_report_is_one_page_with_everything_in_it(runs):
    main(["report", str(runs / "a"), str(runs / "b"), "--output", str(runs / "report.html")])
    page = (runs / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") >= 3
    assert "<script" not in page
    assert not re.search(
        r"(src|href)=\"(?!#)", page
    )  # nothing is fetched; marks of SVG are its own
    assert "<b>&Brest" not in page
    text = (runs / "report.md").read_text()
    assert "### Accuracy by error type, %" in text
    assert "### Best of n, sampled draws, 12 pools" in text
    (majority,) = re.findall(r"^\| majority .*", text, re.M)
    assert re.search(r"\[\d+\.\d, \d+\.\d\] ± \d+\.\d \|", majority)
    assert set(json.loads((runs / "report.json").read_text())) == {str(runs / n) for n in "ab"}


def test_names_of_any_text_leave_tables_whole_and_are_no_formulas():
    name = "a|b \\| <i>\n$x_1$"
    cell = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    found = {"dropped": 0.5, "share before": 0.3, "share after": 0.1, "average precision": 0.6}
    filtered = {name: {"kept": 1, "rows": 2, "noise": found}, "other": {"kept": 1, "rows": 2}}
    run = made_run(filter=filtered, notes=["one\n\n| two"])
    page = MarkdownIt("commonmark").enable("table").render(report.markdown([run]))
    assert page[: page.index("</table>")].count("<td") == 2 * 6
    assert "<td>a|b \\| &lt;i&gt; $x_1$</td>" in page
    assert "one  | two" in page
    assert "$x_1$" in drawing.bars({"m": {"$x_1$": cell}})


def drawn_bars(monkeypatch, draw, *arguments):
    """(length, where it begins) of the bars that are drawn under each name."""
    axes = pytest.importorskip("matplotlib.figure").Figure().subplots()
    monkeypatch.setattr(drawing, "_drawn", lambda drawn, *_: drawn(axes))
    draw(*arguments)
    made = [bars for bars in axes.containers if type(bars).__name__ == "BarContainer"]
    names = [bars.get_label() for bars in made]
    names = [b[0].get_label() if n.startswith("_") else n for n, b in zip(names, made, strict=True)]
    found = [[(p.get_height(), p.get_x()) for p in bars if p.get_height()] for bars in made]
    return dict(zip(names, found, strict=True))


def test_each_of_thirteen_lines_looks_another(monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "_drawn", lambda draw, *_: draw(drawn[-1]) or "")

    class Axes:
        def __init__(self):
            self.looks, self.heights = [], []

        def plot(self, n, heights, *, color, linestyle, **_):
            self.looks.append((color, linestyle))
            self.heights.append(heights)

        def barh(self, *_, color, hatch, **__):
            self.looks.append((color, hatch))

        def __getattr__(self, name):
            return lambda *_, **__: None

    cell = {"mean": 0.5, "low": 0.2, "high": 0.6, "n": 1}
    drawn.append(Axes())
    drawing.curves({str(k): [cell] for k in range(13)})
    assert len(set(drawn[-1].looks)) == 13
    assert drawn[-1].heights == [[50.0]] * 13  # the mean, not an end of its interval
    drawn.append(Axes())
    drawing.bars({str(k): {"all": cell} for k in range(13)})
    assert len(set(drawn[-1].looks)) == 13


def test_reliability_shows_what_is_sure_against_what_is_right(monkeypatch):
    shown = []

    class Axes:
        def scatter(self, x, y, *_, **__):
            shown.append((x, y))

        def __getattr__(self, name):
            return lambda *_, **__: None

    monkeypatch.setattr(drawing, "_drawn", lambda draw, *_: draw(Axes()) or "")
    drawing.reliability([{"sure": 0.75, "right": 0.5, "pairs": 3}])
    assert shown == [([75.0], [50.0])]


def test_ties_are_neither_sides_in_the_histogram(monkeypatch):
    found = drawn_bars(monkeypatch, drawing.histogram, np.array([0, 0, 0, 2.0, 0.01, -0.01]))
    assert {name: sum(n for n, _ in bars) for name, bars in found.items()} == {
        "right side preferred": 2,
        "wrong side preferred": 1,
        "tie": 3,
    }
    assert min(x for _, x in found["right side preferred"]) == pytest.approx(0)
    assert max(x for _, x in found["wrong side preferred"]) < 0


def test_an_end_that_rounding_puts_beyond_the_mean_is_drawn():
    cell = {"mean": 1.0, "low": 0.8, "high": 1.0 - 2**-53, "n": 4}
    assert "<svg" in drawing.bars({"m": {"a": cell}})


def test_a_kind_of_which_none_is_right_keeps_its_interval(monkeypatch):
    none = {"mean": 0.0, "low": 0.0, "high": 0.2}
    found = drawn_bars(monkeypatch, drawing.bars, {"m": {"a": none, "b": {**none, "mean": None}}})
    assert len(found["m"]) == 1


def test_unscored_pairs_are_no_ties_of_the_histogram():
    cases = [case(True, False, task=str(n)) for n in range(3)]
    scores = [np.array(s) for s in ([1.0, 1.0], [2.0, 1.0], [np.nan, np.nan])]
    ranges = [{"pairs": 1, "sure": 0.7, "right": 1.0}]
    run = made_run(cases, {"m": scores}, scorers={"m": {"calibration": {"ranges": ranges}}})
    (caption,) = (text for _, text in report._pictures(run) if "ties" in text)
    assert caption == (
        "m: right minus wrong reward; ties: 1; pairs that are not there, for a side could not be "
        "scored: 1"
    )


def test_how_much_planted_noise_was_found_is_a_curve():
    noise = {"share before": 0.25, "curve": [{"recall": 0.5, "precision": 1.0}]}
    cells = {"m": {"kept": 1, "rows": 2, "noise": noise}, "old": {"kept": 1, "rows": 2}}
    ((picture, _),) = report._pictures(made_run(filter=cells))
    assert "recall, %" in picture
    assert picture.count(">m</text>") == 1
    assert ">old</text>" not in picture


def test_pools_are_told_with_what_is_greedy_and_too_small(runs):
    text = report.markdown([read_run(runs / "b")])
    for row in (
        "| pools | 12 |",
        "| all right | 0 |",
        "| all wrong | 0 |",
        "| candidates of a pool | 3 to 3 |",
        "| built to have right and wrong | yes |",
        "| greedy answers that are right, % | - |",
        "| too small for the curves of distinct draws | 0 |",
    ):
        assert row in text
    about = best_of_n.about([dataclasses.replace(case(True), candidates=[GREEDY]), case(False)])
    found = {"distinct": {"curves": {}, "pools": 0, "too small": 2}}
    text = report.markdown([made_run(**{"pools": about, "best of n": found})])
    assert "| greedy answers that are right, % | 100.0 [20.7, 100.0] |" in text
    assert "| too small for the curves of distinct draws | 2 |" in text


def test_the_most_confident_mistakes_are_shown_with_what_differs():
    wrong = [Candidate(call(port="Brest"), True), Candidate(call(port="<Best>"), False, "value")]
    made = Case("t", [], [{"role": "user", "content": "<i>?"}], wrong)
    run = type("R", (), {"cases": [made], "scores": {"m": [np.array([0.0, 2.5])]}})()
    run.result = {"scorers": {"m": {"calibration": {}}}}
    shown = "".join(report._mistakes(run))
    assert "margin -2.50" in shown
    assert "<del>Brest</del>" in shown
    assert "<ins>&lt;Best&gt;</ins>" in shown or "&lt;<ins>Best</ins>&gt;" in shown
    assert "<i>?" not in shown
    run.cases = [made] * 4
    run.scores = {"m": [np.array([0.0, margin]) for margin in (0.5, 3.0, -1.0, 2.0)]}
    order = re.findall(r"margin (\S+?)</summary", "".join(report._mistakes(run)))
    assert order == ["-3.00", "-2.00", "-0.50"]


def test_a_candidate_that_is_too_long_does_not_cost_the_others_their_rewards(model):
    answers = [call(port="Brest"), "tide " * 300, call(port="Best")]
    candidates = [Candidate(answer, n == 0) for n, answer in enumerate(answers)]
    made = Case("t", [TOOL], [{"role": "user", "content": "High water?"}], candidates)
    short = dataclasses.replace(made, candidates=candidates[::2])
    with ModelScorer(str(model), "m", dtype="float32", max_tokens=400) as scorer:
        first, second, third = scorer.score([short, made, short])
        assert scorer.rejected == {"over-long": 1}
    assert np.isnan(second).tolist() == [False, True, False]
    np.testing.assert_allclose(second[::2], first, atol=1e-5)
    np.testing.assert_allclose(third, first, atol=1e-5)


def test_tasks_that_a_model_was_trained_on_are_left_out_unless_asked_for(
    runs, model, tmp_path, capsys
):
    data = str(runs / "pairs.jsonl")
    command = ["fc-reward-bench", "--model", f"m={model}", "--data", data, "--no-rules"]
    command += ["--dtype", "float32"]
    main([*command, "--output", str(tmp_path / "clean")])
    found = read_run(tmp_path / "clean").result
    assert found["data"]["cases"] == 20
    assert found["notes"] == [
        "m was trained on 10 of the tasks.",
        "Scored on the others: 20 of 30 cases.",
    ]
    assert found["scorers"]["m"]["calibration"]["ranges"]
    main([*command, "--output", str(tmp_path / "all"), "--allow-overlap"])
    run = read_run(tmp_path / "all")
    assert run.result["data"]["cases"] == 30
    assert "OVERLAP" in run.result["notes"][1]
    marked = "Accuracy on pairs (OVERLAP with training)"
    for page in (report.markdown, report.html):
        assert marked in page([run])
        assert "OVERLAP" not in page([read_run(tmp_path / "clean")])
    assert report.html([run]).count("(OVERLAP with training)</figcaption>") == 3
    capsys.readouterr()
    main(["compare", str(tmp_path / "all"), str(tmp_path / "clean")])
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.endswith("% (OVERLAP with training)")
    assert second.endswith("%")
    seen = write(tmp_path / "seen.jsonl", [pair_row(n) for n in range(10)])
    with pytest.raises(SystemExit, match=r"every task of .* was trained on"):
        main([*command[:4], str(seen), "--output", str(tmp_path / "none")])


def test_a_report_has_the_cards_of_models_and_data(runs, model, tmp_path):
    command = ["pairs", "--model", f"m={model}", "--data", str(runs / "pairs.jsonl"), "--no-rules"]
    main([*command, "--dtype", "float32", "--output", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    card = run.result["models"]["m"]
    assert (card["path"], card["dtype"], card["train_tasks"]) == (str(model), "float32", 10)
    assert card["heldout.accuracy.mean"] == 0.75
    assert not {"heldout.accuracy.low", "config.data.shapes"} & set(card)
    text = report.markdown([run])
    for row in (
        "| base | tiny\\|lm |",
        f"| layers | {card['layers']} |",
        "| steps of training | 1,100 |",
        "| trained on | train.jsonl |",
        "| tasks trained on | 10 |",
        "| cases | 20 |",
        "| category: simple | 20 |",
        "| error type: Incorrect function name | 10 |",
    ):
        assert row in text
    assert re.search(r"\| rejected: [^|]+ \| 1 \|", text)
    assert "<td>config.data.train</td><td>train.jsonl</td>" in report.html([run])
    del run.result["models"]  # as runs of earlier versions
    assert "### Models" not in report.markdown([run])
    assert "all that is known of it" not in report.html([run])


def test_labels_beyond_the_first_ones_are_one_row():
    found = data_counts([case(False, category=f"c{n % 25}") for n in range(100)], {})
    assert found["category: 5 others"] == 20
    assert sum(name.startswith("category") for name in found) == 21


def test_the_rules_on_the_replica_are_as_weak_as_its_makers_say(toolrm_data, tmp_path):
    data = toolrm_data / "data/eval/fcrb_dev.jsonl.gz"
    main(["fc-reward-bench", "--data", str(data), "--output", str(tmp_path / "run")])
    found = read_run(tmp_path / "run").result["scorers"]
    assert found["schema-valid wins"]["accuracy"]["mean"] == pytest.approx(0.57, abs=0.01)
    assert found["longer wins"]["accuracy"]["mean"] == pytest.approx(0.47, abs=0.01)


def test_every_pool_of_the_real_ones_is_read(toolrm_data):
    found = read_pools(toolrm_data / "data/eval/pools_dev.jsonl.gz")
    assert (len(found.cases), found.rejects) == (349, [])
    about = best_of_n.about(found.cases)
    assert (about["candidates"], about["fewest"]) == (5411, 8)  # all that the file has
    right = [c.response for case in found.cases for c in case.candidates if c.right]
    refusals = [response for response in right if not parse_calls(response)]
    assert sum(response != [] for response in refusals) == 131  # in words, each its own
    assert best_of_n.hold_both(found.cases)


def test_a_name_ends_at_the_first_equals_sign_and_a_path_may_hold_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    found = {
        "runs/m": ("", "runs/m"),
        "mine=runs/m": ("mine", "runs/m"),
        "mine=runs/lr=3": ("mine", "runs/lr=3"),
        "runs/lr=3": ("", "runs/lr=3"),
        "gs://bucket/lr=3/m": ("", "gs://bucket/lr=3/m"),
        "lr=3": ("", "lr=3"),
        "mine=lr=3": ("mine", "lr=3"),
        "lr=4": ("lr", "4"),
    }
    assert {given: options.named(given) for given in found} == found


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["best-of-n", "--n", "0", "--data", "b/pools.jsonl", "--output", "x"], "from 1"),
        (["pairs", "--limit", "-1", "--data", "pairs.jsonl", "--output", "x"], "from 1"),
        (["pairs", "--max-tokens", "0", "--data", "pairs.jsonl", "--output", "x"], "from 1"),
        (["report", "b", "--output", "x.md"], "ends in .html"),
        (
            ["pools", "--data=x", "--format=bfcl", "--url=x", "--model=m", "--output=x.gz"],
            "ends in .jsonl",
        ),
    ],
)
def test_wrong_options_are_said_before_anything_is_scored(runs, monkeypatch, command, said):
    monkeypatch.chdir(runs)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(command)
    assert not (runs / "x").exists()


def test_help_teaches_without_loading_anything():
    command = [sys.executable, "-m", "toolrm_jax.evaluate", "fc-reward-bench", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT, check=True)
    assert "--allow-overlap" in found.stdout


@pytest.mark.slow
def test_the_report_fits_a_phone_in_a_real_browser(runs, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    page = tmp_path / "report.html"
    main(["report", str(runs / "a"), str(runs / "b"), "--output", str(page)])
    harness = tmp_path / "harness.html"
    harness.write_text(
        '<iframe id="f" src="report.html" width="390" height="800"></iframe><p id="w"></p><script>'
        "f.onload = () => { const d = f.contentDocument; w.textContent = [d.documentElement"
        '.scrollWidth, d.querySelectorAll("svg").length, d.body.innerText.length].join(" ") }'
        "</script>"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", "--virtual-time-budget=10000"]
    dumped = subprocess.run(
        [*command, "--dump-dom", harness.as_uri()], capture_output=True, text=True, timeout=120
    )
    width, pictures, letters = map(
        int, re.search(r'<p id="w">(\d+) (\d+) (\d+)</p>', dumped.stdout).groups()
    )
    assert width <= 390
    assert pictures >= 3
    assert letters > 1000
    shot = tmp_path / "report.png"
    subprocess.run(
        [*command, "--window-size=390,2400", f"--screenshot={shot}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    from matplotlib.image import imread

    assert imread(shot)[..., :3].std() > 0.05  # not an empty page
