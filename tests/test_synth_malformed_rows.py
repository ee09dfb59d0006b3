"""What is malformed in a source ends as a reject with its reason."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_rows import (
    CALL,
    DIALOGUE,
    FERRIES,
    RAVEN,
    RAVEN_FUNCTIONS,
    TOOL,
    USER,
    XLAM,
    hammer_row,
    rotbench_row,
    split_up,
    write,
    write_lines,
)

from toolrm_jax.examples import Example
from toolrm_jax.synth.source import LARGEST_ARGUMENTS, Reason, Reject
from toolrm_jax.synth.sources import open_source


def normal(**changes):
    row = {
        "id": "n/1",
        "source": "n",
        "license": "MIT",
        "tools": [TOOL],
        "conversation": [USER],
        "gold_calls": [CALL],
    }
    return {**row, **changes}


def with_schema(**schema):
    return normal(tools=[{**TOOL, "parameters": {"type": "object", **schema}}])


CYCLE = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}


MALFORMED = {
    "broken JSON": (b'{"id": "n/1", ', Reason.NOT_JSON),
    "NaN": (b'{"id": NaN}', Reason.NOT_JSON),
    "Latin-1": ('{"id": "é"}'.encode("latin-1"), Reason.NOT_UTF8),
    "UTF-16": (json.dumps(normal()).encode("utf-16-le").replace(b"\n", b""), Reason.NOT_JSON),
    "half a surrogate pair": (
        normal(conversation=[{"role": "user", "content": "\ud800"}]),
        Reason.NOT_UTF8,
    ),
    "a list": ([1, 2], Reason.FORM),
    "a field is missing": ({k: v for k, v in normal().items() if k != "tools"}, Reason.FORM),
    "a number for an id": (normal(id=3), Reason.FORM),
    "no tools": (normal(tools=[]), Reason.NO_TOOLS),
    "a tool's name is a number": (normal(tools=[{**TOOL, "name": 5}]), Reason.TOOL),
    "a schema cycle": (
        with_schema(properties={"port": {"$ref": "#/$defs/a"}}, **{"$defs": CYCLE}),
        Reason.TOOL,
    ),
    "an unknown type": (with_schema(properties={"port": {"type": "harbour"}}), Reason.TOOL),
    "two tools of one name": (
        normal(tools=[TOOL, {**TOOL, "description": "x"}]),
        Reason.SAME_NAME,
    ),
    "no messages": (normal(conversation=[]), Reason.MESSAGES),
    "an unknown role": (normal(conversation=[{"role": "pilot", "content": "x"}]), Reason.MESSAGES),
    "no text": (normal(conversation=[{"role": "user", "content": 7}]), Reason.MESSAGES),
    "an earlier call is none": (
        normal(conversation=[USER, {"role": "assistant", "tool_calls": [{"nome": 1}]}]),
        Reason.MESSAGES,
    ),
    "a call's name is a number": (
        normal(gold_calls=[{"name": 5, "arguments": {}}]),
        Reason.NO_CALL,
    ),
    "arguments are a list": (
        normal(gold_calls=[{"name": "tide", "arguments": []}]),
        Reason.NO_CALL,
    ),
    "not offered": (normal(gold_calls=[{**CALL, "name": "moon"}]), Reason.NOT_OFFERED),
    "an unknown parameter": (
        normal(gold_calls=[{"name": "tide", "arguments": {"sea": "N"}}]),
        Reason.UNKNOWN_PARAMETER,
    ),
    "a required one is missing": (
        {
            **with_schema(properties={"port": {"type": "string"}}, required=["port"]),
            "gold_calls": [{"name": "tide", "arguments": {}}],
        },
        Reason.MISSING_PARAMETER,
    ),
    "a value of another type": (
        normal(gold_calls=[{"name": "tide", "arguments": {"port": 1}}]),
        Reason.MISFIT_VALUE,
    ),
    "1 MB of arguments": (
        normal(gold_calls=[{"name": "tide", "arguments": {"port": "x" * (1 << 20)}}]),
        Reason.TOO_LARGE,
    ),
    "arguments just too long": (
        normal(gold_calls=[{"name": "tide", "arguments": {"port": "x" * LARGEST_ARGUMENTS}}]),
        Reason.TOO_LARGE,
    ),
    "nested without end": (b"[" * 100_000, Reason.NOT_JSON),
}


def test_malformed_rows_end_as_rejects_with_reason_and_line_and_reading_goes_on(tmp_path):
    lines = [json.dumps(normal(id="first")).encode()]
    for row, _ in MALFORMED.values():
        lines.append(row if isinstance(row, bytes) else json.dumps(row).encode())
    lines.append(json.dumps(normal(id="last")).encode())
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    examples, rejects = split_up(open_source("normalised", path))
    assert [e.id for e in examples] == ["first", "last"]
    found = {name: (r.line, r.reason) for name, r in zip(MALFORMED, rejects, strict=True)}
    wanted = {name: (i, reason) for i, (name, (_, reason)) in enumerate(MALFORMED.items(), 2)}
    assert found == wanted
    assert all(r.file == str(path) and r.detail and len(r.detail) <= 300 for r in rejects)


def test_normalised_rows_say_what_they_know_of_their_gold(tmp_path):
    about = {"none": {}, "unfit": {"kind": "irrelevant_tools"}, "ask": {"kind": "missing_param"}}
    rows = [normal(id=name, gold_calls=[], meta=meta) for name, meta in about.items()]
    rows.append(normal(id="state", meta={"verdict": "state_outcome"}))
    found = split_up(open_source("normalised", write_lines(tmp_path / "rows.jsonl", rows)))[0]
    words = {example.id: example.words for example in found}
    assert words == {"none": "", "unfit": None, "ask": "", "state": ""}
    assert [example.id for example in found if example.by_outcome] == ["state"]


@pytest.mark.parametrize(
    ("meta", "option"),
    [
        ({"gold_args_not_in_query": ["port"]}, {"sound_gold": False}),
        ({"right_rate": 0.4}, {"min_right_rate": 0.4}),
        ({"after_first_error": True}, {"before_first_error": False}),
        ({"kind": "closing"}, {"sure_silence": False}),
    ],
)
def test_rows_that_doubt_their_own_gold_are_rejected_unless_wanted(tmp_path, meta, option):
    path = write_lines(tmp_path / "rows.jsonl", [normal(meta=meta), normal(id="sound", meta={})])
    examples, rejects = split_up(open_source("normalised", path))
    assert [example.id for example in examples] == ["sound"]
    assert [reject.reason for reject in rejects] == [Reason.DOUBTED]
    assert len(split_up(open_source("normalised", path, **option))[0]) == 2


def test_a_gold_that_takes_another_calls_result_is_rejected(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [normal(meta={"kind": "nested"})])
    assert [r.reason for r in split_up(open_source("normalised", path))[1]] == [Reason.NESTED]


def test_an_array_gives_the_line_of_each_element_and_ends_where_it_breaks(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(XLAM)},\n\n{{}},\n{json.dumps(XLAM)}\n{{")
    examples, rejects = split_up(open_source("xlam", path))
    assert len(examples) == 2
    assert [(r.line, r.reason) for r in rejects] == [(3, Reason.FORM), (5, Reason.NOT_JSON)]
    assert "Nothing after it was read" in rejects[1].detail


def test_an_array_longer_than_what_is_read_at_once(tmp_path):
    rows = [{**XLAM, "id": i, "query": f"Tide {i} " * 100} for i in range(3000)]
    examples, rejects = split_up(open_source("xlam", write(tmp_path / "rows.json", rows)))
    assert [e.id for e in examples] == [f"xlam/{i}" for i in range(3000)]
    assert rejects == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


ROWS = {
    "xlam": XLAM,
    "normalised": normal(),
    "openai": {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]},
    "api_bank": hammer_row("User: Moor\nAI: Aye\n"),
    "nexusraven": {"query": RAVEN, "function": RAVEN_FUNCTIONS[-1]},  # a file each
    "rotbench": rotbench_row('tr_a\nAction Input: {"word": "cat"}'),
    "sgd": DIALOGUE,
    "fc_reward_bench": {
        "tools": [TOOL],
        "conversation": [USER],
        "chosen_output": [CALL],
        "rejected_output": [],
        "test_id": "1",
    },
    "toolrm_pairs": {"tools": [TOOL], "prompt": [USER], "chosen": [CALL], "rejected": "no"},
    "toolalpaca": {
        "Name": "n",
        "Function_Description": {"f": "d\nParameters: {}\nOutput: x"},
        "Instructions": ["a"],
        "Golden_Answers": [[{"Action": "f", "Action_Input": "{}"}]],
    },
}


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_stands_in_a_row_makes_an_example_or_a_reject(tmp_path, data):
    source = data.draw(st.sampled_from(sorted(ROWS)))
    row = ROWS[source]
    row = replaced(row, data.draw(st.sampled_from(list(places(row)))), data.draw(JSON))
    path = tmp_path / "dialogues_1.json"
    options = {"license": "MIT"} if source == "openai" else {}
    if source == "nexusraven":
        both = row if isinstance(row, dict) else {}
        (tmp_path / "functions.json").write_text(json.dumps([both.get("function")]))
        options, row = {"functions": tmp_path / "functions.json"}, both.get("query")
    path.write_text(json.dumps([row]))
    (tmp_path / "schema.json").write_text(json.dumps([FERRIES]))
    for found in open_source(source, tmp_path if source == "sgd" else path, **options):
        assert isinstance(found, Example | Reject)
