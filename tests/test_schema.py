"""Tools and schemas: one form, errors that name tool and path, validity of calls."""

import doctest
import urllib.request

import pytest

from toolrm_jax import examples, literals, schema, tool_calls
from toolrm_jax.schema import (
    ToolSchemaError,
    call_fault,
    call_is_valid,
    check_tool,
    normalize_tools,
)

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


def with_city(city, **parameters):
    """A tool whose one parameter has this schema."""
    parameters = {"type": "object", "properties": {"city": city}} | parameters
    return {"name": "go", "description": "", "parameters": parameters}


def deep_schema(levels):
    schema = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


REMOTE = "http://127.0.0.1:9/town.json"


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        (with_city({"$ref": REMOTE}), r"parameters\.properties\.city\.\$ref: .* leads nowhere"),
        (with_city({"anyOf": [{"$ref": "#/$defs/x"}]}), r"city\.anyOf\.0\.\$ref: .* nowhere"),
        (with_city({"$dynamicRef": "#x"}), r"city\.\$dynamicRef: '#x' leads nowhere"),
        (with_city({"$ref": "http://["}), r"city\.\$ref: .* leads nowhere"),
        (with_city({"$ref": "#/definitions/x"}, definitions={"x": {"type": "int"}}), "'int'"),
        (with_city({"$ref": "#/x/0"}, x=[{"type": "int"}]), r"leads to what is no schema: .*'int'"),
        (with_city({"$ref": "#/type"}), "leads to what is no schema"),
        (with_city({"$ref": "#/properties/city"}), "leads back to itself"),
        (with_city({"type": "string", "pattern": "("}), r"city\.pattern: '\(' is not a 'regex'"),
        (with_city({}, patternProperties={"(": {}}), r"patternProperties: '\(' is not a 'regex'"),
        ({"name": "go", "parameters": deep_schema(3000)}, "expected JSON, found something else"),
        (with_city({"enum": [{1}]}), "expected JSON, found something else"),
    ],
)
def test_a_schema_that_cannot_judge_a_call_is_refused_before_any_call(monkeypatch, tool, said):
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **_: asked.append(args))
    with pytest.raises(ToolSchemaError, match=f"tool 'go': .*{said}"):
        check_tool(tool)
    # Nor does a call get anywhere, where nobody checked the tool.
    known = next(iter(tool["parameters"]["properties"]))
    with pytest.raises(ToolSchemaError, match="tool 'go'"):
        call_fault({"name": "go", "arguments": {known: "Rome"}}, [tool])
    assert not asked


def test_a_schema_without_a_way_out_is_named_when_it_judges_a_call():
    tool = with_city({"allOf": [{"$ref": "#/properties/city"}]})
    with pytest.raises(ToolSchemaError, match=r"tool 'go' cannot judge a call: .*recursion"):
        call_fault({"name": "go", "arguments": {"city": "Rome"}}, [tool])


@pytest.mark.parametrize(
    "tool",
    [
        with_city({"$ref": "#/$defs/town"}, **{"$defs": {"town": {"type": "string"}}}),
        with_city({"$ref": "#/definitions/town"}, definitions={"town": {"type": "string"}}),
        with_city({"$ref": "#town"}, **{"$defs": {"x": {"$anchor": "town", "type": "string"}}}),
    ],
)
def test_a_reference_within_the_schema_is_followed(tool):
    check_tool(tool)
    assert call_is_valid({"name": "go", "arguments": {"city": "Rome"}}, [tool])
    assert not call_is_valid({"name": "go", "arguments": {"city": 3}}, [tool])


def test_what_only_looks_like_a_reference_is_none():
    check_tool(with_city({"enum": [{"$ref": "nowhere"}]}))
    check_tool({"name": "go", "parameters": {"type": "object", "properties": {"$ref": True}}})
    check_tool(with_city({"$ref": "#/$defs/any"}, **{"$defs": {"any": True}}))


def test_a_tree_may_refer_to_itself_and_deep_arguments_are_judged():
    tool = with_city({"$ref": "#"})
    check_tool(tool)
    town = {}
    for _ in range(60):  # `parse_calls` lets no deeper ones through
        town = {"city": town}
    assert call_is_valid({"name": "go", "arguments": town}, [tool])


def test_a_number_beyond_floats_is_no_crash():
    fault = call_fault(
        {"name": "go", "arguments": {"city": 10**400}}, [with_city({"multipleOf": 0.5})]
    )
    assert fault == "go: a number is too large to be checked"
