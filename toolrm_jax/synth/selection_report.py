"""What a selection took of what there was, as JSON: by turn type, error type, kind and model.

    describe(candidates, chosen, quotas={"single": 85_000}, mix={"Parameter value error": 0.4})

Of lengths it tells in what share of pairs the right side is longer, and how much of them the best
rule tells that knows by which of a few ranges they differ (`candidates.LENGTH_STEPS`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolrm_jax.synth.candidates import ERRORS, Candidates
from toolrm_jax.synth.turn_type import TURN_TYPES


def describe(
    candidates: Candidates,
    chosen: np.ndarray,
    quotas: Mapping[str, int],
    mix: Mapping[str, float],
) -> dict[str, Any]:
    """What there was, and what was chosen of it (bool [candidates]); of a turn type each error type
    that there was or that the mix wants."""
    turn_N = np.repeat(candidates.turn, np.diff(candidates.first))
    everything = np.ones(len(chosen), bool)
    wanted = sum(mix.values())
    by_turn = {}
    for number, name in enumerate(TURN_TYPES):
        here = turn_N == number
        # Whatever calls where nothing should be called has one error, so there is no mix.
        shares = {error: share / wanted for error, share in mix.items() if share}
        shares = shares if quotas.get(name) and name != "irrelevance" else {}
        by_turn[name] = {
            "quota": quotas.get(name, 0),
            "candidates": int(here.sum()),
            "pairs": int((here & chosen).sum()),
            "error_types": {
                error: {
                    "wanted": shares.get(error, 0.0) if shares else None,
                    "before": about,
                    "after": _lengths(candidates, here & chosen, e),
                }
                for e, error in enumerate(ERRORS)
                if (about := _lengths(candidates, here, e))["pairs"] or error in shares
            },
        }
    return {
        "pairs": int(chosen.sum()),
        "turn_types": by_turn,
        "error_types": {
            error: {
                "before": _lengths(candidates, everything, e),
                "after": _lengths(candidates, chosen, e),
            }
            for e, error in enumerate(ERRORS)
        },
        "kinds": _counted(candidates, chosen, 1),
        "models": _counted(candidates, chosen, 2),
    }


def _lengths(candidates: Candidates, among: np.ndarray, error: int) -> dict[str, Any]:
    """How many; in what share the right side is the longer one (equal ones count half); and what
    share the best rule tells right that goes by the range of the difference."""
    ranges = candidates.table[among & (candidates.table[:, 0] == error), 3]
    if not len(ranges):
        return {"pairs": 0, "right_longer": None, "told_by_length": None}
    sizes = np.abs(ranges)
    tipped = np.abs(np.bincount(sizes, np.sign(ranges))).sum() / len(ranges)
    return {
        "pairs": len(ranges),
        "right_longer": float((np.sign(ranges).mean() + 1) / 2),
        "told_by_length": float((1 + tipped) / 2),
    }


def _counted(candidates: Candidates, chosen: np.ndarray, column: int) -> dict[str, int]:
    numbers, counts = np.unique(candidates.table[chosen, column], return_counts=True)
    found = {candidates.names[n]: int(c) for n, c in zip(numbers, counts, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
