"""Reading calls from models' texts: each dialect, and nothing that is only nearly one."""

import json
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolrm_jax.synth.chat_request import read_message, request_body
from toolrm_jax.synth.dialects import read_calls

F = {"name": "f", "arguments": {"a": 1, "b": ["x", {"c": None}], "d": True}}
G = {"name": "g.h", "arguments": {}}
JSON_F, JSON_G = json.dumps(F), json.dumps(G)
LLAMA_F = json.dumps({"name": "f", "parameters": F["arguments"]})
ARGS_F = json.dumps(F["arguments"])
PYTHON_F = "f(a=1, b=['x', {'c': None}], d=True)"

ONE = {
    "hermes": f"<tool_call>\n{JSON_F}\n</tool_call>",
    "json": JSON_F,
    "llama": LLAMA_F,
    "llama, after its tag": f"<|python_tag|>{LLAMA_F}",
    "llama's function tag": f"<function=f>{ARGS_F}</function>",
    "python": PYTHON_F,
    "python with JSON's words": 'f(a=1, b=["x", {"c": null}], d=true)',
    "python in a list": f"[{PYTHON_F}]",
    "fenced": f"```json\n{JSON_F}\n```",
    "fenced, after words": f"I will look it up.\n```\n{JSON_F}\n```\n",
    "fenced python": f"```python\n{PYTHON_F}\n```",
    "fenced in one line": f"```json {JSON_F} ```",
    "fenced in one line, close": f"```json{JSON_F}```",
    "fenced in one line, of no language": f"```{JSON_F}```",
    "fenced python in one line": f"So:\n```python {PYTHON_F}```",
    "fenced python in one line, of no language": f"```{PYTHON_F}```",
    "mistral": f"[TOOL_CALLS] [{JSON_F}]",
    "mistral, new": f"[TOOL_CALLS]f[ARGS]{ARGS_F}",
    "mistral, with an id": f"[TOOL_CALLS]f[CALL_ID]9aB3[ARGS]{ARGS_F}",
    "granite": f"<|tool_call|>[{JSON_F}]",
    "granite, closed": f"<|tool_call|>[{JSON_F}]<|/tool_call|>",
    "granite 3": f"<tool_call>[{JSON_F}]",
    "granite 20b": f"<function_call> {JSON_F}",
    "xlam": json.dumps({"tool_calls": [F]}),
    "fenced and printed": f"```tool_code\nprint({PYTHON_F})\n```",
    "before its turn's end": f"<tool_call>{JSON_F}</tool_call><|im_end|>\n<|endoftext|>",
    "llama's before its turn's end": f"{LLAMA_F}<|eot_id|>",
    "mistral's before its turn's end": f"[TOOL_CALLS] [{JSON_F}]</s>",
    "after a thought": f"<think>f(a=2)?</think>\n\n<tool_call>{JSON_F}</tool_call>",
    "after a thought that the prompt began": f"f it is.</think>{JSON_F}",
}
TWO = {
    "hermes": f"Both:<tool_call>{JSON_F}</tool_call>\n<tool_call>{JSON_G}</tool_call>",
    "json": f"[{JSON_F}, {JSON_G}]",
    "llama": f'{LLAMA_F}; {{"name": "g.h", "parameters": {{}}}}',
    "lines": f"{JSON_F}\n{JSON_G}",
    "python lines": f"{PYTHON_F}\ng.h()",
    "printed lines": f"```tool_code\nprint({PYTHON_F})\nprint(g.h())\n```",
    "hermes, one without arguments": f"<tool_call>{JSON_F}</tool_call>"
    '\n<tool_call>{"name": "g.h"}</tool_call>',
    "function tags": f"<function=f>{ARGS_F}</function>\n<function=g.h>{{}}</function>",
    "python": f"[{PYTHON_F}, g.h()]",
    "fences": f"```json\n{JSON_F}\n```\n```json\n{JSON_G}\n```",
    "fences in lines of their own": f"```json {JSON_F} ```\n``` {JSON_G} ```",
    "python lines in a fence of one line": f"```tool_code print({PYTHON_F})\nprint(g.h())```",
    "mistral": f"[TOOL_CALLS]f[ARGS]{ARGS_F}[TOOL_CALLS]g.h[ARGS]{{}}",
    "granite": f"<|tool_call|>[{JSON_F}, {JSON_G}]",
    "granite 20b": f"<function_call>{JSON_F}\n<function_call>{JSON_G}",
}


@pytest.mark.parametrize("dialect", ONE)
def test_one_call(dialect):
    assert read_calls(ONE[dialect]) == [F]


