"""Tools and schemas: one form, errors that name tool and path, validity of calls."""

import doctest

import pytest

from toolrm_jax import examples, literals, schema, tool_calls
from toolrm_jax.schema import ToolSchemaError, call_fault, call_is_valid, normalize_tools

TOOL = {
    "name": "book",
    "description": "Book.",
    "parameters": {
        "type": "object",
        "properties": {"to": {"type": "string"}, "seats": {"type": "integer"}},
        "required": ["to"],
    },
}


@pytest.mark.parametrize("module", [examples, literals, schema, tool_calls])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_the_openai_wrapper_and_the_plain_form_give_the_same_tool():
    assert normalize_tools([{"type": "function", "function": TOOL}]) == normalize_tools([TOOL])


def test_a_tool_without_parameters_takes_none():
    (tool,) = normalize_tools([{"name": "ping"}])
    assert call_is_valid({"name": "ping", "arguments": {}}, [tool])
    assert not call_is_valid({"name": "ping", "arguments": {"x": 1}}, [tool])


def test_a_tool_named_function_is_not_taken_for_the_wrapper():
    (tool,) = normalize_tools([{"name": "f", "function": {"name": "g"}}])
    assert tool["name"] == "f"


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({"name": "x"}, "expected a list of tools, found dict"),
        (["x"], r"tools\[0\]: expected an object, found str"),
        ([{"description": "x"}], r"tools\[0\]: expected a non-empty string under 'name'"),
        ([{"name": "x", "parameters": {"type": "dict"}}], "'x'.*expected 'object', found 'dict'"),
        (
            [{"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}],
            r"tool 'x': parameters\.properties\.a\.type: 'int' is not valid",
        ),
    ],
)
def test_what_is_no_tool_gets_an_error_that_names_it(tools, said):
    with pytest.raises(ToolSchemaError, match=said):
        normalize_tools(tools)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"name": "book", "arguments": {"to": "Oslo", "seats": 2}}, None),
        ({"name": "cook", "arguments": {}}, "no tool is named 'cook'"),
        ({"name": "book", "arguments": {}}, "'to' is a required property"),
        ({"name": "book", "arguments": {"to": "Oslo", "seats": "2"}}, "book.seats: '2' is not"),
        ({"name": "book", "arguments": {"to": "Oslo", "class": 1}}, "has no parameter 'class'"),
    ],
)
def test_a_call_is_valid_only_if_name_arguments_and_types_are(call, said):
    fault = call_fault(call, [TOOL])
    assert call_is_valid(call, [TOOL]) == (said is None)
    assert (fault is None) if said is None else (said in fault)
