"""Sources read real samples of upstream files as the docs say."""

import gzip
import json

import pytest
from source_rows import (
    split_up,
)

from toolrm_jax.synth.sources import SOURCES, open_source

SAMPLES = [
    ("sgd", "raw/sgd/train", {}, 592, 0),
    ("sgd", "raw/sgd/dev", {}, 315, 0),
    ("sealtools", "raw/sealtools/dev.jsonl", {}, 622, 78),
    ("sealtools", "raw/sealtools/dev.jsonl", {"irrelevance": True}, 672, 28),
    ("toolalpaca", "raw/toolalpaca/eval_real.json", {}, 101, 13),
    ("toolalpaca", "raw/toolalpaca/eval_simulated.json", {}, 62, 38),
    ("toolalpaca_hammer", "raw/hammer/toolalpaca.json", {}, 103, 11),
    ("api_bank", "raw/hammer/apibank_l1.json", {}, 351, 48),
    ("rotbench", "raw/rotbench/clean.json", {}, 80, 25),
    ("rotbench", "raw/rotbench/clean.json", {"first_only": True}, 101, 4),
    ("rotbench", "raw/rotbench/union.json", {}, 81, 24),
    ("rotbench", "raw/rotbench/union.json", {"first_only": True}, 102, 3),
    ("fc_reward_bench", "eval/fcrb_dev.jsonl.gz", {}, 589, 4),
]


@pytest.mark.parametrize(("source", "path", "options", "examples", "rejects"), SAMPLES)
def test_counts_on_real_samples_are_those_in_the_docs(
    toolrm_data, source, path, options, examples, rejects
):
    found = split_up(open_source(source, toolrm_data / "data" / path, **options))
    assert tuple(map(len, found)) == (examples, rejects)
    assert len({example.id for example in found[0]}) == examples


def test_sgd_reads_the_same_turns_as_the_normalised_rows(toolrm_data):
    ours = {e.id: e for e in open_source("sgd", toolrm_data / "data/raw/sgd/train")}
    same = 0
    with gzip.open(toolrm_data / "data/train/sgd_train_20k.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    for row in rows:
        _, _, dialogue, turn, *_ = row["id"].split("-")
        kind = row["meta"]["kind"]
        if dialogue.startswith("1_") and kind in ("call", "missing_required_param"):
            example = ours[f"sgd/train/{dialogue}/{turn[1:]}"]
            assert example.gold == row["gold_calls"]
            assert len(example.messages) == len(row["conversation"])
            same += 1
    assert same == 158


def test_every_source_is_named_in_the_docs():
    import tiny

    text = (tiny.ROOT / "docs/synth-sources.md").read_text()
    assert [name for name in SOURCES if f"`{name}`" not in text] == []
