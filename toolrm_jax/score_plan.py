"""How a window of sequences is scored: shared prefixes, rows, batches. Pure functions.

    sequences --share--> groups --pack--> rows of a few static shapes --cut--> batches
                                                                               fill -> Batch

The same window gives the same batches, whatever was scored before it: a job that is killed and run
again ends with equal bytes. Rewards do not depend on the plan beyond rounding.

A token costs the same in every row, since attention looks at its own prompt only; but long groups
fill short rows badly, and a row that is not full is padding. So every window is packed with several
choices of shapes, and the cheapest is taken. Batches have the full height (rows) of their shape, or
a quarter of it, and so on, so that the last rows of a window are not completed with empty ones.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from toolrm_jax.batch import Batch, RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.batch_plan import Lengths, PlanConfig, plan_epoch
from toolrm_jax.prefix_sharing import Group, share

# Rows have room for a response in every so many tokens; a slot costs next to nothing.
TOKENS_PER_RESPONSE = 8
# What starting a batch costs, in tokens.
_BATCH_COST = 64


@dataclasses.dataclass(frozen=True)
class ScorePlan:
    """The sizes of everything that is compiled.

    Attributes:
      max_tokens: the longest sequence, and the longest row.
      batch_tokens: tokens of a batch over all devices; a shape gets as many rows as fit.
      row_multiple: rows of a batch are a multiple of this (the mesh's number of row shards).
      min_row: the shortest row; then come 1.5, 2, 3, 4, 6, ... times as many tokens.
      equal_work: the length of a group at which attention costs as much as all the rest.
      max_padding: a choice of rows with more padding is taken only where there is none with less.
    """

    max_tokens: int
    batch_tokens: int
    row_multiple: int = 1
    min_row: int = 256
    equal_work: float = 8192.0
    max_padding: float = 0.08

    def __post_init__(self):
        if min(self.max_tokens, self.batch_tokens, self.row_multiple, self.min_row) < 1:
            raise ValueError(
                f"max_tokens={self.max_tokens}, batch_tokens={self.batch_tokens}, row_multiple="
                f"{self.row_multiple}, min_row={self.min_row}: each must be at least 1."
            )

    @functools.cached_property
    def shapes(self) -> tuple[RowShape, ...]:
        """The row shapes, shortest first; the last one holds max_tokens."""
        lengths = [self.min_row]
        while lengths[-1] < self.max_tokens:
            lengths.append(lengths[-1] * 3 // 2 if len(lengths) % 2 else lengths[-2] * 2)
        lengths[-1] = max(self.max_tokens, self.min_row)
        return tuple(RowShape(n, max(n // TOKENS_PER_RESPONSE, 1)) for n in sorted({*lengths}))

    def heights(self, shape: RowShape) -> list[int]:
        """The numbers of rows that a batch of this shape may have, highest first."""
        unit = self.row_multiple
        found = [max(self.batch_tokens // shape.tokens // unit, 1)]
        while found[-1] > 1:
            found.append(max(found[-1] // 4, 1))
        return [unit * height for height in found]

    def programs(self) -> list[tuple[RowShape, int]]:
        """Every (shape, height) that may have to be compiled."""
        return [(shape, height) for shape in self.shapes for height in self.heights(shape)]

    def token_cost(self, shape: RowShape) -> float:
        """What a token costs in a group that fills a row of this shape, in tokens that attend to
        nothing: a response looks back over its siblings, which are masked."""
        return 1 + shape.tokens / self.equal_work


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Rows of one shape; a row is the numbers of the groups in it (none: padding)."""

    shape: RowShape
    rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """How many tokens a window has, by how they are counted; windows add up."""

    responses: int = 0
    sequence_tokens: int = 0  # of all sequences, one by one
    distinct_tokens: int = 0  # with shared prefixes counted once
    computed_tokens: int = 0  # the same and padding

    def __add__(self, other: "Work") -> "Work":
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Work(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def prefix_share(self) -> float:
        """The share of the sequences' tokens that need not be computed again."""
        return _share_left(self.distinct_tokens, self.sequence_tokens)

    @property
    def padding_share(self) -> float:
        """The share of the computed tokens that is padding."""
        return _share_left(self.distinct_tokens, self.computed_tokens)


def _share_left(part: int, whole: int) -> float:
    return 1 - part / whole if whole else 0.0


@dataclasses.dataclass(frozen=True)
class Window:
    """Sequences that were planned together: their groups, and the batches those go in."""

    groups: tuple[Group, ...]
    items: tuple[TokenizedPrompt, ...]  # the groups' tokens
    batches: tuple[PlannedBatch, ...]

    @functools.cached_property
    def work(self) -> Work:
        return sum(map(self.work_of, self.batches), Work())

    def work_of(self, batch: PlannedBatch) -> Work:
        """A batch's part of the window's work."""
        numbers = [number for row in batch.rows for number in row]
        sequences = [  # (how many are the same, their tokens)
            (len(same), len(self.items[number].prompt) + len(response))
            for number in numbers
            for same, response in zip(
                self.groups[number].branches, self.items[number].responses, strict=True
            )
        ]
        return Work(
            responses=sum(same for same, _ in sequences),
            sequence_tokens=sum(same * tokens for same, tokens in sequences),
            distinct_tokens=sum(self.items[number].tokens for number in numbers),
            computed_tokens=len(batch.rows) * batch.shape.tokens,
        )

    def fill(self, batch: PlannedBatch) -> Batch:
        """The batch's arrays, on the host."""
        filled = empty_batch(len(batch.rows), batch.shape)
        for row, numbers in enumerate(batch.rows):
            place(filled, row, [self.items[number] for number in numbers])
        return filled

    def scatter(self, batch: PlannedBatch, rewards_BM: np.ndarray, out: np.ndarray) -> None:
        """Writes a batch's rewards to the places of the sequences that they belong to."""
        for numbers, rewards_M in zip(batch.rows, rewards_BM, strict=True):
            branches = [same for number in numbers for same in self.groups[number].branches]
            for same, reward in zip(branches, rewards_M, strict=False):
                out[list(same)] = reward


def plan_window(sequences: Sequence[np.ndarray], plan: ScorePlan) -> Window:
    """Plans the scoring of these sequences, none of which is longer than plan.max_tokens."""
    groups = [part for group in share(sequences) for part in _fitted(group, sequences, plan)]
    items = tuple(group.item(sequences) for group in groups)
    return Window(tuple(groups), items, tuple(_cheapest(items, plan)))


def _fitted(group: Group, sequences: Sequence[np.ndarray], plan: ScorePlan) -> list[Group]:
    """The group, cut for the row length at which computing all of its parts costs least."""
    longest = max(len(sequences[same[0]]) for same in group.branches)
    choices: list[tuple[float, int, list[Group]]] = []
    for shape in plan.shapes:
        if shape.tokens >= longest:
            parts = group.parts(sequences, shape.tokens, shape.responses)
            tokens = sum(part.tokens(sequences) for part in parts)
            choices.append((tokens * plan.token_cost(shape), len(choices), parts))
            if len(parts) == 1:
                break  # longer rows only cost more
    if not choices:
        raise ValueError(f"A sequence of {longest} tokens; at most {plan.max_tokens} fit a row.")
    return min(choices)[2]


def _cheapest(items: Sequence[TokenizedPrompt], plan: ScorePlan) -> list[PlannedBatch]:
    """The batches under the choice of shapes that costs least, of those with little padding."""
    lengths = Lengths(
        np.array([item.tokens for item in items], np.int64),
        np.array([len(item.responses) for item in items], np.int64),
    )
    packed = [_pack(lengths, shapes) for shapes in _choices(lengths, plan.shapes)]
    packed += [_shrunk(rows, lengths, plan.shapes) for rows in packed]
    found = [_batches(rows, plan) for rows in packed]
    useful = int(lengths.tokens.sum())

    def rank(batches: list[PlannedBatch]) -> tuple[bool, float]:
        computed = sum(len(batch.rows) * batch.shape.tokens for batch in batches)
        return computed * (1 - plan.max_padding) > useful, _cost(batches, plan)

    return min(found, key=rank)


def _choices(lengths: Lengths, shapes: tuple[RowShape, ...]) -> list[tuple[RowShape, ...]]:
    """Sets of shapes to try: one for most rows, perhaps the next, and one that holds the longest
    group, or the shape after that, which may pack better."""
    enough = next(number for number, shape in enumerate(shapes) if _holds(shape, lengths))
    choices = {
        tuple(sorted({shapes[main], *shapes[main + 1 : more], longest}))
        for longest in shapes[enough : enough + 2]
        for main in range(enough + 1)
        for more in (main + 1, main + 2)
        if shapes[main] <= longest
    }
    return sorted(choices)


def _holds(shape: RowShape, lengths: Lengths) -> bool:
    fits = (lengths.tokens <= shape.tokens) & (lengths.responses <= shape.responses)
    return bool(fits.all())


def _cost(batches: Sequence[PlannedBatch], plan: ScorePlan) -> float:
    return sum(len(batch.rows) * batch.shape.tokens + _BATCH_COST for batch in batches)


Rows = dict[RowShape, list[tuple[int, ...]]]


def _pack(lengths: Lengths, shapes: tuple[RowShape, ...]) -> Rows:
    # One row a step: this plan cuts rows into batches by rules of its own.
    config = PlanConfig(shapes, batch_tokens=1, window=1024)
    rows: Rows = {shape: [] for shape in shapes}
    for step in plan_epoch(lengths, config, seed=0, epoch=0, shuffle=False):
        rows[step.shape].append(step.micro_batches[0][0])
    return rows


def _shrunk(rows: Rows, lengths: Lengths, shapes: tuple[RowShape, ...]) -> Rows:
    """Each row in the shortest shape that holds what is in it; most that are not full are last."""
    found: Rows = {shape: [] for shape in shapes}
    for row in (row for same in rows.values() for row in same):
        inside = lengths.take(np.array(row))
        need = Lengths(inside.tokens.sum()[None], inside.responses.sum()[None])
        found[next(shape for shape in shapes if _holds(shape, need))].append(row)
    return found


def _batches(rows: Rows, plan: ScorePlan) -> list[PlannedBatch]:
    return [
        batch for shape in sorted(rows) for batch in _cut(rows[shape], shape, plan.heights(shape))
    ]


def _cut(rows: list[tuple[int, ...]], shape: RowShape, heights: list[int]) -> list[PlannedBatch]:
    """Rows into batches of these heights; only the last batch may have to be completed."""
    total = -(-len(rows) // heights[-1]) * heights[-1]
    rows = rows + [()] * (total - len(rows))
    batches, at = [], 0
    for height in heights:
        while total - at >= height:
            batches.append(PlannedBatch(shape, tuple(rows[at : at + height])))
            at += height
    return batches
