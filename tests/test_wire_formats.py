"""Bodies of four formats are read to sequences, and rewards written as each format's clients read
them."""

import math
import re

import pytest
import tiny
from tiny_models import tiny_tokenizer

from toolrm_jax.chat_template import prepare_tokenizer
from toolrm_jax.rendering import Renderer
from toolrm_jax.request_tokens import RequestTokenizer
from toolrm_jax.score_request import Rejected
from toolrm_jax.text_tokens import Ending, TextTokenizer, ending_of
from toolrm_jax.wire_formats import (
    FORMATS,
    Asked,
    Item,
    Reader,
    Statistics,
    WireError,
    error_of,
    parse_json,
    statistics_of,
)

REWARDS, GET_REWARD, CLASSIFY, EMBEDDINGS = FORMATS.values()
TEXT = "<|im_start|>user\nHi<|im_end|>\n"


@pytest.fixture(scope="module")
def reader():
    tokenizer = tiny.tokenizer()
    tokenize = RequestTokenizer(Renderer(tokenizer), max_tokens=200)
    return Reader(tokenize, TextTokenizer(tokenizer, 200), max_rows=4)


def scored(*rewards: float) -> tuple[Asked, list]:
    """Texts with these rewards."""
    asked = Asked([Item([[1, 2]]) for _ in rewards], None, False)
    return asked, asked.regrouped(list(rewards))


# --- Reading --------------------------------------------------------------------------------------


def test_how_a_turn_ends_is_read_off_the_template():
    assert ending_of(tiny.tokenizer()) == Ending("<|im_end|>", "\n")
    bare = tiny.new_tokenizer(template=tiny.TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"))
    assert ending_of(prepare_tokenizer(bare)) == Ending("<|im_end|>", "")
    assert ending_of(tiny_tokenizer()) == Ending("</s>", "\n")
    words = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}\n{% endfor %}"
    fast = tiny.new_tokenizer()
    fast.chat_template = words
    assert ending_of(fast) is None


def test_a_template_without_an_ending_completes_and_flags_nothing():
    fast = tiny.new_tokenizer()
    fast.chat_template = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}{% endfor %}"
    found = TextTokenizer(fast, 100)("Hi", add_special_tokens=False)
    assert found.truncated is False
    assert found.ids.tolist() == fast("Hi")["input_ids"]


@pytest.mark.parametrize(
    ("text", "read_as", "truncated"),
    [
        (TEXT, TEXT, False),
        (TEXT[:-1], TEXT, False),
        (TEXT + "\n", TEXT + "\n", True),
        (TEXT[:-1] + "<|im_end|>" * 3, TEXT, False),  # padding
        (TEXT + "<|im_end|>" * 3, TEXT, False),
        (TEXT[:-1] + "<|im_end|>\n", TEXT, False),
        (TEXT[:-2], TEXT[:-2], True),
        ("Hi", "Hi", True),
    ],
)
def test_texts_are_completed_or_flagged(reader, text, read_as, truncated):
    (item,) = GET_REWARD.read({"query": [text]}, reader).items
    ids = tiny.tokenizer()(read_as, add_special_tokens=False)["input_ids"]
    assert (item.sequences[0].tolist(), item.truncated) == (ids, truncated)
    (same,) = CLASSIFY.read({"input": ids}, reader).items
    assert (same.sequences, same.truncated) == ([ids], truncated)


def test_a_second_bos_is_never_added():
    texts = TextTokenizer(tiny.bos_tokenizer(), 100)
    bos = texts.tokenizer.bos_token_id
    with_bos, bare = texts.tokenizer(["<s>Hi", "Hi"], add_special_tokens=False)["input_ids"]
    assert with_bos == [bos, *bare]
    for text in ("Hi", "<s>Hi"):
        assert texts(text, add_special_tokens=True).ids.tolist() == with_bos
    assert texts("Hi", add_special_tokens=False).ids.tolist() == bare
    # What the client itself writes twice is its own.
    assert texts("<s><s>Hi", add_special_tokens=False).ids.tolist() == [bos, *with_bos]


