"""Trainers get the scorer's rewards; what cannot be scored follows the rule and is counted."""

import copy
import itertools
import json
import pickle
import sys

import jax
import numpy as np
import pytest
import tiny

from toolrm_jax.completions import CompletionError, read_completion
from toolrm_jax.reward_client import RewardClient
from toolrm_jax.reward_functions import (
    RuleError,
    ScorerRewards,
    SourceError,
    TRLReward,
    TunixReward,
    UnscoredRule,
    VerlReward,
    end_ids_of,
)
from toolrm_jax.score_request import Rejected
from toolrm_jax.scorer import Scorer

F32 = {"rtol": 1e-5, "atol": 1e-5}
END = "<|im_end|>"
NUMBERS = UnscoredRule.number(-7.0)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    model = tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")
    options = {"dtype": "float32", "devices": jax.devices()[:1], "max_tokens": 512}
    with Scorer.from_pretrained(model, **options) as opened:
        yield opened


@pytest.fixture(scope="module")
def source(scorer):
    return ScorerRewards(scorer)


ROWS = tiny.rows("train", 4)
TOOLS = [row["tools"] for row in ROWS]
MESSAGES = [row["messages"] for row in ROWS]
CALLS = [f"<tool_call>{json.dumps(row['chosen'][0])}</tool_call>" for row in ROWS]


@pytest.fixture(scope="module")
def expected(scorer):
    """The scorer's own rewards of the four right answers."""
    asked = [
        {"tools": row["tools"], "messages": row["messages"], "responses": [row["chosen"]]}
        for row in ROWS
    ]
    found = [scored.rewards[0] for scored in scorer.score(asked)]
    assert np.std(found) > 0.01
    return found


def rendered(row):
    """A policy's prompt as text, as its template writes it."""
    return tiny.tokenizer().apply_chat_template(
        row["messages"],
        tools=[{"type": "function", "function": tool} for tool in row["tools"]],
        tokenize=False,
        add_generation_prompt=True,
    )


# --- TRL ------------------------------------------------------------------------------------------


def test_trl_message_lists_get_the_scorers_rewards(source, expected):
    completions = [[{"role": "assistant", "content": text}] for text in CALLS]
    found = TRLReward(source, end_ids=None)(MESSAGES, completions, tools=TOOLS)
    np.testing.assert_allclose(found, expected, **F32)


def test_trl_parsed_calls_get_the_same_rewards_as_their_text(source, expected):
    completions = [
        [{"role": "assistant", "content": None, "tool_calls": [{"function": row["chosen"][0]}]}]
        for row in ROWS
    ]
    tools = [json.dumps(tools) for tools in TOOLS]
    found = TRLReward(source, end_ids=None)(MESSAGES, completions, tools=tools)
    np.testing.assert_allclose(found, expected, **F32)


@pytest.mark.parametrize("left", ["", END, END + "\n", END * 3])
def test_text_prompts_are_scored_as_they_are_at_the_end_of_their_turn(source, expected, left):
    # The tiny template writes a call as the text does, so the ids are those of the messages.
    completions = [text + left for text in CALLS]
    found = TRLReward(source, end_ids=None)([rendered(row) for row in ROWS], completions)
    np.testing.assert_allclose(found, expected, **F32)


def test_messages_of_the_data_set_stand_for_a_text_prompt(source, expected):
    columns = {"messages": [json.dumps(m) for m in MESSAGES], "tools": TOOLS}
    found = TRLReward(source, end_ids=None)(["whatever"] * 4, CALLS, **columns)
    np.testing.assert_allclose(found, expected, **F32)


ANSWER = {"role": "assistant", "content": "The reference."}


