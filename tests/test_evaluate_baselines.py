"""Baselines that are models: a probe, a log-likelihood ranker, a judge; pools made by a server."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from evaluate_rows import TOOL, call, normal_rows, pair_row, write
from faulty_server import faulty_server
from source_rows import RAVEN, RAVEN_FUNCTIONS

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate import (
    likelihood,
    llm_judge,
    probe,
    report,
)
from toolrm_jax.evaluate.__main__ import _all_scores as all_scores
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.cases import read_pairs, read_pools
from toolrm_jax.evaluate.likelihood import LikelihoodScorer
from toolrm_jax.evaluate.llm_judge import JudgeScorer
from toolrm_jax.evaluate.options import said_of
from toolrm_jax.evaluate.pool_making import write_pools
from toolrm_jax.evaluate.results import made_by, read_run
from toolrm_jax.evaluate.scorers import ModelScorer, RuleScorer, cards_of
from toolrm_jax.evaluate.tables import facts_of
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.synth.answer import Answer

# Baselines that are models -----------------------------------------------------------------------


def test_a_probe_becomes_a_reward_model_with_the_regressions_head(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    tiny.write_model(tmp_path / "lm")
    rows = [pair_row(n, rejected_output=call(port="Nowhere", day=n)) for n in range(12)]
    rows.append(pair_row(50, conversation=[{"role": "user", "content": "tide " * 600}]))
    fit_on = write(tmp_path / "fit.jsonl", [*rows, "no JSON"])
    about = probe.fit_probe(
        str(tmp_path / "lm"),
        read_pairs(fit_on),
        tmp_path / "probe",
        dtype="float32",
        max_tokens=500,
        seed=3,
    )
    assert (about["pairs"], about["over_long"], about["rejected"]) == (12, 1, 1)
    assert about["left_out_loss"] > 0
    written = json.loads((tmp_path / "probe/toolrm.json").read_text())
    assert about.items() <= written.items()
    assert (about["seed"], about["fitted_on_sha256"]) == (3, read_pairs(fit_on).digest)
    assert {"command", "versions"} <= set(about)
    with ModelScorer(str(tmp_path / "probe"), "p", dtype="float32") as scorer:
        cases = read_pairs(fit_on).cases[:12]
        margins = [s[0] - s[1] for s in scorer.score(cases)]
        assert len(scorer.trained.ids) == 12
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


def test_what_a_probe_cannot_be_fitted_on_is_left_out_and_counted(tmp_path):
    tiny.write_model(tmp_path / "lm")
    data = read_pairs(write(tmp_path / "fit.jsonl", [pair_row(n) for n in range(10)]))
    first, second, third, *rest = data.cases
    unknown = [{"role": "narrator", "content": "High water?"}]
    cases = [
        dataclasses.replace(first, messages=unknown),
        dataclasses.replace(second, candidates=second.candidates[:1]),
        dataclasses.replace(third, candidates=third.candidates[1:]),
    ]
    data = dataclasses.replace(data, cases=[*cases, *rest])
    how = {"dtype": "float32", "max_tokens": 2000}
    about = probe.fit_probe(str(tmp_path / "lm"), data, tmp_path / "probe", **how)
    counted = {"pairs": 7, "one_sided": 2, "over_long": 0, "not_rendered": 1}
    assert about.items() >= counted.items()
    written = json.loads((tmp_path / "probe" / "toolrm.json").read_text())
    assert written.items() >= counted.items()
    assert written["train_tasks"] == [f"simple_{n}" for n in range(3, 10)]
    for given, said in ((cases[:1], "not_rendered: 1"), (cases[1:], "both a right and a wrong")):
        data = dataclasses.replace(data, cases=given)
        with pytest.raises(InputError, match=said):
            probe.fit_probe(str(tmp_path / "lm"), data, tmp_path / "none", **how)


def test_where_no_task_can_be_left_out_the_penalty_is_not_said_to_be_chosen(tmp_path):
    tiny.write_model(tmp_path / "lm")
    data = read_pairs(write(tmp_path / "fit.jsonl", [pair_row(1, test_id="t")] * 3))
    about = probe.fit_probe(str(tmp_path / "lm"), data, tmp_path / "probe", dtype="float32")
    assert (about["penalty"], about["left_out_loss"]) == (max(probe.PENALTIES), None)
    written = json.loads((tmp_path / "probe/toolrm.json").read_text())
    assert written["left_out_loss"] is None
    rng = np.random.default_rng(0)
    x_ND, share_N = rng.normal(size=(6, 4)), np.full(6, 1 / 6)
    assert probe.choose_penalty(x_ND, share_N, list("abcdef"), seed=0)[1] > 0


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
    longest = max(len(found.whole(number)) for number in range(2))
    one = LikelihoodScorer(str(folder), max_tokens=longest - 1)
    assert np.isnan(next(one.score([made]))).tolist() == [
        len(found.whole(number)) == longest for number in range(2)
    ]


@pytest.mark.torch
@pytest.mark.parametrize("together", [1, 40, 10_000])
@pytest.mark.parametrize("begun", [0, 7])  # tokens of the prompt
def test_the_log_likelihood_does_not_depend_on_what_is_computed_together(
    tmp_path, monkeypatch, together, begun
):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(likelihood, "_GROUP_TOKENS", together)
    ranker = LikelihoodScorer(str(tiny.write_model(tmp_path / "lm")))
    rng = np.random.default_rng(0)
    prompt, *answers = (rng.integers(5, 50, count) for count in (begun, 9, 2, 30, 9, 17))
    for answer, mean in zip(answers, ranker._means(prompt, answers), strict=True):
        ids = torch.tensor(np.concatenate([prompt, answer]))[None]
        labels = ids.clone()
        labels[:, :begun] = -100
        with torch.no_grad():
            assert mean == pytest.approx(-ranker._model(ids, labels=labels).loss.item(), abs=1e-5)


@pytest.mark.torch
def test_the_log_likelihood_of_what_is_longer_than_max_tokens_is_not_told(tmp_path):
    pytest.importorskip("torch")
    folder = tiny.write_model(tmp_path / "lm")
    data = write(tmp_path / "rows.jsonl", [pair_row(1)])
    command = ["pairs", "--data", str(data), "--likelihood", f"l={folder}", "--no-rules"]
    for length, unscored, notes in (("5", 2, ["l: not scored, over-long: 2."]), ("2000", 0, [])):
        main([*command, "--max-tokens", length, "--output", str(tmp_path / "run")])
        found = read_run(tmp_path / "run").result
        assert found["scorers"]["l"]["unscored"] == unscored
        assert found["notes"] == notes


@pytest.mark.torch
def test_the_log_likelihood_says_what_it_is_and_what_it_cannot_render(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tiny.write_model(tmp_path / "lm")
    (made,) = read_pairs(write(tmp_path / "rows.jsonl", [pair_row(1)])).cases
    ranker = LikelihoodScorer(str(folder), "l", max_tokens=2000)
    unknown = dataclasses.replace(made, messages=[{"role": "narrator", "content": "High water?"}])
    assert np.isnan(next(ranker.score([unknown]))).all()
    assert said_of([ranker]) == ["l: not scored, cannot be rendered: 2."]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert cards_of([ranker])["l"] == {
        "path": str(folder),
        "parameters": model.num_parameters(),
        "dtype": "float32",
        "max_tokens": 2000,
    }
    assert made_by(0)["versions"]["torch"] == torch.__version__


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
    scores, counts = judged_by(monkeypatch, tmp_path, lambda _: "A is better.\nSo the answer is A.")
    assert scores == [[0.5, 0.5], [0.5, 0.5]]
    assert counts["changed with the order"] == 2


def test_a_judge_that_reads_is_right_in_both_orders(monkeypatch, tmp_path):
    def reads(question):
        first = question[question.index("Reply A:") : question.index("Reply B:")]
        return "**A**" if "Brest" in first else "B"

    scores, counts = judged_by(monkeypatch, tmp_path, reads)
    assert scores == [[1.0, 0.0], [1.0, 0.0]]
    assert (counts["chose A"], counts["chose B"]) == (2, 2)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("**B**.", "B"),
        ("\\boxed{A}", "A"),
        ("Answer: B", "B"),
        ("Reply A", "A"),
        ("The better reply is B.", "B"),
        ("B misses the port.\n\nAnswer: **A**", "A"),
        ("**Answer:** A\n\nReply B calls the wrong tool.", "A"),
        ("A\n\nReply B calls the wrong tool.", "A"),
        ("The answer is: B\nReply A calls the wrong tool.", "B"),
        ("A\nIt misses the port.\n\nB\nIt is right.\n\nVerdict: B", "B"),
        ("A\nIt misses the port.\n\nB\nIt is right.", ""),
        ("A:\nwrong port\n\nB:\nright port\n\nB is right.", ""),
        ("The wrong reply is B.", ""),
        ("A is right. Incorrect: B", ""),
        ("Wrong answer: A.\nB calls the right tool", ""),
        ("I doubt that B is right.", ""),
        ("B is better than A", ""),
        ("Reply B is better than reply A.", ""),
        ("Answer B is better than answer A", ""),
        ("B is better than A.\nA calls the wrong tool.", ""),
        ("A is wrong.", ""),
        ("A is wrong, and so is B", ""),
        ("### Reply A\nIt is fine.\n### Reply B\nIt is fine, too.", ""),
        ("Both are fine.", ""),
        ("", ""),
    ],
)
def test_a_reply_names_a_letter_by_a_plain_rule(reply, letter):
    assert llm_judge._letter(Answer("q", "j", "", True, reply)) == letter


def test_a_judge_that_names_neither_chooses_neither(monkeypatch, tmp_path):
    scores, counts = judged_by(monkeypatch, tmp_path, lambda _: "B is better than A")
    assert scores == [[0.5, 0.5], [0.5, 0.5]]
    assert counts["chose neither"] == 4


def test_a_question_without_a_reply_is_counted_apart_and_its_pair_not_scored(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "faulty_server.completion",
        lambda _: {"choices": [{"message": {"content": "A"}}], "usage": {}},
    )
    cases = read_pairs(write(tmp_path / "rows.jsonl", [pair_row(n) for n in range(3)])).cases
    monkeypatch.setattr(llm_judge, "_QUESTION", "{messages}")  # the day chooses the fault
    with faulty_server(["500", "", "400"]) as server:
        judge = JudgeScorer(server.url, "j", tmp_path / "judge.sqlite", tries=1)
        scores = [found.tolist() for found in judge.score(cases)]
    assert np.isnan(scores[0]).all()
    assert scores[1] == [0.5, 0.5]
    assert np.isnan(scores[2]).all()
    assert judge.counts == {
        "no reply": 2,
        "no reply, refused": 2,
        "chose A": 2,
        "changed with the order": 1,
    }
    (note,) = said_of([judge])
    assert "no reply: 2, " in note
    assert judge.card["model"] == "j"


def cut_off(monkeypatch, day):
    """Lets the server cut off what it replies to the pair of that day."""

    def completion(question):
        end = "length" if f"day {day}?" in question[0] else "stop"
        return {"choices": [{"message": {"content": "A"}, "finish_reason": end}]}

    monkeypatch.setattr("faulty_server.completion", completion)


def test_a_judge_that_replied_to_no_pair_is_an_error_and_no_result(monkeypatch, tmp_path):
    data = write(tmp_path / "rows.jsonl", [pair_row(1)])
    cut_off(monkeypatch, day=1)
    with faulty_server() as server:
        command = ["pairs", "--data", str(data), "--judge", server.url, "--judge-model", "j"]
        command += ["--output", str(tmp_path / "run"), "--no-rules"]
        said = r"judge j at .* no pair \(no reply, cut off: 2\).*256 tokens \(--judge-max-tokens\)"
        with pytest.raises(SystemExit, match=said):
            main(command)
        assert not (tmp_path / "run").exists()
        cut_off(monkeypatch, day=None)
        with pytest.raises(SystemExit, match=said):  # what was cut off is kept, for this limit
            main(command)
        main([*command, "--judge-max-tokens", "300"])
    found = read_run(tmp_path / "run").result
    assert found["models"]["judge j"]["max_tokens"] == 300
    assert found["scorers"]["judge j"]["accuracy"]["n"] == 1


def test_pairs_without_a_reply_are_no_ties_of_the_judge(monkeypatch, tmp_path):
    data = write(tmp_path / "rows.jsonl", [pair_row(1), pair_row(2)])
    cut_off(monkeypatch, day=2)
    with faulty_server() as server:
        command = ["pairs", "--data", str(data), "--judge", server.url, "--judge-model", "j"]
        main([*command, "--output", str(tmp_path / "run")])
    run = read_run(tmp_path / "run")
    found = run.result["scorers"]["judge j"]
    assert (found["accuracy"]["n"], found["ties"], found["unscored pairs"]) == (1, 1, 1)
    assert "judge j: left out, as neither side could be scored: 1 pairs." in facts_of(run)
    text = report.markdown([run])
    assert "| Parameter value error | 1 to 2 |" in text
    assert "| judge j | 50.0" in text
    assert "| 1 | 1 | 2 | 1 | 0.00 | - |" in text


def test_a_judge_refuses_more_than_two_answers_before_anything_is_scored(tmp_path):
    wrongs = [{"response": call(port=port), "error_type": "value"} for port in ("Best", "Bast")]
    row = {k: v for k, v in pair_row(1).items() if k not in ("chosen_output", "rejected_output")}
    data = write(
        tmp_path / "rows.jsonl", [row | {"chosen": call(port="Brest"), "rejected": wrongs}]
    )
    scored = []
    rule = RuleScorer("r", lambda _, response: scored.append(response) or 0.0)
    judge = JudgeScorer("http://127.0.0.1:1/v1", "j", tmp_path / "judge.sqlite")
    with pytest.raises(InputError, match="has 3 candidates; a judge compares two"):
        all_scores([rule, judge], read_pairs(data).cases)
    assert scored == []
    command = ["best-of-n", "--judge", "http://127.0.0.1:1/v1", "--judge-model", "j"]
    with pytest.raises(SystemExit, match="--judge: a judge compares two answers, and a pool"):
        main([*command, "--data", str(data), "--output", str(tmp_path / "run")])


TIDE = f"<tool_call>{json.dumps(call(port='Brest')[0])}</tool_call>"


def make_pools(monkeypatch, tmp_path, rows, reply, *options, faults=()):
    """The candidates, rejects and sidecar of `pools` where the server answers `reply(question)`."""
    monkeypatch.setattr(
        "faulty_server.completion", lambda question: {"choices": [reply(question[0])], "usage": {}}
    )
    data, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "pools.jsonl"
    with faulty_server(list(faults)) as server:
        command = ["pools", "--data", str(data), "--url", server.url, "--model", "m of x"]
        main([*command, "--samples", "3", "--output", str(output), *options])
    lines = (tmp_path / "pools.rejects.jsonl").read_text().splitlines()
    about = json.loads((tmp_path / "pools.about.json").read_text())
    return read_pools(output), list(map(json.loads, lines)), about


def test_pools_are_made_of_what_a_server_answers_and_judged(monkeypatch, tmp_path):
    first, second = normal_rows(2)
    second["gold_calls"] = call(port="Calais")
    found, rejects, about = make_pools(
        monkeypatch,
        tmp_path,
        [first | {"gold_calls": call(port="Brest")}, second],
        lambda _: {"message": {"content": TIDE}},
        *("--format", "normalised", "--seed", "5"),
    )
    right, wrong = found.cases
    assert [(c.right, c.count) for c in right.candidates] == [(True, 3)]
    assert [(c.right, c.error_type) for c in wrong.candidates] == [(False, "Parameter value error")]
    assert rejects == []
    assert (about["seed"], about["model"]["model"], about["rejected"]) == (5, "m of x", {})
    assert about["sha256"] == found.digest
    assert (about["data"]["tasks"], len(about["data"]["sha256"])) == (2, 16)
    assert about["versions"]["toolrm_jax"]
    assert about["command"].startswith("python -m toolrm_jax.evaluate")


def test_what_a_server_refuses_and_rows_that_are_no_tasks_are_left_out_and_told(
    monkeypatch, tmp_path
):
    rows = normal_rows(4)  # the server refuses the question of day 1, and cuts that of day 2 off
    rows[3]["meta"] = {"verdict": "state_outcome"}

    def reply(question):
        end = "length" if "day 2" in question else "stop"
        return {"message": {"content": TIDE}, "finish_reason": end}

    found, rejects, about = make_pools(
        monkeypatch,
        tmp_path,
        [*rows, "no JSON", rows[0]],
        reply,
        *("--format", "normalised"),
        faults=["", "400", "", ""],
    )
    assert [c.task for c in found.cases] == ["q0"]
    told = [(row["id"], row["reason"]) for row in rejects]
    assert told == [
        ("q3", "right by what the calls bring about"),
        (None, "not JSON"),
        ("q0", "an id that another task has"),
        *[("q1", "refused")] * 3,
        *[("q2", "cut off")] * 3,
    ]
    assert rejects[1]["at"].endswith("rows.jsonl, line 5")
    assert "status 400" in rejects[3]["detail"]
    assert about["rejected"] == {
        "refused": 3,
        "cut off": 3,
        "right by what the calls bring about": 1,
        "not JSON": 1,
        "an id that another task has": 1,
    }
    with pytest.raises(SystemExit, match="No task got an answer: 3 were left out; the last, cut"):
        make_pools(monkeypatch, tmp_path, rows[2:3], reply, "--format", "normalised")


def test_questions_that_may_be_asked_again_hold_the_pools_back(tmp_path):
    found = normal_rows(1)
    data, output = write(tmp_path / "rows.jsonl", found), tmp_path / "pools.jsonl"
    entry = {"kind": "endpoint", "model": "m", "license": "unknown", "samples": 1, "tries": 1}
    source = {"format": "normalised", "path": str(data), "options": {}}
    with faulty_server(["500"]) as server:
        with pytest.raises(InputError, match=r"1 x m: no answer.*the same command asks"):
            write_pools(output, source, entry | {"url": server.url})
        assert not output.exists()
        write_pools(output, source, entry | {"url": server.url})
    assert len(read_pools(output).cases) == 1


def test_pools_of_chat_logs_have_the_licence_that_is_given(monkeypatch, tmp_path):
    made = [{"type": "function", "function": call(port="Brest")[0]}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": made}]
    found, _, _ = make_pools(
        monkeypatch,
        tmp_path,
        [{"messages": messages, "tools": [TOOL]}],
        lambda _: {"message": {"content": TIDE}},
        *("--format", "openai", "--option", "license=CC-BY-4.0"),
    )
    assert [c.right for c in found.cases[0].candidates] == [True]
    assert json.loads((tmp_path / "pools.jsonl").read_text())["license"] == "CC-BY-4.0"


def test_pools_of_tasks_whose_functions_are_in_a_file_of_their_own(monkeypatch, tmp_path):
    functions = write(tmp_path / "functions.jsonl", RAVEN_FUNCTIONS)
    reply = json.dumps([{"name": "tide", "arguments": {"port": "Brest", "step": 1}}])
    raven = [monkeypatch, tmp_path, [RAVEN], lambda _: {"message": {"content": reply}}]
    form = ("--format", "nexusraven", "--option")
    found, _, _ = make_pools(*raven, *form, f"functions={functions}")
    assert (found.tasks, len(found.cases[0].tools)) == (["nexusraven/sea/0"], 2)
    with pytest.raises(SystemExit, match="--option functions=FILE"):
        make_pools(*raven, *form[:2])
    with pytest.raises(SystemExit, match=r"unexpected keyword argument 'function'.*functions"):
        make_pools(*raven, *form, f"function={functions}")
    with pytest.raises(SystemExit, match="--option functions: expected NAME=VALUE"):
        make_pools(*raven, *form, "functions")
