"""A reward model as the reward function of an RL trainer: TRL, verl, Tunix.

    trainer --its own arguments--> Completions --rule--> a value, or the source's reward
                                                            source = ScorerRewards(scorer)
                                                                   | RewardClient(url)

    TRL (GRPO, RLOO)   f(prompts, completions, completion_ids, **columns) -> [float | None]
    verl               f(data_source, solution_str, ground_truth, extra_info) -> float
    Tunix              f(prompts, completions, **columns) -> [float]

Nothing in here imports JAX or PyTorch: over a `RewardClient`, the trainer's process holds neither
the reward model nor JAX. What prompts and completions may be is in `completions`.

Some completions cannot be scored, or a user may not want them to be: `UnscoredRule` says what they
get instead, and each function counts them by kind in `counts`.

    >>> scorer = Scorer.from_pretrained("runs/quickstart/model/export")
    >>> end_ids = end_ids_of(policy_tokenizer, GenerationConfig.from_pretrained(policy))
    >>> reward = TRLReward(ScorerRewards(scorer), end_ids=end_ids)
    >>> GRPOTrainer(policy, reward_funcs=reward, train_dataset=dataset, ...).train()
    >>> reward.counts
    Counter({'completions': 512, 'truncated': 31, 'unparseable': 12, 'empty': 1})
"""

import collections
import dataclasses
import logging
import math
import numbers
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from toolrm_jax.completions import Completion, CompletionError, Kind, read_completion
from toolrm_jax.errors import InputError
from toolrm_jax.score_request import BODY_TOO_BIG, OVER_LONG, TOO_MANY_TOKENS, Rejected

if TYPE_CHECKING:  # it imports JAX, which a trainer over HTTP does without
    from toolrm_jax.scorer import Scorer

_log = logging.getLogger(__name__)
# verl calls from several threads. One for all functions: one of its own none could be pickled with.
_counting = threading.Lock()

Value = float | None | Literal["score"]

# The scorer's and the server's reasons; the server measures tokens and bytes of whole requests too.
_OVER_LONG = (OVER_LONG, TOO_MANY_TOKENS, BODY_TOO_BIG)
_FIELDS: tuple[Kind, ...] = ("over_long", "truncated", "empty", "unparseable", "unscorable")
_NEVER_SCORED = ("over_long", "unscorable")


class SourceError(InputError, TypeError):
    """What is to give rewards cannot; the message says what would."""


class RuleError(InputError, ValueError):
    """A rule that a trainer cannot follow; the message says which value to set."""


@dataclasses.dataclass(frozen=True)
class UnscoredRule:
    """What a completion gets that is not simply scored: a number, None, or "score" (as it stands).

    None takes a completion out of the update (TRL knows that, verl and Tunix do not), unless
    another reward function gives it a number: TRL sums what the functions give and takes None for 0
    there, which beats every negative reward. Beside other functions use
    `UnscoredRule.number(value)`, with a value below the model's rewards for finished turns.

    Attributes:
      over_long: prompt and completion exceed what the model takes.
      truncated: cut short before its turn ended, where that can be known: half a call says little
        about the whole one.
      empty: says and calls nothing. A legal turn, and the model can tell whether it was right.
      unparseable: meant as a call, but does not parse. The model sees the error and judges it.
      unscorable: anything else that the scorer rejects, such as a reward that is not finite.
    """

    over_long: float | None = None
    truncated: Value = None
    empty: Value = "score"
    unparseable: Value = "score"
    unscorable: float | None = None

    def __post_init__(self):
        for kind in _FIELDS:
            value = getattr(self, kind)
            if value is None or (value == "score" and kind not in _NEVER_SCORED):
                continue
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                allowed = "a finite number or None" + (
                    "" if kind in _NEVER_SCORED else " or 'score'"
                )
                raise RuleError(f"{kind}={value!r}: use {allowed}.")
            object.__setattr__(self, kind, float(value))  # NumPy's are numbers too

    @classmethod
    def number(cls, value: float, **changes: Any) -> "UnscoredRule":
        """The default rule with a number in the place of every None."""
        return cls(**{"over_long": value, "truncated": value, "unscorable": value} | changes)


