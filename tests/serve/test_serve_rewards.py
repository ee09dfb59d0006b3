"""Every endpoint answers with the model's rewards."""

import numpy as np
import pytest
import served
import tiny
from app_requests import REQUEST, app_of, ask, error_of, texts_and_rewards
from served import F32, requests, rewards_of, scorer_of

from toolrm_jax.errors import InputError
from toolrm_jax.reward_app import ServeOptions, make_app


def test_our_endpoint_gives_the_librarys_rewards(scorer):
    asked = requests(8)
    expected = rewards_of(scorer, asked)
    assert np.std(np.concatenate(expected)) > 0.1
    with app_of(scorer, model="rm") as app:
        many = ask(app, "/v1/rewards", {"requests": asked}).json()
        alone = [ask(app, "/v1/rewards", request).json() for request in asked]
    assert many["model"] == "rm"
    for request, result, one, rewards in zip(asked, many["results"], alone, expected, strict=True):
        np.testing.assert_allclose(result["rewards"], rewards, **F32)
        np.testing.assert_allclose(one["rewards"], rewards, **F32)
        assert result["tokens"] == [len(s) for s in scorer.tokenize(request).sequences()]
        assert set(one) == {"id", "rewards", "tokens", "dropped_messages", "model"}
        assert result["id"] == request["id"] == one["id"]


def test_rendered_texts_get_the_librarys_rewards_from_every_format(scorer):
    """A tokenizer that adds a BOS adds no second one where the text has it."""
    texts, expected = texts_and_rewards(scorer)
    with app_of(scorer) as app:
        openrlhf = ask(app, "/get_reward", {"query": texts}).json()
        vllm = ask(app, "/classify", {"input": texts}).json()
        sglang = ask(app, "/v1/embeddings", {"input": texts}).json()
    np.testing.assert_allclose(openrlhf["rewards"], expected, **F32)
    np.testing.assert_allclose([d["probs"][0] for d in vllm["data"]], expected, **F32)
    np.testing.assert_allclose([d["embedding"][-1] for d in sglang["data"]], expected, **F32)
    assert set(openrlhf["extra_logs"]["truncated"]) == {0.0}


@pytest.mark.parametrize("pads", [0, 2])
def test_a_text_that_stops_at_the_end_of_turn_is_completed(scorer, pads):
    """As where a policy's pad is its end-of-turn token, and pads were left on."""
    texts, expected = texts_and_rewards(scorer, 3)
    stopped = [text.removesuffix("\n") + "<|im_end|>" * pads for text in texts]
    assert all(text.endswith("<|im_end|>") for text in stopped)
    with app_of(scorer) as app:
        found = ask(app, "/get_reward", {"query": stopped}).json()
        classified = ask(app, "/classify", {"input": stopped}).json()
    np.testing.assert_allclose(found["rewards"], expected, **F32)
    np.testing.assert_allclose([d["probs"][0] for d in classified["data"]], expected, **F32)