@pytest.mark.parametrize("dialect", TWO)
def test_two_calls(dialect):
    assert read_calls(TWO[dialect]) == [F, G]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "g.h"}</tool_call>',
        'Let me see.\n<tool_call>\n{"name": "g.h", "arguments": null}\n</tool_call>',
        '<tool_call>{"name": "g.h", "arguments": ""}</tool_call>',
        '<function_call>{"name": "g.h"}',
        '[TOOL_CALLS] [{"name": "g.h"}]',
        '<|tool_call|>[{"name": "g.h"}]',
        '{"tool_calls": [{"name": "g.h"}]}',
        '{"name": "g.h", "arguments": null}',
        '[{"name": "g.h", "arguments": null}]',
        '{"name": "g.h", "parameters": null}',
        "```tool_code\nprint(g.h())\n```",
        "g.h()",
    ],
)
def test_a_call_without_arguments(text):
    assert read_calls(text) == [G]


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ('f(from="x", to="y")', "f", {"from": "x", "to": "y"}),
        ("[f(class = 1, is=[2])]", "f", {"class": 1, "is": [2]}),
        ("f(None=1, True=null)", "f", {"None": 1, "True": None}),
        ("import(a=1)", "import", {"a": 1}),
        ("größe(ĳ=1, ʘ102=2)", "größe", {"ĳ": 1, "ʘ102": 2}),
        ("get-weather(max-results=3)", "get-weather", {"max-results": 3}),
        ("print(a.get-it.now(b-c='d-e=(f-g=1)'))", "a.get-it.now", {"b-c": "d-e=(f-g=1)"}),
        ("```python\nf-1(from='it\\'s from=1')\n```", "f-1", {"from": "it's from=1"}),
        ('f(in="a\\" from=(", a=-1)', "f", {"in": 'a" from=(', "a": -1}),
        ('f(a={"from": "if (x)", "b-c": -1})', "f", {"a": {"from": "if (x)", "b-c": -1}}),
    ],
)
def test_names_that_python_does_not_allow_are_read_as_the_schema_has_them(text, name, arguments):
    assert read_calls(text) == [{"name": name, "arguments": arguments}]


@pytest.mark.parametrize("end", ["<|im_end|>", "</s>", "<|eot_id|>", "<end_of_turn>"])
def test_what_ends_a_turn_is_no_part_of_words(end):
    assert read_message({"content": f"No tool fits.{end}"}) == "No tool fits."
    assert read_message({"content": end}) == ""
    assert read_message({"content": f"{end} ends it."}) == f"{end} ends it."


@pytest.mark.parametrize(
    "text",
    [
        "Which unit do you want?",
        '{"name": "g.h"}',
        '[{"name": "g.h"}]',
        '```json\n{"name": "g.h"}\n```',
        '<tool_call>{"name": "g.h"}</tool_call> Done.',
        '<tool_call>{"name": "g.h"}',
        '<tool_call>{"name": "g.h", "parameters": {"a": 1}}</tool_call>',
        '<tool_call>{"name": "g.h", "arguments": "x"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "f(a=1)\nx = g()",
        "f(a=1)\nif g(): h()",
        "f(a=1)\n[g()]",
        "print(f(a=1), g())",
        "print('f(a=1)')",
        "See (the docs)",
        "f(1)",
        "f(a=b)",
        "f(a=g())",
        "f(a=1, a=2)",
        "f(from=1, from=2)",
        "f(from=a-b)",
        "f(a-b=c-d(e=1))",
        "f(1-a=2)",
        "f(from==2)",
        "See the well-known (from=1)",
        "```x = 1```",
        "```ruby f(a=1)```",
        f"```json {JSON_F}",
        f"```json {JSON_F} ``` That is it.",
        "f(**{'a': 1})",
        "f(a=b'x')",
        "f(a=1) and then g()",
        "f(a=1",
        "[f(a=1), 2]",
        JSON_F[:-1],
        f"{JSON_F} is my answer",
        f"<tool_call>{JSON_F}",
        f"<tool_call>{JSON_F}</tool_call> Done.",
        f"```json\n{JSON_F}\n``` That is it.",
        f"```json\n{JSON_F}\n```\n```\nx = 1\n```",
        '```json\n{"x": 1}\n```',
        "[TOOL_CALLS]f{}",
        f"[TOOL_CALLS] [{JSON_F}] Done.",
        f"<function=f>{ARGS_F}",
        f"<function=f>{ARGS_F}</function> Done.",
        '{"name": "f", "parameters": {}, "arguments": {}}',
        '{"name": "f", "parameters": "x"}',
        '{"tool_calls": [], "answer": 1}',
        f"<think>{JSON_F}",
        "f(a=" + "[" * 5000 + "]" * 5000 + ")",
        '{"name": "f", "parameters": ' + '{"a":' * 5000,
    ],
)
def test_what_is_nearly_a_call_is_none(text):
    assert read_calls(text) is None