class RewardSource(Protocol):
    """What gives rewards: a scorer in this process, or a server (`RewardClient`)."""

    @property
    def end_text(self) -> str | None:
        """What ends a turn in a text, say "<|im_end|>"; None where that is not known."""

    def score(self, requests: Sequence[dict[str, Any]]) -> Sequence[Any]:
        """For each request the rewards of its responses, or a Rejected."""

    def score_texts(self, texts: Sequence[str]) -> Sequence[Any]:
        """For each whole conversation as text a list of one reward, or a Rejected."""


class ScorerRewards:
    """Rewards of a `Scorer` in this process."""

    def __init__(self, scorer: "Scorer"):
        # Here, since it needs transformers: a trainer that asks a server does without.
        from toolrm_jax.text_tokens import TextTokenizer

        self.scorer = scorer
        self._texts = TextTokenizer(scorer.tokenizer, scorer.max_tokens)
        self.end_text = self._texts.ending.token if self._texts.ending else None

    def score(self, requests: Sequence[dict[str, Any]]) -> list[list[float] | Rejected]:
        """The rewards of each request's responses, or why it has none."""
        found = self.scorer.score(requests, errors="return")
        return [f if isinstance(f, Rejected) else f.rewards.tolist() for f in found]

    def score_texts(self, texts: Sequence[str]) -> list[list[float] | Rejected]:
        """The same for whole conversations as text: tokenised as they are, without added tokens,
        and with the template's tail after the end of the turn."""
        read = [self._texts(text, add_special_tokens=False) for text in texts]
        whole = [(i, text.ids) for i, text in enumerate(read) if not isinstance(text, Rejected)]
        scores = self.scorer.score_sequences([ids for _, ids in whole])
        found: list[list[float] | Rejected] = [f if isinstance(f, Rejected) else [] for f in read]
        for place, (number, _) in enumerate(whole):
            rejected = scores.rejected.get(place)
            found[number] = rejected or [float(scores.rewards[place])]
        return found


class _RewardFunction:
    """What the three share: the rule, the counts, and one call of the source a batch.

    Attributes:
      counts: completions so far, and how many were of each kind; a completion may be of two.
      last: of each kind, what was said about the last one that the source rejected.
    """

    def __init__(
        self,
        source: RewardSource,
        *,
        rule: UnscoredRule | None = None,
        end_text: str | None = None,
        keeps_end: bool = False,
        name: str = "toolrm",
    ):
        _check_source(source)
        self.__name__ = name  # trainers log rewards under it
        self.source, self.rule = source, rule or UnscoredRule()
        self.end_text = end_text or source.end_text
        if keeps_end and not self.end_text:
            raise RuleError("keeps_end=True needs end_text, say '<|im_end|>': what ends a turn.")
        self.keeps_end = keeps_end
        self.counts: collections.Counter[str] = collections.Counter()
        self.last: dict[str, str] = {}

    def _read(self, prompt: Any, completion: Any, **known: Any) -> Completion:
        found = read_completion(
            prompt, completion, end=self.end_text, keeps_end=self.keeps_end, **known
        )
        if found.text is not None and not self.end_text:
            raise CompletionError(
                "The prompt is plain text, and what ends a turn is not known: give "
                "end_text='<|im_end|>' (or whatever the policy's template writes there), or give "
                "the data set a column 'messages'."
            )
        return found

    def _rewards(self, completions: list[Completion]) -> tuple[list[float | None], dict[str, int]]:
        """A reward each, and how many were of each kind."""
        kinds: collections.Counter[str] = collections.Counter()
        rewards: list[Any] = []
        for completion in completions:
            fault = completion.fault
            kinds.update([fault] if fault else [])
            rewards.append(getattr(self.rule, fault) if fault else "score")
        asked = [i for i, reward in enumerate(rewards) if reward == "score"]
        for i, outcome in zip(asked, self._ask([completions[i] for i in asked]), strict=True):
            rewards[i] = self._value(outcome, kinds)
        with _counting:
            self.counts.update(kinds, completions=len(completions))
        return rewards, kinds

    def _ask(self, completions: list[Completion]) -> list[Any]:
        found: list[Any] = [None] * len(completions)
        requests = {i: c.request for i, c in enumerate(completions) if c.request is not None}
        texts = {i: c.text for i, c in enumerate(completions) if c.text is not None}
        if requests:
            for i, outcome in zip(
                requests, self.source.score(list(requests.values())), strict=True
            ):
                found[i] = outcome
        if texts:
            for i, outcome in zip(
                texts, self.source.score_texts(list(texts.values())), strict=True
            ):
                found[i] = outcome
        return found

    def _value(self, outcome: Any, kinds: collections.Counter[str]) -> float | None:
        if not isinstance(outcome, Rejected):
            (reward,) = outcome
            return reward
        kind = "over_long" if outcome.reason in _OVER_LONG else "unscorable"
        kinds[kind] += 1
        value = getattr(self.rule, kind)
        if kind not in self.last:
            # It may be every row of a data set whose columns are wrong, and training would go on.
            _log.warning(
                "%s: a completion is %s (%s) and gets %s; others like it are only counted",
                self.__name__,
                kind,
                str(outcome)[:500],  # it quotes the row, which may be megabytes
                value,
            )
        self.last[kind] = str(outcome)
        return value


