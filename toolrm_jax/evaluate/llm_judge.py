"""A language model as judge: behind an OpenAI-compatible server, shown two answers as A and B.

    tools, conversation, two answers --both orders--> "A" | "B" --> the share that each one gets

It is asked twice, the second time with the answers exchanged, for judges prefer a place. An answer
gets 1 where it was chosen both times, a half where each was chosen once (a tie), 0 otherwise; a
reply that names neither counts for neither. A pair with a question that got no reply (time-outs,
refused, cut off) is not scored; where no pair is, that is an error. Answers are kept in a cache, so
that a run that was killed goes on, and the same command asks again what timed out. Pairs alone: a
pool would need a question for every two of its candidates.

A reply names a letter in a line that says nothing else: "B", "Answer: B", "The better reply is B."
Where its lines name both, the last line decides, if it is one of them; any other reply names
neither: "B is better than A", or reasons without a verdict.
"""

import collections
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Case
from toolrm_jax.examples import Example, Response
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.generators import Pool
from toolrm_jax.tool_calls import words_of

_SYSTEM = (
    "You judge two candidate replies of an assistant that can call tools. A reply is right if it "
    "calls the tools that the request needs, with the arguments that the request gives, and "
    "nothing else; or, where no tool fits, if it calls none. Which reply is right, or nearer to "
    "it? Answer with one letter: A or B."
)
_QUESTION = (
    "Tools:\n{tools}\n\nConversation:\n{messages}\n\nReply A:\n{a}\n\nReply B:\n{b}\n\nA or B?"
)
_MARKS = re.compile(r"[*_`#$\"'()\[\]{}]|\\boxed")  # of Markdown and TeX
_VERDICT = re.compile(
    r"(?i:(?:(?:the|my|so|final|right|correct|better|best) )*"
    r"(?:answer|verdict|choice|reply|response|one)(?: is)?\s*[:=]?\s*)?"
    r"(?i:(?:reply|response|answer) )?([AB])[.!]?"
)
_UNTOLD = ("license", "key_variable")
REPLY_TOKENS = 256  # of a reply


class JudgeScorer:
    """Asks one model.

    Args:
      url: of the server, up to and without /chat/completions.
      model: what the server calls it.
      cache: a file for its answers.
      **how: more of `EndpointSettings`, such as key_variable, concurrency or max_tokens.

    Attributes:
      counts: "chose A", "chose B", "chose neither", "changed with the order"; and questions without
        a reply, as "no reply, cut off".
      card: which model, and how it is asked.
    """

    is_log_odds = False

    def __init__(
        self, url: str, model: str, cache: str | os.PathLike[str], name: str = "", **how: Any
    ):
        self.name = name or f"judge {model}"
        entry = {"kind": "endpoint", "model": model, "license": "unknown", "url": url}
        self._entry = {**entry, "temperature": 0.0, "max_tokens": REPLY_TOKENS, **how}
        self.card = {name: v for name, v in self._entry.items() if name not in _UNTOLD}
        self._cache = cache
        self.counts: collections.Counter[str] = collections.Counter()

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        """1 for the candidate that won both questions, 0 for the other; else a half for each; NaN
        for both where a question got no reply. Other cases than pairs are refused at once; that no
        case was scored is an InputError after the last."""
        if wrong := next((case for case in cases if len(case.candidates) != 2), None):
            raise InputError(
                f"{wrong.task} has {len(wrong.candidates)} candidates; a judge compares two: leave "
                f"out --judge"
            )
        return self._scores(cases)

    def _scores(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        with Pool(
            [self._entry],
            seed=0,
            cache=self._cache,
            permissive_only=False,
            reject=self._no_reply,
        ) as pool:
            stream = pool.answers(_questions(cases))
            following, answered = next(stream, None), 0
            for number in range(len(cases)):
                replies: dict[str, str] = {}
                while following is not None and following.example_id.startswith(f"{number}/"):
                    replies[following.example_id] = _letter(following)
                    following = next(stream, None)
                answered += len(replies) == 2
                yield self._shares([replies.get(f"{number}/{order}") for order in range(2)])
        if cases and not answered:
            raise InputError(self._silent())

    def _silent(self) -> str:
        said = ", ".join(f"{what}: {number:,}" for what, number in self.counts.items())
        return (
            f"{self.name} at {self._entry['url']} replied to both questions of no pair ({said}). "
            f"Where replies are cut off, give it more than {self._entry['max_tokens']:,} tokens "
            f"(--judge-max-tokens); the same command asks again what timed out."
        )

    def _no_reply(self, reason: str, *_: object) -> None:
        # "MODEL: refused", "MODEL: cut off"; of what another run may ask again, "MODEL: no answer".
        reason = reason.removeprefix(f"{self._entry['model']}: ")
        self.counts["no reply" if reason == "no answer" else f"no reply, {reason}"] += 1

    def _shares(self, chosen: Sequence[str | None]) -> np.ndarray:
        for letter in chosen:
            if letter is not None:
                self.counts[f"chose {letter or 'neither'}"] += 1
        if None in chosen:
            return np.array([np.nan, np.nan])
        plain, exchanged = chosen
        self.counts["changed with the order"] += plain == exchanged != ""
        first, second = (plain, exchanged) == ("A", "B"), (plain, exchanged) == ("B", "A")
        return np.array([1.0, 0.0] if first else [0.0, 1.0] if second else [0.5, 0.5])


def _questions(cases: Sequence[Case]) -> Iterator[Example]:
    for number, case in enumerate(cases):
        shown = [_shown(candidate.response) for candidate in case.candidates]
        for order, (a, b) in enumerate((shown, shown[::-1])):
            question = _QUESTION.format(
                tools=json.dumps(case.tools, ensure_ascii=False),
                messages=json.dumps(case.messages, ensure_ascii=False),
                a=a,
                b=b,
            )
            messages = [
                {"role": "system", "content": _SYSTEM},
                {"role": "user", "content": question},
            ]
            yield Example(f"{number}/{order}", "judge", "", [], messages, [], [])


def _shown(response: Response) -> str:
    if isinstance(response, str):
        return response or "(nothing)"
    return json.dumps(response, ensure_ascii=False)


def _letter(answer: Answer) -> str:
    """The letter that a reply names, by the module's rule; "" if it names neither."""
    text = _MARKS.sub("", words_of(answer.response))
    found = [_VERDICT.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    named = [match[1] if match else "" for match in found] or [""]
    letters = set(named) - {""}
    return letters.pop() if len(letters) == 1 else named[-1]
