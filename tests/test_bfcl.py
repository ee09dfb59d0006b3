"""BFCL's tasks: types mapped, gold answers resolved, one clear error for each malformed row."""

import json

import pytest
from bfcl_samples import CATEGORIES, write_samples

from toolrm_jax.bfcl import BfclError, read_tasks
from toolrm_jax.schema import ToolSchemaError, call_is_valid
from toolrm_jax.tool_calls import judge


@pytest.fixture
def data_dir(tmp_path):
    return write_samples(tmp_path / "data")


def by_id(data_dir):
    return {task.id: task for task in read_tasks(data_dir, CATEGORIES)[0]}


def test_gold_takes_the_first_accepted_value_and_leaves_out_what_may_be(data_dir):
    task = by_id(data_dir)["bfcl/simple_python_0"]
    assert task.gold == [
        {
            "name": "canteen.reserve",
            "arguments": {
                "canteen": "Mensa Nord",
                "guests": 4,
                "day": "2024-03-02",
                "seat": "garden",
            },
        }
    ]
    assert (task.source, task.license) == ("bfcl/simple_python", "Apache-2.0")


def test_types_are_mapped_all_the_way_down(data_dir):
    tasks = by_id(data_dir)
    sensor = tasks["bfcl/parallel_multiple_0"].tools[0]["parameters"]
    assert sensor["type"] == "object"
    assert sensor["properties"]["window"]["type"] == "array"
    assert sensor["properties"]["window"]["items"] == {"type": "number"}
    paint = tasks["bfcl/simple_python_1"].tools[0]["parameters"]["properties"]["colour"]
    assert (paint["type"], paint["properties"]["red"]["type"]) == ("object", "integer")


def test_nested_accepted_values_are_resolved_for_the_gold(data_dir):
    (call,) = by_id(data_dir)["bfcl/simple_python_1"].gold
    assert call["arguments"] == {"colour": {"red": 120, "name": "Deep Rust"}, "litres": 2.5}


def test_java_values_are_source_text_and_the_schema_says_so(data_dir):
    task = by_id(data_dir)["bfcl/simple_java_0"]
    assert task.gold[0]["arguments"] == {
        "queue": "jobQueue",
        "size": "40L",
        "names": 'new String[]{"alpha", "beta"}',
        "strict": "true",
    }
    size = task.tools[0]["parameters"]["properties"]["size"]
    assert size["type"] == "string"
    assert size["description"] == (
        "New size. This is Java long type parameter in string representation."
    )


def test_tasks_where_no_tool_fits_want_no_call(data_dir):
    task = by_id(data_dir)["bfcl/irrelevance_0"]
    assert (task.reference, task.gold) == ([], [])


def test_every_gold_answer_is_valid_and_right_by_its_own_reference(data_dir):
    for task in by_id(data_dir).values():
        assert all(call_is_valid(call, task.tools) for call in task.gold)
        assert judge(task.gold, task.reference, task.tools).right


def rewrite(file, change):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    change(rows)
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")


def set_truth(rows, truth):
    rows[0]["ground_truth"] = truth


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        ([{"canteen.reserve": {"canteen": ["A"], "guests": ["four"]}}], "gold call is invalid"),
        ([{"canteen.reserve": {"canteen": ["A"], "guests": []}}], "no accepted value"),
        (
            [{"canteen.reserve": {"canteen": ["A"], "guests": [1], "x": [1]}}],
            "gold call is invalid",
        ),
    ],
)
def test_a_task_with_an_impossible_answer_is_dropped_and_counted(data_dir, truth, reason):
    file = data_dir / "possible_answer/BFCL_v4_simple_python.json"
    rewrite(file, lambda rows: set_truth(rows, truth))
    tasks, dropped = read_tasks(data_dir, ["simple_python"])
    assert [task.id for task in tasks] == ["bfcl/simple_python_1"]
    assert dropped.total() == 1
    assert reason in next(iter(dropped))


def test_a_task_without_tools_is_dropped_and_counted(data_dir):
    rewrite(data_dir / "BFCL_v4_irrelevance.json", lambda rows: rows[0].update(function=[]))
    tasks, dropped = read_tasks(data_dir, ["irrelevance"])
    assert (len(tasks), dropped) == (1, {"no tools": 1})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: expected one JSON object a line"),
        ("[]", "line 1: expected an object with id, question, function"),
        ('{"id": "a", "question": []}', "line 1: .* found no 'function'"),
        ('{"id": 7, "question": [[]], "function": []}', "line 1: expected a string under 'id'"),
        ('{"id": "a", "question": [[]], "function": {}}', "line 1: .* 'function'"),
        ('{"id": "a", "question": [], "function": []}', "line 1: expected one turn"),
        ('{"id": "a", "question": [["x"]], "function": []}', r"line 1: .*'question\[0\]'"),
        ('{"id": "a", "question": [[]], "function": [{"name": "f"}]}', "line 1: expected a tool"),
    ],
)
def test_a_malformed_row_gets_one_error_with_file_and_line(data_dir, line, said):
    file = data_dir / "BFCL_v4_irrelevance.json"
    file.write_text(line + "\n")
    with pytest.raises(BfclError, match=f"BFCL_v4_irrelevance.json, {said}"):
        read_tasks(data_dir, ["irrelevance"])


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ({"f": {}}, "expected a list of dict under 'ground_truth'"),
        ([{"f": {}, "g": {}}], r"expected \{name: \{parameter: \[accepted\]\}\}"),
        ([{"f": {"x": 3}}], "expected a list of accepted values for f.x, found 3"),
    ],
)
def test_a_malformed_answer_gets_one_error_with_file_and_line(data_dir, truth, said):
    file = data_dir / "possible_answer/BFCL_v4_simple_python.json"
    rewrite(file, lambda rows: set_truth(rows, truth))
    with pytest.raises(BfclError, match=f"possible_answer.*line 1: {said}"):
        read_tasks(data_dir, ["simple_python"])


def test_a_type_outside_the_table_is_an_error_naming_tool_and_path(data_dir):
    def retype(rows):
        rows[0]["function"][0]["parameters"]["properties"]["canteen"]["type"] = "str256"

    rewrite(data_dir / "BFCL_v4_simple_python.json", retype)
    said = r"'canteen.reserve': parameters\.properties\.canteen\.type: 'str256'"
    with pytest.raises(ToolSchemaError, match=said):
        read_tasks(data_dir, ["simple_python"])


def test_a_task_without_an_answer_a_missing_file_and_an_unknown_category_are_errors(data_dir):
    rewrite(data_dir / "possible_answer/BFCL_v4_multiple.json", lambda rows: rows.clear())
    (data_dir / "possible_answer/BFCL_v4_multiple.json").write_text("")
    with pytest.raises(BfclError, match="'multiple_0' has no row in possible_answer"):
        read_tasks(data_dir, ["multiple"])
    with pytest.raises(FileNotFoundError, match="expected BFCL's data directory"):
        read_tasks(data_dir, ["live_simple"])
    with pytest.raises(ValueError, match="'simple' is not one of"):
        read_tasks(data_dir, ["simple"])
