"""Errors that a user can put right, and how commands show them: as one line, without a traceback.

with reported():
    train(config, workdir)      # InputError("No model at 'x': ...")  ->  error: No model at ...
"""

import contextlib
from collections.abc import Iterator


class InputError(Exception):
    """What was given cannot be used; the message says what was found, expected, and to be done."""


def first_line(error: BaseException) -> str:
    """Of its message; its type's name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Ends the program with the message of an InputError or OSError; anything else is a bug."""
    try:
        yield
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
