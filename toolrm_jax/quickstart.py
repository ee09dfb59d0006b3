"""The whole system on one laptop, in one command: `make quickstart`, or `python -m
toolrm_jax.quickstart`.

    fetch two wheels -> pairs from BFCL tasks -> train the model, and a blind one -> held-out
    scores -> verdict, export

What is already there is used again: a second run prints the verdict of the first.
"""

import argparse
import copy
import json
import runpy
import time
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from toolrm_jax import pair_scores, verdict
from toolrm_jax.assets import fetch
from toolrm_jax.bfcl_pairs import PairFiles, ensure_pairs
from toolrm_jax.errors import reported
from toolrm_jax.loader import RowFile
from toolrm_jax.pairs import read_rows
from toolrm_jax.train import train

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"


def run(workdir: Path) -> None:
    """Every step; prints the table."""
    began = time.perf_counter()
    fetch()
    config = read_config()
    pairs = ensure_pairs(
        workdir / "pairs", seed=config.seed, wrong_per_task=config.data.wrong_per_task
    )
    model = ensure_trained(config, pairs, workdir / "model")
    blind = ensure_trained(blind_config(config), pairs, workdir / "blind")
    heldout = read_rows(pairs.heldout)
    found = verdict.compare(
        pair_scores.read_scores(workdir / "model" / "heldout_scores.jsonl"),
        pair_scores.read_scores(workdir / "blind" / "heldout_scores.jsonl"),
        read_rows(pairs.train),
        heldout,
        over_long=len(heldout) - model["heldout_prompts"],
    )
    text = _text(found, model, blind, workdir / "model" / "export")
    (workdir / "verdict.txt").write_text(text)
    print(f"\n{text}\n{(time.perf_counter() - began) / 60:.1f} minutes.")


def _text(found: verdict.Comparison, model: dict, blind: dict, export: Path) -> str:
    size = f"first {model['layers']} layers, {model['parameters'] / 1e6:.1f}M parameters"
    return (
        "Held-out accuracy in % (corrupted gold calls on BFCL tasks; this is not FC-RewardBench).\n"
        f"Reward model: SmolLM2-135M, {size}; {model['pairs_seen']:,} training pairs seen "
        f"(blind model: {blind['pairs_seen']:,}).\n\n"
        f"{found.table()}\n\n{found.words()}\n\nHugging Face checkpoint: {export}\n"
    )


def read_config() -> ConfigDict:
    """configs/quickstart.py, wherever this is run from."""
    return runpy.run_path(str(CONFIG))["get_config"]()


def blind_config(config: ConfigDict) -> ConfigDict:
    """The same model on the same rows, without tools and conversation: what do the answers alone
    give away?"""
    config = copy.deepcopy(config)
    config.data.blind = True
    # Without its prompt an example is under half as long: about as many a step as with it.
    config.data.row_shapes = ((768, 32),)
    config.data.batch_tokens = 1536
    config.train.export = False
    return config


def ensure_trained(config: ConfigDict, pairs: PairFiles, workdir: Path) -> dict:
    """Trains, unless the folder holds a finished run of this config; returns its summary."""
    config.data.train, config.data.heldout = str(pairs.train), str(pairs.heldout)
    summary = workdir / "evaluation.json"
    wanted = {
        "config": json.loads(config.to_json_best_effort()),
        "rows_sha256": {
            "train": RowFile(pairs.train).sha256,
            "heldout": RowFile(pairs.heldout).sha256,
        },
    }
    found = json.loads(summary.read_text()) if summary.exists() else {}
    if any(found.get(name) != value for name, value in wanted.items()):
        train(config, workdir)
    return json.loads(summary.read_text())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, default=Path("runs/quickstart"), help="where everything goes"
    )
    logging.set_verbosity(logging.WARNING)
    workdir = parser.parse_args().workdir
    with reported():
        run(workdir)


if __name__ == "__main__":
    main()
