"""Rendering: prompt + response is what the tokenizer's own template yields, whatever BPE does."""

import copy
import datetime
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from toolrm_jax.rendering import (
    ChatTemplateError,
    Renderer,
    RenderError,
    prepare_tokenizer,
)

WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
CLOCK = {"name": "clock", "description": "The time.", "parameters": {"type": "object"}}
TOOLS = [WEATHER, CLOCK]
WRAPPED = [{"type": "function", "function": tool} for tool in TOOLS]
QUESTION = [{"role": "user", "content": "Will it rain in Rome on the next 2 days?"}]
ROME = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
TIME = {"name": "clock", "arguments": {}}
SHUFFLED = {"name": "weather", "arguments": {"days": 2, "city": "Rome"}}
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain in Rome?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": '{"rain": false}'},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "And in Oslo?"},
]


DEEP: dict = {}
for _ in range(3000):
    DEEP = {"a": DEEP}


def turn(*calls, content=""):
    made = [{"type": "function", "function": call} for call in calls]
    return {"role": "assistant", "content": content} | ({"tool_calls": made} if made else {})


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def bare_smollm2(smollm2_model):
    """SmolLM2's tokenizer as it is published: a template without tools, pad equal to eos."""
    return smollm2_model.tokenizer


@pytest.fixture(scope="session")
def smollm2(smollm2_tokenizer):
    return smollm2_tokenizer


@pytest.fixture(scope="session")
def qwen25(qwen_tokenizer):
    return qwen_tokenizer("qwen2.5")


@pytest.fixture(scope="session", params=["smollm2", "qwen2.5", "qwen3"])
def tokenizer(request):
    if request.param == "smollm2":
        return request.getfixturevalue("smollm2")
    if request.param == "qwen2.5":
        return request.getfixturevalue("qwen25")
    return request.getfixturevalue("qwen_tokenizer")(request.param)


@pytest.fixture(scope="session")
def renderer(tokenizer):
    return Renderer(tokenizer)


def byte_tokenizer(
    template: str | None, special=("<s>", "</s>"), **names
) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and a few special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


# --- the whole sequence ---------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [QUESTION, DIALOGUE])
def test_text_and_tokens_are_the_template_applied_to_the_whole_conversation(
    tokenizer, renderer, messages
):
    decoded = copy.deepcopy(messages)
    for message in decoded:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    expected = {"conversation": [*decoded, turn(ROME)], "tools": WRAPPED, "return_dict": False}
    assert renderer.tokens(TOOLS, messages, [ROME]) == tokenizer.apply_chat_template(**expected)
    text = tokenizer.apply_chat_template(**expected, tokenize=False)
    assert renderer.text(TOOLS, messages, [ROME]) == text
    assert renderer.text(WRAPPED, messages, [ROME]) == text
    assert text.endswith("<|im_end|>\n")


def test_conversation_gives_a_user_what_apply_chat_template_needs(tokenizer, renderer):
    arguments = renderer.conversation(TOOLS, DIALOGUE, "No.")
    ids = tokenizer.apply_chat_template(**arguments, return_dict=False)
    assert ids == renderer.tokens(TOOLS, DIALOGUE, "No.")


MARKS = [
    "<tool_call>",
    "</tool_call>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
]
PIECES = st.sampled_from([*'\n 7½é🙂{"\\', "\n\n", "  ", "Rome", "日本", "assistant", *MARKS])
WORDS = st.lists(PIECES, max_size=8).map("".join)
CALLS = st.lists(
    st.fixed_dictionaries({"name": WORDS, "arguments": st.dictionaries(WORDS, WORDS, max_size=2)}),
    max_size=2,
)
RESPONSES = st.lists(st.one_of(WORDS, CALLS, st.just([ROME]), st.just([SHUFFLED])), min_size=1)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(responses=RESPONSES, question=WORDS, tools=st.sampled_from([[], TOOLS]))
@example(responses=["\nno", "\n\nno"], question="\n", tools=TOOLS)
@example(responses=["", ""], question="", tools=[])
@example(responses=["\n"], question="", tools=[])
def test_prompt_plus_response_is_the_whole_sequence(renderer, responses, question, tools):
    messages = [{"role": "user", "content": question}]
    rendered = renderer.render(tools, messages, responses)
    assert rendered.prompt.dtype == np.int32
    assert len(rendered.responses) == len(responses)
    for i, response in enumerate(responses):
        assert len(rendered.responses[i]) >= 1
        assert rendered.whole(i).tolist() == renderer.tokens(tools, messages, response)
        assert rendered.whole(i)[-1] != renderer.tokenizer.pad_token_id