def test_any_other_text_is_scored_as_it_is_and_flagged(scorer):
    text = served.rendered(scorer, requests(1)[0])[0]
    cut = text[: len(text) // 2]
    ids = scorer.tokenizer(cut, add_special_tokens=False)["input_ids"]
    expected = scorer.score_sequences([ids]).rewards
    with app_of(scorer) as app:
        found = ask(app, "/get_reward", {"query": [cut, text]}).json()
        (data,) = ask(app, "/classify", {"input": ids}).json()["data"]
    np.testing.assert_allclose(found["rewards"][:1], expected, **F32)
    np.testing.assert_allclose(data["probs"], expected, **F32)
    assert found["extra_logs"]["truncated"] == [1.0, 0.0]
    assert data["truncated"] is True


def test_classify_takes_ids_and_conversations(scorer):
    request = requests(1)[0]
    (expected,) = rewards_of(scorer, [request])
    (ids,) = (s.tolist() for s in scorer.tokenize(request).sequences())
    answer = scorer.tokenize.renderer.conversation(
        request["tools"], request["messages"], request["responses"][0]
    )["conversation"][-1]
    chat = {"messages": [*request["messages"], answer], "tools": request["tools"]}
    with app_of(scorer) as app:
        for body in ({"input": ids}, {"input": [ids]}, chat):
            found = ask(app, "/classify", body).json()
            np.testing.assert_allclose(found["data"][-1]["probs"], expected, **F32)
            assert found["usage"]["prompt_tokens"] == len(ids)
            assert found["data"][0]["truncated"] is False


def test_special_tokens_are_added_to_a_text_without_them_unless_declined(bos_model):
    with scorer_of(bos_model) as scorer, app_of(scorer) as app:
        text = "<|im_start|>user\nHi<|im_end|>\n"
        bare = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
        with_bos = [scorer.tokenizer.bos_token_id, *bare]
        expected = scorer.score_sequences([with_bos, bare]).rewards
        found = ask(app, "/classify", {"input": text}).json()
        declined = ask(app, "/classify", {"input": text, "add_special_tokens": False}).json()
    assert abs(expected[0] - expected[1]) > 1e-3
    np.testing.assert_allclose(found["data"][0]["probs"], expected[:1], **F32)
    np.testing.assert_allclose(declined["data"][0]["probs"], expected[1:], **F32)


@pytest.mark.parametrize("single", ["<s> $A <|endoftext|>", "$A <|endoftext|>"])
def test_what_a_tokenizer_adds_after_a_text_is_not_after_a_turn(tmp_path, single):
    tokenizer = tiny.eos_tokenizer(single)
    path = tiny.write_reward_model(tmp_path / "model", tokenizer=tokenizer)
    with scorer_of(path) as scorer, app_of(scorer) as app:
        texts, expected = texts_and_rewards(scorer, 2)
        stopped = [text.removesuffix("\n") for text in texts]
        for given in (texts, stopped):
            vllm = ask(app, "/classify", {"input": given}).json()["data"]
            sglang = ask(app, "/v1/embeddings", {"input": given}).json()["data"]
            np.testing.assert_allclose([d["probs"][0] for d in vllm], expected, **F32)
            np.testing.assert_allclose([d["embedding"][-1] for d in sglang], expected, **F32)
            assert not any(d["truncated"] for d in vllm + sglang)


def test_rewards_are_raw_unless_asked_otherwise(plain):
    (raw,) = rewards_of(plain, [REQUEST])
    normal = (raw - 0.5) / 2.0
    sigmoid = 1 / (1 + np.exp(-raw))
    texts = served.rendered(plain, REQUEST | {"tools": []})
    with app_of(plain) as app, app_of(plain, normalize=True) as normalized:

        def rewards(app, **flags):
            return ask(app, "/v1/rewards", REQUEST | flags).json()["rewards"]

        np.testing.assert_allclose(rewards(app), raw, **F32)
        np.testing.assert_allclose(rewards(app, use_activation=True), sigmoid, **F32)
        np.testing.assert_allclose(rewards(app, normalize=True), normal, **F32)
        both = rewards(app, normalize=True, use_activation=True)
        np.testing.assert_allclose(both, 1 / (1 + np.exp(-normal)), **F32)
        np.testing.assert_allclose(rewards(normalized), normal, **F32)
        np.testing.assert_allclose(rewards(normalized, normalize=False), raw, **F32)
        for flags, wanted in (
            ({"activation": True}, sigmoid),
            ({"activation": True, "use_activation": False}, raw),
            ({"activation": False}, raw),
        ):
            found = ask(app, "/classify", {"input": texts} | flags).json()["data"]
            np.testing.assert_allclose([d["probs"][0] for d in found], wanted, **F32)


def test_a_checkpoint_without_statistics_normalises_nothing(bos_model):
    with scorer_of(bos_model) as scorer:
        with app_of(scorer) as app:
            answer = ask(app, "/v1/rewards", REQUEST | {"normalize": True})
        assert answer.status_code == 422
        assert "no held-out reward_mean" in error_of(answer)["detail"]
        with pytest.raises(InputError, match="leave out --normalize"):
            make_app(scorer, ServeOptions(normalize=True))
