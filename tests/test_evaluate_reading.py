"""What the readers of evaluation let through, everything behind them can handle."""

import json

import pytest
import tiny
from evaluate_rows import TOOL, call, pair_row, pool_row, write

from toolrm_jax.evaluate import report, robustness
from toolrm_jax.evaluate.cases import read_pairs, read_pools
from toolrm_jax.evaluate.results import Run, read_run, write_run
from toolrm_jax.evaluate.scorers import ModelScorer, rule_scorers
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer


def in_openais_form(*calls):
    made = [{**one, "arguments": json.dumps(one["arguments"])} for one in calls]
    return [{"id": f"c{n}", "type": "function", "function": one} for n, one in enumerate(made)]


def talk(**turn):
    """A conversation in which the assistant has had its turn."""
    turns = [{"role": "user", "content": "High water at Brest?"}, {"role": "assistant", **turn}]
    return [*turns, {"role": "user", "content": "And on day 3?"}]


OPENAI = in_openais_form(*call(port="Brest", day=2))
READ = {
    "calls in OpenAI's form before": {"conversation": talk(content=None, tool_calls=OPENAI)},
    "plain calls before": {"conversation": talk(content="Hm.", tool_calls=call(port="Brest"))},
    "calls in OpenAI's form": {"chosen_output": OPENAI},
    "a message with calls": {"chosen_output": {"role": "assistant", "tool_calls": OPENAI}},
    "words and calls": {
        "chosen_output": {"role": "assistant", "content": "So: ", "tool_calls": OPENAI}
    },
    "reasoning": {
        "chosen_output": {"role": "assistant", "content": "No.", "reasoning_content": "Hm."}
    },
    "a message of words": {"rejected_output": {"role": "assistant", "content": "I do not know."}},
    "a call without its list": {"rejected_output": call(port="Best")[0]},
    "broken calls": {"rejected_output": [{"name": "tide", "args": {"port": "Brest"}}]},
    "no calls": {"rejected_output": ["tide", 3]},
    "broken arguments": {
        "rejected_output": [{"function": {"name": "tide", "arguments": '{"port": '}}]
    },
    "a call in a text": {
        "rejected_output": 'So: <tool_call>{"name": "tide", "arguments": {}}</tool_call>'
    },
}
DEEP = json.loads("[" * 100 + "]" * 100)
REJECTED = {
    "messages[0]: expected a dict": {"conversation": ["High water?"]},
    "expected a dict with one of the roles": {"conversation": [{"content": "High water?"}]},
    "messages[0] (user): expected a string as content": {"conversation": [{"role": "user"}]},
    "(assistant): expected a list as tool_calls": {"conversation": talk(tool_calls="tide")},
    "messages[1]: a tool call needs a name": {"conversation": talk(tool_calls=["tide"])},
    "messages[1]: expected calls with a name and arguments": {
        "conversation": talk(tool_calls=[{"name": "tide", "arguments": "{"}])
    },
    "messages[0]: expected text as name": {
        "conversation": [{"role": "user", "content": "High water?", "name": ["x"]}]
    },
    "tool 'tide': expected text as description": {"tools": [{**TOOL, "description": ["x"]}]},
    "A response's role is 'assistant', got 'user'": {
        "chosen_output": {"role": "user", "content": "x"}
    },
    "A response's content is a string": {"chosen_output": {"role": "assistant", "content": [1]}},
    "An answer: expected text as reasoning_content": {
        "chosen_output": {"role": "assistant", "content": "x", "reasoning_content": ["x"]}
    },
    "surrogates not allowed": {"conversation": [{"role": "user", "content": "\ud800"}]},
    "deep": {"conversation": [{"role": "user", "content": "x", "more": DEEP}]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "rm"
    tiny.write_reward_model(folder)
    with ModelScorer(str(folder), "m", dtype="float32", max_tokens=2048) as scorer:
        yield scorer


def test_what_is_read_can_be_scored_changed_written_and_shown(model, tmp_path):
    rows = [pair_row(n, **changes) for n, changes in enumerate(READ.values())]
    data = read_pairs(write(tmp_path / "rows.jsonl", rows))
    assert (len(data.cases), data.rejects) == (len(READ), [])
    changed, origins = robustness.changed_cases(data.cases, 0)
    renamed = {number for number, way in origins if way == "tools renamed"}
    assert renamed == set(range(len(READ)))
    scores = {}
    for scorer in [model, *rule_scorers()]:
        found = list(scorer.score([*data.cases, *changed]))
        scores[scorer.name] = found[: len(data.cases)]
    assert model.rejected == {}
    result = {"scorers": {name: {"by": {"error type": {}}, "calibration": {}} for name in scores}}
    write_run(tmp_path / "run", "pairs", data, scores, {}, 0)
    run = read_run(tmp_path / "run")
    assert run.cases == data.cases
    run = Run(run.path, run.result | result, run.cases, run.scores)
    assert "most confidently wrong" in "".join(report._mistakes(run))


@pytest.mark.parametrize("side", ["chosen_output", "rejected_output"])
def test_the_plain_form_of_an_answer_is_rendered_as_the_answer_was(side, tmp_path):
    renderer = Renderer(open_pretrained(str(tiny.write_model(tmp_path / "lm"))).tokenizer)
    for changes in READ.values():
        if side not in changes or (isinstance(changes[side], dict) and "name" in changes[side]):
            continue  # a call without its list is not rendered
        (made,) = read_pairs(write(tmp_path / "rows.jsonl", [pair_row(0, **changes)])).cases
        answer = made.candidates[side == "rejected_output"].response
        texts = [renderer.text([TOOL], made.messages, one) for one in (changes[side], answer)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("said", REJECTED)
def test_what_nothing_behind_could_handle_is_rejected_with_line_and_reason(said, tmp_path):
    rows = [pair_row(0), pair_row(1, **REJECTED[said])]
    found = read_pairs(write(tmp_path / "rows.jsonl", rows))
    assert [case.task for case in found.cases] == ["simple_0"]
    assert [reject.line for reject in found.rejects] == [2]
    assert said in found.rejects[0].reason


def test_the_same_calls_in_two_forms_are_one_candidate_of_a_pool(tmp_path):
    row = pool_row(0, rights=(True, False))
    calls = row["candidates"][0]["calls"]
    row["candidates"].append({**row["candidates"][0], "calls": in_openais_form(*calls)})
    (made,) = read_pools(write(tmp_path / "pools.jsonl", [row])).cases
    assert [(c.response == calls, c.count) for c in made.candidates] == [(True, 2), (False, 2)]


@pytest.mark.parametrize(
    ("sides", "rights"),
    [
        ({"chosen": ["4"], "rejected": ["5", "6", "7"]}, "rwww"),
        ({"chosen": "4", "rejected": ["5", "6", "7"]}, "rwww"),
        ({"chosen": ["4", "four"], "rejected": ["5"]}, "rrw"),
        ({"chosen": ["4"], "rejected": "5", "responses": ["4", "5"]}, "rw"),
        ({"chosen": ["4"], "rejected": ["5"], "prompt": None, "messages": talk()[:1]}, "rw"),
    ],
)
def test_a_list_of_texts_is_as_many_answers(sides, rights, tmp_path):
    row = {"id": "k", "prompt": "2 + 2?", "subset": "Math"} | sides
    (made,) = read_pairs(write(tmp_path / "rows.jsonl", [row])).cases
    assert "".join("wr"[c.right] for c in made.candidates) == rights
    assert [m["role"] for m in made.messages] == ["user"]
    right, wrong = sides["chosen"], sides["rejected"]
    assert [c.response for c in made.candidates] == [*right, *wrong]


def test_answers_of_which_it_is_not_said_which_is_right_are_no_pair(tmp_path):
    rows = [pair_row(0), {"messages": talk()[:1], "responses": ["It is at 5.", "It is at 6."]}]
    found = read_pairs(write(tmp_path / "rows.jsonl", rows))
    assert len(found.cases) == 1
    assert "do not say which is right: expected 'chosen'" in found.rejects[0].reason
