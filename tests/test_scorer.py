"""Rewards are the model's on the rendered text, however requests are batched and shared."""

import contextlib
import io
import json
import math
import queue
import random
import threading

import jax
import numpy as np
import pytest
import tiny
from tiny_models import on_mesh

from toolrm_jax.batch import RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.huggingface import CheckpointError, load_params
from toolrm_jax.model import Compute, Forward
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.score_plan import Work
from toolrm_jax.score_request import Rejected, request_of
from toolrm_jax.scorer import Scorer, ScoringError
from toolrm_jax.sharding import make_mesh

F32 = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random reward model as a Hugging Face directory."""
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def bos_model(tmp_path_factory):
    """The same with a tokenizer that puts <s> first, in its template and of its own accord."""
    return tiny.write_reward_model(
        tmp_path_factory.mktemp("bos") / "model", tokenizer=tiny.bos_tokenizer()
    )


@pytest.fixture(scope="module")
def scorer(model):
    """On one device, in float32."""
    with scorer_of(model) as opened:
        yield opened


def scorer_of(path, devices: int = 1, **options) -> Scorer:
    options = {"dtype": "float32", "devices": jax.devices()[:devices]} | options
    return Scorer.from_pretrained(path, **options)


def requests(count: int, seed: int = 0) -> list[dict]:
    """Requests with 1 to 5 responses; catalogues repeat, lengths differ, some are equal."""
    rng = random.Random(seed)
    found = []
    for row in tiny.rows("train", count):
        responses = [row["chosen"], *(wrong["response"] for wrong in row["rejected"])]
        responses += ["There is no tool for that.", "", row["chosen"]]
        rng.shuffle(responses)
        messages = [{"role": "system", "content": "Be brief. " * rng.randint(0, 30)}]
        messages += row["messages"] * rng.randint(1, 3)
        count = rng.randint(1, 5)
        found.append({"tools": row["tools"], "messages": messages, "responses": responses[:count]})
    return found


def reference(path, asked: list[dict], dtype: str = "float32") -> list[np.ndarray]:
    """Each response's sequence from the tokenizer's own template, alone in a row of its own."""
    pretrained = open_pretrained(str(path))
    renderer = Renderer(pretrained.tokenizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = load_params(pretrained.source, mesh)
        forward = jax.jit(Forward(pretrained.source.config, Compute(dtype)))
        found = []
        for request in asked:
            rewards = []
            for response in request["responses"]:
                whole = renderer.conversation(request["tools"], request["messages"], response)
                ids = pretrained.tokenizer.apply_chat_template(
                    **whole, tokenize=True, return_dict=False
                )
                batch = empty_batch(1, RowShape(1024, 1))
                place(batch, 0, [TokenizedPrompt(np.array(ids[:-1]), [np.array(ids[-1:])])])
                rewards.append(float(forward(params, on_mesh(batch, mesh))[0, 0]))
            found.append(np.array(rewards, np.float32))
    return found


@pytest.fixture(scope="module")
def asked():
    return requests(30)


@pytest.fixture(scope="module")
def expected(model, asked):
    return reference(model, asked)


def assert_scores(found, expected):
    for scored, rewards in zip(found, expected, strict=True):
        np.testing.assert_allclose(scored.rewards, rewards, **F32)


# --- Equality -------------------------------------------------------------------------------------


def test_rewards_differ_between_responses(expected):
    """What is compared below is not one number over and over."""
    assert np.std(np.concatenate(expected)) > 0.1


@pytest.mark.parametrize("batch_tokens", [512, 2048, 8192])
@pytest.mark.parametrize("min_row", [256, 1024])
def test_rewards_are_the_models_for_every_batch_size_and_row(
    model, asked, expected, batch_tokens, min_row
):
    with scorer_of(model, batch_tokens=batch_tokens, min_row=min_row) as scorer:
        assert_scores(scorer.score(asked), expected)


def test_rewards_do_not_depend_on_order_or_company(scorer, asked, expected):
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    assert_scores(scorer.score(asked[i] for i in order), [expected[i] for i in order])
    for i in order[:5]:
        assert_scores(scorer.score([asked[i]]), [expected[i]])


def test_rewards_do_not_depend_on_the_number_of_responses(scorer, asked, expected):
    alone = [request | {"responses": [r]} for request in asked for r in request["responses"]]
    found = [float(scored.rewards[0]) for scored in scorer.score(alone)]
    np.testing.assert_allclose(found, np.concatenate(expected), **F32)
    # And with hundreds, which no row holds: the prompt is repeated.
    many = asked[0] | {"responses": [f"Answer {i}." for i in range(300)]}
    (scored,) = scorer.score([many])
    some = [0, 1, 63, 64, 200, 299]
    few = many | {"responses": [many["responses"][i] for i in some]}
    (again,) = scorer.score([few])
    np.testing.assert_allclose(scored.rewards[some], again.rewards, **F32)
    assert len(set(scored.rewards.tolist())) > 250


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8), (2, 4)])
def test_rewards_are_the_same_on_several_devices(model, scorer, asked, expected, data, fsdp):
    mesh = make_mesh(data=data, fsdp=fsdp)
    pretrained = open_pretrained(str(model))
    params = load_params(pretrained.source, mesh)
    config = pretrained.source.config
    with Scorer(config, params, pretrained.tokenizer, mesh, dtype="float32") as sharded:
        assert_scores(sharded.score(asked), expected)


def test_a_tokenizer_with_a_bos_gets_one_and_no_more(bos_model, asked):
    with scorer_of(bos_model) as scorer:
        bos = scorer.tokenizer.bos_token_id
        for sequence in scorer.tokenize(asked[0]).sequences():
            assert sequence[0] == bos
            assert (sequence == bos).sum() == 1
        assert_scores(scorer.score(asked[:8]), reference(bos_model, asked[:8]))


def test_worker_processes_give_the_same(model, asked, expected):
    with scorer_of(model, workers=1) as scorer:
        assert_scores(scorer.score(asked), expected)


def test_bfloat16_rewards_are_the_bfloat16_models(model, asked):
    """Not float32's: rounding to 8 bits is the model's own. Batching changes the last of them."""
    expected = np.concatenate(reference(model, asked, "bfloat16"))
    with scorer_of(model, dtype="bfloat16") as scorer:
        found = np.concatenate([scored.rewards for scored in scorer.score(asked)])
    assert np.abs(found - expected).max() < 2**-8 * np.abs(expected).max()


def test_matrices_are_held_in_the_compute_type_and_the_rest_in_float32(model):
    with scorer_of(model, dtype="bfloat16") as scorer:
        types = {
            path[-1].key: str(x.dtype)
            for path, x in jax.tree_util.tree_leaves_with_path(scorer.params)
        }
    assert {name for name, dtype in types.items() if dtype == "bfloat16"} == {
        "embedding", "q", "k", "v", "o", "gate", "up", "down",
    }  # fmt: skip
    assert set(types.values()) == {"bfloat16", "float32"}


# --- Sequences ------------------------------------------------------------------------------------


def test_token_ids_get_the_rewards_of_their_requests(scorer, asked, expected):
    sequences = [s.tolist() for request in asked for s in scorer.tokenize(request).sequences()]
    scores = scorer.score_sequences(sequences)
    np.testing.assert_allclose(scores.rewards, np.concatenate(expected), **F32)
    assert not scores.rejected
    assert scores.work.responses == len(sequences)
    assert scores.work.sequence_tokens == sum(map(len, sequences))
    assert scores.work.distinct_tokens < scores.work.sequence_tokens / 2


def test_bad_sequences_are_rejected_by_themselves(scorer):
    good, vocabulary = [1, 2, 3], scorer.config.vocab_size
    bad = [[], [0] * (scorer.max_tokens + 1), [vocabulary], [-1], [1.5], "text", [[1], [2, 3]]]
    scores = scorer.score_sequences([good, *bad, good])
    assert sorted(scores.rejected) == list(range(1, len(bad) + 1))
    assert scores.rejected[2].reason == "over-long"
    assert str(vocabulary) in scores.rejected[3].detail
    assert np.isfinite(scores.rewards[[0, -1]]).all()
    assert np.isnan(scores.rewards[1:-1]).all()


def test_no_sequences_and_no_requests(scorer):
    assert len(scorer.score_sequences([]).rewards) == 0
    assert list(scorer.score([])) == []


def test_a_window_of_rejects_alone_is_answered_in_its_place(scorer):
    windows = [[[1, 2]], [[]], [], [[1, 2], [1, 3]]]
    found = [scores.rewards for scores in scorer.score_windows(windows)]
    assert [len(rewards) for rewards in found] == [1, 1, 0, 2]
    assert np.isnan(found[1]).all()


# --- Streams --------------------------------------------------------------------------------------


def test_a_stream_is_read_a_bounded_number_ahead(model):
    (request,) = requests(1)
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield request | {"messages": [{"role": "user", "content": f"Question {read}"}]}

    with scorer_of(model, batch_tokens=512) as scorer:
        stream = scorer.score(endless())
        for _ in range(100):
            assert np.isfinite(next(stream).rewards).all()
        # Three windows, the largest of 32 batches of 512 tokens; a question has some 20 tokens.
        assert read < 100 + 3 * 32 * 512 / 20
        stream.close()


def test_leaving_a_stream_does_not_wait_for_its_source(scorer, asked):
    source = queue.SimpleQueue()

    def live():
        while (request := source.get()) is not None:
            yield request

    def first():
        for scored in scorer.score(live()):
            found.append(scored)
            break

    found = []
    for number in range(400):  # more than the first window holds
        source.put(asked[number % len(asked)])
    reader = threading.Thread(target=first, daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert len(found) == 1
    source.put(None)


def test_batches_are_told_as_they_are_done_and_add_up_to_their_windows(scorer, asked):
    """No batch of a window before the window ahead of it is given out."""
    windows = [
        [s for r in asked[i : i + 10] for s in scorer.tokenize(r).sequences()] for i in (0, 9)
    ]
    since, batches = Work(), 0

    def fetched(work):
        nonlocal since, batches
        since, batches = since + work, batches + 1

    for scores in scorer.score_windows(windows, fetched=fetched):
        assert since == scores.work
        since = Work()
    assert batches > 2


def test_an_error_of_the_requests_own_reaches_the_caller(scorer, asked):
    def broken():
        yield asked[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(scorer.score(broken()))
    assert_scores(scorer.score(asked[:1]), [next(scorer.score(asked[:1])).rewards])


def test_a_bad_request_raises_in_its_place_or_is_returned(scorer, asked):
    bad = asked[1] | {"responses": []}
    stream = scorer.score([asked[0], bad, asked[2]])
    assert np.isfinite(next(stream).rewards).all()
    with pytest.raises(ScoringError, match=r"Request 1 .*at least one response") as error:
        next(stream)
    assert error.value.number == 1
    found = list(scorer.score([asked[0], bad, asked[2]], errors="return"))
    assert isinstance(found[1], Rejected)
    assert found[1].reason == "not a request"
    assert len(found[2].rewards) == len(asked[2]["responses"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": None}, "not a request"),
        ({"messages": []}, "not a request"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "cannot be rendered"),
        ({"responses": [3]}, "not a request"),
        ({"responses": [{"role": "user", "content": "x"}]}, "cannot be rendered"),
        ({"tools": [{"name": ""}]}, "bad tool"),
        ({"tools": [{"name": "f", "parameters": {"type": "dict"}}]}, "bad tool"),
        ({"tools": "not JSON"}, "not a request"),
        ({"responses": ["half a pair \ud800"]}, "cannot be rendered"),
        ({"responses": [[{"name": "f", "arguments": {"city": math.nan}}]]}, "not JSON"),
        ({"tools": [{"name": "f", "parameters": {"maximum": -math.inf}}]}, "not JSON"),
    ],
)
def test_bad_requests_are_rejected_with_a_reason(scorer, asked, change, reason):
    (found,) = scorer.score([asked[0] | change], errors="return")
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert found.detail


def test_one_request_that_is_not_in_a_list_and_a_wrong_word_are_errors_at_once(scorer, asked):
    """Not at the first reward, which may be far from here."""
    for single in (asked[0], request_of(asked[0]), "rows.jsonl"):
        with pytest.raises(TypeError, match=r"give a list, score\(\[request\]\)"):
            scorer.score(single)
    with pytest.raises(ValueError, match="errors='x': use 'raise' or 'return'"):
        scorer.score(asked, errors="x")


def test_a_tuple_stands_for_a_list_of_responses(scorer, asked):
    row = asked[0] | {name: tuple(asked[0][name]) for name in ("tools", "messages", "responses")}
    assert_scores(scorer.score([row]), [next(scorer.score(asked[:1])).rewards])


def test_a_reward_that_is_not_finite_is_no_reward(model, tmp_path, asked):
    broken = tiny.write_reward_model(tmp_path / "model", head=np.inf)
    with scorer_of(broken) as scorer:
        (found,) = scorer.score(asked[:1], errors="return")
    assert found.reason == "reward is not finite"


def test_tokens_are_counted_per_response(scorer, asked):
    (scored,) = scorer.score(asked[:1])
    lengths = [len(s) for s in scorer.tokenize(asked[0]).sequences()]
    assert scored.tokens.tolist() == lengths


# --- Over-long ------------------------------------------------------------------------------------


def conversation(turns: int) -> list[dict]:
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        call = {"name": "get_time", "arguments": {"city": f"City {turn}"}}
        messages += [
            {"role": "user", "content": f"Question {turn}"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": call}]},
            {"role": "tool", "content": f"Result {turn}"},
            {"role": "assistant", "content": f"Answer {turn}"},
        ]
    return [*messages, {"role": "user", "content": "And in Rome?"}]


def test_an_over_long_request_is_rejected_whole_with_its_length(model, asked):
    request = asked[0] | {"messages": conversation(3), "responses": ["Yes.", "word " * 400]}
    with scorer_of(model, max_tokens=384) as scorer:
        (found,) = scorer.score([request], errors="return")
    assert found.reason == "over-long"
    assert "prompt and responses[1] have" in found.detail
    assert "at most 384" in found.detail


def test_the_oldest_turns_are_dropped_until_all_responses_fit(model, asked):
    messages = conversation(20)
    request = asked[0] | {"messages": messages, "responses": ["Yes.", "No, not at all."]}
    with scorer_of(model, max_tokens=384, over_long="drop-oldest-turns") as scorer:
        (scored,) = scorer.score([request])
        dropped = scored.dropped_messages
        assert dropped > 0
        assert dropped % 4 == 0  # whole turns: no result without its call
        assert scored.tokens.max() <= 384
        kept = [messages[0], *messages[1 + dropped :]]
        assert_scores([scored], reference(model, [request | {"messages": kept}]))
        # One turn less would not have fitted.
        more = [messages[0], *messages[1 + dropped - 4 :]]
        with scorer_of(model) as roomy:
            (longer,) = roomy.score([request | {"messages": more}])
        assert longer.tokens.max() > 384


def test_what_does_not_fit_without_its_oldest_turns_is_rejected(model, asked):
    request = asked[0] | {"messages": conversation(5), "responses": ["word " * 400]}
    with scorer_of(model, max_tokens=384, over_long="drop-oldest-turns") as scorer:
        (found,) = scorer.score([request], errors="return")
    assert found.reason == "over-long"
    assert "with the oldest turns left out" in found.detail


# --- Opening --------------------------------------------------------------------------------------


def test_a_model_without_a_reward_head_is_refused(tmp_path):
    base = tiny.write_model(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"no reward head.*Train it first"):
        scorer_of(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 10**6}, "max_tokens=1000000: use 1 to 2048"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 100.5}, "max_tokens=100.5: use a whole number"),
        ({"batch_tokens": 0}, "batch_tokens=0: use at least 1"),
        ({"batch_tokens": -5}, "batch_tokens=-5: use at least 1"),
        ({"batch_tokens": "4096"}, "batch_tokens='4096': use a whole number"),
        ({"min_row": 0}, "min_row=0: use at least 1"),
        ({"devices": 0}, r"devices=\[\]: name at least one"),
        ({"over_long": "cut"}, "reject, drop-oldest-turns"),
        ({"dtype": "float16"}, "bfloat16, float32"),
    ],
)
def test_an_option_that_cannot_be_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        scorer_of(model, **options)


def test_a_training_workdir_is_scored_with_its_newest_checkpoint(tmp_path, asked):
    from toolrm_jax.train import train

    tiny.write_model(tmp_path / "model")
    tiny.write_data(tmp_path)
    changes = {"train.steps": 2, "train.checkpoint_every": 2}
    with contextlib.redirect_stderr(io.StringIO()):
        train(tiny.run_config(tmp_path, **changes), tmp_path / "run")
    expected = reference(tmp_path / "run" / "export", asked[:6])
    with scorer_of(tmp_path / "run") as scorer:
        assert_scores(scorer.score(asked[:6]), expected)
        assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["layers"] == 2


def test_only_the_planned_programs_are_compiled(model, asked):
    with scorer_of(model, batch_tokens=2048) as scorer:
        list(scorer.score(asked * 3))
        assert set(scorer.programs) <= set(scorer.plan.programs())
        before = len(scorer.programs)
        list(scorer.score(asked * 3))
        assert len(scorer.programs) == before