def end_ids_of(tokenizer: Any, generation_config: Any = None) -> frozenset[int]:
    """The ids at which a policy ends its turn: the eos of its tokenizer and those of its generation
    config (or of its model's config, where it has none), at which trainers stop it as well."""
    more = getattr(generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(more if isinstance(more, list | tuple) else [more])]
    return frozenset(number for number in ids if number is not None)


class TRLReward(_RewardFunction):
    """A reward function for TRL's GRPOTrainer and RLOOTrainer.

    Of the data set's columns it reads `tools`, and `messages` where prompts are text (beside other
    prompts they must be the same, see `read_completion`): TRL shows a policy no tools of a data
    set's, so a prompt that offers tools is best rendered beforehand.

    Args:
      source: what gives rewards.
      end_ids: the *policy's* ids that end its turn, all of them, see `end_ids_of`: a completion
        whose last id is another is truncated. None: do not tell.
      rule: what is not simply scored.
      end_text, keeps_end: of completions that are text, see `read_completion`.
      name: what TRL logs the reward under.
    """

    def __init__(self, source: RewardSource, *, end_ids: Collection[int] | None, **options: Any):
        super().__init__(source, **options)
        self.end_ids = None if end_ids is None else frozenset(end_ids)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """A reward per completion; None where the rule says so."""
        ids = [None] * len(prompts) if completion_ids is None else completion_ids
        tools, messages = _column(columns, "tools", prompts), _column(columns, "messages", prompts)
        read = [
            self._read(prompt, completion, tools=t, messages=m, ended=self._ended(i))
            for prompt, completion, i, t, m in zip(
                prompts, completions, ids, tools, messages, strict=True
            )
        ]
        rewards, kinds = self._rewards(read)
        log_metric = columns.get("log_metric")
        if log_metric is not None:
            for kind in _FIELDS:
                log_metric(f"{self.__name__}/{kind}", kinds.get(kind, 0) / max(len(read), 1))
        return rewards

    def _ended(self, ids: Sequence[int] | None) -> bool | None:
        if self.end_ids is None or ids is None or len(ids) == 0:
            return None
        return int(ids[-1]) in self.end_ids