@pytest.mark.parametrize("name", ["smollm2", "qwen25"])  # Qwen3 drops leading newlines itself
def test_the_border_moves_before_a_merge_that_crosses_it(name, request):
    tokenizer = request.getfixturevalue(name)
    renderer = Renderer(tokenizer)
    asked = tokenizer.apply_chat_template(
        QUESTION, tools=WRAPPED, add_generation_prompt=True, return_dict=False
    )
    plain = renderer.render(TOOLS, QUESTION, ["No."])
    merged = renderer.render(TOOLS, QUESTION, ["\n\nNo."])
    assert plain.prompt.tolist() == asked
    assert merged.prompt.tolist() == asked[:-1]
    assert merged.whole(0).tolist() == renderer.tokens(TOOLS, QUESTION, "\n\nNo.")


def test_the_prompt_is_all_that_the_responses_share(renderer):
    other = {"name": "weather", "arguments": {"city": "Rome", "days": 3}}
    rendered = renderer.render(TOOLS, QUESTION, [[ROME], [other]])
    assert rendered.responses[0][0] != rendered.responses[1][0]
    assert len(rendered.prompt) > len(renderer.render(TOOLS, QUESTION, [[ROME]]).prompt)
    twins = renderer.render(TOOLS, QUESTION, [[ROME], [SHUFFLED]])
    assert [len(response) for response in twins.responses] == [1, 1]


def test_what_the_responses_share_is_tokenised_once(smollm2, monkeypatch):
    renderer, lengths = Renderer(smollm2), []
    encode = renderer._encode
    monkeypatch.setattr(renderer, "_encode", lambda text: lengths.append(len(text)) or encode(text))
    responses = ["No.", "Yes.", [ROME], [TIME]]
    rendered = renderer.render(TOOLS, QUESTION, responses)
    whole = len(renderer.text(TOOLS, QUESTION, "No."))
    assert sum(lengths) < whole + 4 * 150
    assert rendered.whole(3).tolist() == renderer.tokens(TOOLS, QUESTION, responses[3])


def test_a_token_that_can_cover_a_cut_is_no_place_to_cut(smollm2):
    tokenizer = copy.deepcopy(smollm2)
    tokenizer.add_tokens(["\n<|im_start|>assistant"], special_tokens=True)
    renderer = Renderer(tokenizer)
    assert "<|im_start|>" not in renderer._borders
    rendered = renderer.render(TOOLS, QUESTION, ["No.", [ROME]])
    for i, response in enumerate(["No.", [ROME]]):
        assert rendered.whole(i).tolist() == renderer.tokens(TOOLS, QUESTION, response)


# --- surface form ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        [SHUFFLED],
        json.dumps(SHUFFLED),
        json.dumps([ROME], indent=2),
        f"<tool_call>\n{json.dumps(SHUFFLED)}\n</tool_call>",
        turn(SHUFFLED),
        turn({"name": "weather", "arguments": '{"days": 2, "city": "Rome"}'}),
        {"role": "assistant", "content": json.dumps(SHUFFLED)},
    ],
)
def test_what_parses_as_calls_is_rendered_from_its_canonical_calls(renderer, response):
    assert renderer.text(TOOLS, QUESTION, response) == renderer.text(TOOLS, QUESTION, [ROME])


@pytest.mark.parametrize(
    "response",
    ["It will rain.", '{"name": "weather", "arguments": {"city": "Rome"}', "weather(city='Rome')"],
)
def test_anything_else_stays_raw_text(tokenizer, renderer, response):
    expected = tokenizer.apply_chat_template(
        [*QUESTION, turn(content=response)], tools=WRAPPED, tokenize=False
    )
    assert renderer.text(TOOLS, QUESTION, response) == expected
    assert f"{response}<|im_end|>" in expected


