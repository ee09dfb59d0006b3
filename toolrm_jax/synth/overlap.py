"""Examples that say the same thing twice, and examples that an evaluation set holds too.

    example --> request   "book a table for two in rome"       all user turns, words and digits
                last      the last user turn, if it has six words or more
                tools     {"reservetable", ...}                 letters of the names alone
                answer    the right calls (for irrelevance: the tools)
                sketch    64 minima of hashed words and pairs of words (MinHash): 256 bytes

An example goes where an evaluation set has the same request or last turn (of a request of less than
four words: and a tool of the same name), or nearly the same request (sketches alike to
`similarity`) and a tool of the same name; with `drop_shared_tools`, wherever it has a tool of the
same name. Of examples with the same right answer and nearly the same request one is kept: that
which a hash of the seed and its id puts first, so that the order of files does not matter.

Memory: 300 bytes an example (54 MB for 180,000), and the evaluation sets' requests.

    sketches = [sketch(example, seed=0) for example in examples]
    near_duplicates(join(sketches), similarity=0.9)        # int64 [n]: -1, or what it repeats
"""

import dataclasses
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from toolrm_jax.examples import Example
from toolrm_jax.splits import digest, words

SKETCH, BANDS = 64, 16
_ROWS = SKETCH // BANDS
# Odd multipliers and offsets of 64 hash functions h -> a h + b mod 2^64; their top bits count.
_rng = np.random.default_rng(20250911)
_A_H = _rng.integers(0, 1 << 63, SKETCH, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_B_H = _rng.integers(0, 1 << 63, SKETCH, dtype=np.uint64)
_LONG_TURN, _SHORT_REQUEST = 6, 4


def plain_name(name: str) -> str:
    """The letters and digits of a tool's name: get_area, getArea and GetArea are one."""
    return "".join(words(name))


def _user_turns(example: Example) -> list[list[str]]:
    return [words(str(m.get("content"))) for m in example.messages if m.get("role") == "user"]


@dataclasses.dataclass(frozen=True)
class Sketches:
    """What is remembered of examples, as arrays over them."""

    order: np.ndarray  # uint64 [n] a hash of seed and id
    answer: np.ndarray  # uint64 [n] a hash of the right answer
    minima: np.ndarray  # uint32 [n, 64]


def hash64(text: str) -> int:
    """Eight bytes of a hash that is the same in every process."""
    return int(digest(text)[:16], 16)


def minima_of(request: Sequence[str]) -> np.ndarray:
    """MinHash of a request's words and pairs of words: uint32 [64]."""
    shingles = {*request, *map(" ".join, itertools.pairwise(request))} or {""}
    hashes = np.array([zlib.crc32(s.encode("utf-8", "replace")) for s in shingles], np.uint64)
    mixed_SH = (hashes[:, None] + np.uint64(1)) * _A_H[None, :] + _B_H[None, :]
    return (mixed_SH >> np.uint64(32)).min(0).astype(np.uint32)


def sketch(example: Example, *, seed: int) -> tuple[int, int, np.ndarray]:
    """(order, answer, minima) of one example."""
    answer = example.gold or sorted(plain_name(tool["name"]) for tool in example.tools)
    request = [word for turn in _user_turns(example) for word in turn]
    key = hash64(json.dumps(answer, sort_keys=True))
    return int(digest(seed, example.id)[:16], 16), key, minima_of(request)


def join(sketches: Iterable[tuple[int, int, np.ndarray]]) -> Sketches:
    """Sketches of one example each, as arrays."""
    found = list(sketches)
    return Sketches(
        np.array([s[0] for s in found], np.uint64),
        np.array([s[1] for s in found], np.uint64),
        np.array([s[2] for s in found], np.uint32).reshape(-1, SKETCH),
    )


def concatenate(parts: Sequence[Sketches]) -> Sketches:
    """All parts, in order."""
    if not parts:
        return join([])
    fields = [field.name for field in dataclasses.fields(Sketches)]
    return Sketches(*(np.concatenate([getattr(part, f) for part in parts]) for f in fields))


# Near-duplicates ---------------------------------------------------------------------------------


def near_duplicates(sketches: Sketches, similarity: float) -> np.ndarray:
    """For each example the one that it repeats and that is kept, or -1: int64 [n]."""
    by_order = np.argsort(sketches.order, kind="stable")
    minima, answer = sketches.minima[by_order], sketches.answer[by_order]
    repeats = np.full(len(by_order), -1, np.int64)
    for band in range(BANDS):
        for group in _groups(minima[:, band * _ROWS : (band + 1) * _ROWS], answer):
            _mark(group[repeats[group] < 0], minima, similarity, repeats)
    # What was kept when it was compared may itself have gone in a later band.
    for i in np.flatnonzero(repeats >= 0):
        while repeats[repeats[i]] >= 0:
            repeats[i] = repeats[repeats[i]]
    out = np.full(len(by_order), -1, np.int64)
    gone = repeats >= 0
    out[by_order[gone]] = by_order[repeats[gone]]
    return out


def _groups(part_NR: np.ndarray, answer_N: np.ndarray) -> Iterator[np.ndarray]:
    """Examples that share answer and band, as ascending indices, two or more at a time."""
    key_N = answer_N.copy()
    for column_N in part_NR.T:
        key_N = (key_N ^ column_N) * np.uint64(0x9E3779B97F4A7C15)
        key_N ^= key_N >> np.uint64(29)
    sorted_N = np.argsort(key_N, kind="stable")
    borders = np.flatnonzero(np.diff(key_N[sorted_N])) + 1
    starts, ends = np.r_[0, borders], np.r_[borders, len(sorted_N)]
    for i in np.flatnonzero(ends - starts > 1):
        yield sorted_N[starts[i] : ends[i]]


_COMPARED = 32  # kept members of a group that a new one is compared with


def _mark(group: np.ndarray, minima: np.ndarray, similarity: float, repeats: np.ndarray) -> None:
    """The first of the group is kept, and each further one that is like none kept before it."""
    kept = group[:1]
    for i in group[1:]:
        alike = (minima[kept[-_COMPARED:]] == minima[i]).mean(1) >= similarity
        if alike.any():
            repeats[i] = kept[-_COMPARED:][alike.argmax()]
        else:
            kept = np.append(kept, i)


# Evaluation sets ---------------------------------------------------------------------------------


class EvaluationSets:
    """The requests and tools of evaluation sets, to be kept out of training."""

    def __init__(self, similarity: float, drop_shared_tools: bool = False):
        self.similarity, self.drop_shared_tools = similarity, drop_shared_tools
        self._names: list[str] = []
        self._requests: dict[int, tuple[int, frozenset[str]]] = {}  # hash -> (set, its tools)
        self._tools: dict[str, int] = {}
        self._minima: list[np.ndarray] = []
        self._of: list[tuple[int, frozenset[str]]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, name: str, examples: Iterable[Example]) -> int:
        """Adds one set under its name; gives how many examples it has.

        Of an example its messages and tools' names are looked at.
        """
        self._names.append(name)
        here, before = len(self._names) - 1, len(self._of)
        for example in examples:
            tools = _tool_names(example)
            for key in _request_keys(example):
                old = self._requests.get(key, (here, frozenset()))
                self._requests[key] = (old[0], old[1] | tools)
            for tool in tools:
                self._tools.setdefault(tool, here)
            minima = minima_of([w for turn in _user_turns(example) for w in turn])
            for band in _bands(minima):
                self._bands.setdefault(band, []).append(len(self._of))
            self._minima.append(minima)
            self._of.append((here, tools))
        return len(self._of) - before

    def overlap(self, example: Example, minima: np.ndarray) -> tuple[str, str] | None:
        """(the set's name, how the example overlaps it), or None."""
        tools = _tool_names(example)
        turns = _user_turns(example)
        short = sum(map(len, turns)) < _SHORT_REQUEST
        for key in _request_keys(example):
            found = self._requests.get(key)
            if found is not None and (not short or found[1] & tools):
                return self._names[found[0]], "the same request"
        near = {i for band in _bands(minima) for i in self._bands.get(band, ())}
        for i in sorted(near):
            name, theirs = self._of[i]
            if tools & theirs and (self._minima[i] == minima).mean() >= self.similarity:
                return self._names[name], "nearly the same request, and a tool"
        shared = next((self._tools[tool] for tool in sorted(tools) if tool in self._tools), None)
        if shared is not None and self.drop_shared_tools:
            return self._names[shared], "a tool"
        return None

    def shares_tool(self, example: Example) -> bool:
        """Whether any evaluation set has a tool of the same name."""
        return any(tool in self._tools for tool in _tool_names(example))


def _tool_names(example: Example) -> frozenset[str]:
    return frozenset(plain_name(tool["name"]) for tool in example.tools)


def _request_keys(example: Example) -> list[int]:
    turns = _user_turns(example)
    if not any(turns):
        return []
    keys = [hash64("request " + " ".join(w for turn in turns for w in turn))]
    if len(turns[-1]) >= _LONG_TURN:
        keys.append(hash64("turn " + " ".join(turns[-1])))
    if len(turns) == 1 and len(turns[0]) >= _LONG_TURN:
        keys.append(hash64("turn " + " ".join(turns[0])))
    return list(dict.fromkeys(keys))


def _bands(minima: np.ndarray) -> Iterator[tuple[int, bytes]]:
    for band in range(BANDS):
        yield band, minima[band * _ROWS : (band + 1) * _ROWS].tobytes()