@pytest.mark.parametrize("form", [list, json.dumps, lambda value: np.array(value, dtype=object)])
def test_messages_beside_a_conversation_must_be_the_same_one(source, expected, form):
    """Sets for SFT hold prompt and answer there: the reward model is not shown the answer."""
    reward = TRLReward(source, end_ids=None)
    found = reward(MESSAGES, CALLS, messages=[form(m) for m in MESSAGES], tools=TOOLS)
    np.testing.assert_allclose(found, expected, **F32)
    told = [form([*m, ANSWER]) for m in MESSAGES]
    with pytest.raises(CompletionError, match=r"another one, .*remove_columns\('messages'\)"):
        reward(MESSAGES, CALLS, messages=told, tools=TOOLS)
    info = {"prompt": form(MESSAGES[0]), "messages": told[0]}
    if form is not json.dumps:  # a prompt that is text is text, whatever it holds
        with pytest.raises(CompletionError, match="another one"):
            VerlReward(source, rule=NUMBERS)("d", CALLS[0], "", info)


def test_messages_that_end_with_an_answer_are_refused():
    with pytest.raises(CompletionError, match="must not see"):
        read_completion("text", "Hello.", messages=[*MESSAGES[0], ANSWER])


def _city(value, **said):
    call = {"function": {"name": "get_weather", "arguments": {"city": value}}}
    return [{"role": "assistant", "tool_calls": [call]} | said]


def test_nulls_that_the_policy_wrote_are_scored(source):
    """As in text; only a message's missing words or calls are taken for nothing."""
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": %s}}</tool_call>'
    turns = [_city(None), _city([None]), _city(None, content=None), _city({})]
    texts = [text % "null", text % "[null]", text % "null", text % "{}"]
    reward = TRLReward(source, end_ids=None)
    asked, tools = MESSAGES[:1] * 4, TOOLS[:1] * 4
    found = reward(asked, turns, tools=tools)
    np.testing.assert_allclose(found, reward(asked, texts, tools=tools), **F32)
    without = [{"role": "assistant", "tool_calls": [{"name": "get_weather", "arguments": {}}]}]
    other = reward(MESSAGES[:1], [without], tools=TOOLS[:1])
    assert abs(found[0] - other[0]) > 1e-3
    words = read_completion(
        MESSAGES[0], [{"role": "assistant", "content": "Hi", "tool_calls": None}]
    )
    assert words.response == {"role": "assistant", "content": "Hi"}


def test_after_executed_tools_the_last_turn_is_scored(source, scorer):
    made = {"role": "assistant", "content": "", "tool_calls": [{"function": ROWS[0]["chosen"][0]}]}
    result, words = {"role": "tool", "content": "Rainy."}, {"role": "assistant", "content": "Rain."}
    found = TRLReward(source, end_ids=None)([MESSAGES[0]], [[made, result, words]], tools=TOOLS[:1])
    whole = [*MESSAGES[0], made, result]
    (scored,) = scorer.score([{"tools": TOOLS[0], "messages": whole, "responses": ["Rain."]}])
    np.testing.assert_allclose(found, scored.rewards, **F32)


def test_a_completion_that_stops_at_a_tools_result_is_truncated():
    made = {"role": "assistant", "content": "", "tool_calls": [{"function": ROWS[0]["chosen"][0]}]}
    found = read_completion(MESSAGES[0], [made, {"role": "tool", "content": "Rainy."}])
    assert found.fault == "truncated"


def test_each_kind_follows_the_rule_and_is_counted(source, expected):
    rule = UnscoredRule(truncated=-1.0, empty=-2.0, unparseable=-3.0)
    reward = TRLReward(source, end_ids=[2], rule=rule)
    completions = [CALLS[0], CALLS[0][:20], " ", "<tool_call>{", "word " * 600, "\ud800"]
    ids = [[9, 2], [9, 9], [], [9, 2], [9, 2], [9, 2]]
    logged = {}
    found = reward(
        MESSAGES[:1] * 6, completions, ids, tools=TOOLS[:1] * 6, log_metric=logged.__setitem__
    )
    np.testing.assert_allclose(found[0], expected[0], **F32)
    assert found[1:] == [-1.0, -2.0, -3.0, None, None]
    kinds = ("truncated", "empty", "unparseable", "over_long", "unscorable")
    assert reward.counts == {"completions": 6} | dict.fromkeys(kinds, 1)
    assert logged == {f"toolrm/{kind}": pytest.approx(1 / 6) for kind in kinds}
    assert "at most 512" in reward.last["over_long"]


