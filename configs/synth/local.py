"""Pairs from files of normalised rows and corruptions alone: no hub, no endpoint, no model.

    python -m toolrm_jax.synth --config configs/synth/local.py:DATA --workdir runs/synth

DATA is a folder with train/*.jsonl.gz (examples: docs/synth.md, "normalised") and, if there are
such, replay/*.jsonl.gz (the same with what models answered) and eval/*.jsonl.gz (what training must
not hold; the wheel of BFCL is added: python -m toolrm_jax.assets).
"""

from pathlib import Path

from ml_collections import ConfigDict

from toolrm_jax.synth.synth_config import synth_config


def get_config(data: str = "") -> ConfigDict:
    """The files of a folder; without one, a config whose sources are to be filled in."""
    config = synth_config()
    files = {part: sorted(Path(data).glob(f"{part}/*.jsonl.gz")) for part in PARTS} if data else {}
    config.sources = tuple(
        {"name": _name(file), "format": "normalised", "path": str(file), "obfuscate": rate}
        for part, rate in (("train", 0.5), ("replay", 0.0))
        for file in files.get(part, ())
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
        {"kind": "corruption"},
        *({"kind": "replay", "path": str(file)} for file in files.get("replay", ())),
    )
    config.selection.quotas = ConfigDict({"single": 85_000, "multi": 85_000, "irrelevance": 10_000})
    return config


PARTS = ("train", "replay", "eval")


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name.removesuffix('.jsonl.gz')}"


def _format(file: Path) -> str:
    return "fc_reward_bench" if file.name.startswith("fcrb") else "normalised"
