"""Requests become tokens or are rejected, whatever is in them; an over-long one costs little."""

import json
import tracemalloc

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolrm_jax.rendering import Renderer
from toolrm_jax.request_tokens import LineTokenizer, RequestTokenizer, Tokenized
from toolrm_jax.score_request import Rejected

USER = {"role": "user", "content": "Rain in Rome?"}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tiny.tokenizer())


# --- Anything at all ------------------------------------------------------------------------------

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_TREES = st.recursive(_LEAVES, lambda t: st.lists(t) | st.dictionaries(st.text(), t), max_leaves=5)
_CALLS = st.fixed_dictionaries(
    {}, optional={"name": st.just("f") | _LEAVES, "arguments": _TREES, "function": _TREES}
)
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | _LEAVES},
    optional={
        "content": st.text() | _TREES,
        "tool_calls": st.lists(_CALLS) | _TREES,
        "reasoning_content": _TREES,
        "name": _TREES,
    },
)
_SIDES = st.text() | _MESSAGES | st.lists(_CALLS) | st.lists(_MESSAGES, max_size=3) | _TREES
_TOOLS = st.fixed_dictionaries({"name": st.just("f") | _LEAVES}, optional={"parameters": _TREES})
_FIELDS = {
    "id": _TREES,
    "messages": st.lists(st.just(USER) | _MESSAGES, max_size=3) | _TREES,
    "conversation": st.lists(_MESSAGES, max_size=2) | _TREES,
    "prompt": st.lists(_MESSAGES, max_size=2) | _TREES,
    "responses": st.lists(_SIDES, max_size=3) | _TREES,
    "chosen": _SIDES,
    "rejected": _SIDES,
    "chosen_output": _SIDES,
    "rejected_output": _SIDES,
    "tools": st.lists(st.just(TOOL) | _TOOLS | _TREES, max_size=2) | _TREES,
}
_SURE = ("messages", "responses")
_ROWS = st.fixed_dictionaries({}, optional=_FIELDS) | st.fixed_dictionaries(
    {name: _FIELDS[name] for name in _SURE},
    optional={name: field for name, field in _FIELDS.items() if name not in _SURE},
)


@settings(
    max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(row=_ROWS | _TREES)
def test_no_row_raises(renderer, row):
    tokenize = LineTokenizer(RequestTokenizer(renderer, 512))
    for given_as in (row, json.dumps(row).encode()):
        line = tokenize((3, given_as))
        assert line.number == 3
        assert isinstance(line.outcome, Tokenized | Rejected)
        assert line.id is None or isinstance(line.id, str | int)


@pytest.mark.parametrize(
    ("number", "name"),
    [("NaN", "NaN"), ("Infinity", "Infinity"), ("-Infinity", "-Infinity"), ("1e400", "Infinity")],
)
@pytest.mark.parametrize("field", ["tools", "messages", "responses"])
def test_what_is_no_number_of_jsons_is_refused_as_text_and_as_an_object(
    renderer, number, name, field
):
    calls = [{"name": "f", "arguments": {"a": [{"b": "@"}]}}]
    row = {
        "tools": [TOOL | {"default": "@"}] if field == "tools" else [TOOL],
        "messages": [USER | ({"more": "@"} if field == "messages" else {})],
        "responses": ["Yes.", calls if field == "responses" else []],
    }
    text = json.dumps(row).replace('"@"', number)
    tokenize = LineTokenizer(RequestTokenizer(renderer, 512))
    for given_as in (text.encode(), json.loads(text)):
        outcome = tokenize((1, given_as)).outcome
        assert (outcome.reason, f"{name} is not JSON" in outcome.detail) == ("not JSON", True)
    assert outcome.detail == f"{field}: {name} is not JSON"


def test_a_template_that_fails_rejects_the_row(renderer, monkeypatch):
    def failing(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(type(renderer.tokenizer), "apply_chat_template", failing)
    found = RequestTokenizer(renderer, 512)({"messages": [USER], "responses": ["Yes."]})
    assert str(found) == "cannot be rendered: KeyError: 'x'"


@pytest.mark.parametrize("calls", [5, True, "abc", {"name": "f", "arguments": {}}])
def test_calls_that_are_no_list_are_named(renderer, calls):
    turn = {"role": "assistant", "content": "x", "tool_calls": calls}
    found = RequestTokenizer(renderer, 512)({"messages": [USER, turn], "responses": ["Yes."]})
    assert "messages[1] (assistant): expected a list as tool_calls" in str(found)


# --- Over-long ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["reject", "drop-oldest-turns"])
def test_a_long_prompt_costs_the_same_for_one_response_and_for_many(renderer, monkeypatch, policy):
    rendered = []
    apply = type(renderer.tokenizer).apply_chat_template

    def counted(self, *args, **options):
        rendered.append(1)
        return apply(self, *args, **options)

    monkeypatch.setattr(type(renderer.tokenizer), "apply_chat_template", counted)
    row = {
        "messages": [{"role": "user", "content": "word " * 40_000}],
        "responses": [f"a{number}" for number in range(1000)],
    }
    tracemalloc.start()
    try:
        found = RequestTokenizer(renderer, 512, policy)(row)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.reason == "over-long"
    assert len(rendered) == 1
    assert peak < 100 * 2**20  # a thousand such texts are 200 MB, and their tokens more


def test_a_long_response_stops_the_request_where_it_stands(renderer):
    row = {"messages": [USER], "responses": ["Yes.", "word " * 600, "word " * 700]}
    found = RequestTokenizer(renderer, 512)(row)
    assert "prompt and responses[1] have" in found.detail
    assert "at most 512 are scored" in found.detail


def test_more_text_than_can_be_rendered_together_is_rejected(renderer, monkeypatch):
    monkeypatch.setattr("toolrm_jax.rendering._MOST_CHARACTERS", 1000)
    few, many = (
        RequestTokenizer(renderer, 512)({"messages": [USER], "responses": ["x"] * count})
        for count in (2, 200)
    )
    assert isinstance(few, Tokenized)
    assert "200 responses to a conversation of" in many.detail


@pytest.mark.parametrize(
    "responses",
    [
        ["Yes.", "No."],
        ["<|im_start|>assistant\n", "<|im_start|>assistant\nx", "No."],
        ["a<|im_start|>assistant\nb", "a<|im_start|>assistant\nc"],
        ["same", "same"],
        ["", ""],
        ["", "x", "x<|im_end|>\n"],
    ],
)
def test_what_is_shared_is_cut_only_where_every_sequence_stays_itself(renderer, responses):
    """Also where responses hold what opens an answer, so that the first guess of the cut fails."""
    found = renderer.render([TOOL], [USER], responses)
    for number, response in enumerate(responses):
        assert found.whole(number).tolist() == renderer.tokens([TOOL], [USER], response)
        assert len(found.responses[number])
