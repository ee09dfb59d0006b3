"""The configs that ship, and what a wrong config or command line is answered with."""

import importlib
import json
import subprocess
import sys

import pytest
import tiny
from faulty_server import faulty_server
from synth_files import config, row

from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.selection import PAPER_QUOTAS
from toolrm_jax.synth.synth_config import SynthError, check, synth_config


def test_the_papers_config_runs_whole_on_files_of_its_sources(tmp_path, toolrm_data):
    """Rows in the form of xLAM, real dialogues of SGD, and one server for the eleven models."""
    import shutil

    from configs.synth.toolrm_180k import get_config

    data = tmp_path / "data"
    shutil.copytree(toolrm_data / "data/raw/sgd/dev", data / "sgd")
    for name, empty in (("xlam", False), ("xlam-irrelevance", True)):
        rows = [_xlam(n, empty) for n in range(60)]
        (data / f"{name}.json").write_text(json.dumps(rows))
    made = get_config(str(data))
    with faulty_server(["", "500", ""]) as server, made.unlocked():
        made.workers = 0
        made.selection.model_cap = 1.0  # three of the eleven models, and they all say the same
        made.answers.pool = tuple(
            {**entry, "url": server.url, "first_pause": 0.01} for entry in made.answers.pool[:3]
        )
        Pipeline(made, tmp_path / "run").run()
    card = json.loads((tmp_path / "run/dataset/card.json").read_text())
    assert set(card["pairs_by"]["turn type"]) == {"single", "multi", "irrelevance"}
    assert set(card["asked"]) == {entry["model"] for entry in made.answers.pool}
    assert set(card["pairs_by"]["model"]) <= set(card["asked"])  # they all say the same
    assert not card["stages"]["examples"]["rejected"]
    assert card["stages"]["obfuscated"]["counts"]["obfuscated"] > 400


def _xlam(number: int, empty: bool) -> dict:
    """A row with xLAM's columns, the last two as JSON text."""
    base = row(3 * number + 2 if empty else 3 * number)
    parameters = {
        name: {"description": "", "type": {"string": "str", "integer": "int"}[schema["type"]]}
        for name, schema in base["tools"][0]["parameters"]["properties"].items()
    }
    tools = [{"name": "find_restaurant", "description": "Finds.", "parameters": parameters}]
    return {
        "id": number,
        "query": base["conversation"][0]["content"],
        "answers": json.dumps(base["gold_calls"]),
        "tools": json.dumps(tools),
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sources": ()}, "config.sources is empty"),
        ({"sources": ({"name": "a"},)}, "expected name, format and path"),
        ({"output.form": "both"}, "use 'k-way' or 'pairs'"),
        ({"selection.wrong_per_prompt": 0}, "config.selection: wrong_per_prompt=0"),
        ({"overlap.similarity": 0.0}, "config.overlap.similarity=0.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_before_anything_is_read(tmp_path, fields, said):
    with pytest.raises(SynthError, match=said):
        Pipeline(config(tmp_path / "absent.gz", **fields), tmp_path / "run")


@pytest.mark.parametrize("pairs", [1, 100, 180_000])
@pytest.mark.parametrize("answers", ["both", "corruptions", "replay"])
def test_pairs_is_the_number_of_all_pairs_together(answers, pairs):
    local = importlib.import_module("configs.synth.local")
    quotas = local.get_config(f",answers={answers},pairs={pairs}").selection.quotas
    assert sum(quotas.values()) == pairs
    assert all(abs(quotas[turn] - pairs * n / 180_000) <= 1 for turn, n in PAPER_QUOTAS.items())


@pytest.mark.parametrize("name", ["local", "toolrm_180k"])
def test_every_config_is_valid_and_says_how_it_is_run(name, toolrm_data):
    module = importlib.import_module(f"configs.synth.{name}")
    found = module.get_config(str(toolrm_data / "data")) if name == "local" else module.get_config()
    check(found)
    assert set(found.keys()) == set(synth_config().keys())
    assert f"python -m toolrm_jax.synth --config configs/synth/{name}.py" in module.__doc__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.selection.fil=False"], 'Did you mean "fill" instead of "fil"?'),
        (["--config.output.form=both"], "error: config.output.form='both'"),
        (["--stages=exmaples"], "error: --stages: no stage 'exmaples'; there are examples,"),
        (["stray"], "Unexpected arguments ['stray']"),
        ([], "error: config.sources is empty"),
    ],
)
def test_a_wrong_command_line_gets_a_clear_line_and_no_traceback(tmp_path, arguments, said):
    (tmp_path / "config.py").write_text(
        "from toolrm_jax.synth.synth_config import synth_config\n"
        "def get_config():\n"
        "    config = synth_config()\n"
        f"    config.sources = {SOURCES if arguments else ()!r}\n"
        "    return config\n"
    )
    command = [sys.executable, "-m", "toolrm_jax.synth", "--config", str(tmp_path / "config.py")]
    done = subprocess.run(
        [*command, "--workdir", str(tmp_path / "run"), *arguments],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


SOURCES = ({"name": "made", "format": "normalised", "path": "absent.jsonl"},)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("local.py:/no/such/folder", "/no/such/folder: expected a folder with train/*.jsonl.gz"),
        ("local.py:.,answers=all", "answers=all: expected one of both, corruptions, replay"),
        ("local.py", "config.sources is empty"),
        ("toolrm_180k.py:/no/such", "No input at '/no/such/xlam.json'"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_no_traceback(tmp_path, given, said):
    command = [sys.executable, "-m", "toolrm_jax.synth", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--config", f"configs/synth/{given}"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
