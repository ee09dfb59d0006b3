"""Reward models side by side: the figures of accuracy in docs/evaluate.md and docs/synth.md.

    python -m benchmarks.reward_models table [--workdir runs/reward_models] [--steps 160]
    python -m benchmarks.reward_models study [--workdir runs/reward_models] [--steps 160]

`table` scores FC-RewardBench's pairs and pools of candidates with the quickstart's model (on tasks
that it was not trained on), a model trained on synthesised pairs, a linear probe fitted on such
pairs, the log-likelihood of the language model itself, and the rules that cost nothing. `study`
trains on synthesised pairs at five sizes, a sixteenth of the steps to all of them, and, for a
quarter of the steps, on corruptions alone and on models' answers alone. Training begins with the
probe's head: from a random one the loss falls little in so few steps.

Both need the folder that TOOLRM_DATA names (train/, replay/ and eval/ in its data/); without it,
`table` takes the quickstart's held-out pairs, and leaves out the model of synthesised pairs. Only
the project's own commands are run, and printed; what an earlier call has finished is used again. On
2 cores hours pass, most of them in training: a step takes 3 to 15 seconds.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from toolrm_jax.bfcl_pairs import ensure_pairs
from toolrm_jax.evaluate import drawing
from toolrm_jax.evaluate.results import read_run
from toolrm_jax.loader import open_row_file

LAYERS = 10  # of the probe, as configs/smollm2_synth.py has
PAIRS = 16_000  # synthesised; more than is trained on
PROBE_ROWS = 750  # prompts, with about 2,000 pairs
HELDOUT_ROWS = 32  # of the quickstart's, for the log of the training on synthesised pairs
SIZES = (16, 8, 4, 2, 1)  # parts of the steps
MIXES = ("both", "corruptions", "replay")


def run(module: str, *arguments: object) -> None:
    """One of the project's commands."""
    command = [sys.executable, "-m", f"toolrm_jax.{module}", *map(str, arguments)]
    print("$", shlex.join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=True)


def synthesise(workdir: Path, data: Path, mix: str) -> Path:
    """Pairs with the wrong answers of a mix; the folder of the data set."""
    # Answers of all models, not of those with a permissive licence alone: nothing is released.
    run(
        "synth",
        f"--config=configs/synth/local.py:{data},answers={mix},pairs={PAIRS}",
        f"--workdir={workdir / mix}",
        "--config.longest_prompt=2500",
        "--config.selection.wrong_per_prompt=6",
        "--config.answers.permissive_only=False",
    )
    return workdir / mix / "dataset"


def train(config: str, workdir: Path, pairs: Path, heldout: Path, **fields: object) -> Path:
    """A training run, with fields of the config; the folder of the model."""
    if not (workdir / "evaluation.json").exists():
        fields |= {"data.train": pairs, "data.heldout": heldout}
        run(
            "train",
            f"--config=configs/{config}.py",
            f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in fields.items()),
        )
    return workdir / "export"


def probe(folder: Path, pairs: Path) -> Path:
    """A linear probe of the first layers of SmolLM2, fitted on pairs; the folder of the model."""
    if not folder.exists():
        run(
            "evaluate",
            "probe",
            "--model=embedded:smollm2",
            f"--layers={LAYERS}",
            f"--fit={pairs}",
            f"--output={folder}",
        )
    return folder


def evaluate(command: str, folder: Path, data: Path, *arguments: str) -> Path:
    """One evaluation, unless the same one is there; the folder of the run."""
    wanted = [command, f"--data={data}", f"--output={folder}", *arguments]
    found = folder / "result.json"
    made = shlex.split(json.loads(found.read_text())["command"])[3:] if found.exists() else None
    if made != wanted:
        run("evaluate", *wanted)
    return folder


def head(path: Path, source: Path, count: int) -> Path:
    """The first rows of a file of JSON lines."""
    if not path.exists():
        with source.open() as file:
            path.write_text("".join(itertools.islice(file, count)))
    return path


def fit_on(workdir: Path, mix: str) -> Path:
    """The first rows of a synthesised data set as JSON lines; they are shuffled."""
    path = workdir / f"probe-{mix}.jsonl"
    if not path.exists():
        rows = open_row_file(workdir / mix / "dataset" / "array_record")
        chosen = (rows[number] for number in range(min(PROBE_ROWS, len(rows))))
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    return path


