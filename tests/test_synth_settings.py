"""What a changed config changes, and what a config is answered with that cannot be right."""

import json
from pathlib import Path

from synth_files import config, row, write_rows

from toolrm_jax.synth.pipeline import Pipeline


def summary(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "summary.json").read_text())


def chat(*requests: str) -> dict:
    """A dialogue in which nothing is called."""
    turns = [{"role": "user", "content": text} for text in requests]
    said = [m for turn in turns for m in (turn, {"role": "assistant", "content": "I see."})]
    return {"messages": said, "tools": row(0)["tools"]}


def test_another_option_of_an_evaluation_set_redoes_what_is_left_out(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(6)])
    request = row(0)["conversation"][0]["content"]
    held = write_rows(tmp_path / "held.jsonl.gz", [chat(request, "And by bus, if that is so?")])
    for turns, left in (("last", 0), ("all", 1)):
        options = {"license": "MIT", "turns": turns}
        sets = ({"name": "held", "format": "openai", "path": str(held), "options": options},)
        settings = config(source, **{"overlap.evaluation": sets})
        Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
        assert summary(tmp_path / "run", "2-obfuscated")["rows"] == 6 - left