def test_empty_and_unparseable_turns_are_scored_by_default(source, scorer):
    texts = ["", '<tool_call>{"name": ']
    reward = TRLReward(source, end_ids=None)
    found = reward(MESSAGES[:1] * 2, texts, tools=TOOLS[:1] * 2)
    (scored,) = scorer.score([{"tools": TOOLS[0], "messages": MESSAGES[0], "responses": texts}])
    np.testing.assert_allclose(found, scored.rewards, **F32)
    assert reward.counts == {"completions": 2, "empty": 1, "unparseable": 1}


@pytest.mark.parametrize(
    ("prompt", "nothing"),
    [
        *itertools.product(("messages", "text"), (None, "", [])),
        ("messages", [{"role": "assistant", "content": ""}]),  # after a text they are refused
    ],
)
def test_nothing_said_is_empty_in_whatever_form(source, prompt, nothing):
    given = MESSAGES[0] if prompt == "messages" else rendered(ROWS[0])
    reward = TRLReward(source, end_ids=None, rule=UnscoredRule(empty=-2.0))
    assert reward([given], [nothing], tools=TOOLS[:1]) == [-2.0]


def test_nothing_said_is_empty_for_verl_and_tunix(source):
    rule = UnscoredRule.number(-7.0, empty=-2.0)
    info = {"messages": MESSAGES[0], "tools": TOOLS[0]}
    assert VerlReward(source, rule=rule)("d", None, "", info) == -2.0
    assert TunixReward(source, rule=rule)([rendered(ROWS[0])], [None]) == [-2.0]


@pytest.mark.parametrize("left", [END, END + "\n", END * 3])
def test_an_end_that_is_left_on_a_message_is_taken_off(source, expected, left):
    turns = [[{"role": "assistant", "content": text + left}] for text in CALLS]
    reward = TRLReward(source, end_ids=None, rule=UnscoredRule(empty=-2.0))
    np.testing.assert_allclose(reward(MESSAGES, turns, tools=TOOLS), expected, **F32)
    alone = [{"role": "assistant", "content": left}]
    assert reward(MESSAGES[:1], [alone], tools=TOOLS[:1]) == [-2.0]


def test_a_truncated_text_that_is_to_be_scored_gets_no_end(source, scorer):
    reward = TRLReward(source, end_ids=[2], rule=UnscoredRule(truncated="score"))
    found = reward([rendered(ROWS[0])], ["The wea"], [[9]])
    ids = scorer.tokenizer(rendered(ROWS[0]) + "The wea", add_special_tokens=False)["input_ids"]
    np.testing.assert_allclose(found, scorer.score_sequences([ids]).rewards, **F32)


def test_over_long_texts_follow_the_rule(source):
    reward = TRLReward(source, end_ids=None, rule=UnscoredRule(over_long=-4.0))
    assert reward(["Hi"], ["word " * 600]) == [-4.0]


def test_the_first_rejection_of_a_kind_is_logged(source, caplog):
    """A column that is wrong in every row, and training that would go on with a constant."""
    reward = TunixReward(source, rule=NUMBERS)
    columns = {"messages": ["no JSON"] * 3}
    for _ in range(2):
        assert reward(["whatever"] * 3, CALLS[:3], **columns) == [-7.0] * 3
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert reward.last["unscorable"] in record.message
    assert "unscorable" in record.message
    assert "-7.0" in record.message


class Config:
    def __init__(self, eos_token_id):
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(
    ("of_tokenizer", "config", "ids"),
    [
        (2, Config([2, 7]), {2, 7}),
        (2, Config(7), {2, 7}),
        (2, Config(None), {2}),
        (2, None, {2}),
        (None, Config(0), {0}),
    ],
)
def test_a_turn_may_end_at_any_id_that_the_policys_configs_name(of_tokenizer, config, ids):
    found = end_ids_of(Config(of_tokenizer), config)
    assert found == ids
    reward = TRLReward(Elsewhere(*[[1.0]] * len(ids)), end_ids=found)
    assert reward(MESSAGES[:1] * len(ids), ["Hi"] * len(ids), [[9, i] for i in ids]) == [1.0] * len(
        ids
    )
    assert reward.counts == {"completions": len(ids)}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_function_over_http_can_be_copied(copied):
    reward = TRLReward(RewardClient("http://127.0.0.1:1", end_text=END), end_ids=[2], rule=NUMBERS)
    reward.counts["completions"] = 3
    found = copied(reward)
    assert (found.end_ids, found.rule, found.end_text) == ({2}, NUMBERS, END)
    assert found.counts == {"completions": 3}
    assert found(MESSAGES[:1], ["half a c"], [[9]]) == [-7.0]  # truncated: nothing is asked


