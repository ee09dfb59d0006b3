"""Other accepted forms: right by the judge, varied, and never repairing what is wrong."""

import dataclasses
import random

import pytest
from bfcl_samples import CATEGORIES, write_samples

from toolrm_jax.accepted_forms import bare_form, full_form, in_some_form, some_form
from toolrm_jax.bfcl import read_tasks
from toolrm_jax.tool_calls import judge

WANT = {
    "name": "go",
    "arguments": {"city": ["New York City", "NYC"], "unit": ["km", ""], "fast": ["", True]},
}
GOLD = {"name": "go", "arguments": {"city": "New York City"}}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    data_dir = write_samples(tmp_path_factory.mktemp("bfcl") / "data")
    return read_tasks(data_dir, CATEGORIES)[0]


def test_the_full_and_the_bare_form_are_the_extremes():
    full = full_form(GOLD, GOLD, WANT, [])
    assert full["arguments"] == {"city": "New York City", "unit": "km", "fast": True}
    assert bare_form(full, GOLD, WANT, [])["arguments"] == {"city": "NYC"}
    assert bare_form(full, GOLD, WANT, ["unit"])["arguments"] == {"city": "NYC", "unit": "km"}


def test_wrong_values_and_dropped_arguments_stay_as_they_are():
    wrong = {"name": "go", "arguments": {"city": "Oslo", "unit": "miles"}}
    assert full_form(wrong, GOLD, WANT, [])["arguments"] == {**wrong["arguments"], "fast": True}
    assert bare_form(wrong, GOLD, WANT, []) == wrong
    spelled = {"name": "go", "arguments": {"city": "NYC", "unit": "km"}}
    dropped = {"name": "go", "arguments": {"city": "NYC"}}
    assert "unit" not in full_form(dropped, spelled, WANT, [])["arguments"]


def test_chance_covers_every_form():
    forms = [some_form(GOLD, GOLD, WANT, [], random.Random(seed)) for seed in range(80)]
    seen = {tuple(sorted(form["arguments"])) for form in forms}
    assert seen == {("city",), ("city", "unit"), ("city", "fast"), ("city", "fast", "unit")}
    assert {form["arguments"]["city"] for form in forms} == {"New York City", "NYC"}


def test_a_task_in_another_form_is_still_right_and_about_half_have_one(tasks):
    task = next(t for t in tasks if t.id == "bfcl/simple_python_0")
    copies = [dataclasses.replace(task, id=str(n)) for n in range(200)]
    golds = [in_some_form(copy, seed=0).gold for copy in copies]
    assert all(judge(gold, task.reference, task.tools).right for gold in golds)
    spelled = sum("quiet" in call["arguments"] for (call,) in golds)
    assert 0.15 < spelled / 200 < 0.35
    assert golds == [in_some_form(copy, seed=0).gold for copy in copies]


def test_tasks_that_call_nothing_and_values_in_source_text_are_left_alone(tasks):
    for task in tasks:
        if not task.gold or "language" in task.reference[0]:
            assert in_some_form(task, seed=0, share=1.0) == task
