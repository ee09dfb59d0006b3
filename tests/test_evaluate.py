"""Evaluation: figures against hand-computed cases, brute force and other libraries."""

import dataclasses
import gzip
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import tiny
from faulty_server import faulty_server
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate import (
    best_of_n,
    filtering,
    pair_metrics,
    paired,
    perturbations,
    probe,
    report,
    robustness,
)
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.cases import Candidate, Case, read_pairs, read_pools, trained_on
from toolrm_jax.evaluate.likelihood import LikelihoodScorer
from toolrm_jax.evaluate.llm_judge import JudgeScorer
from toolrm_jax.evaluate.results import read_run
from toolrm_jax.evaluate.scorers import ModelScorer
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.schema import call_is_valid
from toolrm_jax.score_request import request_of

TOOL = {
    "name": "tide",
    "description": "When the water is high",
    "parameters": {
        "type": "object",
        "properties": {"port": {"type": "string"}, "day": {"type": "integer"}},
        "required": ["port"],
    },
}


def call(**arguments):
    return [{"name": "tide", "arguments": arguments}]


def pair_row(number=0, **changes):
    """A row of FC-RewardBench."""
    row = {
        "tools": [{"type": "function", "function": TOOL}],
        "conversation": [{"role": "user", "content": f"High water at Brest, day {number}?"}],
        "chosen_output": call(port="Brest", day=number),
        "rejected_output": call(port="Best", day=number),
        "error_type": "Parameter value error",
        "model_name": "m",
        "test_category": "simple",
        "test_id": f"simple_{number}",
    }
    return row | changes


def pool_row(number=0, rights=(True, False, False), **changes):
    candidates = [
        {
            "calls": call(port="Brest" if right else f"Port {k}", day=k),
            "correct": right,
            "n_samples": k + 1,
            "model_name": "m",
            "error_type": None if right else "value",
        }
        for k, right in enumerate(rights)
    ]
    row = {"test_id": f"t{number}", "tools": [TOOL], "candidates": candidates}
    return row | {"messages": [{"role": "user", "content": "High water at Brest?"}]} | changes


def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def case(*rights, task="t", category=""):
    """A case whose candidates are as long as their number."""
    candidates = [Candidate("x" * (k + 1), right) for k, right in enumerate(rights)]
    return Case(task, [], [{"role": "user", "content": "?"}], candidates, category)


# Reading -----------------------------------------------------------------------------------------


def test_malformed_rows_are_rejected_with_their_line_and_the_others_go_on(tmp_path):
    rows = [
        pair_row(0),
        "not JSON",
        "[1]",
        {"tools": [], "conversation": []},
        pair_row(1, tools=[{"name": 7}]),
        pair_row(2, chosen_output=json.dumps(call(port="Brest"))),
    ]
    found = read_pairs(write(tmp_path / "rows.jsonl", rows))
    assert [c.task for c in found.cases] == ["simple_0", "simple_2"]
    assert [reject.line for reject in found.rejects] == [2, 3, 4, 5]
    assert found.cases[1].candidates[0].response == call(port="Brest")
    with pytest.raises(InputError, match="no row can be evaluated on; 1 were rejected"):
        read_pairs(write(tmp_path / "bad.jsonl", ["{}"]))


def test_any_spelling_of_an_error_type_is_kept_under_its_own_name(tmp_path):
    rows = [pair_row(0), pair_row(1, error_type="wrong_value (new!)"), pair_row(2, error_type=None)]
    found = read_pairs(write(tmp_path / "rows.jsonl", rows))
    kinds = [c.candidates[1].error_type for c in found.cases]
    assert kinds == ["Parameter value error", "wrong_value (new!)", ""]


def test_general_preference_rows_are_pairs_as_well(tmp_path):
    messages = [{"role": "user", "content": "2 + 2?"}]
    rows = [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "subset": "math"},
        {
            "id": "k",
            "messages": messages,
            "chosen": "4",
            "rejected": [
                {"response": "5", "error_type": "a"},
                {"response": "6", "error_type": "b"},
            ],
        },
    ]
    first, second = read_pairs(write(tmp_path / "rows.jsonl", rows)).cases
    assert (first.category, len(first.candidates)) == ("math", 2)
    assert [c.error_type for c in second.candidates] == ["", "a", "b"]


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        ([], "that is not empty"),
        (None, "that is not empty"),
        (["x"], "candidates[0]: expected an object"),
        ([{"calls": [], "correct": 1}], "expected true or false under 'correct'"),
        ([{"calls": [], "correct": True, "n_samples": 0}], "whole number from 1"),
        ([{"correct": True}], "expected calls, or text under 'raw'"),
    ],
)
def test_pools_that_are_none_are_rejected(tmp_path, candidates, said):
    path = write(tmp_path / "pools.jsonl", [pool_row(0), pool_row(1, candidates=candidates)])
    found = read_pools(path)
    assert len(found.cases) == 1
    assert said in found.rejects[0].reason


