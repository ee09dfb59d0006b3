"""The quickstart's verdict: is the reward model worth more than rules that cost nothing?

    scores of the model, of the blind model (trained without the prompt), and of rules, on the
    same held-out pairs
        --> a table (accuracy in %, a tie counting half), paired intervals, and the answer in words

All intervals are 95%, from a bootstrap over tasks (`metrics.py`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from toolrm_jax.evaluate import PairScores
from toolrm_jax.metrics import credit, estimate, paired_gain
from toolrm_jax.pairs import Row
from toolrm_jax.rules import RULES, BestCombination

_COLUMN = 24  # the longest rule's name and two blanks
MODEL, BLIND = "reward model", "blind model"
COMBINATION = "best combination"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Credits (1 right, 0.5 tie, 0 wrong) of every scorer on every pair, in one order. [n] each."""

    tasks: list[str]
    error_types: list[str]
    credits: dict[str, np.ndarray]

    def table(self) -> str:
        """Accuracy in percent, overall with its interval and per error type."""
        names = list(self.credits)
        width = max(len(kind) for kind in self.error_types) + 2
        head = f"{'':{width}}{'n':>6}" + "".join(f"{name:>{_COLUMN}}" for name in names)
        overall = f"{'all':{width}}{len(self.tasks):>6,}"
        for name in names:
            overall += f"{100 * self.credits[name].mean():>{_COLUMN}.1f}"
        spread = f"{'  95% interval':{width}}{'':>6}"
        for name in names:
            found = estimate(self.credits[name], self.tasks)
            spread += f"{f'{100 * found.low:.1f}-{100 * found.high:.1f}':>{_COLUMN}}"
        ties = f"{'  ties':{width}}{'':>6}"
        for name in names:
            ties += f"{int((self.credits[name] == 0.5).sum()):>{_COLUMN},}"
        rows = [self._row(kind, width) for kind in self._kinds()]
        return "\n".join([head, overall, spread, ties, *rows])

    def _kinds(self) -> list[str]:
        """Error types, the most frequent first."""
        kinds, counts = np.unique(self.error_types, return_counts=True)
        return [str(kind) for _, kind in sorted(zip(-counts, kinds, strict=True))]

    def _row(self, kind: str, width: int) -> str:
        chosen = np.array([k == kind for k in self.error_types])
        values = "".join(f"{100 * c[chosen].mean():>{_COLUMN}.1f}" for c in self.credits.values())
        return f"{kind:{width}}{chosen.sum():>6,}{values}"

    def words(self) -> str:
        """Whether the model beats each of the others, by the paired interval of its gain."""
        lines = []
        for name in self.credits:
            if name == MODEL:
                continue
            gain = paired_gain(self.credits[MODEL], self.credits[name], self.tasks)
            outcome = "beats" if gain.low > 0 else "loses to" if gain.high < 0 else "is level with"
            what = _WHAT.get(name, f"the rule '{name}'")
            lines.append(
                f"The reward model {outcome} {what}: "
                f"{100 * gain.mean:+.1f} points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]."
            )
        return "\n".join(lines)


_WHAT = {
    BLIND: "the blind model (the same model, trained without tools and conversation)",
    COMBINATION: "the best combination of rules (fitted on the training pairs)",
}


def compare(
    model: PairScores, blind: PairScores, train: Sequence[Row], heldout: Sequence[Row]
) -> Verdict:
    """Puts the model beside the blind model and the rules, on the pairs that both models scored."""
    rows = {row["id"]: row for row in heldout}
    both = _by_pair(model).keys() & _by_pair(blind).keys()
    order = [key for key in _by_pair(model) if key in both]
    pairs = [(rows[task], rows[task]["rejected"][number]) for task, number in order]
    credits = {
        MODEL: credit(np.array([_by_pair(model)[key] for key in order])),
        BLIND: credit(np.array([_by_pair(blind)[key] for key in order])),
    }
    for name, rule in {**RULES, COMBINATION: BestCombination.fit(train).score}.items():
        margins = [rule(row, row["chosen"]) - rule(row, wrong["response"]) for row, wrong in pairs]
        credits[name] = credit(np.array(margins))
    return Verdict(
        [task for task, _ in order], [wrong["error_type"] for _, wrong in pairs], credits
    )


def _by_pair(scores: PairScores) -> dict[tuple[str, int], float]:
    """Margins by (task, number of the wrong response)."""
    return dict(zip(zip(scores.tasks, scores.numbers, strict=True), scores.margins, strict=True))