def test_an_empty_answer_is_an_assistant_turn_with_empty_content(renderer):
    empty = renderer.text(TOOLS, QUESTION, [])
    assert empty == renderer.text(TOOLS, QUESTION, "") == renderer.text(TOOLS, QUESTION, turn())
    assert "<|im_start|>assistant\n" in empty


def test_raw_keeps_a_string_and_the_order_of_arguments(tokenizer):
    raw, text = Renderer(tokenizer, raw=True), json.dumps(SHUFFLED, indent=1)
    assert text in raw.text(TOOLS, QUESTION, text)
    assert text not in Renderer(tokenizer).text(TOOLS, QUESTION, text)
    assert raw.text(TOOLS, QUESTION, [SHUFFLED]) != raw.text(TOOLS, QUESTION, [ROME])


def test_words_and_reasoning_beside_calls_are_kept(smollm2):
    renderer = Renderer(smollm2)
    message = turn(SHUFFLED, content="Let me look.") | {"reasoning_content": "Rome it is."}
    text = renderer.text(TOOLS, QUESTION, message)
    assert text.endswith(
        "<|im_start|>assistant\n<think>Rome it is.</think>\nLet me look.\n"
        '<tool_call>{"name":"weather","arguments":{"city":"Rome","days":2}}</tool_call><|im_end|>\n'
    )
    spoken = f"Let me look.\n<tool_call>{json.dumps(ROME)}</tool_call>"
    assert renderer.text(TOOLS, QUESTION, spoken) == renderer.text(
        TOOLS, QUESTION, turn(ROME, content="Let me look.")
    )


def test_a_broken_call_in_a_message_stays_visible(renderer):
    text = renderer.text(TOOLS, QUESTION, turn({"name": "weather", "arguments": '{"city": Rome}'}))
    assert '{"name": "weather", "arguments": {"city": Rome}}' in text


