"""What was built: the mix wanted and got, what the judge discarded, what length gives away.

train: 2,811 prompts, 8,131 wrong responses
  error type                 wanted    got   right is longer
  Parameter value error       43.3%  43.3%             50.1%

print(report.table()); json.dump(report.to_json(), file)
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from toolrm_jax.examples import Response
from toolrm_jax.task_view import response_length
from toolrm_jax.tool_calls import ErrorType


@dataclasses.dataclass
class SideReport:
    """One side of the split: its tasks, its error mix, and its lengths per error type."""

    task_ids: list[str] = dataclasses.field(default_factory=list)
    wanted: dict[ErrorType, float] = dataclasses.field(default_factory=dict)
    got: collections.Counter[ErrorType] = dataclasses.field(default_factory=collections.Counter)
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # A side of equal length counts half.
    right_longer: collections.defaultdict[ErrorType, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )
    # Of the pairs in which one side calls nothing and the other something: which one is right.
    silence: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    no_call_tasks: int = 0
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def count(self, kind: str, error: ErrorType, right: Response, wrong: Response) -> None:
        """One more pair."""
        difference = response_length(right) - response_length(wrong)
        self.got[error] += 1
        self.kinds[kind] += 1
        self.right_longer[error] += 0.5 if not difference else float(difference > 0)
        if error == ErrorType.CALL_COUNT and isinstance(right, str) != isinstance(wrong, str):
            self.silence["silent" if isinstance(right, str) else "calling"] += 1

    @property
    def wrong(self) -> int:
        """How many wrong responses there are."""
        return self.got.total()

    def share_right_longer(self, error: ErrorType) -> float:
        """In what share of the pairs of this error type the right side is the longer."""
        return self.right_longer[error] / self.got[error] if self.got[error] else float("nan")


@dataclasses.dataclass
class PairReport:
    """Both sides, and how many corruptions of each kind were made and discarded."""

    train: SideReport = dataclasses.field(default_factory=SideReport)
    heldout: SideReport = dataclasses.field(default_factory=SideReport)
    made: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    discarded: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # Tasks that were not even split, by reason; a reader's own counts may be added.
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def discard_rate(self, kind: str) -> float:
        """The share of the kind's corruptions that were not what they were made to be."""
        return self.discarded[kind] / self.made[kind] if self.made[kind] else 0.0

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain JSON."""
        return {
            "train": _side_json(self.train),
            "heldout": _side_json(self.heldout),
            "left_out": dict(self.left_out),
            "discarded": {
                kind: {"made": count, "discarded": self.discarded[kind]}
                for kind, count in sorted(self.made.items())
            },
        }

    def table(self) -> str:
        """The report as text."""
        lines = []
        for name, side in (("train", self.train), ("held-out", self.heldout)):
            lines.append(
                f"{name}: {len(side.task_ids):,} prompts ({side.no_call_tasks:,} call nothing),"
                f" {side.wrong:,} wrong responses{_counts(side.left_out, '; left out: ')}"
            )
            lines.append(f"  {'error type':34}{'wanted':>8}{'got':>8}{'n':>8}  right is longer")
            for error, share in sorted(side.wanted.items(), key=lambda item: -item[1]):
                got = side.got[error] / max(1, side.wrong)
                longer = side.share_right_longer(error)
                lines.append(
                    f"  {error:34}{share:8.1%}{got:8.1%}{side.got[error]:8,}  {longer:15.1%}"
                )
            right = side.silence
            lines.append(
                f"  calling nothing against calling: the silent side is right {right['silent']:,}"
                f" times, the calling side {right['calling']:,} times"
            )
        lines.append(
            f"left out{_counts(self.left_out, ': ')}" if self.left_out else "left out: none"
        )
        total = self.discarded.total() / max(1, self.made.total())
        lines.append(f"discarded by the judge: {total:.2%} of {self.made.total():,} made")
        for kind in sorted(+self.discarded, key=lambda kind: -self.discard_rate(kind)):
            rate, made = self.discard_rate(kind), self.made[kind]
            lines.append(f"  {kind:34}{rate:8.2%}  ({self.discarded[kind]:,} of {made:,})")
        return "\n".join(lines)


def _counts(counts: Mapping[str, int], before: str) -> str:
    return before + ", ".join(f"{n:,} {why}" for why, n in counts.items()) if counts else ""


def _side_json(side: SideReport) -> dict[str, Any]:
    return {
        "task_ids": side.task_ids,
        "no_call_tasks": side.no_call_tasks,
        "left_out": dict(side.left_out),
        "silence": dict(side.silence),
        "kinds": dict(sorted(side.kinds.items())),
        "error_types": {
            str(error): {
                "wanted": share,
                "got": side.got[error],
                "right_longer": side.right_longer[error] / max(1, side.got[error]),
            }
            for error, share in side.wanted.items()
        },
    }
