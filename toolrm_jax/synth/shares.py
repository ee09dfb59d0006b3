"""Largest shares of a selection, that hold of what is selected, be a quota reached or not.

A share of a quota says little where the quota is not reached: 5% of 85,000 is 14% of the 30,000
pairs that there are. So pairs are chosen as if there were `Sizes`; where something then has more
than its share of what was got, they are chosen again as if there were a little less than that.

    as of 85,000   30,000 pairs, 4,250 of a type that may be 5%: 14%
    as of 28,500   27,300 pairs, 1,425 of it: 5.2%
    as of 25,900   27,200 pairs, 1,295 of it: it holds

>>> holds(30_000, {"a": 4_250, "b": 25_750}, {"a": 0.05})
False
>>> holds(100, {"a": 20, "b": 80}, {"a": 0.2})
True
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996
# Of fewer pairs fewer are chosen, so the next try aims below what was got. That costs what is
# capped so much of what it might have, and saves tries: one takes 6 s of 140,000 pairs.
_LESS = 0.95
# What is nearer to what was aimed at is not worth another try.
_NEAR = 0.98


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many pairs there are taken to be."""

    capped: Mapping[str, float]  # of each turn type, that caps are shares of
    mixed: Mapping[str, float]  # of each turn type, that the mix is of
    total: float  # that caps of models are shares of


def room(share: float, size: float) -> float:
    """How many a share of so many is."""
    return share * size + _ROUNDING


def apportioned(shares: Mapping[Any, float], pairs: int) -> dict[Any, int]:
    """So many pairs by their shares, in whole numbers that add up: the largest remainders get one.

    >>> apportioned({"a": 0.433, "b": 0.297, "c": 0.27}, 10)
    {'a': 4, 'b': 3, 'c': 3}
    """
    found = {name: int(room(share, pairs)) for name, share in shares.items()}
    by_rest = sorted(found, key=lambda name: found[name] - shares[name] * pairs)
    for name in by_rest[: pairs - sum(found.values())]:
        found[name] += 1
    return found


def holds(pairs: int, counts: Mapping[Any, int], shares: Mapping[Any, float]) -> bool:
    """Whether nothing that is counted has more than its largest share of the pairs."""
    return all(counts.get(name, 0) <= room(share, pairs) for name, share in shares.items())


def below(pairs: int) -> float:
    """What to aim at next where so many were got and shares did not hold."""
    return _LESS * pairs


def is_missed(pairs: int, size: float) -> bool:
    """Whether much less was got than was aimed at."""
    return pairs < _NEAR * size
