"""What a selection took of what there was, as JSON: by turn type, error type, kind and model.

    describe(candidates, chosen, quotas={"single": 85_000}, mix={"Parameter value error": 0.4})

Of lengths it tells in what share of pairs the right side is longer, and how much of them the best
rule tells that knows by which of a few ranges they differ (`candidates.LENGTH_STEPS`); and the same
of the pairs whose sides both call, for a side that calls nothing is the shorter one by nature.
"""

from collections.abc import Iterator, Mapping
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
    both_call_N = np.repeat(candidates.silent == 0, np.diff(candidates.first))
    both_call_N &= candidates.table[:, 5] == 0

    def lengths(among: np.ndarray, error: int) -> dict[str, Any]:
        found = _lengths(candidates, among, error)
        return found | {"both_call": _lengths(candidates, among & both_call_N, error)}

    by_turn: dict[str, Any] = {}
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
                    "after": lengths(here & chosen, e),
                }
                for e, error in enumerate(ERRORS)
                if (about := lengths(here, e))["pairs"] or error in shares
            },
        }
    return {
        "pairs": int(chosen.sum()),
        "turn_types": by_turn,
        "off_the_mix": list(_off_the_mix(by_turn)),
        "error_types": {
            error: {
                "before": lengths(everything, e),
                "after": lengths(chosen, e),
            }
            for e, error in enumerate(ERRORS)
        },
        "kinds": _counted(candidates, chosen, 1),
        "models": _counted(candidates, chosen, 2),
    }


# Of what is wanted of an error type; what is nearer is told by the table alone.
_OFF = 0.1


def _off_the_mix(by_turn: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The error types of whose share much more or less was got, by more than a pair's rounding."""
    for turn, found in by_turn.items():
        for error, about in found["error_types"].items():
            wanted, got = about["wanted"], about["after"]["pairs"]
            if wanted is None or not found["pairs"]:
                continue
            aim = wanted * found["pairs"]
            if abs(got - aim) > max(1.0, _OFF * aim):
                share = got / found["pairs"]
                yield {"turn": turn, "error_type": error, "wanted": wanted, "got": share}


def off_the_mix_lines(report: Mapping[str, Any]) -> list[str]:
    """What is off the mix, in words: a line for each turn type."""
    lines: dict[str, list[str]] = {}
    for off in report.get("off_the_mix", ()):
        words = f"{off['error_type']} {off['got']:.1%} ({off['wanted']:.1%} wanted)"
        lines.setdefault(off["turn"], []).append(words)
    return [f"{turn}: {', '.join(words)}" for turn, words in lines.items()]


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
