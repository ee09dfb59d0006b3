"""Sources: each upstream's form becomes examples."""

import gzip
import json

import pytest
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
    only,
    raven_function,
    rotbench_row,
    split_up,
    write,
    write_lines,
)

from toolrm_jax.errors import InputError
from toolrm_jax.synth.declared_types import UnknownType, schema_of
from toolrm_jax.synth.reading import source_digest
from toolrm_jax.synth.source import Reason
from toolrm_jax.synth.sources import fc_reward_bench, open_source
from toolrm_jax.synth.turn_type import turn_type
from toolrm_jax.tool_calls import judge


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


def test_nexusraven_functions_are_looked_up_by_data_set_and_name(tmp_path):
    functions = write_lines(tmp_path / "functions.jsonl", RAVEN_FUNCTIONS)
    rows = [RAVEN, {**RAVEN, "context_functions": ["tide", "ebb"]}]
    queries = write_lines(tmp_path / "queries.jsonl", rows)
    (example,), (reject,) = split_up(open_source("nexusraven", queries, functions=functions))
    assert (example.id, example.license) == ("nexusraven/sea/0", "CC-BY-NC-4.0")
    tide, swell = example.tools
    assert (tide["parameters"]["required"], swell["parameters"]["properties"]) == (["port"], {})
    assert tide["parameters"]["properties"] == {
        "port": {"type": "string", "description": "where"},
        "step": {"type": "integer", "default": 6},
        "kinds": {"type": "array", "default": ["high", "low"]},
        "note": {},
    }
    assert "no function 'ebb' of 'sea'" in reject.detail
    # As upstream, what is left out is its default.
    spelled = {"port": "Brest", "step": 1, "kinds": ["high", "low"]}
    for arguments, right in (({"port": "Brest"}, False), (spelled, True)):
        call = [{"name": "tide", "arguments": arguments}]
        assert judge(call, example.reference, example.tools).right == right
    # Other functions are another source, whatever the queries.
    source = {"format": "nexusraven", "path": str(queries)}
    others = write_lines(tmp_path / "others.jsonl", RAVEN_FUNCTIONS[1:])
    digests = {source_digest({**source, "options": {"functions": f}}) for f in (functions, others)}
    assert len(digests) == 2
    odd = raven_function("odd", ("x", "dict", False, "{[]: 1}", ""))
    functions = write_lines(tmp_path / "odd.jsonl", [odd])
    queries = write_lines(tmp_path / "odd_q.jsonl", [{**RAVEN, "context_functions": ["odd"]}])
    (reject,) = open_source("nexusraven", queries, functions=functions)
    assert "a default is '{[]: 1}'" in reject.detail
    with pytest.raises(InputError, match="option 'functions'"):
        list(open_source("nexusraven", queries))


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


def test_sealtools_with_another_catalogue_beside_the_file_is_another_source(tmp_path):
    path = seal_rows(tmp_path, {"api": "findWreck", "parameters": {"depth": 30}})
    source = {"format": "sealtools", "path": str(path), "options": {}}
    before = source_digest(source)
    assert source_digest(source) == before
    with gzip.open(tmp_path / "tool.jsonl.gz", "at") as file:
        file.write(json.dumps({**SEAL_TOOLS[0], "api_name": "findBuoy"}) + "\n")
    assert source_digest(source) != before


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
