"""The configs that ship, and the command line that reads them."""

import importlib
import json

import pytest
import tiny

from toolrm_jax.default_config import default_config
from toolrm_jax.train_config import unpack

CONFIGS = sorted(p.stem for p in (tiny.ROOT / "configs").glob("*.py") if p.stem != "__init__")
CONFIG = ["--config", "configs/smollm2_135m.py"]

# Every case in a process of its own, forked after the imports: they take most of the time.
EACH_CASE = """
import gc, json, os, runpy, sys
from jax.experimental import multihost_utils
from ml_collections import config_flags
from toolrm_jax import bfcl_pairs, checkpoint, metrics_log, pair_scores, pretrained, train_config
folder, cases = os.environ["CASES_FOLDER"], json.loads(os.environ["CASES"])
gc.freeze()  # or every process would go through all that was imported when it ends
children = {}
for name, (arguments, environment) in cases.items():
    children[name] = os.fork()
    if not children[name]:
        output = os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        sys.argv = ["toolrm_jax.train", *arguments]
        runpy.run_module("toolrm_jax.train", run_name="__main__", alter_sys=True)
for name, child in children.items():
    print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]))
"""

CASES = {
    "typo": ([*CONFIG, "--config.train.stepz=3"], {}),
    "typo in a section": ([*CONFIG, "--config.trian.steps=3"], {}),
    "not a number": ([*CONFIG, "--config.train.steps=abc"], {}),
    "bad value": ([*CONFIG, "--config.model.dtype=float64"], {}),
    "bad trace": ([*CONFIG, "--config.profile_steps=(10,)"], {}),
    "no such config": (["--config", "configs/absent.py"], {}),
    "no config": ([], {}),
    "no such model": ([*CONFIG, "--config.model.source={folder}/absent"], {}),
    "stray argument": ([*CONFIG, "train.steps=3"], {}),
    "process without a number": (CONFIG, {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}),
    "help": (["--help"], {}),
}


@pytest.fixture(scope="module")
def cli(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Exit status and output of every case."""
    folder = tmp_path_factory.mktemp("cli")
    cases = {
        name: ([a.format(folder=folder) for a in arguments] + ["--workdir", f"{folder}/run"], env)
        for name, (arguments, env) in CASES.items()
    }
    cases["no workdir"] = (CONFIG, {})
    environment = {"CASES": json.dumps(cases), "CASES_FOLDER": str(folder)}
    process = tiny.start([], devices=1, program=EACH_CASE, **environment)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    codes = dict(map(json.loads, output.splitlines()))
    return {name: (codes[name], (folder / name).read_text()) for name in cases}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("typo", """--config: no field 'stepz' Did you mean "steps" instead of "stepz"?"""),
        ("typo in a section", """Did you mean "train" instead of "trian"?"""),
        ("not a number", "config.train.steps=abc: invalid literal for int()"),
        ("bad value", "error: config.model: compute dtype 'float64': use 'bfloat16' or 'float32'."),
        ("bad trace", "config.profile_steps=(10,): expected (steps to skip, steps to trace)"),
        ("no such config", "No such file or directory: 'configs/absent.py'"),
        ("no config", "--config"),
        ("no workdir", "Flag --workdir must have a value"),
        ("no such model", "/absent': there is no such file or directory. Without a hub, give"),
        ("stray argument", "['train.steps=3']; fields are set as --config.train.steps=50."),
        ("process without a number", "JAX_NUM_PROCESSES and JAX_PROCESS_ID for each process."),
    ],
)
def test_a_wrong_command_line_gets_a_clear_line_and_no_traceback(cli, case, said):
    code, output = cli[case]
    assert said in output
    assert code != 0
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if "rror" in line]) <= 1


def test_errors_of_the_program_itself_are_one_line(cli):
    for case in ("typo", "bad value", "no such model", "no such config"):
        (line,) = cli[case][1].splitlines()
        assert line.startswith("error: ")


def test_help_teaches_the_command(cli):
    _, output = cli["help"]
    for word in (
        "python -m toolrm_jax.train --config configs/quickstart.py --workdir DIR",
        "--config.train.steps=50",
        "continues from the newest sound checkpoint",
        "JAX_COORDINATOR_ADDRESS",
        "evaluation.json",
    ):
        assert word in output


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_complete_and_valid(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    assert set(_fields(config.to_dict())) == set(_fields(default_config().to_dict()))
    unpack(config)
    assert f"python -m toolrm_jax.train --config configs/{name}.py" in module.__doc__


def test_importing_a_config_starts_no_jax():
    """A config is read before the processes of a run have found each other."""
    program = "import sys, configs.quickstart as c; c.get_config(); assert 'jax' not in sys.modules"
    process = tiny.start([], devices=1, program=program)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def _fields(tree: dict, prefix: str = "") -> list[str]:
    return [
        field
        for key, value in tree.items()
        for field in (
            _fields(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
        )
    ]
