"""Which wrong answers become pairs: quotas, the mix of errors, caps, and lengths that tell nothing.

    Candidates --select--> chosen: bool [n], and a report

Examples are taken in the order of a hash of seed and id, irrelevance first (a right turn that calls
nothing), then single, then multi, each until its quota of pairs is reached; of each example:
  1. What models really said comes first, for there is little of it: up to `answers_per_prompt`,
     whatever its error types and lengths.
  2. Corruptions, up to `wrong_per_prompt` wrong answers together, by the mix over error types that
     is wanted, scarce ones first; what is then lacking is filled from the others (`fill`), up to
     twice the share of each: most of what is plentiful a schema would find, too. Without `fill` no
     error type has more than its share, and the scarcest one says how many pairs there are.
  3. Caps are shares of what is selected, also where a quota is not reached (`shares`): of an error
     type and of models' answers (`answers_cap`) in a turn type, of a model in all. Whatever calls
     where nothing should be called has one error type: neither mix nor caps of errors count there.
  4. Length: within a turn type and an error type the right side is longer as often as shorter, but
     for `length_tolerance` of the pairs; and so it is among the pairs whose sides differ by little,
     by more, by much (`candidates.LENGTH_STEPS`). A corruption that would tip this is left; one
     that makes up for what models' answers have tipped is preferred; of what cannot be made up for,
     corruptions and then answers are dropped again. Missing optional arguments make an answer
     shorter by nature: such types are named in `any_length`, and have no more than their share of
     the mix.
  5. The number of arguments is balanced like the length where that can be had; then rarer kinds.
An empty turn is wrong at most as often as it is right, and so are words that call nothing, over all
turn types together; that is their balance, for beside a call the one is mostly the shorter.

    chosen, report = select(candidates, SelectionSettings(quotas={"single": 85_000}))
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.corruptions import KIND_WEIGHTS
from toolrm_jax.errors import InputError
from toolrm_jax.pairs import MIX
from toolrm_jax.synth.answer import CORRUPTION
from toolrm_jax.synth.candidates import ERRORS, Candidates, sign
from toolrm_jax.synth.selection_report import describe
from toolrm_jax.synth.shares import Sizes, apportioned, below, holds, is_missed, room
from toolrm_jax.synth.turn_type import TURN_TYPES
from toolrm_jax.tool_calls import ErrorType

PAPER_QUOTAS = {"single": 85_000, "multi": 85_000, "irrelevance": 10_000}
# Silence that is right comes first: it says how often silence may be wrong.
_ORDER = ("irrelevance", "single", "multi")


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
    """What is wanted; see the module's docstring."""

    quotas: Mapping[str, int] = dataclasses.field(default_factory=lambda: PAPER_QUOTAS)
    wrong_per_prompt: int = 3
    answers_per_prompt: int = 8
    mix: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {str(error): share for error, share in MIX.items()}
    )  # empty: as it comes
    fill: bool = True
    error_caps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    answers_cap: float = 1.0
    model_cap: float = 1.0
    model_caps: Mapping[str, float] = dataclasses.field(default_factory=dict)
    length_tolerance: float = 0.02
    any_length: Sequence[str] = (str(ErrorType.MISSING_OPTIONAL),)
    seed: int = 0

    def __post_init__(self) -> None:
        _known("quotas", self.quotas, TURN_TYPES)
        for name in ("mix", "error_caps"):
            _known(name, getattr(self, name), ERRORS)
        _known("any_length", self.any_length, ERRORS)
        if self.wrong_per_prompt < 1:
            raise ValueError(f"wrong_per_prompt={self.wrong_per_prompt}: it must be 1 or more.")
        if self.answers_per_prompt < 0:
            raise ValueError(f"answers_per_prompt={self.answers_per_prompt}: 0 or more.")
        for turn, quota in self.quotas.items():
            if not isinstance(quota, int) or quota < 0:
                raise ValueError(f"quotas.{turn}={quota}: it must be a whole number, 0 or more.")
        for error, share in self.mix.items():
            if not share >= 0:
                raise ValueError(f"mix has {error!r}: {share}; expected 0 or more.")
        if self.mix and not sum(self.mix.values()) > 0:
            raise ValueError("mix has no share above 0; leave it empty to take errors as they come")
        shares = {n: getattr(self, n) for n in ("length_tolerance", "answers_cap", "model_cap")}
        for name in ("error_caps", "model_caps"):
            shares |= {f"{name}, {what!r}": share for what, share in getattr(self, name).items()}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: expected 0 to 1.")


