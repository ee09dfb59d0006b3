"""Makes a training set: `python -m toolrm_jax.synth --config configs/synth/NAME.py --workdir DIR`.

    sources -> examples -> obfuscated -> answers -> judged -> pairs -> dataset

Any field of the config can be set on the command line: `--config.selection.wrong_per_prompt=1`.
Each stage leaves its rows in DIR and is skipped where they are complete for the same settings; a
run that was killed continues with the same command, and ends with the same bytes. What could not be
used is in DIR/rejects-STAGE.jsonl.zst with its reason and line. Ctrl-C ends a run with one line and
130. Look at the result with

    python -m toolrm_jax.synth.show DIR

    python -m toolrm_jax.synth --config configs/synth/local.py:/data --workdir runs/synth
    python -m toolrm_jax.synth ... --stages=examples,obfuscated
"""

import signal
import sys

from absl import app, flags
from ml_collections import config_flags

from toolrm_jax.command_line import run_command
from toolrm_jax.errors import reported
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.synth_config import STAGES

_CONFIG = config_flags.DEFINE_config_file("config", None, "the synthesis", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where the stages write; the same continues a run")
_STAGES = flags.DEFINE_list("stages", list(STAGES), "stages to run, of those in the order above")


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}; fields are set as --config.selection.fill=False."
        )
    try:
        with reported():
            Pipeline(_CONFIG.value, str(_WORKDIR.value)).run(_STAGES.value)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def run() -> None:
    """Parses flags and runs."""
    run_command(main, _CONFIG, required=("config", "workdir"))


if __name__ == "__main__":
    run()
