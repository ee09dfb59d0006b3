"""Pairs from files of normalised rows, corruptions and replayed answers: no hub, no endpoint.

    python -m toolrm_jax.synth --config configs/synth/local.py:DATA --workdir runs/synth
    python -m toolrm_jax.synth --config configs/synth/local.py:DATA,answers=replay ...
    python -m toolrm_jax.synth --config configs/synth/local.py:DATA,pairs=10000 ...

DATA is a folder with train/*.jsonl.gz (examples: docs/synth.md, "normalised") and, if there are
such, replay/*.jsonl.gz (the same with what models answered) and eval/*.jsonl.gz (what training must
not hold; the wheel of BFCL is added: python -m toolrm_jax.assets).

  answers=both (default), corruptions or replay: who gives the wrong answers. With replay alone, the
      examples are those that have answers.
  pairs=N: so many pairs at most, all together, in the paper's proportions (85 single-turn, 85
      multi-turn, 10 irrelevance). Default: the paper's 180,000.
"""

import itertools
from pathlib import Path

from ml_collections import ConfigDict

from toolrm_jax.synth.selection import PAPER_QUOTAS
from toolrm_jax.synth.synth_config import synth_config

ANSWERS = ("both", "corruptions", "replay")


def get_config(given: str = "") -> ConfigDict:
    """The files of a folder; without one, a config whose sources are to be filled in."""
    data, answers, pairs = _arguments(given)
    config = synth_config()
    files = {part: sorted(Path(data).glob(f"{part}/*.jsonl.gz")) for part in PARTS} if data else {}
    if data and not files["train"] and not files["replay"]:
        raise ValueError(f"{data}: expected a folder with train/*.jsonl.gz or replay/*.jsonl.gz")
    replayed = files.get("replay", []) if answers != "corruptions" else []
    examples = files.get("train", []) if answers != "replay" else []
    config.sources = tuple(
        {"name": _name(file), "format": "normalised", "path": str(file), "obfuscate": rate}
        # Of one task in both, the first is kept: with the tools that the models were offered.
        for of, rate in ((files.get("replay", []), 0.0), (examples, 0.5))
        for file in of
    )
    config.overlap.evaluation = tuple(
        {"name": _name(file), "format": _format(file), "path": str(file)}
        for file in files.get("eval", ())
        if not file.name.startswith("pools")  # BFCL's tasks again
    )
    if config.overlap.evaluation:  # and BFCL, of which FC-RewardBench is made
        bfcl = {"name": "bfcl", "format": "bfcl", "path": "wheel"}
        config.overlap.evaluation = (*config.overlap.evaluation, bfcl)
    config.answers.pool = (
        *({"kind": "corruption"} for _ in range(answers != "replay")),
        *({"kind": "replay", "path": str(file)} for file in replayed),
    )
    if answers == "replay":
        config.selection.mix = ()  # errors as they come
    config.selection.quotas = ConfigDict(_quotas(pairs))
    return config


def _quotas(pairs: int) -> dict[str, int]:
    """So many pairs in the paper's proportions; rounded so that they add up."""
    bounds = [0, *itertools.accumulate(PAPER_QUOTAS.values())]
    ends = [pairs * bound // bounds[-1] for bound in bounds]
    return {t: b - a for t, (a, b) in zip(PAPER_QUOTAS, itertools.pairwise(ends), strict=True)}


PARTS = ("train", "replay", "eval")


def _arguments(given: str) -> tuple[str, str, int]:
    """(folder, answers, pairs) of "FOLDER,answers=...,pairs=..."."""
    data, *rest = given.split(",")
    named = {"answers": "both", "pairs": str(sum(PAPER_QUOTAS.values()))}
    for part in rest:
        name, _, value = part.partition("=")
        if name not in named:
            raise ValueError(f"{part!r} in {given!r}: expected FOLDER,answers=...,pairs=...")
        named[name] = value
    if named["answers"] not in ANSWERS:
        raise ValueError(f"answers={named['answers']}: expected one of {', '.join(ANSWERS)}")
    if not named["pairs"].isdigit():
        raise ValueError(f"pairs={named['pairs']}: expected a number")
    return data, named["answers"], int(named["pairs"])


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name.removesuffix('.jsonl.gz')}"


def _format(file: Path) -> str:
    return "fc_reward_bench" if file.name.startswith("fcrb") else "normalised"
