"""Makes a training set: `python -m toolrm_jax.synth --config configs/synth/NAME.py --workdir DIR`.

    sources -> examples -> obfuscated -> answers -> judged -> pairs -> dataset

Any field of the config can be set on the command line: `--config.selection.wrong_per_prompt=1`.
Each stage leaves its rows in DIR and is skipped where they are complete for the same settings; a
run that was killed continues with the same command, and ends with the same bytes. What could not be
used is in DIR/rejects-STAGE.jsonl.zst with its reason and line. Look at the result with

    python -m toolrm_jax.synth.show DIR

    python -m toolrm_jax.synth --config configs/synth/local.py:/data --workdir runs/synth
    python -m toolrm_jax.synth ... --stages=examples,obfuscated
"""

from absl import app, flags
from ml_collections import config_flags

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
    with reported():
        Pipeline(_CONFIG.value, str(_WORKDIR.value)).run(_STAGES.value)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; a field that does not exist, and a config that does not load, get one line."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.get("seed")  # a config that failed to load says so when it is used
    except flags.Error as error:  # what a config's own code raised is at the end of its traceback
        *_, said = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise SystemExit(f"error: {said.removeprefix('ValueError: ')}") from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, KeyError):  # a mistyped field: ml_collections wraps its suggestion
            reason = f"no field {reason.args[0]}"
        raise SystemExit(f"error: --config: {' '.join(str(reason).split())}") from None
    return rest


def run() -> None:
    """Parses flags and runs."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