@pytest.mark.parametrize(
    ("response", "shown"),
    [
        ([{"name": "weather", "args": {"city": "Rome"}}], '{"name": "weather", "args": {"city": "'),
        ([{"city": "Rome"}], '{"city": "Rome"}'),
        (["weather(city='Rome')"], "weather(city='Rome')"),
        ([{"name": "weather", "arguments": '{"city": Rome}'}], '"arguments": {"city": Rome}}'),
        ([{"name": "weather", "arguments": {"days": float("nan")}}], '{"days": NaN}'),
        ([{"name": "weather", "arguments": {"city": "\ud800"}}], '{"city": "\\ud800"}'),
        ('{"name": "weather", "arguments": {"city": "\\ud800"}}', '{"city": "\\ud800"}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_calls_that_are_none_stay_visible_as_text(smollm2, response, shown):
    renderer = Renderer(smollm2)
    for message in (response, {"role": "assistant", "content": "", "tool_calls": response}):
        if isinstance(message, dict) and isinstance(response, str):
            continue
        assert shown in renderer.text(TOOLS, QUESTION, message)
        # A bad answer leaves its siblings alone.
        rendered = renderer.render(TOOLS, QUESTION, [message, [ROME]])
        assert rendered.whole(1).tolist() == renderer.tokens(TOOLS, QUESTION, [ROME])


def test_good_and_bad_calls_of_one_answer_are_both_shown(renderer):
    text = renderer.text(TOOLS, QUESTION, [ROME, {"name": "clock", "args": {}}])
    assert json.dumps(ROME) in text
    assert '{"name": "clock", "args": {}}' in text


def test_json_text_as_arguments_of_an_earlier_call_is_not_encoded_twice(renderer):
    text = renderer.text(TOOLS, DIALOGUE, "Yes.")
    assert '\\"city\\"' not in text
    assert '"city"' in text.split("Rain in Rome?")[1].split("And in Oslo?")[0]


def test_no_tools_and_no_messages_render_the_answer_alone(smollm2, renderer):
    alone = Renderer(smollm2).text([], [], "No.")
    assert alone == "<|im_start|>assistant\nNo.<|im_end|>\n"
    for responses in (["No."], ["No.", [ROME]]):
        rendered = renderer.render([], [], responses)
        for i, response in enumerate(responses):
            assert rendered.whole(i).tolist() == renderer.tokens([], [], response)
    opened = renderer.tokenizer.decode(renderer.render([], [], ["No."]).prompt)
    assert opened.endswith("<|im_start|>assistant\n")


# --- the project's own template -------------------------------------------------------------------


def test_the_own_template_shows_every_part_of_a_conversation(smollm2):
    compact = json.dumps(WEATHER, separators=(",", ":"))
    text = Renderer(smollm2).text(TOOLS, DIALOGUE, [ROME, TIME])
    assert text.startswith(f"<|im_start|>system\nBe brief.\n\n<tools>\n{compact}\n")
    assert '<tool_call>{"name":"weather","arguments":{"city":"Rome"}}</tool_call>' in text
    assert '<|im_start|>tool\n<tool_response>{"rain": false}</tool_response><|im_end|>' in text
    assert "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nAnd in Oslo?<|im_end|>" in text
    assert text.count("Be brief.") == 1
    assert text.endswith(
        '</tool_call>\n<tool_call>{"name":"clock","arguments":{}}</tool_call><|im_end|>\n'
    )


def test_without_tools_the_own_template_adds_nothing(smollm2):
    text = Renderer(smollm2).text([], DIALOGUE[:2], "No.")
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRain in Rome?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
    )


# --- preparing a tokenizer ------------------------------------------------------------------------


def test_only_a_template_without_tools_is_replaced(bare_smollm2, smollm2, qwen25, toolrm_data):
    assert "tools" not in bare_smollm2.chat_template
    assert "<tools>" in smollm2.chat_template
    own = AutoTokenizer.from_pretrained(toolrm_data / "tokenizers" / "qwen2.5")
    assert qwen25.chat_template == own.chat_template
    assert qwen25.pad_token == own.pad_token


def test_preparing_twice_changes_nothing_and_saving_keeps_it(bare_smollm2, tmp_path):
    for template in (None, bare_smollm2.chat_template, DATED_CHATML):
        tokenizer = copy.deepcopy(bare_smollm2)
        tokenizer.chat_template = template
        prepare_tokenizer(tokenizer)
        once = (tokenizer.chat_template, tokenizer.pad_token)
        prepare_tokenizer(tokenizer)
        assert (tokenizer.chat_template, tokenizer.pad_token) == once
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded.pad_token == tokenizer.pad_token
        expected = Renderer(tokenizer).tokens(TOOLS, DIALOGUE, [ROME])
        assert Renderer(loaded).tokens(TOOLS, DIALOGUE, [ROME]) == expected


DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}{%- endif %}"
    "Today: {{ today }}. {% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<s>{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}</s>"
    "{% endfor %}"
)
DATED_CHATML = (
    "  {%- if tools %}{{ strftime_now('%Y-%m-%d %B') }}{{ tools | tojson }}{% endif %}\n"
    + DATED.replace("<s>", "<|im_start|>").replace("</s>", "<|im_end|>")
    + "\n"
)


def on(monkeypatch, year: int) -> None:
    class Faked(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(year, 2, 3)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Faked)


def test_a_template_that_asks_for_the_date_always_gets_the_same(monkeypatch):
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = byte_tokenizer(DATED, ("<s>", "</s>", "<pad>"), **names)
    chat = {"conversation": QUESTION, "tools": WRAPPED, "tokenize": False}
    on(monkeypatch, 2031)
    assert "Today: 03 Feb 2031." in tokenizer.apply_chat_template(**chat)
    undated = tokenizer.apply_chat_template(**chat).replace("03 Feb 2031", "26 Jul 2024")
    prepare_tokenizer(tokenizer)
    texts = []
    for year in (2031, 2042):
        on(monkeypatch, year)
        texts.append(tokenizer.apply_chat_template(**chat))
    assert texts == [undated, undated]


def test_pinning_a_date_adds_nothing_else(bare_smollm2, monkeypatch):
    tokenizer = copy.deepcopy(bare_smollm2)
    tokenizer.chat_template = DATED_CHATML
    on(monkeypatch, 2024)
    before = tokenizer.apply_chat_template(QUESTION, tools=WRAPPED, tokenize=False)
    prepare_tokenizer(tokenizer)
    after = tokenizer.apply_chat_template(QUESTION, tools=WRAPPED, tokenize=False)
    assert "2024-02-03 February" in before
    assert (
        before.replace("2024-02-03 February", "2024-07-26 July").replace("03 Feb", "26 Jul")
        == after
    )


