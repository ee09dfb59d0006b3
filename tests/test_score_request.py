"""Rows in all forms become requests; what is none is refused with what was found and expected."""

import json

import pytest

from toolrm_jax.score_request import RequestError, request_of, without_nulls

USER = {"role": "user", "content": "Rain in Rome?"}
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
RIGHT, WRONG = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
TOOL = {"name": "weather", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("row", "responses"),
    [
        ({"messages": [USER], "responses": [[CALL], "Yes.", RIGHT]}, [[CALL], "Yes.", RIGHT]),
        ({"conversation": [USER], "responses": [[]]}, [[]]),
        ({"messages": [USER], "responses": json.dumps([[CALL], "Yes."])}, [[CALL], "Yes."]),
        ({"conversation": [USER], "chosen_output": [CALL], "rejected_output": []}, [[CALL], []]),
        ({"messages": [USER], "chosen": [CALL], "rejected": [{"response": ""}, {"response": "x"}]},
         [[CALL], "", "x"]),
        ({"messages": [USER], "chosen": [RIGHT], "rejected": [WRONG]}, [RIGHT, WRONG]),
        ({"messages": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, [RIGHT, WRONG]),
        ({"messages": [USER], "chosen": "x", "rejected": [WRONG, RIGHT]}, ["x", WRONG, RIGHT]),
        ({"messages": [USER], "chosen": "Yes.", "rejected": [CALL, CALL]}, ["Yes.", [CALL, CALL]]),
        ({"messages": [USER], "chosen": [CALL], "rejected": [[]]}, [[CALL], []]),
        ({"messages": [USER], "chosen": [CALL], "rejected": [[CALL], "No."]},
         [[CALL], [CALL], "No."]),
        ({"messages": [USER], "chosen": [CALL], "rejected": "No."}, [[CALL], "No."]),
        ({"messages": json.dumps([USER]), "responses": ["Yes."]}, ["Yes."]),
        ({"conversation": json.dumps([USER]), "responses": ["Yes."]}, ["Yes."]),
        ({"prompt": [USER], "chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, [RIGHT, WRONG]),
        ({"prompt": "Rain in Rome?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
         [RIGHT, WRONG]),
        ({"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}, [RIGHT, WRONG]),
        ({"prompt": "Rain in Rome?", "chosen": "Yes.", "rejected": "No."}, ["Yes.", "No."]),
        ({"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}, [RIGHT, WRONG]),
        ({"chosen": [USER, RIGHT], "rejected": [USER, RIGHT]}, [RIGHT, RIGHT]),
    ],
)  # fmt: skip
def test_every_form_gives_the_prompt_and_its_responses(row, responses):
    request = request_of(row | {"tools": [TOOL], "id": "7"})
    assert (request.tools, request.messages, request.id) == ([TOOL], [USER], "7")
    assert request.responses == responses


def test_tools_may_be_json_text_or_absent():
    row = {"messages": [USER], "responses": ["Yes."]}
    assert request_of(row | {"tools": '[{"name": "weather"}]'}).tools == [{"name": "weather"}]
    assert request_of(row | {"tools": None}).tools == request_of(row | {"tools": ""}).tools == []


def test_a_name_is_the_id_or_else_the_test_id():
    row = {"messages": [USER], "responses": ["Yes."]}
    assert request_of(row).id is None
    assert request_of(row | {"test_id": "t"}).id == "t"
    assert request_of(row | {"id": None, "test_id": "t"}).id == "t"
    assert request_of(row | {"id": 0, "test_id": "t"}).id == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected an object, found list"),
        ({"text": "x"}, "found the fields 'text'"),
        ({}, "found the fields none"),
        ({"responses": ["x"]}, "expected a list under 'messages', found None"),
        ({"conversation": None, "responses": ["x"]}, "list under 'conversation', found None"),
        ({"messages": [], "responses": ["x"]}, "at least one message"),
        ({"messages": [USER], "responses": []}, "at least one response"),
        ({"messages": [USER], "responses": "x"}, "responses: expected a list or its JSON text"),
        ({"messages": [USER], "responses": '"x"'}, "a list under 'responses', found 'x'"),
        ({"messages": "Hi", "responses": ["x"]}, "messages: expected a list or its JSON text"),
        ({"messages": '"Hi"', "responses": ["x"]}, "expected a list under 'messages', found 'Hi'"),
        ({"messages": [USER], "chosen": "x", "rejected": []}, "at least one wrong response"),
        ({"messages": [USER], "chosen": [RIGHT], "rejected": []}, "at least one wrong response"),
        (
            {"messages": [USER], "chosen": [RIGHT], "rejected": [USER, WRONG, WRONG]},
            "rejected: expected one assistant message .*'assistant', 'assistant'",
        ),
        (
            {"prompt": "Snow?", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
            "'prompt' is the text 'Snow\\?', .*do not share a user's message",
        ),
        ({"id": 1.5, "messages": [USER], "responses": ["x"]}, "id: expected text .*found 1.5"),
        ({"id": True, "messages": [USER], "responses": ["x"]}, "id: expected text .*found True"),
        ({"test_id": {}, "messages": [USER], "responses": ["x"]}, "id: expected text .*found {}"),
        ({"messages": [USER], "responses": ["x", None]}, r"responses\[1\]: .*found None"),
        (
            {"messages": [USER], "responses": ["x"], "tools": "{"},
            "tools: expected a list or its JSON",
        ),
        ({"chosen": "Human: x", "rejected": "Human: y"}, "texts without a 'prompt'"),
        ({"chosen": [USER, RIGHT, USER, RIGHT], "rejected": [USER, WRONG]}, "one assistant"),
        ({"chosen": [RIGHT], "rejected": [WRONG]}, "at least one message"),
    ],
)
def test_what_is_no_request_is_refused(row, message):
    with pytest.raises(RequestError, match=message):
        request_of(row)


def test_nulls_of_arrow_are_removed_at_every_depth():
    row = {"a": None, "b": [{"c": None, "d": 0}], "e": {"f": {"g": None}}}
    assert without_nulls(row) == {"b": [{"d": 0}], "e": {"f": {}}}
