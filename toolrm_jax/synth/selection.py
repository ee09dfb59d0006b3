"""Which wrong answers become pairs: quotas, the mix of errors, caps, and lengths that tell nothing.

    judged examples --candidates--> arrays, 30 bytes a candidate --select--> chosen: bool [n]

Examples are taken in the order of a hash of seed and id, irrelevance first (a right turn that calls
nothing), then single, then multi, each until its quota of pairs is reached; of each example:
  1. What models really said comes first, for there is little of it: up to `answers_per_prompt`,
     and up to `answers_cap` of a turn type's quota, whatever its error types and lengths.
  2. Corruptions, up to `wrong_per_prompt` wrong answers together, by the mix over error types that
     is wanted, scarce ones first; what is then lacking is filled from the others (`fill`).
  3. Caps: of an error type (a share of its turn type's quota) and of a model (a share of all).
  4. Length: within a turn type and an error type the right side is longer as often as shorter, but
     for `length_tolerance` of the pairs. A corruption that would tip this is left; one that makes
     up for what models' answers have tipped is preferred; of what cannot be made up for,
     corruptions and then answers are dropped again. Missing optional arguments make an answer
     shorter by nature: such types are named in `any_length`.
  5. The number of arguments is balanced like the length where that can be had; then rarer kinds.
A turn that calls nothing is wrong at most as often as it is right.

The text of no example is held: memory is 30 bytes a candidate and 20 an example, 110 MB for 180,000
examples with 20 candidates each.

    chosen, report = select(candidates, SelectionSettings(quotas={"single": 85_000}))
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.corruptions import KIND_WEIGHTS
from toolrm_jax.examples import Response
from toolrm_jax.pairs import MIX
from toolrm_jax.splits import digest
from toolrm_jax.synth.answer import CORRUPTION, main_model
from toolrm_jax.synth.stage import Row
from toolrm_jax.synth.turn_type import TURN_TYPES
from toolrm_jax.task_view import argument_count, response_length
from toolrm_jax.tool_calls import ErrorType, parse_calls

ERRORS = [str(error) for error in ErrorType]
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
        if self.mix and not sum(self.mix.values()) > 0:
            raise ValueError("mix has no share above 0; leave it empty to take errors as they come")
        for name in ("length_tolerance", "answers_cap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to 1.")


def _known(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{name} has {', '.join(map(repr, unknown))}; expected of: {list(known)}")


# Candidates --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Candidates:
    """Every wrong answer as numbers; `names` are what kinds and models are numbered by."""

    order: np.ndarray  # uint64 [examples]
    turn: np.ndarray  # uint8 [examples] in TURN_TYPES
    silent: np.ndarray  # bool [examples] the right side calls nothing
    first: np.ndarray  # int64 [examples + 1] where an example's candidates begin
    table: np.ndarray  # int32 [n, 6]: error, kind, model, longer, more arguments, silent
    names: list[str]


def right_side(row: Row, seed: int) -> Response:
    """Of a judged example, the right answer that its pairs show: the gold, or a model's own words.

    One as often as the other, so that who wrote an answer does not tell whether it is right.
    """
    number = int(digest(seed, "right", row["id"])[:8], 16)
    models = row["right"]
    return models[number // 2 % len(models)]["response"] if models and number % 2 else row["gold"]


def candidates_of(rows: Iterable[Row], seed: int) -> Candidates:
    """The candidates of judged examples."""
    names: dict[str, int] = {}
    order, turn, silent, first = [], [], [], [0]
    table: list[tuple[int, ...]] = []
    for row in rows:
        right = right_side(row, seed)
        order.append(int(digest(seed, row["id"])[:16], 16))
        turn.append(TURN_TYPES.index(row["turn"]))
        silent.append(_is_silent(right))
        size, given = response_length(right), argument_count(right)
        for wrong in row["wrong"]:
            response = wrong["response"]
            kind = names.setdefault(wrong["kind"], len(names))
            model = names.setdefault(main_model(wrong["models"]), len(names))
            longer = _sign(size - response_length(response))
            more = _sign(given - argument_count(response))
            error = ERRORS.index(wrong["error_type"])
            table.append((error, kind, model, longer, more, _is_silent(response)))
        first.append(len(table))
    return Candidates(
        np.array(order, np.uint64),
        np.array(turn, np.uint8),
        np.array(silent, bool),
        np.array(first, np.int64),
        np.array(table, np.int32).reshape(-1, 6),
        list(names),
    )


def _is_silent(response: Response) -> bool:
    """Does it call nothing, and say so in words or with nothing at all?"""
    return (
        isinstance(response, str) and not parse_calls(response) and response[:1] not in tuple("[{<")
    )


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def merge(parts: Sequence[Candidates]) -> Candidates:
    """All parts, in order, under one numbering of names."""
    names: dict[str, int] = {}
    tables, firsts, at = [], [np.zeros(1, np.int64)], 0
    for part in parts:
        renumber = np.array([names.setdefault(n, len(names)) for n in part.names] or [0], np.int32)
        table = part.table.copy()
        table[:, 1:3] = renumber[table[:, 1:3]]
        tables.append(table)
        firsts.append(part.first[1:] + at)
        at += len(table)
    return Candidates(
        np.concatenate([part.order for part in parts] or [np.zeros(0, np.uint64)]),
        np.concatenate([part.turn for part in parts] or [np.zeros(0, np.uint8)]),
        np.concatenate([part.silent for part in parts] or [np.zeros(0, bool)]),
        np.concatenate(firsts),
        np.concatenate(tables) if tables else np.zeros((0, 6), np.int32),
        list(names),
    )


# Choosing ----------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Wrong:
    """One candidate, unpacked."""

    index: int
    error: int
    kind: int
    model: int
    longer: int
    more: int
    silent: int


class _Selector:
    """The state of a selection: what is chosen, and the balances that it keeps."""

    def __init__(self, candidates: Candidates, settings: SelectionSettings):
        self.found, self.settings = candidates, settings
        self.chosen = np.zeros(len(candidates.table), bool)
        self.per_example = np.zeros(len(candidates.turn), np.int32)
        self.kinds: collections.Counter[int] = collections.Counter()
        self.models: collections.Counter[int] = collections.Counter()
        self.answering = False  # whether what models said is being taken
        self.missing: dict[int, float] = {}  # pairs that the mix still wants, by error type
        # Examples not yet seen that offer the error type; empty where the mix is not looked at.
        self.chances: collections.Counter[int] = collections.Counter()
        self.silence = 0  # how much oftener silence is right than wrong
        self.left: collections.Counter[str] = collections.Counter()
        weights = [KIND_WEIGHTS.get(name, 1.0) for name in candidates.names]
        self.weights = weights
        self.is_corruption = [name == CORRUPTION for name in candidates.names]
        total = sum(settings.quotas.values())
        self.model_room = [
            total * settings.model_caps.get(name, settings.model_cap) for name in candidates.names
        ]
        self.any_length = {ERRORS.index(name) for name in settings.any_length}

    def run(self) -> None:
        for name in _ORDER:
            quota = self.settings.quotas.get(name, 0)
            if quota:
                self._take_turn_type(TURN_TYPES.index(name), name, quota)

    def _take_turn_type(self, turn: int, name: str, quota: int) -> None:
        ids = np.flatnonzero(self.found.turn == turn)
        ids = ids[np.argsort(self.found.order[ids], kind="stable")]
        self.quota, self.taken = quota, 0
        self.answers_room = round(quota * self.settings.answers_cap)
        self.got: collections.Counter[int] = collections.Counter()
        self.excess: collections.Counter[tuple[int, str]] = collections.Counter()
        caps = self.settings.error_caps
        self.error_room = [quota * caps.get(error, 1.0) for error in ERRORS]
        mix = self.settings.mix if name != "irrelevance" else {}
        self._take_answers(ids)
        if mix:
            self._by_mix(ids, mix)
        fill = not mix or self.settings.fill
        if fill:
            self._pass(ids, self._least_taken)
        if self._trim(ids) and fill:
            self._pass(ids, self._least_taken)
        if self.taken < quota:
            self.left[f"{name}: pairs that the quota lacks"] += quota - self.taken

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
            if not any(self._is_tipped(e) for e in range(len(ERRORS))):
                break
            for i in ids[::-1]:
                for w in self._wrongs(i):
                    tips = w.longer * self.excess[w.error, "length"] > 0
                    is_chosen = self.chosen[w.index] and self.is_corruption[w.model] != of_models
                    if is_chosen and tips and self._is_tipped(w.error):
                        self._take(i, w, -1)
        if self.taken < before:
            self.left["chosen and dropped again, for their lengths"] += before - self.taken
        return self.taken < before

    def _is_tipped(self, error: int) -> bool:
        return error not in self.any_length and abs(
            self.excess[error, "length"]
        ) > self._length_room(error)

    def _by_mix(self, ids: np.ndarray, mix: Mapping[str, float]) -> None:
        counts = np.diff(self.found.first)[ids]
        slots = min(self.quota, int(np.minimum(counts, self.settings.wrong_per_prompt).sum()))
        total = sum(mix.values())
        self.missing = {
            e: mix.get(name, 0.0) / total * slots - self.got[e] for e, name in enumerate(ERRORS)
        }
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
        return [_Wrong(start + j, *row) for j, row in enumerate(rows)]

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
        if wrong.silent and self.silence <= 0:
            return False
        if self.got[error] + 1 > self.error_room[error]:
            return False
        if self.models[wrong.model] + 1 > self.model_room[wrong.model]:
            return False
        if not self.is_corruption[wrong.model] and self.answers_room <= 0:
            return False
        return self.answering or self._keeps_length(wrong)

    def _keeps_length(self, wrong: _Wrong) -> bool:
        if not wrong.longer or wrong.error in self.any_length:
            return True
        excess = self.excess[wrong.error, "length"]
        return excess * wrong.longer < 0 or abs(excess + wrong.longer) <= self._length_room(
            wrong.error
        )

    def _length_room(self, error: int) -> float:
        return max(1.0, self.settings.length_tolerance * self.got[error])

    def _cost(self, wrong: _Wrong, used: set[int]) -> tuple[float, ...]:
        length = wrong.longer * _sign(self.excess[wrong.error, "length"])
        more = wrong.more * _sign(self.excess[wrong.error, "arguments"])
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
            self.answers_room -= times
        self.excess[wrong.error, "length"] += times * wrong.longer
        self.excess[wrong.error, "arguments"] += times * wrong.more
        if wrong.error == _CALL_COUNT:
            self.silence += times * (int(self.found.silent[i]) - wrong.silent)


_CALL_COUNT = ERRORS.index(str(ErrorType.CALL_COUNT))


def select(
    candidates: Candidates, settings: SelectionSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """(chosen: bool [candidates], the report as JSON)."""
    selector = _Selector(candidates, settings)
    selector.run()
    return selector.chosen, _report(candidates, selector.chosen, settings, selector.left)


# The report --------------------------------------------------------------------------------------


def _report(
    candidates: Candidates,
    chosen: np.ndarray,
    settings: SelectionSettings,
    left: Mapping[str, int],
) -> dict[str, Any]:
    """What there was and what was taken, by turn type, error type, kind and model."""
    turn_N = np.repeat(candidates.turn, np.diff(candidates.first))
    everything = np.ones(len(chosen), bool)
    wanted = sum(settings.mix.values())
    by_turn = {}
    for number, name in enumerate(TURN_TYPES):
        here = turn_N == number
        by_turn[name] = {
            "quota": settings.quotas.get(name, 0),
            "candidates": int(here.sum()),
            "pairs": int((here & chosen).sum()),
            "error_types": {
                error: {
                    "wanted": settings.mix.get(error, 0.0) / wanted if wanted else None,
                    "before": about,
                    "after": _lengths(candidates, here & chosen, e),
                }
                for e, error in enumerate(ERRORS)
                if (about := _lengths(candidates, here, e))["pairs"]
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
        "lacking": dict(left),
    }


def _lengths(candidates: Candidates, among: np.ndarray, error: int) -> dict[str, Any]:
    """How many, and in what share the right side is the longer one (equal ones count half)."""
    longer = candidates.table[among & (candidates.table[:, 0] == error), 3]
    share = float((longer.mean() + 1) / 2) if len(longer) else None
    return {"pairs": len(longer), "right_longer": share}


def _counted(candidates: Candidates, chosen: np.ndarray, column: int) -> dict[str, int]:
    numbers, counts = np.unique(candidates.table[chosen, column], return_counts=True)
    found = {candidates.names[n]: int(c) for n, c in zip(numbers, counts, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


# Rows --------------------------------------------------------------------------------------------


def pair_rows(
    example: Row, judged: Row, chosen: Sequence[bool], *, seed: int, k_way: bool
) -> Iterator[Row]:
    """The rows of one example for the loader: one with all its wrong answers, or one for each."""
    wrongs = [wrong for wrong, taken in zip(judged["wrong"], chosen, strict=True) if taken]
    if not wrongs:
        return
    row = {
        "id": example["id"],
        "source": example["source"],
        "license": example["license"],
        "turn": judged["turn"],
        "tools": example["tools"],
        "messages": example["messages"],
        "chosen": right_side(judged, seed),
    }
    rejected = [
        {
            "response": wrong["response"],
            "error_type": wrong["error_type"],
            "kind": wrong["kind"],
            "model": main_model(wrong["models"]),
            "license": wrong["license"],
            "count": wrong["count"],
        }
        for wrong in wrongs
    ]
    if k_way:
        yield row | {"rejected": rejected}
        return
    for number, wrong in enumerate(rejected):
        yield row | {"id": f"{row['id']}#{number}", "rejected": [wrong]}