def test_a_pad_token_that_ends_conversations_is_replaced():
    names = {"eos_token": "</s>", "pad_token": "</s>"}
    tokenizer = prepare_tokenizer(byte_tokenizer(DATED, ("<s>", "</s>", "[PAD]"), **names))
    assert tokenizer.pad_token == "[PAD]"
    tokenizer = prepare_tokenizer(byte_tokenizer(DATED, ("<s>", "</s>", "<x>", "<y>"), **names))
    assert tokenizer.pad_token == "<x>"
    tokenizer = prepare_tokenizer(byte_tokenizer(DATED, ("<s>", "</s>", "<unk>")))
    assert tokenizer.pad_token == "<unk>"
    with pytest.raises(ChatTemplateError, match=r"ends a conversation in one of \['</s>'\]"):
        prepare_tokenizer(byte_tokenizer(DATED, **names))


def test_smollm2_keeps_its_pad_because_the_last_token_is_a_newline(smollm2):
    assert smollm2.pad_token == smollm2.eos_token == "<|im_end|>"
    assert smollm2.decode(Renderer(smollm2).tokens(TOOLS, QUESTION, [ROME])[-1:]) == "\n"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "it has none"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not show the tools"),
        ("{{ tools | tojson }}", "does not show the calls"),
        ("{{ raise_exception('only users') }}", "fails on a tool call: only users"),
    ],
)
def test_a_template_that_cannot_serve_is_refused_outside_chatml(template, fault):
    with pytest.raises(ChatTemplateError, match=rf"{fault}.*<\|im_start\|>.*lacks"):
        prepare_tokenizer(byte_tokenizer(template))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("responses", [[], (), "No.", {"role": "assistant", "content": "No."}])
def test_responses_are_a_list_of_at_least_one(smollm2, responses):
    with pytest.raises(RenderError, match="list of at least one response"):
        Renderer(smollm2).render(TOOLS, QUESTION, responses)


@pytest.mark.parametrize(
    ("tools", "messages", "response", "message"),
    [
        (TOOLS, [{"role": "robot", "content": "x"}], "a", r"messages\[0\].*system, user.*robot"),
        (TOOLS, [*QUESTION, {"role": "user"}], "a", r"messages\[1\] \(user\).*content, got None"),
        (TOOLS, [{"role": "tool", "content": {"a": 1}}], "a", r"string as content, got \{'a': 1\}"),
        (TOOLS, ["hello"], "a", r"messages\[0\]: expected a dict.*got 'hello'"),
        (TOOLS, [turn("f")], "a", r"messages\[0\]: a tool call needs a name"),
        ([{"description": "nameless"}], QUESTION, "a", r"tools\[0\]: a tool needs a name"),
        (TOOLS, QUESTION, [{"city": {"Rome"}}], r"A call is JSON, got dict .*set"),
        (TOOLS, QUESTION, "Rome \ud800", r"half a surrogate pair.*Rome "),
        (TOOLS, [turn({"name": "f", "arguments": DEEP})], "a", "nest too deeply"),
        (TOOLS, QUESTION, 7, r"A response is a list of calls.*got 7"),
        (TOOLS, QUESTION, {"role": "user", "content": "a"}, r"role is 'assistant', got 'user'"),
        (TOOLS, QUESTION, {"role": "assistant", "content": ["a"]}, r"content is a string"),
    ],
)
def test_bad_input_is_one_clear_error(smollm2, tools, messages, response, message):
    with pytest.raises(RenderError, match=message):
        Renderer(smollm2).render(tools, messages, [response])


def test_a_refusal_of_the_template_itself_is_passed_on():
    template = DATED + (
        "{% if messages[-1].tool_calls and messages[-1].tool_calls | length > 1 %}"
        "{{ raise_exception('one call at a time') }}{% endif %}"
    )
    renderer = Renderer(prepare_tokenizer(byte_tokenizer(template, ("<s>", "</s>", "<pad>"))))
    with pytest.raises(RenderError, match=r"refuses .*\['user', 'assistant'\]: one call at a time"):
        renderer.text(TOOLS, QUESTION, [ROME, ROME])