def _known(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{name} has {', '.join(map(repr, unknown))}; expected of: {list(known)}")


class SelectionError(InputError):
    """Settings by which nothing can be chosen of what there is; the message says why."""


# Choosing ----------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Wrong:
    """One candidate, unpacked."""

    index: int
    beside_silence: bool  # one of the two sides calls nothing
    error: int
    kind: int
    model: int
    longer: int
    more: int
    silent: int


class _Selector:
    """The state of a selection: what is chosen, and the balances that it keeps."""

    def __init__(self, candidates: Candidates, settings: SelectionSettings, sizes: Sizes):
        self.found, self.settings, self.sizes = candidates, settings, sizes
        self.chosen = np.zeros(len(candidates.table), bool)
        self.per_example = np.zeros(len(candidates.turn), np.int32)
        self.kinds: collections.Counter[int] = collections.Counter()
        self.models: collections.Counter[int] = collections.Counter()
        self.answering = False  # whether what models said is being taken
        self.missing: dict[int, int] = {}  # pairs that the mix still wants, by error type
        # Examples not yet seen that offer the error type; empty where the mix is not looked at.
        self.chances: collections.Counter[int] = collections.Counter()
        # How much oftener calling nothing is right than wrong: by EMPTY and WORDS.
        self.silence: collections.Counter[int] = collections.Counter()
        self.left: collections.Counter[str] = collections.Counter()
        weights = [KIND_WEIGHTS.get(name, 1.0) for name in candidates.names]
        self.weights = weights
        self.is_corruption = [name == CORRUPTION for name in candidates.names]
        self.model_shares = [
            settings.model_caps.get(name, settings.model_cap) for name in candidates.names
        ]
        self.model_room = [room(share, sizes.total) for share in self.model_shares]
        # Of each turn type: pairs by error type, and how many of them models said.
        self.by_turn: dict[str, tuple[collections.Counter[int], int]] = {}
        self.any_length = {ERRORS.index(name) for name in settings.any_length}

    def run(self) -> None:
        for name in _ORDER:
            quota = self.settings.quotas.get(name, 0)
            if quota:
                self._take_turn_type(TURN_TYPES.index(name), name, quota)

    def wanted(self, turn: str) -> dict[int, float]:
        """The mix of a turn type, of the error types of which there is a wrong answer."""
        of_turn = self.found.turn == TURN_TYPES.index(turn)
        of_turn_N = np.repeat(of_turn, np.diff(self.found.first))
        there_are = set(np.unique(self.found.table[of_turn_N, 0]).tolist())
        mix = {e: share for e, share in _mix(self.settings, turn).items() if e in there_are}
        total = sum(mix.values())
        return {e: share / total for e, share in mix.items() if share}

    def _take_turn_type(self, turn: int, name: str, quota: int) -> None:
        ids = np.flatnonzero(self.found.turn == turn)
        ids = ids[np.argsort(self.found.order[ids], kind="stable")]
        self.quota, self.taken, self.said = quota, 0, 0
        self.answers_room = room(self.settings.answers_cap, self.sizes.capped[name])
        self.got: collections.Counter[int] = collections.Counter()
        # How much oftener the right side is longer than shorter, by error type and size of the
        # difference, and of how many pairs; how much oftener it has more arguments.
        self.longer: collections.Counter[tuple[int, int]] = collections.Counter()
        self.differing: collections.Counter[tuple[int, int]] = collections.Counter()
        self.more: collections.Counter[int] = collections.Counter()
        wanted, aim = self.wanted(name), self.sizes.mixed[name]
        self.error_room = [math.inf] * len(ERRORS)
        for error, share in _largest_shares(self.settings, name).items():
            self.error_room[error] = room(share, self.sizes.capped[name])
        for error in range(len(ERRORS)) if wanted else ():
            share = wanted.get(error, 0.0) * (2 if self.settings.fill else 1)
            self.error_room[error] = min(self.error_room[error], room(share, aim))
        self._take_answers(ids)
        if wanted:
            self._by_mix(ids, wanted, aim)
        self._pass(ids, self._least_taken)  # without `fill`, to what the mix wants and no more
        if self._trim(ids):
            self._pass(ids, self._least_taken)
        if self.taken < quota:
            self.left[f"{name}: pairs that the quota lacks"] += quota - self.taken
        self.by_turn[name] = self.got, self.said

    def _take_answers(self, ids: np.ndarray) -> None:
        """What models said, whatever its length and error type."""
        said_N = np.array([not made for made in self.is_corruption] or [False])
        said_N = said_N[self.found.table[:, 2]] if len(self.found.table) else said_N[:0]
        before = np.r_[0, np.cumsum(said_N)]
        per_example = before[self.found.first[1:]] - before[self.found.first[:-1]]
        self.answering = True
        for i in ids[per_example[ids] > 0]:
            said = [w for w in self._wrongs(i) if not self.is_corruption[w.model]]
            self._choose(i, said, self._least_taken)
        self.answering = False

    def _trim(self, ids: np.ndarray) -> bool:
        """Drops what tips the lengths for good, corruptions first; says whether there was any."""
        before = self.taken
        for of_models in (False, True):
            if not any(self._is_tipped(*key) for key in self.longer):
                break
            for i in ids[::-1]:
                for w in self._wrongs(i):
                    size = abs(w.longer)
                    tips = w.longer * self.longer[w.error, size] > 0 and not w.beside_silence
                    is_chosen = self.chosen[w.index] and self.is_corruption[w.model] != of_models
                    if is_chosen and tips and self._is_tipped(w.error, size):
                        self._take(i, w, -1)
        if self.taken < before:
            self.left["chosen and dropped again, for their lengths"] += before - self.taken
        return self.taken < before

    def _is_tipped(self, error: int, size: int) -> bool:
        excess = abs(self.longer[error, size])
        return error not in self.any_length and excess > self._length_room(error, size)

    def _by_mix(self, ids: np.ndarray, wanted: Mapping[int, float], size: float) -> None:
        counts = np.diff(self.found.first)[ids]
        slots = min(int(size), int(np.minimum(counts, self.settings.wrong_per_prompt).sum()))
        aims = apportioned(wanted, slots)
        self.missing = {e: aims.get(e, 0) - self.got[e] for e in range(len(ERRORS))}
        for i in ids:
            self.chances.update({w.error for w in self._wrongs(i)})
        self._pass(ids, self._need)
        self.missing.clear()
        self.chances.clear()

    def _pass(self, ids: np.ndarray, need: Any) -> None:
        for i in ids:
            if self.taken >= self.quota:
                return
            wrongs = self._wrongs(i)
            if self.chances:
                self.chances.subtract({w.error for w in wrongs})
            self._choose(i, [w for w in wrongs if not self.chosen[w.index]], need)

    def _wrongs(self, i: int) -> list[_Wrong]:
        start, stop = self.found.first[i], self.found.first[i + 1]
        rows = self.found.table[start:stop].tolist()
        silent = bool(self.found.silent[i])
        return [_Wrong(start + j, silent or bool(row[-1]), *row) for j, row in enumerate(rows)]

    def _choose(self, i: int, wrongs: list[_Wrong], need: Any) -> None:
        used_errors: collections.Counter[int] = collections.Counter()
        used_kinds: set[int] = set()
        most = (
            self.settings.answers_per_prompt if self.answering else self.settings.wrong_per_prompt
        )
        while (
            self.per_example[i] < most
            and self.taken < self.quota
            and (offered := [w for w in wrongs if self._may(w)])
        ):
            errors = {w.error for w in offered}
            best = max(errors, key=lambda e: (used_errors[e] < 2, need(e), -e))
            wrong = min(
                (w for w in offered if w.error == best), key=lambda w: self._cost(w, used_kinds)
            )
            wrongs.remove(wrong)
            used_errors[wrong.error] += 1
            used_kinds.add(wrong.kind)
            self._take(i, wrong)

    def _need(self, error: int) -> float:
        return self.missing[error] / (self.chances[error] + 1)

    def _least_taken(self, error: int) -> float:
        mix = self.settings.mix.get(ERRORS[error], 0.0) if self.settings.mix else 1.0
        return -self.got[error] / max(mix, 1e-9)

    def _may(self, wrong: _Wrong) -> bool:
        """Whether mix, caps, silence and length have room for it."""
        error = wrong.error
        if self.chances and self.missing[error] <= 0:
            return False
        if wrong.silent and self.silence[wrong.silent] <= 0:
            return False
        if self.got[error] + 1 > self.error_room[error]:
            return False
        if self.models[wrong.model] + 1 > self.model_room[wrong.model]:
            return False
        if not self.is_corruption[wrong.model] and self.said + 1 > self.answers_room:
            return False
        return self.answering or self._keeps_length(wrong)

    def _keeps_length(self, wrong: _Wrong) -> bool:
        if not wrong.longer or wrong.beside_silence or wrong.error in self.any_length:
            return True
        size = abs(wrong.longer)
        excess, tips = self.longer[wrong.error, size], sign(wrong.longer)
        return excess * tips < 0 or abs(excess + tips) <= self._length_room(wrong.error, size)

    def _length_room(self, error: int, size: int) -> float:
        return max(1.0, self.settings.length_tolerance * self.differing[error, size])

    def _cost(self, wrong: _Wrong, used: set[int]) -> tuple[float, ...]:
        length = sign(wrong.longer * self.longer[wrong.error, abs(wrong.longer)])
        more = sign(wrong.more * self.more[wrong.error])
        rare = self.kinds[wrong.kind] / self.weights[wrong.kind]
        return length + more, wrong.kind in used, rare, wrong.index

    def _take(self, i: int, wrong: _Wrong, times: int = 1) -> None:
        """Takes a wrong answer, or (-1) gives it back."""
        self.chosen[wrong.index] = times > 0
        self.per_example[i] += times
        self.taken += times
        self.got[wrong.error] += times
        self.kinds[wrong.kind] += times
        self.models[wrong.model] += times
        if wrong.error in self.missing:
            self.missing[wrong.error] -= times
        if not self.is_corruption[wrong.model]:
            self.said += times
        if not wrong.beside_silence:
            self.longer[wrong.error, abs(wrong.longer)] += times * sign(wrong.longer)
            self.differing[wrong.error, abs(wrong.longer)] += times
            self.more[wrong.error] += times * wrong.more
        if wrong.error == _CALL_COUNT:
            self.silence[int(self.found.silent[i])] += times
            self.silence[wrong.silent] -= times


_CALL_COUNT = ERRORS.index(str(ErrorType.CALL_COUNT))


def _mix(settings: SelectionSettings, turn: str) -> dict[int, float]:
    """The share that is wanted of each error type of a turn type; empty where errors are taken as
    they come."""
    mix = settings.mix if turn != "irrelevance" else {}
    return {e: mix.get(name, 0.0) / sum(mix.values()) for e, name in enumerate(ERRORS) if mix}


def _largest_shares(settings: SelectionSettings, turn: str) -> dict[int, float]:
    """The largest share of a turn type's pairs that an error type may have, of those that have one:
    what is capped, and those whose length tells, for more of them would teach their length."""
    if turn == "irrelevance":
        return {}
    wanted = _mix(settings, turn)
    largest = {ERRORS.index(name): cap for name, cap in settings.error_caps.items()}
    for error in map(ERRORS.index, settings.any_length):
        largest[error] = min(wanted.get(error, 1.0), largest.get(error, 1.0))
    return largest


def _check_models(candidates: Candidates, settings: SelectionSettings) -> None:
    """Raises SelectionError where models' caps add up to less than all pairs."""
    there_are = [candidates.names[m] for m in np.unique(candidates.table[:, 2]).tolist()]
    shares = {name: settings.model_caps.get(name, settings.model_cap) for name in there_are}
    together = sum(shares.values())
    if shares and together < 1 - 1e-9:
        some = ", ".join(f"{name}: {share:g}" for name, share in list(shares.items())[:5])
        raise SelectionError(
            f"config.selection.model_cap and model_caps: the largest shares of those who gave "
            f"wrong answers ({some}{', ...' if len(shares) > 5 else ''}) add up to "
            f"{together:.0%} of the pairs. Raise model_cap, or give one its own share: "
            f"model_caps=(({there_are[0]!r}, {1 - together + shares[there_are[0]]:.2g}),)."
        )


def select(
    candidates: Candidates, settings: SelectionSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """(chosen: bool [candidates], the report as JSON).

    Chooses again, as of fewer pairs, while something has more than its share of what was got: two
    or three times where quotas are not reached, once where they are. Raises SelectionError.
    """
    _check_models(candidates, settings)
    quotas = {name: float(quota) for name, quota in settings.quotas.items() if quota}
    sizes = Sizes(quotas, quotas, sum(quotas.values()))
    for run in itertools.count():
        selector = _Selector(candidates, settings, sizes)
        selector.run()
        smaller = _next_sizes(selector, first=run == 0)
        if smaller == sizes:
            break
        sizes = smaller
    report = describe(candidates, selector.chosen, settings.quotas, settings.mix)
    return selector.chosen, report | {"lacking": dict(selector.left)}


def _next_sizes(selector: _Selector, *, first: bool) -> Sizes:
    """The sizes to choose as of next; those that there are where caps and mix hold."""
    sizes, models = selector.sizes, selector.models
    held = holds(models.total(), models, dict(enumerate(selector.model_shares)))
    return Sizes(
        {name: _capped_size(selector, name) for name in sizes.capped},
        {name: _mixed_size(selector, name, first) for name in sizes.mixed},
        sizes.total if held else below(models.total()),
    )


def _capped_size(selector: _Selector, turn: str) -> float:
    got, said = selector.by_turn[turn]
    held = holds(got.total(), got, _largest_shares(selector.settings, turn))
    held &= holds(got.total(), {0: said}, {0: selector.settings.answers_cap})
    return selector.sizes.capped[turn] if held else below(got.total())


def _mixed_size(selector: _Selector, turn: str, first: bool) -> float:
    got, size, wanted = selector.by_turn[turn][0], selector.sizes.mixed[turn], selector.wanted(turn)
    if selector.settings.fill:  # twice the share of what there is, not of a quota out of reach
        missed = wanted and first and is_missed(got.total(), size)
        return float(got.total()) if missed else size
    # Without `fill` as many as that error type gives which comes to its end first.
    largest, capped = _largest_shares(selector.settings, turn), selector.sizes.capped[turn]
    rooms = {e: min(room(wanted[e], size), room(largest.get(e, 1.0), capped)) for e in wanted}
    short = [e for e in wanted if is_missed(got[e] + 1, rooms[e])]
    return min([size, *(max(1, got[e]) / wanted[e] for e in short)])
