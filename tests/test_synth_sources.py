"""Sources: each upstream's form becomes examples, what is malformed a reject with its reason."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.declared_types import UnknownType, schema_of
from toolrm_jax.synth.source import LARGEST_ARGUMENTS, Reason, Reject
from toolrm_jax.synth.sources import SOURCES, fc_reward_bench, open_source
from toolrm_jax.synth.turn_type import turn_type
from toolrm_jax.tool_calls import judge


def split_up(found):
    """(examples, rejects)."""
    found = list(found)
    return (
        [x for x in found if isinstance(x, Example)],
        [x for x in found if isinstance(x, Reject)],
    )


def only(found) -> Example:
    (example,), rejects = split_up(found)
    assert rejects == []
    return example


def write(path, value) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def write_lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# One form a source -------------------------------------------------------------------------------

TIDE = {
    "name": "tide",
    "description": "Height of the tide",
    "parameters": {
        "port": {"type": "str", "description": "A port"},
        "hours": {"type": "List[int], optional", "description": "Hours"},
        "unit": {"type": "str", "description": "m or ft", "default": "m"},
    },
}
XLAM = {
    "id": 3,
    "query": "Tide at Brest in feet?",
    "tools": json.dumps([TIDE]),
    "answers": json.dumps([{"name": "tide", "arguments": {"port": "Brest", "unit": "ft"}}]),
}


def test_xlam_types_defaults_and_optional_parameters(tmp_path):
    example = only(open_source("xlam", write(tmp_path / "rows.json", [XLAM])))
    parameters = example.tools[0]["parameters"]
    assert parameters["required"] == ["port"]
    assert parameters["properties"]["hours"]["items"] == {"type": "integer"}
    assert (example.id, example.license, turn_type(example)) == ("xlam/3", "CC-BY-4.0", "single")
    assert example.reference == [{"name": "tide", "arguments": {"port": ["Brest"], "unit": ["ft"]}}]


def test_an_argument_at_its_default_may_be_left_out_or_spelled_out(tmp_path):
    for arguments in ({"port": "Brest"}, {"port": "Brest", "unit": "m"}):
        row = {**XLAM, "answers": json.dumps([{"name": "tide", "arguments": arguments}])}
        example = only(open_source("xlam", write(tmp_path / "rows.json", [row])))
        for form in ({"port": "Brest"}, {"port": "Brest", "unit": "m"}):
            call = [{"name": "tide", "arguments": form}]
            assert judge(call, example.reference, example.tools).right
        wrong = [{"name": "tide", "arguments": {"port": "Brest", "unit": "ft"}}]
        assert not judge(wrong, example.reference, example.tools).right


def test_xlam_irrelevance_has_the_same_columns_and_calls_nothing(tmp_path):
    row = {**XLAM, "answers": "[]"}
    example = only(open_source("xlam_irrelevance", write_lines(tmp_path / "r.jsonl", [row])))
    assert (example.gold, turn_type(example)) == ([], "irrelevance")


FERRIES = {
    "service_name": "Ferries_1",
    "slots": [
        {"name": "to", "description": "Island", "is_categorical": False, "possible_values": []},
        {
            "name": "cars",
            "description": "Cars",
            "is_categorical": True,
            "possible_values": ["1", "2"],
        },
        {
            "name": "night",
            "description": "By night",
            "is_categorical": True,
            "possible_values": ["True", "False"],
        },
    ],
    "intents": [
        {
            "name": "BookFerry",
            "description": "Book a ferry",
            "required_slots": ["to"],
            "optional_slots": {"cars": "1", "night": "dontcare"},
        }
    ],
}


def sgd_turn(speaker, said, **frame):
    return {
        "speaker": speaker,
        "utterance": said,
        "frames": [{"service": "Ferries_1", "actions": [], **frame}],
    }


def sgd_state(**values):
    return {"active_intent": "BookFerry", "slot_values": values, "requested_slots": []}


DIALOGUE = {
    "dialogue_id": "7_00001",
    "services": ["Ferries_1"],
    "turns": [
        sgd_turn("USER", "A ferry, please.", state=sgd_state()),
        sgd_turn("SYSTEM", "To which island?", actions=[{"act": "REQUEST", "slot": "to"}]),
        sgd_turn("USER", "Ouessant, two cars.", state=sgd_state(to=["Ouessant"], cars=["2"])),
        sgd_turn("SYSTEM", "To Ouessant?", actions=[{"act": "CONFIRM", "slot": "to"}]),
        sgd_turn("USER", "Yes.", state=sgd_state(to=["Ouessant"], cars=["2"])),
        sgd_turn(
            "SYSTEM",
            "Booked.",
            service_call={
                "method": "BookFerry",
                "parameters": {"to": "Ouessant", "cars": "2", "night": "dontcare"},
            },
            service_results=[{"to": "Ouessant"}],
        ),
        sgd_turn("USER", "And one more.", state=sgd_state()),
        sgd_turn("SYSTEM", "Where to?", actions=[{"act": "REQUEST", "slot": "to"}]),
    ],
}


@pytest.fixture
def sgd_folder(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    write(folder / "schema.json", [FERRIES])
    write(folder / "dialogues_001.json", [DIALOGUE])
    return folder


def test_sgd_calls_and_questions_become_examples_with_the_dialogue_so_far(sgd_folder):
    asked, called, asked_again = split_up(open_source("sgd", sgd_folder))[0]
    assert [e.id for e in (asked, called)] == ["sgd/train/7_00001/1", "sgd/train/7_00001/5"]
    assert turn_type(asked) == "irrelevance"
    assert (asked.words, called.words) == ("To which island?", "")
    assert [m["role"] for m in asked.messages] == ["system", "user"]
    assert "2019-03-01" in asked.messages[0]["content"]
    # Values by their slots' types; "dontcare" is left out.
    assert called.gold == [{"name": "BookFerry", "arguments": {"to": "Ouessant", "cars": 2}}]
    assert turn_type(called) == "multi"
    made, result = asked_again.messages[6:8]
    assert made["tool_calls"] == called.gold
    assert json.loads(result["content"]) == {"count": 1, "results": [{"to": "Ouessant"}]}


def test_sgd_tools_are_intents_with_typed_slots_and_defaults(sgd_folder):
    (tool,) = next(iter(open_source("sgd", sgd_folder))).tools
    properties = tool["parameters"]["properties"]
    assert tool["parameters"]["required"] == ["to"]
    assert properties["cars"] == {
        "type": "integer",
        "description": "Cars",
        "enum": [1, 2],
        "default": 1,
    }
    assert properties["night"] == {"type": "boolean", "description": "By night"}


def test_sgd_a_broken_dialogue_and_a_broken_file_leave_the_others(sgd_folder):
    broken = {**DIALOGUE, "dialogue_id": "7_00002", "services": ["Trains_9"]}
    write(sgd_folder / "dialogues_001.json", [broken, DIALOGUE])
    (sgd_folder / "dialogues_000.json").write_text('[{"dialogue_id": "7_0')
    examples, rejects = split_up(open_source("sgd", sgd_folder))
    assert len(examples) == 3
    assert [r.reason for r in rejects] == [Reason.NOT_JSON, Reason.FORM]
    assert "Trains_9" in rejects[1].detail


def test_sgd_without_a_schema_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"schema\.json"):
        open_source("sgd", tmp_path)


SEAL_TOOLS = [
    {
        "api_name": name,
        "api_description": f"About {name}",
        "field": field,
        "parameters": {"depth": {"type": "int", "description": "m"}},
        "required": ["depth"],
        "responses": {},
    }
    for name, field in [
        ("findWreck", "Sea/Diving"),
        ("findReef", "Sea/Diving"),
        ("findTide", "Sea/Sailing"),
        ("findPeak", "Land/Hills"),
        ("findCave", "Land/Caves"),
    ]
]


def seal_rows(tmp_path, *calls):
    with gzip.open(tmp_path / "tool.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(tool) + "\n" for tool in SEAL_TOOLS)
    return write_lines(tmp_path / "dev.jsonl", [[call, "Find it"] for call in calls])


def test_sealtools_offers_the_called_tool_among_ones_of_its_field(tmp_path):
    path = seal_rows(tmp_path, {"api": "findWreck", "parameters": {"depth": 30}})
    example = only(open_source("sealtools", path, offered=3))
    assert {t["name"] for t in example.tools} == {"findWreck", "findReef", "findTide"}
    assert example == only(open_source("sealtools", path, offered=3))
    apart = only(open_source("sealtools", path, irrelevance=True))
    assert {t["name"] for t in apart.tools} == {"findPeak", "findCave"}
    assert apart.gold == []


def test_sealtools_nested_and_mistyped_rows_are_rejected(tmp_path):
    made = {"depth": 3}
    path = seal_rows(
        tmp_path,
        [
            {"api": "findReef", "parameters": made},
            {"api": "findTide", "parameters": {"depth": "API_call_0"}},
        ],
        {"api": "findReef", "parameters": {"depth": "3"}},
        {"api": "findTrain", "parameters": made},
    )
    examples, rejects = split_up(open_source("sealtools", path))
    assert examples == []
    assert [(r.line, r.reason) for r in rejects] == [
        (1, Reason.NESTED),
        (2, Reason.MISFIT_VALUE),
        (3, Reason.NOT_OFFERED),
    ]


def test_toolalpaca_reads_parameters_out_of_the_descriptions(tmp_path):
    described = (
        "Find shells\nParameters: "
        '{"kind": "Required. string. One of: [conch, cowrie]. The kind.", "many": "integer. "}'
        "\nOutput: Shells.\n - Format: text"
    )
    row = {
        "Name": "Shells",
        "Function_Description": {"findShells": described, "components": "#Shell: Object{}"},
        "Instructions": ["A conch?", "A whelk?"],
        "Golden_Answers": [
            [{"Action": "findShells", "Action_Input": '{"kind": "conch"}'}],
            [{"Action": "findShells", "Action_Input": '{"kind": "whelk"}'}],
        ],
    }
    (example,), (reject,) = split_up(open_source("toolalpaca", write(tmp_path / "e.json", [row])))
    (tool,) = example.tools
    assert tool["parameters"]["required"] == ["kind"]
    assert tool["parameters"]["properties"]["kind"]["enum"] == ["conch", "cowrie"]
    assert reject.reason == Reason.MISFIT_VALUE


def hammer_row(query):
    tools = [
        {
            "name": "Moor",
            "description": "Moors a boat",
            "parameters": {"berth": {"type": "int", "description": "", "required": True}},
        }
    ]
    return {
        "instruction": f"[BEGIN OF AVAILABLE TOOLS]\n{json.dumps(tools)}\n"
        f"[END OF AVAILABLE TOOLS]\n[BEGIN OF QUERY]\n{query}\n[END OF QUERY]\n",
        "input": "",
        "output": '```\n[{"name": "Moor", "arguments": {"berth": 2}}]\n```',
    }


def test_hammer_dialogues_keep_earlier_requests_as_calls(tmp_path):
    query = (
        "User: Moor at 1,\nplease.\nAI: Aye.\n"
        'API-Request: ```[{"name": "Moor", "arguments": {"berth": 1}}]```->taken\n'
        "User: Then 2.\nGenerate API Request:\n"
    )
    rows = [hammer_row("Moor at 2"), hammer_row(query)]
    path = write(tmp_path / "apibank_l1.json", rows)
    (single, multi), _ = split_up(open_source("api_bank", path))
    assert (turn_type(single), single.license) == ("single", "MIT")
    assert [m["role"] for m in multi.messages] == ["user", "assistant", "assistant", "tool", "user"]
    assert multi.messages[0]["content"] == "Moor at 1,\nplease."
    assert multi.messages[3] == {"role": "tool", "name": "Moor", "content": "taken"}


def rotbench_row(*actions):
    tools = [
        {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {"word": {"type": "string"}, "to": {"type": "string"}},
                "required": ["word"],
            },
        }
        for name in ("tr_a", "tr_b")
    ]
    system = f"You have access of the following tools:\n{json.dumps(tools)}\n\nLet's Begin!\n"
    return {
        "id": "Turn 1",
        "scenario": "TG",
        "conversations": [
            {"from": "system", "value": system},
            {"from": "user", "value": "Translate cat\nBegin!\n"},
            {"from": "assistant", "value": [f"Thought:\nAction: {a}" for a in actions]},
        ],
    }


def test_rotbench_alternatives_of_one_tool_are_all_right(tmp_path):
    row = rotbench_row(
        'tr_a\nAction Input: {"word": "cat"}', 'tr_a\nAction Input: {"word": "Cats!", "to": "ja"}'
    )
    example = only(open_source("rotbench", write(tmp_path / "clean.json", [row])))
    assert example.messages == [{"role": "user", "content": "Translate cat"}]
    for arguments in ({"word": "cat"}, {"word": "Cats!", "to": "ja"}):
        call = [{"name": "tr_a", "arguments": arguments}]
        assert judge(call, example.reference, example.tools).right


def test_rotbench_alternatives_of_several_tools_are_rejected_unless_asked_for(tmp_path):
    row = rotbench_row('tr_a\nAction Input: {"word": "cat"}', 'tr_b\nAction Input: {"word": "cat"}')
    path = write(tmp_path / "clean.json", [row])
    assert [r.reason for r in split_up(open_source("rotbench", path))[1]] == [Reason.SEVERAL_RIGHT]
    assert only(open_source("rotbench", path, first_only=True)).gold[0]["name"] == "tr_a"


TOOL = {
    "name": "tide",
    "description": "",
    "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
}
CALL = {"name": "tide", "arguments": {"port": "Brest"}}
USER = {"role": "user", "content": "Tide at Brest?"}


def test_openai_rows_give_an_example_an_assistant_turn(tmp_path):
    made = {"id": "c1", "type": "function", "function": {**CALL, "arguments": '{"port": "Brest"}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [made]},
            {"role": "tool", "tool_call_id": "c1", "content": "6 m"},
            {"role": "assistant", "content": [{"type": "text", "text": "Six metres."}]},
        ],
        "tools": json.dumps([{"type": "function", "function": TOOL}]),
    }
    path = write_lines(tmp_path / "log.jsonl", [row])
    called, told = split_up(open_source("openai", path, license="MIT"))[0]
    assert (called.gold, told.gold) == ([CALL], [])
    assert (called.words, told.words) == ("", "Six metres.")
    assert called.messages[0] == {"role": "system", "content": "Be brief"}
    assert told.messages[2]["tool_calls"] == [{"id": "c1", **CALL}]
    assert only(open_source("openai", path, license="MIT", turns="last")) == told


def test_fc_reward_bench_gives_prompts_and_both_sides_as_answers(tmp_path):
    row = {
        "tools": [{"type": "function", "function": TOOL}],
        "conversation": [USER],
        "chosen_output": [CALL],
        "rejected_output": [{"name": "tide", "arguments": {"port": "Best"}}],
        "model_name": "m",
        "test_id": "simple_1",
    }
    path = write_lines(tmp_path / "rows.jsonl", [row])
    example = only(open_source("fc_reward_bench", path))
    right, wrong = fc_reward_bench.answers(path)
    assert example.gold == [CALL]
    assert (right.example_id, right.right) == (example.id, True)
    assert (wrong.model, wrong.right, wrong.permissive) == ("m", False, False)
    assert not judge(wrong.response, example.reference, example.tools).right
    path = write_lines(tmp_path / "words.jsonl", [row | {"chosen_output": "At which port?"}])
    example = only(open_source("fc_reward_bench", path))
    assert (example.gold, example.words) == ([], "At which port?")


def test_toolrm_pairs_in_an_unknown_form_names_the_columns_found(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"tools": "[]", "good": 1, "bad": 2}])
    (reject,) = open_source("toolrm_pairs", path)
    assert reject.reason == Reason.FORM
    assert "'good'" in reject.detail


def test_bfcl_examples_and_drops_are_those_of_its_reader(bfcl_dir):
    from toolrm_jax.bfcl import read_tasks

    examples, rejects = split_up(open_source("bfcl", "wheel", categories=["live_simple"]))
    tasks, dropped = read_tasks(bfcl_dir, ["live_simple"])
    assert (examples, len(rejects)) == (tasks, dropped.total())
    # What is evaluated on them has to keep clear of those that are dropped, too.
    dropped_ids = {reject.draft.id for reject in rejects}
    assert len(dropped_ids) == len(rejects)
    assert not dropped_ids & {task.id for task in tasks}
    assert all(reject.draft.id in reject.detail for reject in rejects)


def test_unknown_sources_and_options_say_what_is_known():
    with pytest.raises(InputError, match="xlam_irrelevance"):
        open_source("xlamm", "x")
    with pytest.raises(InputError, match="results_shown"):
        open_source("sgd", "x", tody="2019-03-01")


@pytest.mark.parametrize(
    ("declared", "schema", "optional"),
    [
        ("int", {"type": "integer"}, False),
        ("str, optional", {"type": "string"}, True),
        ("Optional[float]", {"type": "number"}, True),
        ("Dict[str, List[int]]", {"type": "object"}, False),
        ("Tuple[int, str]", {"type": "array"}, False),
        ("Set[str]", {"type": "array", "items": {"type": "string"}}, False),
        ("int | None", {"type": "integer"}, True),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}, False),
        ("Callable[[float], float]", {}, False),
        ("list(str)", {"type": "array", "items": {"type": "string"}}, False),
    ],
)
def test_declared_types(declared, schema, optional):
    assert schema_of(declared) == (schema, optional)


def test_an_unknown_type_is_named():
    with pytest.raises(UnknownType, match="spline"):
        schema_of("List[spline]")


# Malformed rows ----------------------------------------------------------------------------------


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
    ],
)
def test_rows_that_doubt_their_own_gold_are_rejected_unless_wanted(tmp_path, meta, option):
    path = write_lines(tmp_path / "rows.jsonl", [normal(meta=meta), normal(id="sound", meta={})])
    examples, rejects = split_up(open_source("normalised", path))
    assert [example.id for example in examples] == ["sound"]
    assert [reject.reason for reject in rejects] == [Reason.DOUBTED]
    assert len(split_up(open_source("normalised", path, **option))[0]) == 2


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
    path.write_text(json.dumps([row]))
    (tmp_path / "schema.json").write_text(json.dumps([FERRIES]))
    options = {"license": "MIT"} if source == "openai" else {}
    for found in open_source(source, tmp_path if source == "sgd" else path, **options):
        assert isinstance(found, Example | Reject)


# Real samples ------------------------------------------------------------------------------------

SAMPLES = [
    ("sgd", "raw/sgd/train", {}, 592, 0),
    ("sgd", "raw/sgd/dev", {}, 315, 0),
    ("sealtools", "raw/sealtools/dev.jsonl", {}, 622, 78),
    ("sealtools", "raw/sealtools/dev.jsonl", {"irrelevance": True}, 672, 28),
    ("toolalpaca", "raw/toolalpaca/eval_real.json", {}, 101, 13),
    ("toolalpaca", "raw/toolalpaca/eval_simulated.json", {}, 62, 38),
    ("toolalpaca_hammer", "raw/hammer/toolalpaca.json", {}, 103, 11),
    ("api_bank", "raw/hammer/apibank_l1.json", {}, 351, 48),
    ("rotbench", "raw/rotbench/clean.json", {}, 80, 25),
    ("rotbench", "raw/rotbench/union.json", {"first_only": True}, 102, 3),
    ("fc_reward_bench", "eval/fcrb_dev.jsonl.gz", {}, 589, 4),
]


@pytest.mark.parametrize(("source", "path", "options", "examples", "rejects"), SAMPLES)
def test_counts_on_real_samples_are_those_in_the_docs(
    toolrm_data, source, path, options, examples, rejects
):
    found = split_up(open_source(source, toolrm_data / "data" / path, **options))
    assert tuple(map(len, found)) == (examples, rejects)
    assert len({example.id for example in found[0]}) == examples


def test_sgd_reads_the_same_turns_as_the_normalised_rows(toolrm_data):
    ours = {e.id: e for e in open_source("sgd", toolrm_data / "data/raw/sgd/train")}
    same = 0
    with gzip.open(toolrm_data / "data/train/sgd_train_20k.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        _, _, dialogue, turn, *_ = row["id"].split("-")
        kind = row["meta"]["kind"]
        if dialogue.startswith("1_") and kind in ("call", "missing_required_param"):
            example = ours[f"sgd/train/{dialogue}/{turn[1:]}"]
            assert example.gold == row["gold_calls"]
            assert len(example.messages) == len(row["conversation"])
            same += 1
    assert same == 158


def test_every_source_is_named_in_the_docs():
    import tiny

    text = (tiny.ROOT / "docs/synth-sources.md").read_text()
    assert [name for name in SOURCES if f"`{name}`" not in text] == []