def test_tasks_are_known_by_their_ids_without_source_and_pair():
    cases = [case(True, task=name) for name in ("simple_1", "bfcl/simple_2", "simple_3")]
    assert trained_on(cases, ["bfcl/simple_1", "x/simple_2#4"]) == {"simple_1", "bfcl/simple_2"}


# Pairs -------------------------------------------------------------------------------------------


def described(cases: Sequence[Case], scores, **options):
    pairs = pair_metrics.pairs_of(cases)
    options = {"is_log_odds": True, "seed": 0} | options
    return pair_metrics.describe(cases, pairs, [np.array(s, float) for s in scores], **options)


def test_accuracy_counts_ties_half_and_what_cannot_be_scored_loses():
    nan = math.nan
    cases = [case(True, False, task=str(k)) for k in range(5)]
    found = described(cases, [[1, 0], [0, 1], [2, 2], [nan, 0], [0, nan]])
    assert found["accuracy"]["mean"] == pytest.approx((1 + 0 + 0.5 + 0 + 1) / 5)
    assert (found["ties"], found["unscored"]) == (1, 2)
    both = described(cases[:1], [[nan, nan]])
    assert (both["accuracy"]["mean"], both["ties"]) == (0.5, 1)


def test_accuracy_by_length_and_its_correlation_are_those_of_scipy():
    rng = np.random.default_rng(0)
    cases = [case(*rng.permutation([True, False, False]), task=str(k)) for k in range(40)]
    scores = rng.normal(size=(40, 3)) + np.array([0.0, 0.5, 1.0])
    found = described(cases, scores)
    lengths = np.tile([1, 2, 3], 40)
    wanted = scipy.stats.spearmanr(scores.ravel(), lengths).statistic
    assert found["length"]["correlation"] == pytest.approx(wanted)
    longer, earned = [], []
    for made, s in zip(cases, scores, strict=True):
        (right,) = (k for k, c in enumerate(made.candidates) if c.right)
        for wrong in {0, 1, 2} - {right}:
            longer.append(right > wrong)
            earned.append(s[right] > s[wrong])
    wanted = np.mean([e for e, is_longer in zip(earned, longer, strict=True) if is_longer])
    assert found["length"]["right is longer"]["mean"] == pytest.approx(wanted)


def test_calibration_is_that_of_scikit_learn():
    calibration_curve = pytest.importorskip("sklearn.calibration").calibration_curve
    rng = np.random.default_rng(1)
    margins = rng.normal(1, 2, 500)
    found = pair_metrics.calibration(margins)
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    # Ten ranges from a half to 1 are ten ranges from 0 to 1 of twice the excess.
    right, middle = calibration_curve(margins > 0, 2 * sure - 1, n_bins=10)
    ranges = found["ranges"]
    np.testing.assert_allclose([r["right"] for r in ranges], right)
    np.testing.assert_allclose([2 * r["sure"] - 1 for r in ranges], middle)
    weights = np.array([r["pairs"] for r in ranges]) / 500
    assert found["ece"] == pytest.approx(weights @ np.abs(right - (middle + 1) / 2))


def test_a_scorer_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    margins = np.repeat([math.log(3), -math.log(3)], [300, 100])
    assert pair_metrics.calibration(margins)["ece"] == pytest.approx(0, abs=1e-12)


# Best of n ---------------------------------------------------------------------------------------

POOLS = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.0, math.nan]), st.booleans(), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=60)
@given(POOLS, st.data())
def test_the_exact_expectation_is_that_of_all_draws(pool, data):
    scores, right, counts = map(np.array, zip(*pool, strict=True))
    n = data.draw(st.integers(1, int(counts.sum())))
    everyone = np.repeat(np.arange(len(pool)), counts)
    chances = []
    for drawn in itertools.combinations(everyone, n):
        ranked = np.where(np.isnan(scores[list(drawn)]), -np.inf, scores[list(drawn)])
        best = [k for k, score in zip(drawn, ranked, strict=True) if score == ranked.max()]
        chances.append(right[best].mean())
    found = best_of_n.expected_best(scores, right.astype(int), counts, n)
    assert found == pytest.approx(np.mean(chances))


