"""Fakes of the clouds' commands, for the tests of the launch scripts.

gcloud, kubectl, docker, sbatch, srun and scontrol write down how they are called; nothing reaches a
cloud.

    fakes = Fakes(folder)
    fakes.run("gke.sh", "status")       # with the fakes first on PATH
    fakes.calls()                       # [["kubectl", "get", ...], ...]
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

LAUNCH = Path(__file__).parent.parent / "launch"
COMMANDS = ("gcloud", "kubectl", "docker", "sbatch", "srun", "scontrol")
TOKEN = "hf_a-secret-of-the-test"
POD = ("--name", "rm", "--zone", "us-east5-a")

# Writes down its arguments; what it answers depends on the command.
FAKE = """\
#!{python} -SE
import json, os, shutil, subprocess, sys
from pathlib import Path
folder, name, given = Path({folder!r}), os.path.basename(sys.argv[0]), sys.argv[1:]
with (folder / "calls").open("a") as log:
    log.write(json.dumps([name, *given]) + "\\n")

def answer(kind):
    # The next of the answers that the test wrote, and the last one again and again.
    path = folder / kind
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) > 1:
        path.write_text("\\n".join(lines[1:]))
    return lines[0] if lines else ""

if name == "gcloud" and "list" in given:
    state = answer("states")
    (folder / "state").write_text(state)
    if state == "FAILS":
        sys.exit("no network")
    if state:
        print("another\\tACTIVE")
        print("rm\\t" + state if state != "ABSENT" else "rm-2\\tACTIVE")
elif name == "gcloud" and "delete" in given and (folder / "state").read_text() == "SUSPENDING":
    sys.exit("a queued resource that is being suspended cannot be deleted")
elif name == "gcloud" and "scp" in given:
    shutil.copy(given[4], folder / given[5].removeprefix("rm:"))
elif name == "gcloud" and "ssh" in given and given[-1].endswith("state"):
    print(answer("said"))
elif name == "gcloud" and "ssh" in given and answer("ssh") == "FAILS":
    sys.exit("connection closed")
elif name == "kubectl" and "apply" in given:
    (folder / "applied.yaml").write_text(sys.stdin.read())
elif name == "kubectl" and "--output" in given and "name" in given:
    print(answer("jobsets"))
elif name == "srun":
    sys.exit(int(answer("status") or 0))
"""


class Fakes:
    """The folder of fakes that stands first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        for name in COMMANDS:
            self.write(name, FAKE.format(python=sys.executable, folder=str(folder)))

    def write(self, name: str, program: str) -> None:
        (self.bin / name).write_text(program)
        (self.bin / name).chmod(0o755)

    def answers(self, kind: str, *lines: str) -> None:
        (self.folder / kind).write_text("\n".join(lines))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "HF_TOKEN"))}
        env |= {"PATH": f"{self.bin}:{env['PATH']}", "TOOLRM_POLL_SECONDS": "0"} | environment
        return subprocess.run(
            ["bash", str(LAUNCH / script), *arguments],
            env=env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            input="",
            timeout=400,
        )


def shown(result: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands that a run printed, as their arguments."""
    lines = [line for line in result.stdout.splitlines() if line.startswith("+ ")]
    return [shlex.split(line)[1:] for line in lines]