# --- verl and Tunix -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, json.dumps, lambda value: np.array(value, dtype=object)])
def test_verl_gets_the_scorers_rewards(source, expected, form):
    infos = [{"messages": form(m), "tools": form(t)} for m, t in zip(MESSAGES, TOOLS, strict=True)]
    reward = VerlReward(source, rule=NUMBERS)
    one_by_one = [
        reward(data_source="d", solution_str=text, ground_truth="", extra_info=info)
        for text, info in zip(CALLS, infos, strict=True)
    ]
    np.testing.assert_allclose(one_by_one, expected, **F32)
    batch = reward.compute_scores(
        data_sources=["d"] * 4, solution_strs=CALLS, ground_truths=[""] * 4, extra_infos=infos
    )
    np.testing.assert_allclose(batch, expected, **F32)


def test_verl_solutions_that_keep_their_end_are_truncated_without_it(source):
    reward = VerlReward(source, rule=NUMBERS, keeps_end=True)
    info = {"prompt": MESSAGES[0], "tools": TOOLS[0]}
    assert reward("d", CALLS[0], "", info) == -7.0
    assert reward("d", CALLS[0] + END, "", info) != -7.0
    assert reward.counts == {"completions": 2, "truncated": 1}


def test_verl_without_a_conversation_is_an_error_that_says_where_it_goes(source):
    with pytest.raises(CompletionError, match=r"only 'index'.*'messages': \[\.\.\.\]"):
        VerlReward(source, rule=NUMBERS)("d", "Hi", "", {"index": 3})


def test_tunix_gets_the_scorers_rewards(source, expected):
    prompts = [rendered(row) for row in ROWS]
    reward = TunixReward(source, rule=NUMBERS)
    np.testing.assert_allclose(reward(prompts, CALLS, mode="train"), expected, **F32)
    columns = {
        "messages": np.array([json.dumps(m) for m in MESSAGES]),
        "tools": np.array([json.dumps(t) for t in TOOLS]),
    }
    found = reward(prompts=["whatever"] * 4, completions=CALLS, mode="train", **columns)
    np.testing.assert_allclose(found, expected, **F32)


@pytest.mark.parametrize("kind", [VerlReward, TunixReward])
def test_a_trainer_that_takes_no_none_needs_numbers(source, kind):
    with pytest.raises(RuleError, match=r"takes no None.*over_long=None.*UnscoredRule\.number"):
        kind(source)


@pytest.mark.parametrize(
    "values", [{"over_long": "score"}, {"empty": "skip"}, {"truncated": float("nan")}]
)
def test_a_rule_that_cannot_be_followed_is_refused(values):
    with pytest.raises(RuleError, match="use a finite number or None"):
        UnscoredRule(**values)


@pytest.mark.parametrize("number", [np.float32(-1), np.float64(-1), np.int32(-1), -1])
def test_numbers_of_numpy_are_numbers(number):
    rule = UnscoredRule.number(number)
    assert rule == UnscoredRule.number(-1.0)
    assert type(rule.truncated) is float
    with pytest.raises(RuleError, match="use a finite number or None"):
        UnscoredRule(truncated=np.bool_(True))


def test_a_source_that_gives_no_rewards_is_refused(scorer):
    with pytest.raises(SourceError, match=r"a Scorer: wrap it in ScorerRewards\(\.\.\.\)"):
        TRLReward(scorer, end_ids=None)
    with pytest.raises(SourceError, match=r"a str: give .*RewardClient\(url\)"):
        VerlReward("http://127.0.0.1:8000", rule=NUMBERS)


# --- Over HTTP ------------------------------------------------------------------------------------


