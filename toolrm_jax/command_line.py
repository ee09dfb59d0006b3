"""Commands with a config: `--config FILE`, and any field of it as `--config.train.steps=50`.

    _CONFIG = config_flags.DEFINE_config_file("config", ...)
    run_command(main, _CONFIG, required=("config", "workdir"))

What is wrong with a command line is one line, without a traceback: a mistyped field's is

    error: --config: no field 'stepz' Did you mean "steps" instead of "stepz"?
"""

from collections.abc import Callable, Sequence
from functools import partial

from absl import app, flags


def run_command(
    main: Callable[[list[str]], None], config: flags.FlagHolder, required: Sequence[str]
) -> None:
    """Parses flags, of which some must be given, and calls main with what is left."""
    flags.mark_flags_as_required(required)
    app.run(main, flags_parser=partial(_parse_flags, config))


def _parse_flags(config: flags.FlagHolder, argv: list[str]) -> list[str]:
    """absl's parser; a field that does not exist, and a config that does not load, get one line."""
    try:
        rest = flags.FLAGS(argv)
        if config.value is not None:
            config.value.get("seed")  # a config that failed to load says so when it is used
    except flags.Error as error:  # what a config's own code raised is at the end of its traceback
        *_, said = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise SystemExit(f"error: {said.removeprefix('ValueError: ')}") from None
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = error.args[0] if error.args else error
        if isinstance(reason, KeyError):  # a mistyped field: ml_collections wraps its suggestion
            reason = f"no field {reason.args[0]}"
        raise SystemExit(f"error: --config: {' '.join(str(reason).split())}") from None
    return rest
