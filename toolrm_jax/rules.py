"""Rules that cost nothing, to hold a trained model against.

    rule(row, response) -> score     the response with the higher score wins, a tie counts half

    schema_valid   every call is valid by its tool's schema
    longer         characters of the response
    verbatim       share of the argument values found word for word in the conversation
    more_calls     number of calls

`BestCombination` is a logistic regression on the rules' differences, right minus wrong, fitted on
the training rows and applied to others. It has no intercept: swapping the two sides flips its sign.

    score = BestCombination.fit(train_rows).score
    score(row, right) > score(row, wrong)
"""

import dataclasses
import decimal
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.optimize

from toolrm_jax.examples import Response
from toolrm_jax.pairs import Row, pairs_of
from toolrm_jax.schema import call_is_valid
from toolrm_jax.task_view import response_length
from toolrm_jax.tool_calls import parse_calls, standard_text

Rule = Callable[[Row, Response], float]


def schema_valid(row: Row, response: Response) -> float:
    """1 where the response parses and every call is valid in the catalogue, else 0.

    Words alone parse as no call; they are valid, as is an empty turn.
    """
    calls = parse_calls(response)
    if calls is None:
        return float(isinstance(response, str) and response.lstrip()[:1] not in ("[", "{", "<"))
    return float(all(call_is_valid(call, row["tools"]) for call in calls))


def longer(row: Row, response: Response) -> float:
    """The characters of the response."""
    del row
    return float(response_length(response))


def verbatim(row: Row, response: Response) -> float:
    """The share of leaf argument values that stand in the conversation; 0 without any."""
    spoken = [m["content"] for m in row["messages"] if isinstance(m.get("content"), str)]
    said = _readings("\n".join(spoken))
    leaves = [leaf for call in parse_calls(response) or [] for leaf in _leaves(call["arguments"])]
    return sum(_stands_in(leaf, said) for leaf in leaves) / len(leaves) if leaves else 0.0


def more_calls(row: Row, response: Response) -> float:
    """The number of calls."""
    del row
    return float(len(parse_calls(response) or []))


RULES: dict[str, Rule] = {
    "schema-valid wins": schema_valid,
    "longer wins": longer,
    "verbatim arguments win": verbatim,
    "more calls win": more_calls,
}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@functools.lru_cache(maxsize=64)  # a conversation is read again for each of its responses
def _readings(text: str) -> tuple[str, str, str]:
    """The text in lower case, without the marks that do not count, and without the commas of
    12,345."""
    text = text.lower()
    return text, standard_text(text), _THOUSANDS.sub("", text)


def _stands_in(leaf: Any, said: tuple[str, str, str]) -> bool:
    if isinstance(leaf, str):
        plain = standard_text(leaf)
        return bool(plain) and (leaf.lower() in said[0] or plain in said[1])
    if isinstance(leaf, bool) or leaf is None:
        return False
    number = _number(leaf)
    return number in said[2] and re.search(_alone(number), said[2]) is not None


def _number(value: float) -> str:
    """All of its digits, without an exponent: 12345.67, 0.00001, 3 for 3.0."""
    text = format(decimal.Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _alone(number: str) -> str:
    """A pattern for the number that is no part of another, with zeros after it maybe."""
    zeros = "0*" if "." in number else r"(?:\.0+)?"
    return rf"(?<![\d.]){re.escape(number)}{zeros}(?!\d|\.\d)"


# The best combination ----------------------------------------------------------------------------


def features(row: Row, response: Response) -> np.ndarray:
    """What the combination sees of one response: every rule, and the logarithm of the length."""
    rules = [rule(row, response) for rule in RULES.values()]
    empty = float(response_length(response) <= len("[]"))
    return np.array([*rules, np.log1p(response_length(response)), empty], np.float64)


@dataclasses.dataclass(frozen=True)
class BestCombination:
    """A linear score over the rules; the response with the higher score wins."""

    weights_F: np.ndarray

    @classmethod
    def fit(cls, rows: Sequence[Row], l2: float = 1e-3) -> "BestCombination":
        """The weights that best tell right from wrong over the pairs of the rows.

        A prompt's pairs weigh as much as another prompt's, as they do in training.
        """
        pairs = list(pairs_of(rows))
        if not pairs:
            raise ValueError("expected at least one row to fit the combination on, found none")
        x_NF = np.stack([features(row, a) - features(row, b) for row, a, b, _ in pairs])
        share_N = np.array([1.0 / len(row["rejected"]) for row, *_ in pairs])
        share_N /= share_N.sum()
        scale_F = np.where(x_NF.std(0) > 0, np.sqrt((x_NF**2).mean(0)), 1.0)
        x_NF = x_NF / scale_F

        def loss(w_F: np.ndarray) -> tuple[float, np.ndarray]:
            margin_N = x_NF @ w_F
            value = share_N @ np.logaddexp(0.0, -margin_N) + l2 * w_F @ w_F
            slope_N = -share_N / (1.0 + np.exp(np.clip(margin_N, -500, 500)))
            return float(value), x_NF.T @ slope_N + 2 * l2 * w_F

        found = scipy.optimize.minimize(loss, np.zeros(x_NF.shape[1]), jac=True, method="L-BFGS-B")
        return cls(found.x / scale_F)

    def score(self, row: Row, response: Response) -> float:
        """The score of one response; only differences between responses mean anything."""
        return float(features(row, response) @ self.weights_F)
