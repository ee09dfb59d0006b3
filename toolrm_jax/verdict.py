"""The quickstart's verdict: is the reward model worth more than rules that cost nothing?

    scores of the model, of the blind model (trained without the prompt), and of rules, on the
    same held-out pairs
        --> a table (accuracy in %, a tie counting half), paired intervals, and the answer in words

All intervals are 95%, from a bootstrap over tasks (`metrics.py`).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from toolrm_jax.metrics import Estimate, credit, estimate, paired_gain
from toolrm_jax.pair_scores import PairScores
from toolrm_jax.pairs import Row
from toolrm_jax.rules import RULES, BestCombination

MODEL, BLIND = "reward model", "blind model"
COMBINATION = "best combination"

# Headings, so that the table fits into 120 columns; the words below it say the names in full.
_HEADINGS = {
    MODEL: MODEL,
    BLIND: "blind",
    "schema-valid wins": "schema",
    "longer wins": "longer",
    "verbatim arguments win": "verbatim",
    "more calls win": "calls",
    COMBINATION: "combined",
}
_NARROW, _WIDE = 10, 18  # "65.2-70.7" and "67.9 [65.2-70.7]", with a blank before


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Credits (1 right, 0.5 tie, 0 wrong) of every scorer on every pair, in one order. [n] each."""

    tasks: list[str]
    error_types: list[str]
    credits: dict[str, np.ndarray]
    unshared: int = 0  # pairs left out because only one of the two models scored them
    over_long: int | None = None  # held-out prompts that no row could hold; None: not known

    def table(self) -> str:
        """Accuracy in percent, overall and per error type, and under it what was left out."""
        everything = np.ones(len(self.tasks), bool)
        kinds = np.asarray(self.error_types)
        lines = [
            self._line("", "n", lambda name: _HEADINGS.get(name, name[: _NARROW - 1])),
            self._line("all", f"{len(self.tasks):,}", self._accuracy(everything)),
            self._line("  95% interval", "", self._interval),
            self._line("  ties", "", lambda name: f"{(self.credits[name] == 0.5).sum():,}"),
        ]
        for kind in self._kinds():
            chosen = kinds == kind
            label = kind or "(no error type)"
            lines.append(self._line(label, f"{chosen.sum():,}", self._accuracy(chosen)))
        return "\n".join([*lines, *self._left_out()])

    def _line(self, label: str, count: str, cell: Callable[[str], str]) -> str:
        """One row of the table: the reward model's column is the wide one."""
        label_width = max(14, *(len(kind) for kind in self.error_types)) + 1
        cells = (f"{cell(name):>{_WIDE if name == MODEL else _NARROW}}" for name in self.credits)
        return f"{label:{label_width}}{count:>6}{''.join(cells)}"

    def _accuracy(self, chosen: np.ndarray) -> Callable[[str], str]:
        """Cells of the chosen pairs: the mean, with its interval for the reward model."""
        tasks = list(itertools.compress(self.tasks, chosen))

        def cell(name: str) -> str:
            credits = self.credits[name][chosen]
            if name != MODEL:
                return f"{100 * credits.mean():.1f}"
            found = estimate(credits, tasks)
            return f"{100 * found.mean:.1f} [{_range(found)}]"

        return cell

    def _interval(self, name: str) -> str:
        return "" if name == MODEL else _range(estimate(self.credits[name], self.tasks))

    def _kinds(self) -> list[str]:
        """Error types, the most frequent first."""
        kinds, counts = np.unique(self.error_types, return_counts=True)
        return [str(kind) for _, kind in sorted(zip(-counts, kinds, strict=True))]

    def _left_out(self) -> list[str]:
        said = []
        if self.over_long is not None:
            said.append(f"Left out: {self.over_long:,} held-out prompts too long for the model.")
        if self.unshared:
            # Most often the over-long prompts' own: without its prompt, the answer fits.
            among = ", such prompts' included" if self.over_long else ""
            why = f"only one of the two models scored them{among}"
            said.append(f"Pairs left out because {why}: {self.unshared:,}.")
        return said

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
    model: PairScores,
    blind: PairScores,
    train: Sequence[Row],
    heldout: Sequence[Row],
    over_long: int | None = None,
) -> Comparison:
    """Puts the model beside the blind model and the rules, on the pairs that both models scored.

    over_long: how many held-out prompts no row could hold, where the caller knows; the table says.
    """
    rows = {row["id"]: row for row in heldout}
    margins_of = {MODEL: _by_pair(model), BLIND: _by_pair(blind)}
    order = [pair for pair in margins_of[MODEL] if pair in margins_of[BLIND]]
    if not order:
        raise ValueError("no pair was scored by both models: are these scores of the same rows?")
    pairs = [(rows[task], rows[task]["rejected"][number]) for task, number in order]
    credits = {
        name: credit(np.array([margins[pair] for pair in order]))
        for name, margins in margins_of.items()
    }
    for name, rule in {**RULES, COMBINATION: BestCombination.fit(train).score}.items():
        margins = [rule(row, row["chosen"]) - rule(row, wrong["response"]) for row, wrong in pairs]
        credits[name] = credit(np.array(margins))
    return Comparison(
        tasks=[task for task, _ in order],
        error_types=[wrong.get("error_type") or "" for _, wrong in pairs],
        credits=credits,
        unshared=len(margins_of[MODEL].keys() ^ margins_of[BLIND].keys()),
        over_long=over_long,
    )


def _by_pair(scores: PairScores) -> dict[tuple[str, int], float]:
    """Margins by (task, number of the wrong response)."""
    return dict(zip(zip(scores.tasks, scores.numbers, strict=True), scores.margins, strict=True))


def _range(found: Estimate) -> str:
    # 100 and not 100.0, so that the widest range still has nine characters.
    return "-".join(f"{100 * end:.1f}".replace("100.0", "100") for end in (found.low, found.high))
