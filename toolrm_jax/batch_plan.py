"""Which examples, in which shape, at which step: the batch plan, a pure function.

    token lengths of every example, seed, epoch
        --plan_epoch-->  [Step(shape, micro-batches x rows of example ids)]

Every process computes the same plan from the same index of lengths and then takes its own rows of
each micro-batch, so no two processes can disagree on a shape (which would hang a pod), and the
state of the loader is one number: the next global step. Rejecting, bucketing and packing all happen
here.

Packing: within a window of examples the longest are placed first, each into the fullest row that
still has room, of whatever shape (best-fit decreasing); where none has, a row of the shortest shape
that holds it is opened. Rows left open take in the next window's. Long rows are thus topped up with
short examples: shapes that keep to themselves cost 13% of the tokens with two and 30% with three.

At an epoch's end, what does not fill a step of a shorter shape moves into rows of the longest, and
its last step is completed with empty rows: less than one step of padding an epoch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from toolrm_jax.batch import RowShape


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The sizes of every example, int [n] each."""

    tokens: np.ndarray  # the prompt once, and all responses
    responses: np.ndarray  # how many there are

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, ids: np.ndarray) -> "Lengths":
        """Those of some examples alone."""
        return Lengths(self.tokens[ids], self.responses[ids])


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """How batches are cut.

    Attributes:
      shapes: the row shapes, any order; one compilation each.
      batch_tokens: tokens of a micro-batch over all processes; a shape gets as many rows as fit.
      micro_batches: micro-batches accumulated per step.
      row_multiple: a micro-batch's rows are a multiple of this (the mesh's number of row shards).
      window: examples that are sorted by length before they are packed.
    """

    shapes: tuple[RowShape, ...]
    batch_tokens: int
    micro_batches: int = 1
    row_multiple: int = 1
    window: int = 256

    def __post_init__(self):
        if not self.shapes:
            raise ValueError("plan.shapes is empty: give at least one (tokens, responses).")
        if min(self.batch_tokens, self.micro_batches, self.row_multiple, self.window) < 1:
            raise ValueError(
                "plan.batch_tokens, micro_batches, row_multiple and window must be at least 1."
            )

    def rows(self, shape: RowShape) -> int:
        """Rows of a micro-batch of this shape: what the budget allows, at least one per shard."""
        return max(self.batch_tokens // shape.tokens // self.row_multiple, 1) * self.row_multiple


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step: micro-batches of rows, each a tuple of example ids (empty: padding)."""

    shape: RowShape
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]

    def examples(self) -> list[int]:
        """Ids of the step's examples, in order."""
        return [i for rows in self.micro_batches for row in rows for i in row]


def too_long(lengths: Lengths, shapes: Sequence[RowShape]) -> np.ndarray:
    """Ids of the examples that fit no shape (tokens, responses)."""
    return np.flatnonzero(~_fits(lengths, shapes))


def plan_epoch(
    lengths: Lengths, config: PlanConfig, seed: int, epoch: int, shuffle: bool = True
) -> list[Step]:
    """All steps of an epoch. Every example that fits a shape is in exactly one row."""
    shapes = sorted(config.shapes, key=lambda shape: shape.tokens)
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    order = order[_fits(lengths, shapes)[order]]
    packed = _join_tails(_pack(order, lengths, shapes, config.window), lengths, config)
    steps = []
    for shape in shapes:
        rows = packed[shape]
        if shuffle:  # packing works by length; a step must not be of long examples alone
            rows = [rows[i] for i in random.permutation(len(rows))]
        steps += _cut(rows, shape, config)
    if shuffle:
        steps = [steps[i] for i in random.permutation(len(steps))]
    return steps


def padding_share(steps: Sequence[Step], lengths: Lengths, config: PlanConfig) -> float:
    """The share of the computed tokens that is padding."""
    computed = sum(
        config.micro_batches * config.rows(step.shape) * step.shape.tokens for step in steps
    )
    useful = sum(int(lengths.tokens[step.examples()].sum()) for step in steps)
    return 1.0 - useful / max(computed, 1)


def process_rows(rows: int, process: int, processes: int) -> slice:
    """The rows of a micro-batch that this process reads: a contiguous, equal share."""
    if rows % processes:
        raise ValueError(f"{rows} rows do not divide among {processes} processes.")
    share = rows // processes
    return slice(process * share, (process + 1) * share)


def _fits(lengths: Lengths, shapes: Sequence[RowShape]) -> np.ndarray:
    """Which examples fit at least one of the shapes."""
    fits = np.zeros(len(lengths), bool)
    for shape in shapes:
        fits |= (lengths.tokens <= shape.tokens) & (lengths.responses <= shape.responses)
    return fits


class _OpenRows:
    """Rows being filled: each example goes into the fullest one that has room, or opens one."""

    def __init__(self, lengths: Lengths, shapes: Sequence[RowShape]):
        self.lengths, self.shapes = lengths, shapes  # the shapes from short to long
        self.rows: dict[RowShape, list[list[int]]] = {shape: [] for shape in shapes}
        self._open: list[list[int]] = []
        self._room = np.empty((0, 2), np.int64)  # tokens and responses left in each open row

    def reopen(self, rows: list[tuple[int, ...]], shape: RowShape) -> None:
        """Takes in rows that were filled before."""
        self.rows[shape] = [list(row) for row in rows]
        self._open = [*self.rows[shape]]
        used = [(self.lengths.tokens[r].sum(), self.lengths.responses[r].sum()) for r in self._open]
        self._room = np.array((shape.tokens, shape.responses)) - np.array(used).reshape(-1, 2)

    def add(self, ids: np.ndarray) -> None:
        """Places these examples, the longest first."""
        for i in ids[np.argsort(-self.lengths.tokens[ids], kind="stable")]:
            need = (self.lengths.tokens[i], self.lengths.responses[i])
            fitting = np.flatnonzero((self._room >= need).all(axis=1))
            if len(fitting):
                at = fitting[np.argmin(self._room[fitting, 0])]
            else:
                at = self._new_row(need)
            self._open[at].append(int(i))
            self._room[at] -= need

    def _new_row(self, need: tuple[int, int]) -> int:
        shape = next(s for s in self.shapes if s.tokens >= need[0] and s.responses >= need[1])
        row: list[int] = []
        self.rows[shape].append(row)
        self._open.append(row)
        self._room = np.vstack([self._room, (shape.tokens, shape.responses)])
        return len(self._open) - 1

    def close_all_but(self, most: int) -> None:
        """Leaves the emptiest rows open.

        Rows nearly full would only be searched in vain; and a search over ever more rows would take
        minutes for 180,000 examples.
        """
        still = np.flatnonzero((self._room > (self.shapes[0].tokens // 20, 0)).all(axis=1))
        still = np.sort(still[np.argsort(-self._room[still, 0], kind="stable")[:most]])
        self._room, self._open = self._room[still], [self._open[k] for k in still]


Packed = dict[RowShape, list[tuple[int, ...]]]


def _pack(ids: np.ndarray, lengths: Lengths, shapes: Sequence[RowShape], window: int) -> Packed:
    """Best-fit decreasing of the examples, window by window."""
    opened = _OpenRows(lengths, shapes)
    for start in range(0, len(ids), window):
        opened.add(ids[start : start + window])
        opened.close_all_but(window)
    return {shape: [tuple(row) for row in rows] for shape, rows in opened.rows.items()}


def _join_tails(packed: Packed, lengths: Lengths, config: PlanConfig) -> Packed:
    """The emptiest rows of shorter shapes, which fill no step, moved into rows of the longest."""
    *shorter, longest = packed
    moved: list[int] = []
    for shape in shorter if packed[longest] else ():
        over = len(packed[shape]) % (config.rows(shape) * config.micro_batches)
        used = [lengths.tokens[list(row)].sum() for row in packed[shape]]
        gone = set(np.argsort(used, kind="stable")[:over].tolist())
        tail = [i for number in sorted(gone) for i in packed[shape][number]]
        if not _fits(lengths.take(np.array(tail, int)), [longest]).all():
            continue  # it is longer, but takes fewer responses
        packed[shape] = [row for number, row in enumerate(packed[shape]) if number not in gone]
        moved += tail
    if moved:
        opened = _OpenRows(lengths, [longest])
        opened.reopen(packed[longest], longest)
        opened.add(np.array(moved))
        packed[longest] = [tuple(row) for row in opened.rows[longest]]
    return packed


def _cut(rows: list[tuple[int, ...]], shape: RowShape, config: PlanConfig) -> list[Step]:
    """Rows into steps of micro_batches x rows; the last one is completed with empty rows."""
    per_batch = config.rows(shape)
    per_step = per_batch * config.micro_batches
    steps = []
    for start in range(0, len(rows), per_step):
        chunk = rows[start : start + per_step]
        chunk += [()] * (per_step - len(chunk))
        # Dealt out in turn, so that a short last step still has examples in every micro-batch.
        batches = tuple(
            tuple(chunk[m :: config.micro_batches]) for m in range(config.micro_batches)
        )
        steps.append(Step(shape, batches))
    return steps
