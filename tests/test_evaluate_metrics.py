"""Figures of evaluation against hand-computed cases, brute force and other libraries."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from evaluate_rows import TOOL, call, case, pair_row, pool_row, write
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate import (
    best_of_n,
    pair_metrics,
    paired,
    tables,
)
from toolrm_jax.evaluate.cases import Candidate, Case, Seen, read_pairs, read_pools
from toolrm_jax.evaluate.results import Run
from toolrm_jax.metrics import paired_gain

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


def test_the_same_answer_twice_is_one_candidate(tmp_path):
    row = pool_row(0, rights=(True, False, False))
    row["candidates"] += [{**row["candidates"][0], "greedy": True}, row["candidates"][2]]
    (made,) = read_pools(write(tmp_path / "pools.jsonl", [row])).cases
    assert [(c.count, c.greedy) for c in made.candidates] == [(2, True), (2, False), (6, False)]


def test_answers_that_call_nothing_are_their_words(tmp_path):
    said = ["No tool fits.", "I cannot.", "[]", " ", None, "No tool fits."]
    row = pool_row(0, candidates=[{"calls": [], "raw": raw, "correct": True} for raw in said])
    (made,) = read_pools(write(tmp_path / "pools.jsonl", [row])).cases
    found = [(c.response, c.count) for c in made.candidates]
    assert found == [("No tool fits.", 2), ("I cannot.", 1), ([], 3)]


def test_an_answer_is_not_right_and_wrong(tmp_path):
    same = pair_row(0, rejected_output=call(port="Brest", day=0))
    (reject,) = read_pairs(write(tmp_path / "pairs.jsonl", [same, pair_row(1)])).rejects
    assert reject.reason.startswith("the same answer is right and wrong: [{")
    both = [{"calls": call(port="Brest"), "correct": right} for right in (True, False)]
    path = write(tmp_path / "pools.jsonl", [pool_row(0, candidates=both), pool_row(1)])
    (reject,) = read_pools(path).rejects
    assert (reject.line, reject.reason[:15]) == (1, "the same answer")


def test_two_rows_of_one_id_are_two_cases_of_one_task(tmp_path):
    twice = [pair_row(n // 2, rejected_output=call(port="Best", day=n)) for n in range(40)]
    once = [row | {"test_id": f"simple_{n}"} for n, row in enumerate(twice)]
    scores = [[n // 2 % 2, 0.5] for n in range(40)]
    found = []
    for name, rows in (("twice", twice), ("once", once)):
        cases = read_pairs(write(tmp_path / f"{name}.jsonl", rows)).cases
        found.append(described(cases, scores)["accuracy"])
        assert (len(cases), len({c.task for c in cases})) == (40, 20 if name == "twice" else 40)
    # As much is known as of 20 pairs; of 40 that are no copies, more.
    cases = read_pairs(write(tmp_path / "half.jsonl", twice[::2])).cases
    half = described(cases, scores[::2])["accuracy"]
    assert found[0] == half | {"n": 40}
    assert found[1]["high"] - found[1]["low"] < 0.8 * (half["high"] - half["low"])


def test_two_pools_of_one_id_are_two_cases_of_one_task(tmp_path):
    pools = [pool_row(n // 2, (n // 2 % 2 == 0, n // 2 % 2 == 1, False)) for n in range(40)]
    curves = []
    for rows in (pools, pools[::2]):
        cases = read_pools(write(tmp_path / "pools.jsonl", rows)).cases
        scores = {"s": [np.array([2.0, 1.0, 0.0])] * len(cases)}
        made = best_of_n.curves(cases, scores, most=2, draws="distinct", seed=0)
        assert made["pools"] == len(cases) == len(rows)
        assert len({c.task for c in cases}) == 20
        curves.append(made["curves"]["s"])
    assert curves[0] == [pytest.approx(point) for point in curves[1]]
    assert curves[0][1]["high"] > curves[0][1]["mean"] > curves[0][1]["low"]


def test_tasks_are_known_by_their_ids_without_source_and_pair():
    cases = [case(True, task=name) for name in ("simple_1", "bfcl/simple_2", "simple_3")]
    assert Seen(["bfcl/simple_1", "x/simple_2#4"]).tasks(cases) == {"simple_1", "bfcl/simple_2"}
    numbered = [case(True, task=name) for name in ("a/3", "3", "b/a/4", "a/5")]
    assert Seen(["b/3", "a/3", "a/5#1"]).tasks(numbered) == {"a/3", "a/5"}


def test_tasks_are_known_by_their_requests_unless_those_are_too_short():
    def asking(task, words):
        said = [{"role": "user", "content": words}]
        return dataclasses.replace(case(True, task=task), messages=said)

    seen = Seen.of([asking("a", "High water at Brest, day 3?"), asking("b", "Yes, please.")])
    assert (seen.ids, len(seen.requests)) == (["a", "b"], 1)
    again = [asking("x", "high water at Brest day 3"), asking("y", "Yes, please.")]
    assert seen.tasks(again) == {"x"}
    chinese = "布雷斯特三号的高潮是什么时候?"
    assert Seen.of([asking("a", chinese)]).tasks([asking("z", chinese)]) == {"z"}


def test_rows_without_ids_are_tasks_of_their_files(tmp_path):
    row = pair_row(0)
    row.pop("id", None), row.pop("test_id", None)
    one, other = (read_pairs(write(tmp_path / f"{n}.jsonl", [row])).cases for n in "ab")
    names = [c.task for c in (*one, *other)]
    assert names[0].startswith("line 1 of a.jsonl (")
    assert names[1].startswith("line 1 of b.jsonl (")
    # A file of the same name is another file.
    (tmp_path / "c").mkdir()
    row["conversation"] = [{"role": "user", "content": "Low water?"}]
    (there,) = read_pairs(write(tmp_path / "c" / "a.jsonl", [row])).cases
    assert there.task not in names


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
    assert found["unscored pairs"] == 0


def test_a_pair_of_which_neither_side_could_be_scored_is_in_no_share():
    cases = [case(True, False, task=str(k), category="c") for k in range(3)]
    found = described(cases, [[1, 0], [math.nan, math.nan], [2, 2]])
    shares = (found["accuracy"], found["by"]["category"]["c"], found["length"]["right is shorter"])
    assert [(share["mean"], share["n"]) for share in shares] == [(0.75, 2)] * 3
    assert (found["ties"], found["unscored"], found["unscored pairs"]) == (1, 2, 1)
    none = described(cases[:1], [[math.nan, math.nan]])
    assert (none["accuracy"]["mean"], none["accuracy"]["n"], none["ties"]) == (None, 0, 0)
    assert (none["margin"]["mean"], none["calibration"]["ece"]) == (None, None)


def test_scorers_are_compared_on_the_pairs_that_both_could_score():
    nan = [math.nan, math.nan]
    cases = [case(True, False, task=str(k)) for k in range(4)]
    scores = {"a": [[1, 0], [1, 0], nan, [0, 1]], "b": [[0, 1], nan, [1, 0], [0, 1]]}
    scores = {name: [np.array(s, float) for s in found] for name, found in scores.items()}
    run = Run("r", {"data": {"sha256": "0" * 64}}, cases, {**scores, "none": [np.array(nan)] * 4})
    found = paired.compare(run, "a", run, "b")
    assert (found["pairs"], found["unscored"], found["left out"]) == (2, 2, 0)
    assert (found["a"]["accuracy"], found["b"]["accuracy"]) == (0.5, 0.0)
    assert (found["difference"]["mean"], found["difference"]["n"]) == (0.5, 2)
    assert "as one of the two could not score them: 2" in paired.words(found)
    with pytest.raises(InputError, match="no pair that both 'a' and 'none' could score"):
        paired.compare(run, "a", run, "none")


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


def test_every_figure_of_a_scorer_is_its_own():
    """By hand: kinds, generators, lengths, margins and their order, each of other numbers."""
    lengths = [("xx", "x"), ("x", "xx"), ("x", "xxx"), ("yy", "zz")]
    models, kinds = ["m", "m", "n", "n"], ["a", "b", "b", "b"]
    cases = [
        Case(
            str(k),
            [],
            [],
            [Candidate(right, True), Candidate(wrong, False, kinds[k], models[k])],
            "first" if k == 0 else "rest",
        )
        for k, (right, wrong) in enumerate(lengths)
    ]
    found = described(cases, [[5.0, 1.0], [1.0, 2.0], [3.0, 1.0], [0.0, 1.0]])
    by = {
        name: {label: cell["mean"] for label, cell in cells.items()}
        for name, cells in found["by"].items()
    }
    assert by == {
        "error type": {"a": 1.0, "b": pytest.approx(1 / 3)},
        "category": {"first": 1.0, "rest": pytest.approx(1 / 3)},
        "model": {"m": 0.5, "n": 0.5},
    }
    length = found["length"]
    assert [length[k]["mean"] for k in ("right is longer", "right is shorter", "as long")] == [
        1.0,
        0.5,
        0.0,
    ]
    margins = np.array([4.0, -1.0, 2.0, -1.0])
    assert found["margin"]["mean"] == margins.mean()
    assert found["margin"]["std"] == pytest.approx(margins.std())
    low, middle, high = np.quantile(margins, [0.05, 0.5, 0.95])
    assert [found["margin"][k] for k in ("5%", "50%", "95%")] == [low, middle, high]
    # Ranks within each prompt, centred: longer and higher in the first, the reverse in the next.
    scores, sizes = np.array([0.5, -0.5] * 3), np.array([0.5, -0.5, -0.5, 0.5, -0.5, 0.5])
    scores[2:4] *= -1
    wanted = np.corrcoef(np.append(scores, [-0.5, 0.5]), np.append(sizes, [0, 0]))[0, 1]
    assert found["length"]["correlation within a prompt"] == pytest.approx(wanted)
    (row,) = tables._length_table({"s": found})[2]
    assert [cell.partition(" ")[0] for cell in row[1:4]] == ["100.0", "50.0", "0.0"]


def test_infinite_scores_that_are_equal_tie():
    cases = [case(True, False)] * 2
    found = described(cases, [[np.inf, np.inf], [-np.inf, 1.0]])
    assert (found["ties"], found["accuracy"]["mean"]) == (1, 0.25)


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


def test_answers_vote_for_what_they_call_however_worded():
    refusals = ["I cannot.", "No tool does that.", ""]
    broken = ['<tool_call>{"name":', '<tool_call>{"name": 1}</tool_call>']
    two = [*call(port="Brest"), *call(port="Calais")]
    answers = [two, two[::-1], *refusals, *broken]
    candidates = [Candidate(answer, n < 2) for n, answer in enumerate(answers)]
    made = Case("t", [TOOL], [{"role": "user", "content": "?"}], candidates)
    votes = best_of_n.votes_of(made).tolist()
    assert votes[0] == votes[1]
    assert votes[2] == votes[3] == votes[4]
    assert len(set(votes)) == 4
    without_tools = best_of_n.votes_of(dataclasses.replace(made, tools=[])).tolist()
    assert len(set(without_tools[2:5])) == 3
    scores = {"s": [np.arange(7.0)]}
    found = best_of_n.curves([made], scores, most=7, draws="sampled", seed=0)["curves"]
    assert found["majority"][-1]["mean"] == 0.0  # three refusals against two that are right
    # Where some of those who vote for the same are right, as many of them are.
    some = best_of_n.majority(
        np.array([1, 0, 0]), np.array([1, 3, 1]), 5, np.random.default_rng(0), np.array([0, 0, 1])
    )
    assert some == (0.25, 0.0)


def test_all_wrong_all_right_and_single_pools_have_their_plain_values():
    cases = [case(True, True, task="a"), case(False, False, task="b"), case(True, task="c")]
    scores = {"s": [np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.0])]}
    found = best_of_n.curves(cases, scores, most=1, draws="distinct", seed=0)
    for name in ("s", "random", "oracle"):
        assert found["curves"][name][0]["mean"] == pytest.approx(2 / 3)
    assert found["by category"] == {}
    found = best_of_n.curves(cases, scores, most=2, draws="distinct", seed=0)
    assert (found["pools"], found["too small"]) == (2, 1)
    about = best_of_n.about(cases)
    assert (about["all right"], about["all wrong"]) == (2, 1)
    assert about["greedy"] is None
    assert not best_of_n.hold_both(cases)


def test_greedy_is_told_where_the_pools_mark_it():
    marked = case(True, False)
    first = dataclasses.replace(marked.candidates[0], greedy=True)
    marked = dataclasses.replace(marked, candidates=[first, marked.candidates[1]])
    found = best_of_n.about([marked, case(False)])["greedy"]
    assert (found["pools"], found["mean"], found["high"]) == (1, 1.0, 1.0)
    assert 0 < found["low"] < 0.5  # of one pool little is known


def test_by_category_it_is_the_best_of_the_largest_n():
    cases = [case(True, False, False, task="a", category="x"), case(False, True, False, task="b")]
    cases[1] = dataclasses.replace(cases[1], category="y")
    scores = {"s": [np.array([3.0, 2.0, 1.0]), np.array([3.0, 2.0, 1.0])]}
    found = best_of_n.curves(cases, scores, most=3, draws="distinct", seed=0)["by category"]
    means = {
        category: {name: cell[name]["mean"] for name in ("s", "random", "oracle")}
        for category, cell in found.items()
    }
    assert means["x"] == {"s": 1.0, "random": pytest.approx(1 / 3), "oracle": 1.0}
    assert means["y"] == {"s": 0.0, "random": pytest.approx(1 / 3), "oracle": 1.0}


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


def run_of_pools(name, cases, scores):
    """A run of best-of-n up to 3."""
    scores = {"s": scores}
    found = {
        draws: best_of_n.curves(cases, scores, most=3, draws=draws, seed=0)
        for draws in best_of_n.DRAWS
    }
    about = {"best of n": found, "data": {"sha256": name * 64}, "seed": 0}
    return Run(name, about, cases, scores)


def test_a_scorer_is_compared_with_the_lines_beside_it():
    rights = [(True, False, False), (False, True, False), (True, True, False)] * 3
    cases = [
        dataclasses.replace(case(*right, task=str(k)), messages=[{"k": k}])
        for k, right in enumerate(rights)
    ]
    counts = [3, 1, 2]
    cases = [
        dataclasses.replace(
            made,
            candidates=[
                dataclasses.replace(c, count=count)
                for c, count in zip(made.candidates, counts, strict=True)
            ],
        )
        for made in cases
    ]
    rng = np.random.default_rng(0)
    run = run_of_pools("a", cases, [rng.normal(size=3) for _ in cases])
    for line, draws in (("random", 2), ("oracle", 2), ("majority", 1)):
        found = paired.compare(run, "s", run, line)["best of n"]
        assert len(found) == draws  # distinct answers have no majority
        for kind, made in found.items():
            curve = run.result["best of n"][kind]["curves"][line]
            assert [p["b"] for p in made["points"]] == pytest.approx([p["mean"] for p in curve])
            assert made["pools"] == 9
    # On pairs: what was sampled more often.
    pairs = paired.compare(run, "majority", run, "random")
    assert (pairs["a"]["accuracy"], pairs["b"]["accuracy"]) == (9 / 18, 0.5)
    with pytest.raises(InputError, match="no scorer 'x'; it has: s, random, oracle, majority"):
        paired.compare(run, "x", run, "s")


def test_curves_of_best_of_n_are_compared_pool_by_pool():
    rng = np.random.default_rng(0)
    cases = [
        dataclasses.replace(case(True, False, False, task=str(k // 2)), messages=[{"k": k}])
        for k in range(20)
    ]
    worse = [rng.normal(size=3) for _ in cases]
    better = [np.add(scores, [k % 2, 0, 0]) for k, scores in enumerate(worse)]
    cases.append(case(True, False))  # too small
    a = run_of_pools("a", cases, [*better, np.zeros(2)])
    b = run_of_pools("b", cases[1:], [*worse[1:], np.zeros(2)])
    found = paired.compare(a, "s", b, "s")
    assert (found["a"]["data sha256"], found["b"]["data sha256"]) == ("a" * 64, "b" * 64)
    made = found["best of n"]["sampled"]
    assert (made["pools"], made["left out"]) == (19, 2)
    assert [point["n"] for point in made["points"]] == [1, 2, 3]
    curve = b.result["best of n"]["sampled"]["curves"]["s"]
    assert [p["b"] for p in made["points"]] == pytest.approx([p["mean"] for p in curve])
    # The best of all three is the one with the highest score.
    won = [np.array([s.argmax() == 0 for s in scores[1:]], float) for scores in (better, worse)]
    wanted = paired_gain(*won, [c.task for c in cases[1:-1]])
    last = made["points"][-1]
    assert (last["mean"], last["low"], last["high"]) == (wanted.mean, wanted.low, wanted.high)
    assert wanted.mean > 0
    words = paired.words(found)
    assert "best of n, sampled draws, 19 pools; left out" in words
    assert "  n = 1: 33.3% and 33.3%, a - b: +0.0 [+0.0, +0.0]" in words
    found["difference"] = {"mean": -1e-17, "low": -1e-17, "high": 1e-17}
    assert "a - b: +0.0 [+0.0, +0.0] points" in paired.words(found)