def test_the_majority_is_that_of_all_draws_within_its_monte_carlo_error():
    right, counts, n = np.array([1, 0, 0]), np.array([3, 2, 2]), 3
    everyone = np.repeat(np.arange(3), counts)
    chances = []
    for drawn in itertools.combinations(everyone, n):
        votes = np.bincount(drawn, minlength=3)
        chances.append(right[votes == votes.max()].mean())
    found, error = best_of_n.majority(right, counts, n, np.random.default_rng(0))
    assert abs(found - np.mean(chances)) < 4 * error
    assert 0 < error < 0.02


def test_all_wrong_all_right_and_single_pools_have_their_plain_values():
    cases = [case(True, True, task="a"), case(False, False, task="b"), case(True, task="c")]
    scores = {"s": [np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0])]}
    found = best_of_n.curves(cases, scores, most=1, draws="distinct", seed=0)
    for name in ("s", "random", "oracle"):
        assert found["curves"][name][0]["mean"] == pytest.approx(2 / 3)
    found = best_of_n.curves(cases, scores, most=2, draws="distinct", seed=0)
    assert (found["pools"], found["too small"]) == (2, 1)
    about = best_of_n.about(cases)
    assert (about["all right"], about["all wrong"]) == (2, 1)
    assert not about["built to have right and wrong"]
    assert about["greedy"] is None


def test_greedy_is_told_where_the_pools_mark_it():
    marked = case(True, False)
    first = dataclasses.replace(marked.candidates[0], greedy=True)
    marked = dataclasses.replace(marked, candidates=[first, marked.candidates[1]])
    assert best_of_n.about([marked, case(False)])["greedy"] == {"pools": 1, "right": 1.0}


# Comparisons -------------------------------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test():
    first, second = np.array([1, 1, 1, 1, 0, 0.5]), np.array([0, 0, 0, 1, 1, 0.0])
    found = paired.mcnemar(first, second)
    assert (found["only a"], found["only b"]) == (3, 1)
    assert found["p"] == pytest.approx(0.625)
    assert paired.mcnemar(first, first)["p"] == 1.0


def test_the_permutation_test_flips_whole_tasks():
    # Ten pairs of one task that all differ: one flip, so half of all flips are as far.
    assert paired.permutation(np.ones(10), ["a"] * 10) == 1.0
    p = paired.permutation(np.ones(10), list("abcdefghij"))
    assert p == pytest.approx(2 / 1024, abs=0.002)
    assert paired.permutation(np.zeros(4), list("abcd")) == 1.0


# The commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the rules on pairs and on pools."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = ("Parameter value error", "Incorrect function name")
    rows = [pair_row(n, error_type=kinds[n % 2]) for n in range(30)]
    rows[3]["rejected_output"] = call(day=3)
    rows[4]["rejected_output"] = [{"name": "tide", "arguments": {"port": "<b>&Brest"}}]
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


def test_pools_that_were_built_to_have_both_are_labelled_so(runs):
    run = read_run(runs / "b")
    assert any("they were chosen so" in note for note in run.result["notes"])
    curve = run.result["best of n"]["distinct"]["curves"]["oracle"]
    assert [round(point["mean"], 3) for point in curve] == [0.333, 0.667, 1.0]
    assert run.result["best of n"]["sampled"]["curves"]["majority"][0]["error"] > 0