class _NumbersOnly(_RewardFunction):
    """A reward function of a trainer that takes nothing but numbers."""

    trainer = ""

    def __init__(self, source: RewardSource, **options: Any):
        super().__init__(source, **options)
        missing = [kind for kind in _FIELDS if getattr(self.rule, kind) is None]
        if missing:
            values = ", ".join(f"{kind}=None" for kind in missing)
            raise RuleError(
                f"{self.trainer} takes no None, and the rule has {values}: give numbers, say "
                f"rule=UnscoredRule.number(-5.0), on the scale of your model's rewards."
            )

    def _numbers(self, completions: list[Completion]) -> list[float]:
        return [float(reward) for reward in self._rewards(completions)[0]]  # type: ignore[arg-type]


class VerlReward(_NumbersOnly):
    """A `compute_score` for verl; `compute_scores` is the same for its batch reward manager.

    The prompt comes from `extra_info`: "messages", or else "prompt" (either a list of messages,
    or text), and "tools"; lists, arrays or JSON text. verl decodes most solutions without special
    tokens, so that truncated ones cannot be told; where yours keeps them, set keeps_end=True.
    """

    trainer = "verl"

    def __call__(
        self,
        data_source: Any = None,
        solution_str: str | None = "",
        ground_truth: Any = None,
        extra_info: dict[str, Any] | None = None,
        **_: Any,
    ) -> float:
        """The reward of one solution."""
        return self._numbers([self._solution(solution_str, extra_info)])[0]

    def compute_scores(
        self,
        data_sources: Any = None,
        solution_strs: Sequence[str | None] = (),
        ground_truths: Any = None,
        extra_infos: Sequence[Any] | None = None,
        **_: Any,
    ) -> list[float]:
        """The rewards of a batch."""
        infos = [None] * len(solution_strs) if extra_infos is None else extra_infos
        pairs = zip(solution_strs, infos, strict=True)
        return self._numbers([self._solution(text, info) for text, info in pairs])

    def _solution(self, text: str | None, info: Any) -> Completion:
        info = info if isinstance(info, dict) else {}
        messages, prompt = info.get("messages"), info.get("prompt")
        if messages is None and prompt is None:
            raise CompletionError(
                f"verl's extra_info has no 'messages' and no 'prompt', only "
                f"{', '.join(map(repr, info)) or 'nothing'}. Write the conversation and the tools "
                f"there when preparing the data: {{'messages': [...], 'tools': [...]}}."
            )
        return self._read(prompt, text, tools=info.get("tools"), messages=messages)


class TunixReward(_NumbersOnly):
    """A reward function for Tunix's GRPOLearner and its like.

    Tunix's prompts are text that is rendered already. Where the training data has a column
    `messages` (and `tools`), as JSON text or arrays, that is scored; else the text itself.
    Tunix cuts the end-of-turn token off, so that truncated completions cannot be told.
    """

    trainer = "Tunix"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """A reward per completion."""
        tools, messages = _column(columns, "tools", prompts), _column(columns, "messages", prompts)
        return self._numbers(
            [
                self._read(str(prompt), _text(completion), tools=t, messages=m)
                for prompt, completion, t, m in zip(
                    prompts, completions, tools, messages, strict=True
                )
            ]
        )


def _check_source(source: Any) -> None:
    if hasattr(source, "end_text"):
        return
    remedy = "give ScorerRewards(scorer) or RewardClient(url)"
    if hasattr(source, "score_sequences"):
        remedy = "wrap it in ScorerRewards(...)"
    raise SourceError(f"source is a {type(source).__name__}: {remedy}.")


def _text(completion: Any) -> str:
    return "" if completion is None else str(completion)


def _column(columns: dict[str, Any], name: str, prompts: Sequence[Any]) -> Sequence[Any]:
    """A row's value each; None where the data set has no such column."""
    column = columns.get(name)
    if column is None:
        return [None] * len(prompts)
    if len(column) != len(prompts):
        raise CompletionError(
            f"Column {name!r} has {len(column)} values for {len(prompts)} prompts."
        )
    return column


__all__ = [
    "CompletionError",
    "RewardSource",
    "RuleError",
    "ScorerRewards",
    "SourceError",
    "TRLReward",
    "TunixReward",
    "UnscoredRule",
    "VerlReward",
    "end_ids_of",
]