def table(workdir: Path, data: Path | None, steps: int, dtype: str) -> list[Path]:
    """The runs of docs/evaluate.md."""
    fields = {"model.dtype": dtype}
    # The folders are those of a quickstart, without its blind model.
    quickstart = workdir / "quickstart"
    of_bfcl = ensure_pairs(quickstart / "pairs")
    model = train("quickstart", quickstart / "model", of_bfcl.train, of_bfcl.heldout, **fields)
    first = f"--model=quickstart={model}"
    likelihood = "--likelihood=log-likelihood=embedded:smollm2"
    if data is None:
        fitted = f"--model=probe={probe(workdir / 'probe_bfcl', of_bfcl.train)}"
        folder = workdir / "heldout"
        options = (first, fitted, likelihood, f"--fit={of_bfcl.train}")
        return [evaluate("pairs", folder, of_bfcl.heldout, *options)]
    dataset = synthesise(workdir, data, "both")
    fitted = probe(workdir / "both-probe", fit_on(workdir, "both"))
    heldout = head(workdir / "heldout.jsonl", of_bfcl.heldout, HELDOUT_ROWS)
    fields |= {"model.source": fitted, "train.steps": steps}
    pairs = dataset / "array_record"
    trained = train("smollm2_synth", workdir / f"both-{steps}-{dtype}", pairs, heldout, **fields)
    others = (f"--model=synthesised={trained}", f"--model=probe={fitted}", likelihood)
    options = (*others, f"--fit={fit_on(workdir, 'both')}")
    runs = []
    for command, file in (("fc-reward-bench", "fcrb_dev"), ("best-of-n", "pools_dev")):
        path = data / "eval" / f"{file}.jsonl.gz"
        runs.append(evaluate(command, workdir / file, path, *options))
        unseen = workdir / f"{file}_unseen_by_quickstart"
        runs.append(evaluate(command, unseen, path, first, f"--fit={of_bfcl.train}"))
    return runs


def study(workdir: Path, data: Path, steps: int, dtype: str) -> list[Path]:
    """The run of docs/synth.md."""
    of_bfcl = ensure_pairs(workdir / "quickstart" / "pairs")
    heldout = head(workdir / "heldout.jsonl", of_bfcl.heldout, HELDOUT_ROWS)
    models = {}
    for mix in MIXES:
        pairs = synthesise(workdir, data, mix) / "array_record"
        name = f"{mix}-probe"
        models[name] = start = probe(workdir / name, fit_on(workdir, mix))
        for part in SIZES if mix == "both" else (4,):
            name, count = f"{mix}-{steps // part}-{dtype}", steps // part
            fields = {"model.dtype": dtype, "model.source": start, "train.steps": count}
            models[name] = train("smollm2_synth", workdir / name, pairs, heldout, **fields)
    path = data / "eval" / "fcrb_dev.jsonl.gz"
    options = [f"--model={name}={folder}" for name, folder in models.items()]
    options.append(f"--fit={fit_on(workdir, 'both')}")
    return [evaluate("fc-reward-bench", workdir / f"study-{steps}", path, *options)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", choices=("table", "study"))
    add("--workdir", type=Path, default=Path("runs/reward_models"))
    add("--steps", type=int, default=160, help="of 4,096 tokens (default 160)")
    add(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="what training computes in; a CPU without bfloat16 instructions is faster in float32",
    )
    args = parser.parse_args()
    root = os.environ.get("TOOLRM_DATA")
    data = Path(root) / "data" if root else None
    args.workdir.mkdir(parents=True, exist_ok=True)
    if args.what == "table":
        runs = table(args.workdir, data, args.steps, args.dtype)
    elif data is None:
        parser.error("study needs data: set TOOLRM_DATA")
    else:
        runs = study(args.workdir, data, args.steps, args.dtype)
    page = args.workdir / f"{args.what}.html"
    run("evaluate", "report", *runs, f"--output={page}")
    for folder in runs:
        found = read_run(folder).result.get("best of n")
        if found:  # a picture by itself, for a README
            (folder / "best_of_n.svg").write_text(drawing.curves(found["sampled"]["curves"]))


if __name__ == "__main__":
    main()