def test_nothing_is_added_after_a_finished_turn():
    """By a tokenizer that ends each text in its EOS; after half a turn it does, as in vLLM."""
    texts = TextTokenizer(tiny.eos_tokenizer(), 100)

    def read(text: str, add: bool) -> tuple[list[int], bool]:
        found = texts(text, add_special_tokens=add)
        return found.ids.tolist(), found.truncated

    eos = texts.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = texts.tokenizer("<s>" + TEXT, add_special_tokens=False)["input_ids"]
    for text in (TEXT, "<s>" + TEXT, TEXT.rstrip()):
        assert read(text, True) == (ids, False)
    half = texts.tokenizer("<s>Hi", add_special_tokens=False)["input_ids"]
    for text in ("Hi", "<s>Hi"):
        assert read(text, True) == ([*half, eos], True)
    assert read("<s>" + TEXT, False) == (ids, False)


def test_padded_ids_are_flagged_and_scored_as_they_are():
    bare = tiny.new_tokenizer(template=tiny.TEMPLATE.replace("<|im_end|>\n", "<|im_end|>"))
    for tokenizer in (tiny.tokenizer(), prepare_tokenizer(bare)):
        texts = TextTokenizer(tokenizer, 100)
        end = texts.ending
        whole = texts("Hi" + end.token, add_special_tokens=False).ids.tolist()
        assert texts.of_ids(whole).truncated is False
        padded = [*whole, *[tokenizer.eos_token_id] * 2]
        assert (texts.of_ids(padded).ids, texts.of_ids(padded).truncated) == (padded, True)


def test_under_a_template_without_roles_a_second_end_is_an_empty_turn():
    fast = tiny.new_tokenizer()
    fast.chat_template = (
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls or '' }}<|im_end|>{% endfor %}"
    )
    found = TextTokenizer(fast, 100)("Hi<|im_end|><|im_end|>", add_special_tokens=False)
    assert found.ids.tolist() == fast("Hi<|im_end|><|im_end|>")["input_ids"]


@pytest.mark.parametrize(
    ("given", "items"),
    [("Hi", 1), (["Hi"], 1), (["Hi", "Ho"], 2), ([1, 2], 1), ([[1, 2], [3]], 2), (["Hi", [1]], 2)],
)
def test_input_is_a_text_or_ids_or_a_list_of_them(reader, given, items):
    for wire in (CLASSIFY, EMBEDDINGS):
        assert len(wire.read({"input": given}, reader).items) == items


def test_messages_that_are_null_are_none(reader):
    found = CLASSIFY.read({"messages": None, "input": "Hi"}, reader)
    assert len(found.items) == 1


@pytest.mark.parametrize("given", [None, [], [[]], {}, 3, [None], [1, "x"], [1.5], [True], [[1.0]]])
def test_other_input_is_refused(reader, given):
    with pytest.raises(WireError, match="input") as error:
        CLASSIFY.read({"input": given}, reader)
    assert error.value.status == 422


@pytest.mark.parametrize("path", ["/classify", "/v1/embeddings"])
def test_input_beside_messages_is_refused(reader, path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    with pytest.raises(WireError, match="give one of them") as error:
        FORMATS[path].read({"input": "Hi", "messages": chat}, reader)
    assert error.value.status == 422


HI = {"messages": [{"role": "user", "content": "Hi"}], "responses": ["Ho"]}


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("normalise", "unknown field 'normalise': .* did you mean 'normalize'"),
        ("tool", "did you mean 'tools'"),
        ("model", r"unknown field 'model': expected id, .*responses.*normalize$"),
        ("x" * 10**6, "unknown field 'xxx"),
    ],
)
def test_an_unknown_field_of_ours_is_refused_by_name(reader, field, words):
    (item,) = REWARDS.read(HI | {field: 1}, reader).items
    assert re.search(words, item.detail)
    (item,) = REWARDS.read({"requests": [HI | {field: 1}]}, reader).items
    assert "unknown field" in item.detail
    (item,) = REWARDS.read(HI | {field: None}, reader).items  # as clients with all fields send it
    assert isinstance(item, Item)
    with pytest.raises(WireError, match="unknown field") as error:
        REWARDS.read({"requests": [HI], field: 1}, reader)
    assert error.value.status == 422


@pytest.mark.parametrize("flag", ["use_activation", "activation", "normalize"])
def test_a_flag_inside_one_of_many_requests_is_refused(reader, flag):
    good, bad = REWARDS.read({"requests": [HI, HI | {flag: False}], flag: False}, reader).items
    assert isinstance(good, Item)
    assert bad == Rejected(
        "not a request", f"{flag}: say it beside 'requests'; it holds for all of them"
    )


