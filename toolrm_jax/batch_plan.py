"""Which examples, in which shape, at which step: the batch plan, a pure function.

    token lengths of every example, seed, epoch
        --plan_epoch-->  [Step(shape, micro-batches x rows of example ids)]

Every process computes the same plan from the same index of lengths and then takes its own rows of
each micro-batch, so no two processes can disagree on a shape (which would hang a pod), and the
state of the loader is one number: the next global step. Rejecting, bucketing and packing all happen
here.

Packing: an example goes to the shortest row shape that holds it. Within a window of examples the
longest are placed first, each into the fullest row that still has room (best-fit decreasing); rows
left open take in the next window's. At an epoch's end the last steps are completed with empty rows.
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
    fits = np.zeros(len(lengths), bool)
    for shape in shapes:
        fits |= _fits(lengths, shape)
    return np.flatnonzero(~fits)


def plan_epoch(
    lengths: Lengths, config: PlanConfig, seed: int, epoch: int, shuffle: bool = True
) -> list[Step]:
    """All steps of an epoch. Every example that fits a shape is in exactly one row."""
    shapes = sorted(config.shapes, key=lambda shape: shape.tokens)
    assigned = np.full(len(lengths), -1)
    for number, shape in reversed(list(enumerate(shapes))):
        assigned[_fits(lengths, shape)] = number
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths)) if shuffle else np.arange(len(lengths))
    steps = []
    for number, shape in enumerate(shapes):
        ids = order[assigned[order] == number]
        rows = _pack(ids, lengths, shape, config.window)
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


def _fits(lengths: Lengths, shape: RowShape) -> np.ndarray:
    return (lengths.tokens <= shape.tokens) & (lengths.responses <= shape.responses)


def _pack(ids: np.ndarray, lengths: Lengths, shape: RowShape, window: int) -> list[tuple[int, ...]]:
    """Best-fit decreasing of examples, window by window, into rows of this shape."""
    rows: list[list[int]] = []
    room = np.empty((0, 2), np.int64)  # tokens and responses left in each row that is still open
    open_rows: list[int] = []
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        for i in part[np.argsort(-lengths.tokens[part], kind="stable")]:
            need = (lengths.tokens[i], lengths.responses[i])
            fitting = np.flatnonzero((room >= need).all(axis=1))
            if len(fitting):
                at = fitting[np.argmin(room[fitting, 0])]
            else:
                at = len(open_rows)
                open_rows.append(len(rows))
                rows.append([])
                room = np.vstack([room, (shape.tokens, shape.responses)])
            rows[open_rows[at]].append(int(i))
            room[at] -= need
        # Rows nearly full would only be searched in vain; and a search over ever more rows would
        # take minutes for 180,000 examples.
        still = np.flatnonzero((room > (shape.tokens // 20, 0)).all(axis=1))
        still = np.sort(still[np.argsort(-room[still, 0], kind="stable")[:window]])
        room, open_rows = room[still], [open_rows[k] for k in still]
    return [tuple(row) for row in rows]


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