def test_compare_matches_pairs_and_refuses_what_has_none_in_common(runs, capsys):
    a, b = str(runs / "a"), str(runs / "b")
    main(["compare", a, a, "--a", "verbatim arguments win", "--b", "schema-valid wins", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 30
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
    assert set(json.loads((runs / "report.json").read_text())) == {str(runs / n) for n in "ab"}


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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny reward model that says it was trained on simple_0 to simple_9."""
    folder = tmp_path_factory.mktemp("model") / "rm"
    tiny.write_reward_model(folder)
    (folder / "toolrm.json").write_text(
        json.dumps({"train_tasks": [f"bfcl/simple_{n}" for n in range(10)]})
    )
    return folder


def test_tasks_that_a_model_was_trained_on_are_left_out_unless_asked_for(runs, model, tmp_path):
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
    found = read_run(tmp_path / "all").result
    assert found["data"]["cases"] == 30
    assert "OVERLAP" in found["notes"][1]
    seen = write(tmp_path / "seen.jsonl", [pair_row(n) for n in range(10)])
    with pytest.raises(SystemExit, match=r"every task of .* was trained on"):
        main([*command[:4], str(seen), "--output", str(tmp_path / "none")])


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
    assert (about["candidates"], about["fewest"]) == (5411, 8)
    assert about["built to have right and wrong"]


def test_help_teaches_without_loading_anything():
    command = [sys.executable, "-m", "toolrm_jax.evaluate", "fc-reward-bench", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT, check=True)
    assert "--allow-overlap" in found.stdout


# Baselines that are models -----------------------------------------------------------------------


def test_a_probe_becomes_a_reward_model_with_the_regressions_head(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    tiny.write_model(tmp_path / "lm")
    rows = [pair_row(n, rejected_output=call(port="Nowhere", day=n)) for n in range(12)]
    rows.append(pair_row(50, conversation=[{"role": "user", "content": "tide " * 600}]))
    fit_on = write(tmp_path / "fit.jsonl", rows)
    about = probe.fit_probe(
        str(tmp_path / "lm"),
        read_pairs(fit_on),
        tmp_path / "probe",
        dtype="float32",
        max_tokens=500,
    )
    assert (about["pairs"], about["over_long"]) == (12, 1)
    with ModelScorer(str(tmp_path / "probe"), "p", dtype="float32") as scorer:
        cases = read_pairs(fit_on).cases[:12]
        margins = [s[0] - s[1] for s in scorer.score(cases)]
        assert len(scorer.trained) == 12
    assert min(margins) > 0
    # The regression itself, against scikit-learn's.
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(60, 4)) * [1, 2, 3, 4] + 0.5
    signs = rng.choice([-1, 1], 60)
    scale = np.sqrt((x_ND**2).mean(0))
    theirs = linear_model.LogisticRegression(C=1 / (60 * 0.1), fit_intercept=False, tol=1e-8)
    theirs.fit(x_ND / scale * signs[:, None], signs > 0)
    ours = probe.fit(x_ND, np.full(60, 1 / 60), 0.1)
    np.testing.assert_allclose(ours * scale, theirs.coef_[0], rtol=1e-3, atol=1e-4)


@pytest.mark.torch
def test_the_log_likelihood_is_the_mean_over_the_answers_tokens(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny.write_model(tmp_path / "lm")
    (made,) = read_pairs(write(tmp_path / "rows.jsonl", [pair_row(1)])).cases
    (scores,) = LikelihoodScorer(str(folder)).score([made])
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    renderer = Renderer(open_pretrained(str(folder)).tokenizer)
    found = renderer.render(made.tools, made.messages, made.request().responses)
    for number, score in enumerate(scores):
        ids = torch.tensor(found.whole(number), dtype=torch.int64)[None]
        # A label of -100 is not counted; the loss is the mean over the others.
        labels = ids.clone()
        labels[:, : len(found.prompt)] = -100
        with torch.no_grad():
            wanted = -model(ids, labels=labels).loss.item()
        assert score == pytest.approx(wanted, abs=1e-5)
    short = LikelihoodScorer(str(folder), max_tokens=5)
    assert np.isnan(next(short.score([made]))).all()


def judged_by(monkeypatch, tmp_path, reply):
    """The scores of two pairs by a judge that answers `reply(question)`."""
    monkeypatch.setattr(
        "faulty_server.completion",
        lambda question: {"choices": [{"message": {"content": reply(question[0])}}], "usage": {}},
    )
    cases = read_pairs(write(tmp_path / "rows.jsonl", [pair_row(1), pair_row(2)])).cases
    with faulty_server() as server:
        judge = JudgeScorer(server.url, "j", tmp_path / "judge.sqlite")
        return [scores.tolist() for scores in judge.score(cases)], judge.counts


def test_a_judge_that_prefers_a_place_ties_every_pair(monkeypatch, tmp_path):
    scores, counts = judged_by(monkeypatch, tmp_path, lambda _: "A is better. So: A")
    assert scores == [[0.5, 0.5], [0.5, 0.5]]
    assert counts["changed with the order"] == 2


def test_a_judge_that_reads_is_right_in_both_orders(monkeypatch, tmp_path):
    def reads(question):
        first = question[question.index("Reply A:") : question.index("Reply B:")]
        return "**A**" if "Brest" in first else "B"

    scores, counts = judged_by(monkeypatch, tmp_path, reads)
    assert scores == [[1.0, 0.0], [1.0, 0.0]]
    assert (counts["chose A"], counts["chose B"]) == (2, 2)


def test_a_judge_that_names_neither_chooses_neither(monkeypatch, tmp_path):
    scores, counts = judged_by(monkeypatch, tmp_path, lambda _: "Both are fine.")
    assert scores == [[0.0, 0.0], [0.0, 0.0]]
    assert counts["chose neither"] == 4


def test_pools_are_made_of_what_a_server_answers_and_judged(monkeypatch, tmp_path):
    calls = json.dumps({"name": "tide", "arguments": {"port": "Brest"}})
    monkeypatch.setattr(
        "faulty_server.completion",
        lambda question: {
            "choices": [{"message": {"content": f"<tool_call>{calls}</tool_call>"}}],
            "usage": {},
        },
    )
    rows = [
        {
            "id": f"q{n}",
            "source": "s",
            "license": "MIT",
            "tools": [TOOL],
            "meta": {},
            "conversation": [{"role": "user", "content": f"High water at {port}?"}],
            "gold_calls": call(port=port),
        }
        for n, port in enumerate(("Brest", "Calais"))
    ]
    data = write(tmp_path / "rows.jsonl", rows)
    with faulty_server() as server:
        command = ["pools", "--data", str(data), "--format", "normalised", "--url", server.url]
        command += ["--model", "m", "--samples", "3", "--output", str(tmp_path / "pools.jsonl")]
        main(command)
    first, second = read_pools(tmp_path / "pools.jsonl").cases
    assert [(c.right, c.count) for c in first.candidates] == [(True, 3)]
    assert [(c.right, c.error_type) for c in second.candidates] == [
        (False, "Parameter value error")
    ]


# Robustness --------------------------------------------------------------------------------------


def rich_case(number=0):
    row = pair_row(number, chosen_output=call(port="Brest", day=3), rejected_output=call(day=3))
    row["conversation"] = [{"role": "user", "content": f'High water at "Brest", day {number}3?'}]
    request = request_of(row)
    candidates = [Candidate(request.responses[0], True), Candidate(request.responses[1], False)]
    return Case(f"t{number}", [TOOL], request.messages, candidates)


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


def test_drift_tells_which_pairs_turned_and_how_far_rewards_moved():
    cases = [rich_case(0), rich_case(1)]
    origins = [(0, "unicode"), (1, "unicode")]
    before = {"m": [np.array([1.0, 0.0]), np.array([1.0, 0.0])]}
    after = {"m": [np.array([2.0, 0.0]), np.array([0.0, 1.0])]}
    found = robustness.drift(cases, origins, before, after)["unicode"]["m"]
    assert found == {"accuracy before": 1.0, "accuracy": 0.5, "turned": 0.5, "drift": 2.0}


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


def test_filtering_writes_what_it_kept_and_finds_planted_noise(model, tmp_path):
    rows = [
        {
            "id": f"q{n}",
            "source": "s",
            "license": "MIT",
            "tools": [TOOL],
            "meta": {},
            "conversation": [{"role": "user", "content": f"High water at Brest, day {n}?"}],
            "gold_calls": call(port="Brest", day=n),
        }
        for n in range(40)
    ]
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


@pytest.mark.slow
@pytest.mark.torch
def test_the_example_fine_tunes_on_what_the_filter_kept(model, tmp_path):
    pytest.importorskip("trl")
    rows = [
        {
            "id": f"q{n}",
            "source": "s",
            "license": "MIT",
            "tools": [TOOL],
            "meta": {},
            "conversation": [{"role": "user", "content": f"High water at Brest, day {n}?"}],
            "gold_calls": call(port="Brest", day=n),
        }
        for n in range(24)
    ]
    data, test = write(tmp_path / "rows.jsonl", rows[:20]), write(tmp_path / "t.jsonl", rows[20:])
    command = ["filter", "--model", f"m={model}", "--data", str(data), "--noise", "0.3"]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32"])
    tiny.write_model(tmp_path / "lm")
    found = subprocess.run(
        [
            sys.executable,
            "examples/filter_sft.py",
            "--policy",
            str(tmp_path / "lm"),
            "--run",
            str(tmp_path / "run"),
            "--test",
            str(test),
        ],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    for name, count in (("random half", 10), ("best half", 10), ("all", 20)):
        (line,) = (line for line in lines if line.startswith(name))
        assert f"{count} rows" in line
        assert "loss of right answers" in line
