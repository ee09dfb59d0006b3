"""Stages: units done once, whole files or none, memory that does not grow."""

import json
import subprocess
import sys

import pytest
import tiny

from toolrm_jax.synth.shards import read_shard
from toolrm_jax.synth.stage import Stage, StageError
from toolrm_jax.synth.units import Unit

UNITS = [Unit("00"), Unit("01"), Unit("02")]


def stage(folder, most_open=0.0, code="", **settings):
    return Stage(folder, 1, "made", settings, code=code, most_open=most_open)


def numbers(unit, tally):
    for number in range(5):
        tally.count("numbers")
        yield {"unit": unit.name, "number": number}
    tally.reject("odd", at=f"{unit.name}, line 7")


def test_rows_come_in_the_order_of_units_and_rejects_in_one_file(tmp_path):
    summary = stage(tmp_path).run(UNITS, numbers, shard_rows=2)
    rows = list(summary.rows())
    assert [(r["unit"], r["number"]) for r in rows] == [
        (u.name, n) for u in UNITS for n in range(5)
    ]
    assert summary.counts == {"numbers": 15}
    assert summary.rejected == {"odd": 3}
    rejects = list(read_shard(tmp_path / "rejects-made.jsonl.zst"))
    assert [r["at"] for r in rejects] == ["00, line 7", "01, line 7", "02, line 7"]


def test_a_unit_that_fails_leaves_no_file_and_the_others_are_not_done_again(tmp_path):
    done = []

    def work(unit, tally):
        done.append(unit.name)
        yield from numbers(unit, tally)
        if unit.name == "01" and done.count("01") == 1:
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        stage(tmp_path).run(UNITS, work)
    folder = tmp_path / "1-made"
    assert not [file.name for file in folder.iterdir() if "01" in file.name]
    assert stage(tmp_path).finished() is None
    summary = stage(tmp_path).run(UNITS, work)
    assert done == ["00", "01", "01", "02"]
    assert summary.row_count == 15


def test_a_stage_with_open_work_is_not_complete_and_does_the_open_units_again(tmp_path):
    done = []

    def work(unit, tally):
        done.append(unit.name)
        tally.has_read(10)
        yield {"unit": unit.name}
        if unit.name == "01" and done.count("01") < 3:
            tally.leave_open("no answer", "status 500", "question 7")

    with pytest.raises(StageError, match="1 of 30 are still open: 1 x no answer"):
        stage(tmp_path).run(UNITS, work)
    assert stage(tmp_path).finished() is None
    summary = stage(tmp_path, most_open=0.04).run(UNITS, work)
    assert summary.left_open == {"no answer": 1}
    assert stage(tmp_path, most_open=0.04).run(UNITS, pytest.fail).content == summary.content
    # What one run accepted, another need not; the unit is done again, and no other.
    assert stage(tmp_path).finished() is None
    assert stage(tmp_path).run(UNITS, work).left_open == {}
    assert done == ["00", "01", "02", "01", "01"]


def test_what_another_code_made_is_made_anew(tmp_path):
    stage(tmp_path, code="old").run(UNITS, numbers)
    assert stage(tmp_path, code="new").finished() is None
    done = []

    def work(unit, tally):
        done.append(unit.name)
        yield {}

    stage(tmp_path, code="new").run(UNITS, work)
    assert done == ["00", "01", "02"]


def test_rejects_are_a_share_of_what_was_read(tmp_path):
    def work(unit, tally):
        tally.has_read(50)
        yield from numbers(unit, tally)

    summary = stage(tmp_path).run(UNITS, work)
    summary.check_rejects(0.02)
    with pytest.raises(StageError, match=r"3 of 150 that were read were rejected, 2\.0%"):
        summary.check_rejects(0.019)


def test_a_unit_that_reads_nothing_adds_nothing_to_what_was_read(tmp_path):
    """As one whose examples nobody is asked about: its rows must not hide rejects of others."""

    def work(unit, tally):
        tally.has_read(0 if unit.name == "00" else 10)
        yield from ({} for _ in range(100))
        if unit.name == "01":
            tally.reject("odd")

    with pytest.raises(StageError, match=r"1 of 20 that were read"):
        stage(tmp_path).run(UNITS, work).check_rejects(0.04)


def test_other_settings_begin_anew_and_the_same_do_nothing(tmp_path):
    first = stage(tmp_path, seed=0).run(UNITS, numbers)
    again = stage(tmp_path, seed=0).run([], pytest.fail)
    assert again.content == first.content
    changed = stage(tmp_path, seed=1)
    assert changed.finished() is None
    summary = changed.run(UNITS[:1], numbers)
    assert summary.row_count == 5
    left = {file.name for file in (tmp_path / "1-made").iterdir()}
    assert not [name for name in left if name.startswith(("01", "02"))]


def test_a_file_that_was_cut_is_made_again(tmp_path):
    summary = stage(tmp_path).run(UNITS, numbers)
    whole = summary.shards[1].read_bytes()
    summary.shards[1].write_bytes(whole[:-3])
    assert stage(tmp_path).finished() is None
    assert stage(tmp_path).run(UNITS, numbers).shards[1].read_bytes() == whole


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    killed = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from toolrm_jax import files\n"
        "def parts():\n"
        "    yield 'half'\n"
        "    os._exit(9)\n"
        "files.write_text(Path(sys.argv[1]) / '1-made/00.json', parts())\n"
    )
    command = [sys.executable, "-c", killed, str(tmp_path)]
    assert subprocess.run(command, cwd=tiny.ROOT, check=False).returncode == 9
    (tmp_path / ".rejects-made.jsonl.zst.17.partial").touch()
    stage(tmp_path).folder.joinpath("settings.json").write_text(json.dumps(stage(tmp_path).about))
    assert list(tmp_path.glob("1-made/.*"))
    stage(tmp_path).run(UNITS, numbers)
    assert not list(tmp_path.rglob(".*"))


def test_two_runs_cannot_write_one_stage(tmp_path):
    def work(unit, tally):
        with pytest.raises(StageError, match="Another run is writing"):
            stage(tmp_path).run(UNITS, numbers)
        yield from numbers(unit, tally)

    stage(tmp_path).run(UNITS[:1], work)


def test_a_lone_surrogate_is_written_as_an_escape(tmp_path):
    def work(unit, tally):
        yield {"text": "a\ud800b"}

    assert list(stage(tmp_path).run(UNITS[:1], work).rows()) == [{"text": "a\ud800b"}]


PEAK = """
import json, sys, tracemalloc
from toolrm_jax.synth.stage import Stage
from toolrm_jax.synth.units import Unit

def peak(count):
    tracemalloc.start()
    rows = (json.loads('{"text": "' + "x" * 500 + '"}') for _ in range(count))
    stage = Stage(sys.argv[1], count, "made", {})
    stage.run([Unit("00")], lambda unit, tally: rows, shard_rows=20)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found

print(json.dumps([peak(400), peak(4000)]))
"""


def test_memory_does_not_grow_with_rows_and_shards(tmp_path):
    # A process of its own: threads that other tests left behind hold memory, too.
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    done = subprocess.run(command, cwd=tiny.ROOT, check=True, capture_output=True, text=True)
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many < few + 500_000
