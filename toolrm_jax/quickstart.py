"""The whole system on one laptop, in one command: `make quickstart`, or `python -m
toolrm_jax.quickstart`.

    fetch two wheels -> pairs from BFCL tasks -> train the model, and a blind one -> held-out
    scores -> verdict, export

What is already there is used again: a second run prints the verdict of the first.
"""

import argparse
import json
import time
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from configs import quickstart as quickstart_config
from toolrm_jax import evaluate, verdict
from toolrm_jax.assets import fetch
from toolrm_jax.bfcl_pairs import PairFiles, ensure_pairs
from toolrm_jax.pairs import read_rows
from toolrm_jax.train import EXPECTED, train


def run(workdir: Path) -> None:
    """Every step; prints the table."""
    began = time.perf_counter()
    fetch()
    config = quickstart_config.get_config()
    pairs = ensure_pairs(
        workdir / "pairs", seed=config.seed, wrong_per_task=config.data.wrong_per_task
    )
    model = ensure_trained(config, pairs, workdir / "model")
    blind = ensure_trained(blind_config(), pairs, workdir / "blind")
    found = verdict.compare(
        evaluate.read_scores(workdir / "model" / "heldout_scores.jsonl"),
        evaluate.read_scores(workdir / "blind" / "heldout_scores.jsonl"),
        read_rows(pairs.train),
        read_rows(pairs.heldout),
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


def blind_config() -> ConfigDict:
    """The same model, data and number of prompts a step, without tools and conversation: what do
    the answers alone give away?"""
    config = quickstart_config.get_config()
    config.data.blind = True
    # Without its prompt an example is about half as long.
    config.data.batch_tokens //= 2
    config.train.export = False
    return config


def ensure_trained(config: ConfigDict, pairs: PairFiles, workdir: Path) -> dict:
    """Trains, unless the folder holds a finished run of this config; returns its summary."""
    config.data.train, config.data.heldout = str(pairs.train), str(pairs.heldout)
    summary = workdir / "evaluation.json"
    wanted = json.loads(config.to_json_best_effort())
    if not summary.exists() or json.loads(summary.read_text())["config"] != wanted:
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
    try:
        run(parser.parse_args().workdir)
    except EXPECTED as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