@given(st.text(alphabet="f(a=1)[]{}\"':,`\n<>|tool_calTOOL_S/jsn ", max_size=60))
def test_any_text_is_read_or_not_but_never_fails(text):
    calls = read_calls(text)
    assert calls is None or all(set(call) == {"name", "arguments"} for call in calls)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


_NAMES = st.sampled_from(keyword.kwlist) | st.from_regex(r"[a-zA-Z_][\w-]{0,6}", fullmatch=True)


@given(_NAMES.filter(lambda n: n != "print"), st.dictionaries(_NAMES, _VALUES, max_size=3))
def test_any_arguments_come_through_python_and_json(name, arguments):
    call = {"name": name, "arguments": arguments}
    try:
        json.dumps(call, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    python = ", ".join(f"{param}={value!r}" for param, value in arguments.items())
    assert read_calls(f"[{name}({python})]") == [call]
    assert read_calls(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments)}") == [call]


def test_native_calls_win_over_words():
    made = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    message = {"content": "Let me see.", "tool_calls": made}
    assert read_message(message) == [{"name": "f", "arguments": {"a": 1}}]


@pytest.mark.parametrize("given", [{"arguments": ""}, {"arguments": None}, {}])
def test_native_calls_without_arguments_are_calls(given):
    other = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    made = [{"id": "1", "type": "function", "function": {"name": "g", **given}}, other]
    expected = [{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"a": 1}}]
    assert read_message({"content": None, "tool_calls": made}) == expected


def test_native_calls_without_a_name_stay_as_written():
    text = read_message({"tool_calls": [{"function": {"arguments": None}}]})
    assert text == '<tool_call>{"name": null, "arguments": null}</tool_call>'


def test_native_calls_with_broken_arguments_stay_as_written():
    made = [{"function": {"name": "f", "arguments": '{"a": 1'}}]
    text = read_message({"content": None, "tool_calls": made})
    assert text == '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>'
    assert read_calls(text) is None


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def test_parts_of_text_are_one_text():
    assert read_message({"content": parts("[f(a", "=1)]")}) == [
        {"name": "f", "arguments": {"a": 1}}
    ]
    assert read_message({"content": parts("Which ", "unit?")}) == "Which unit?"


@pytest.mark.parametrize("content", [None, "", []])
def test_a_refusal_is_what_the_model_said(content):
    assert read_message({"content": content, "refusal": "I cannot help."}) == "I cannot help."


@pytest.mark.parametrize("content", ["", None, [], parts(""), "<think>No tool fits.</think>"])
def test_a_turn_that_says_nothing_is_empty(content):
    assert read_message({"content": content}) == ""


def conversation():
    from toolrm_jax.examples import Example

    call = {"name": "f", "arguments": {"a": 1}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "f and f?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "name": "f", "content": "2"},
        {"role": "tool", "name": "f", "content": "3"},
        {"role": "user", "content": "Again."},
    ]
    tools = [{"name": "f", "description": "", "parameters": {"type": "object"}}]
    return Example("t/0", "t", "MIT", tools, messages, [], [])


def test_earlier_calls_are_sent_as_the_protocol_wants_them():
    from toolrm_jax.synth.endpoint_settings import EndpointSettings

    settings = EndpointSettings("m", "MIT", "http://localhost/v1", extra={"top_p": 0.9})
    body = request_body(conversation(), settings, 0, seed=0)
    assert body["tools"] == [{"type": "function", "function": conversation().tools[0]}]
    assert body["top_p"] == 0.9
    made = body["messages"][2]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in made] == [{"a": 1}] * 2
    ids = [call["id"] for call in made]
    assert [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"] == ids
    assert len(set(ids)) == 2
    again = request_body(conversation(), settings, 1, seed=0)
    assert again.pop("seed") != body.pop("seed")
    assert again == body


def test_as_text_the_tools_and_results_are_words():
    from toolrm_jax.synth.endpoint_settings import EndpointSettings

    settings = EndpointSettings("m", "MIT", "http://localhost/v1", tools="text", send_seed=False)
    body = request_body(conversation(), settings, 0, seed=0)
    assert "tools" not in body
    assert "seed" not in body
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user", "user", "user"]
    assert body["messages"][0]["content"].startswith("Be brief.\n\n")
    assert json.dumps(conversation().tools[0]) in body["messages"][0]["content"]
    assert body["messages"][2]["content"].count("<tool_call>") == 2
    assert all(set(message) == {"role", "content"} for message in body["messages"])
