"""What gives candidates a score: reward models, rules that cost nothing, and baselines.

    class Scores:  name, is_log_odds, card, score(cases) -> for each case, scores [candidates]

The candidate with the higher score wins; NaN is a candidate that could not be scored (over-long, no
text that can be rendered), which loses to every other. `is_log_odds`: whether the difference of two
scores is meant as the log-odds that the first is right, so that calibration makes sense. `card`:
what there is to say of a model; rules have none.

    for scores in ModelScorer("runs/quickstart/model/export").score(cases): ...
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, Self

import numpy as np

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cards import model_card
from toolrm_jax.evaluate.cases import Case, Cases, Seen
from toolrm_jax.examples import Response
from toolrm_jax.rules import RULES, BestCombination
from toolrm_jax.score_request import Rejected, Request
from toolrm_jax.scorer import Scorer

Row = dict[str, Any]


class CaseScorer(Protocol):
    """Gives each candidate of a case a score."""

    @property
    def name(self) -> str:
        """In tables."""
        ...

    @property
    def is_log_odds(self) -> bool:
        """See the module."""
        ...

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        """float64 [candidates] of each case, in order; NaN: cannot be scored."""
        ...


class ModelScorer:
    """A reward model; closes with `close()`.

    Attributes:
      about: what its checkpoint says (toolrm.json).
      card: of that what a run keeps, and how the model is computed.
      rejected: how many candidates could not be scored, by reason.
    """

    is_log_odds = True

    def __init__(self, path: str, name: str = "", **options: Any):
        self.name = name or path
        self._scorer = Scorer.from_pretrained(path, **options)
        self.about = self._scorer.about
        config = self._scorer.config
        self.card = {
            **model_card(self.about),
            "path": path,
            "layers": config.num_layers,
            "parameters": config.num_parameters,
            "dtype": options.get("dtype", "bfloat16"),
        }
        self.rejected: dict[str, int] = {}

    @property
    def trained(self) -> Seen:
        """The rows that it was trained on, where its checkpoint lists them."""
        listed = (self.about.get(f"train_{what}") or () for what in ("tasks", "requests"))
        return Seen(*listed)

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        found = self._scorer.score((case.request() for case in cases), errors="return")
        for case, scored in zip(cases, found, strict=True):
            if isinstance(scored, Rejected):
                yield self._one_by_one(case.request())
            else:
                yield scored.rewards.astype(np.float64)

    def _one_by_one(self, request: Request) -> np.ndarray:
        """An answer that cannot be scored does not cost the others theirs."""
        alone = (dataclasses.replace(request, responses=[r]) for r in request.responses)
        rewards = []
        for scored in self._scorer.score(alone, errors="return"):
            if isinstance(scored, Rejected):
                self.rejected[scored.reason] = self.rejected.get(scored.reason, 0) + 1
                rewards.append(np.nan)
            else:
                rewards.append(float(scored.rewards[0]))
        return np.array(rewards)

    def close(self) -> None:
        """Ends its workers."""
        self._scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class RuleScorer:
    """A rule of `rules.py`, or any function of a row and a response."""

    name: str
    rule: Callable[[Row, Response], float]
    is_log_odds: bool = False

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        for case in cases:
            row = case.row()
            yield np.array([self.rule(row, c.response) for c in case.candidates], np.float64)


def cards_of(scorers: Sequence[CaseScorer]) -> dict[str, dict[str, Any]]:
    """The cards of those that have one, by name."""
    cards = {scorer.name: getattr(scorer, "card", None) for scorer in scorers}
    return {name: card for name, card in cards.items() if card}


def rule_scorers() -> list[CaseScorer]:
    """Every rule that costs nothing."""
    return [RuleScorer(name, rule) for name, rule in RULES.items()]


class FittedRules:
    """The rules' best combination, fitted on other pairs than those that it scores.

    Attributes:
      note: on how much of what it was fitted, once it has scored.
    """

    name, is_log_odds = "best combination of rules", False

    def __init__(self, fit_on: Cases):
        self._fit_on, self.note = fit_on, ""

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        """Fits at once, then scores. Tasks that are in both, by id or request, are left out of the
        fit.

        Raises InputError where nothing is left to fit on.
        """
        data = self._fit_on
        shared = Seen.of(cases).tasks(data.cases)
        others = data.only(lambda case: case.task not in shared)
        rows_of = [list(_preference_rows(case)) for case in others.cases]
        rows = [row for some in rows_of for row in some]
        if not rows:
            raise InputError(
                f"{data.name}: no pair to fit the combination of rules on: {len(shared):,} of "
                f"{len(set(data.tasks)):,} tasks are evaluated on, and no other has both a right "
                f"and a wrong answer. Give other data."
            )
        one_sided = rows_of.count([])
        self.note = (
            f"{self.name}: fitted on {len(rows_of) - one_sided:,} cases of {data.name} (SHA-256 "
            f"{data.digest[:16]}), without {len(shared):,} tasks that are scored here, "
            f"{one_sided:,} cases without a right or a wrong answer, and {len(data.rejects):,} "
            f"rows that were rejected."
        )
        return RuleScorer(self.name, BestCombination.fit(rows).score).score(cases)


def _preference_rows(case: Case) -> Iterator[Row]:
    """The case as rows of `rules`: each right candidate against all wrong ones."""
    wrong = [
        {"response": c.response, "error_type": c.error_type} for c in case.candidates if not c.right
    ]
    for candidate in case.candidates:
        if candidate.right and wrong:
            yield {**case.row(), "chosen": candidate.response, "rejected": wrong}
