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
from toolrm_jax.evaluate.cases import Case
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
    def trained(self) -> list[str]:
        """The ids of the rows that it was trained on, where its checkpoint lists them."""
        return list(self.about.get("train_tasks") or ())

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


def rule_scorers(fit_on: Sequence[Case] = ()) -> list[CaseScorer]:
    """Every rule that costs nothing; and their best combination, if there is data to fit it on."""
    found: list[CaseScorer] = [RuleScorer(name, rule) for name, rule in RULES.items()]
    if fit_on:
        rows = [row for case in fit_on for row in _preference_rows(case)]
        if not rows:
            raise InputError("the data to fit the combination of rules on has no wrong answer")
        combination = BestCombination.fit(rows)
        found.append(RuleScorer("best combination of rules", combination.score))
    return found


def _preference_rows(case: Case) -> Iterator[Row]:
    """The case as rows of `rules`: each right candidate against all wrong ones."""
    wrong = [
        {"response": c.response, "error_type": c.error_type} for c in case.candidates if not c.right
    ]
    for candidate in case.candidates:
        if candidate.right and wrong:
            yield {**case.row(), "chosen": candidate.response, "rejected": wrong}