def test_only_our_own_form_of_request_is_read(reader):
    user = {"role": "user", "content": "Hi"}
    preference = {"messages": [user], "chosen": "Yes.", "rejected": "No."}
    (item,) = REWARDS.read(preference, reader).items
    assert isinstance(item, Rejected)
    assert "responses" in item.detail


def test_a_template_that_fails_rejects_the_request_alone(reader, monkeypatch):
    def failing(*_, **__):
        raise TypeError("not iterable")

    monkeypatch.setattr(Renderer, "render", failing)
    (item,) = REWARDS.read(
        {"messages": [{"role": "user", "content": "x"}], "responses": ["x"]}, reader
    ).items
    assert item == Rejected("cannot be rendered", "TypeError: not iterable")


def test_strict_json():
    assert parse_json('{"a": 1.5, "b": "é"}'.encode()) == {"a": 1.5, "b": "é"}
    assert parse_json(b'\xef\xbb\xbf{"a": 1.5}') == {"a": 1.5}  # a byte order mark
    for body in (b"NaN", b'{"a": Infinity}', b'{"a": 1e400}', b"\xff", b"", b"[" * 10**5):
        with pytest.raises(WireError) as error:
            parse_json(body)
        assert error.value.status == 400


# --- Scale ----------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_held_out_evaluation():
    heldout = {"reward_mean": 1, "reward_std": 2.5, "accuracy": 0.9}
    assert statistics_of({"heldout": heldout}) == Statistics(1.0, 2.5)
    for about in (
        {}, {"heldout": None}, {"heldout": {"reward_mean": 1}},
        {"heldout": heldout | {"reward_std": 0.0}},
        {"heldout": heldout | {"reward_mean": math.nan}},
    ):  # fmt: skip
        assert statistics_of(about) is None


def test_a_sigmoid_of_any_reward_is_finite():
    asked = Asked([Item([[1]] * 3)], None, use_activation=True)
    assert asked.regrouped([-1e30, 0.0, 1e30]) == [[0.0, 0.5, 1.0]]


def test_rewards_are_normalised_before_the_sigmoid():
    asked = Asked([Item([[1]])], Statistics(1.0, 2.0), use_activation=True)
    assert asked.regrouped([3.0]) == [[pytest.approx(1 / (1 + math.exp(-1)))]]


# --- Writing --------------------------------------------------------------------------------------


def test_openrlhf_reads_rewards_scores_and_logs_of_one_length():
    found = GET_REWARD.write(*scored(1.5, -2.0), "rm")
    assert found == {
        "rewards": [1.5, -2.0],
        "scores": [1.5, -2.0],
        "extra_logs": {"truncated": [0.0, 0.0], "tokens": [2.0, 2.0]},
    }


def test_classify_answers_as_vllm_does():
    found = CLASSIFY.write(*scored(1.5, -2.0), "rm")
    assert set(found) == {"id", "object", "created", "model", "data", "usage"}
    assert (found["object"], found["model"]) == ("list", "rm")
    assert found["data"][1] == {
        "index": 1, "label": "reward", "probs": [-2.0], "num_classes": 1, "truncated": False,
    }  # fmt: skip
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] == 4


def test_embeddings_answer_as_openais_do():
    found = EMBEDDINGS.write(*scored(1.5), "rm")
    assert found["object"] == "list"
    assert found["data"][0]["object"] == "embedding"
    assert found["data"][-1]["embedding"] == [1.5]


def test_a_text_without_a_reward_fails_its_request_and_names_itself():
    asked = Asked([Item([[1]]), Item([[2]])], None, False)
    answers = asked.regrouped([1.0, Rejected("reward is not finite", "it is {nan}")])
    for wire, name in ((GET_REWARD, "query"), (CLASSIFY, "input"), (EMBEDDINGS, "input")):
        with pytest.raises(WireError) as error:
            wire.write(asked, answers, "rm")
        assert error.value.status == 422
        assert error.value.detail == f"{name}[1]: it is {{nan}}"


def test_a_detail_is_of_bounded_length():
    assert len(error_of(Rejected("x", "y" * 10**6))["detail"]) < 1100


@pytest.mark.parametrize("name", ["README.md", "docs/serve.md"])
def test_the_bodies_that_the_docs_post_are_read(name, reader):
    text = (tiny.ROOT / name).read_text()
    posted = re.findall(r"curl localhost:8000(\S+) -d '(.*?)'", text, re.S)
    assert posted
    for path, body in posted:
        asked = FORMATS[path].read(parse_json(body.encode()), reader)
        assert not any(isinstance(item, Rejected) for item in asked.items)