class Elsewhere:
    """A source that is no scorer: what is asked of it, and what it answers."""

    def __init__(self, *answers, end_text=None):
        self.answers, self.end_text, self.requests, self.texts = answers, end_text, [], []

    def score(self, requests):
        self.requests += requests
        return self.answers

    def score_texts(self, texts):
        self.texts += texts
        return self.answers


def test_any_source_serves_and_its_rejections_follow_the_rule():
    source = Elsewhere([1.5], Rejected("over-long", "9"), Rejected("cannot be rendered", "8"))
    reward = TRLReward(source, end_ids=None, rule=UnscoredRule(over_long=-1.0, unscorable=-2.0))
    assert reward(MESSAGES[:1] * 3, ["a", "b", "c"]) == [1.5, -1.0, -2.0]
    assert reward.last == {"over_long": "over-long: 9", "unscorable": "cannot be rendered: 8"}


@pytest.mark.parametrize("reason", ["over-long", "too many tokens", "body too big"])
def test_whatever_the_server_calls_too_long_is_over_long(reason):
    reward = TRLReward(Elsewhere(Rejected(reason, "9")), end_ids=None, rule=UnscoredRule(-1.0))
    assert reward(MESSAGES[:1], ["a"]) == [-1.0]
    assert reward.counts == {"completions": 1, "over_long": 1}


def test_texts_need_to_be_told_what_ends_a_turn():
    with pytest.raises(CompletionError, match=r"end_text='<\|im_end\|>'"):
        TRLReward(Elsewhere(), end_ids=None)(["Hi"], ["Hello."])
    source = Elsewhere([1.0], end_text=END)
    assert TRLReward(source, end_ids=None)(["Hi"], ["Hello."]) == [1.0]
    assert source.texts == ["HiHello." + END]


# --- Real trainers --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # of trainers, which are not this project's to change
def test_trl_grpo_runs_with_this_reward(source, tmp_path):
    sys.path.insert(0, str(tiny.ROOT / "examples"))
    import trl_grpo

    policy = tiny.write_model(tmp_path / "policy")
    eos = tiny.tokenizer().eos_token_id
    assert trl_grpo.ends_of(str(policy)) == {eos}
    (policy / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos, eos + 1]}))
    reward = TRLReward(source, end_ids=trl_grpo.ends_of(str(policy)))
    assert reward.end_ids == {eos, eos + 1}
    trainer = trl_grpo.trainer_of(str(policy), reward, tmp_path / "out", steps=3, tokens=12)
    assert set(trainer.eos_token_ids) == reward.end_ids  # where TRL stops
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(logs) == 3
    assert all("toolrm/truncated" in log for log in logs)
    assert reward.counts["completions"] == 3 * 8


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_trl_rloo_runs_with_this_reward(source, tmp_path):
    sys.path.insert(0, str(tiny.ROOT / "examples"))
    import trl
    import trl_grpo

    policy, tokenizer = tiny.write_model(tmp_path / "policy"), tiny.tokenizer()
    reward = TRLReward(source, end_ids=[tokenizer.eos_token_id], rule=NUMBERS)
    config = trl.RLOOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=3,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
    )
    trainer = trl.RLOOTrainer(
        model=str(policy),
        reward_funcs=reward,
        args=config,
        train_dataset=trl_grpo.dataset_of(trl_grpo.built_in_rows(), tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert len(logs) == 3
    assert reward.counts["completions"] == 3 * 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tunix_grpo_runs_with_this_reward(source, tmp_path):
    pytest.importorskip("tunix", reason="google-tunix asks for older transformers than this does")
    sys.path.insert(0, str(tiny.ROOT / "examples"))
    import tunix_grpo

    policy = tiny.write_model(tmp_path / "policy")
    reward = TunixReward(source, rule=NUMBERS)
    seen = []

    def watched(prompts, completions, **columns):
        seen.append(reward(prompts, completions, **columns))
        return seen[-1]

    learner, data = tunix_grpo.learner_of(policy, watched, steps=2, tokens=8, prompt_tokens=256)
    learner.train(data)
    assert len(seen) == 2
    assert reward.counts["completions"] == 2 * 2 * 4
    assert np.std(seen) > 0
