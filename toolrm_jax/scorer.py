"""Scores responses with a trained reward model: the prompt computed once, batches always full.

    requests --tokenise--> windows of sequences --score_plan--> batches --device--> rewards
              (thread or                          (thread)
               processes)

Everything that is scored goes one way, `score_windows`: sequences of token ids, a window at a time.
A window is planned as a whole (prefixes are shared and rows filled across its requests) while the
device computes the one before; the next batch is dispatched before the last one's rewards are
fetched. Every batch has one of a few static shapes (`ScorePlan.programs`), compiled ahead of time
and kept in JAX's persistent compilation cache.

Weights lie on each local device, or are sharded over this host's own devices where they do not fit
one; hosts never communicate. Matrices are in the compute type, norms and head in float32.

    >>> scorer = Scorer.from_pretrained("runs/quickstart/model/export")
    >>> request = {"tools": tools, "messages": messages, "responses": [calls, "There is none."]}
    >>> [scored.rewards for scored in scorer.score([request])]
    [array([ 1.25, -0.5 ], dtype=float32)]
"""

import collections
import dataclasses
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from transformers import PreTrainedTokenizerBase

from toolrm_jax.ahead import Ahead, OrderedPool
from toolrm_jax.batch import Batch, RowShape, empty_batch
from toolrm_jax.compilation_cache import use_compilation_cache
from toolrm_jax.errors import InputError
from toolrm_jax.model import Compute, Forward, Params
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.rendering import Renderer
from toolrm_jax.request_tokens import OverLong, RequestTokenizer, Tokenized
from toolrm_jax.score_plan import PlannedBatch, ScorePlan, Window, Work, plan_window
from toolrm_jax.score_request import OVER_LONG, Rejected, Request
from toolrm_jax.score_source import load_model
from toolrm_jax.sharding import logical_to_spec, row_shards

NOT_TOKENS = "not token ids"
NOT_FINITE = "reward is not finite"

# Longer inputs need max_tokens=...: a row's attention takes memory that grows with its length.
DEFAULT_MAX_TOKENS = 8192
# Tokens of a batch per device. On CPUs larger batches gain nothing and leave the caches.
_BATCH_TOKENS = {"cpu": 4096}
_BATCH_TOKENS_ELSEWHERE = 16_384
# Batches that a stream's window holds: few at first, so that rewards come soon, then more, since
# larger windows share more prefixes and fill rows better.
_WINDOW_BATCHES = (4, 8, 16, 32)
# One batch runs while the next waits on the device.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class Scored:
    """The rewards of one request, in the order of its responses."""

    rewards: np.ndarray  # float32 [N], raw
    tokens: np.ndarray  # int32 [N]: of the whole sequence, prompt and response
    dropped_messages: int = 0  # left out by over_long="drop-oldest-turns"


@dataclasses.dataclass(frozen=True)
class SequenceScores:
    """The rewards of a window's sequences; NaN where one was rejected, and why."""

    rewards: np.ndarray  # float32 [n]
    rejected: dict[int, Rejected]
    work: Work


class OptionError(InputError, ValueError):
    """An option that this model cannot be scored with; the message says what would do."""


class ScoringError(InputError):
    """A request that cannot be scored; `number` counts the stream's requests from 0."""

    def __init__(self, number: int, rejected: Rejected):
        super().__init__(f"Request {number} is not scored: {rejected}.")
        self.number, self.rejected = number, rejected


class Scorer:
    """A reward model that is ready to score; `with Scorer...` or `close()` ends its workers.

    Its methods may be called from several threads.

    Attributes:
      tokenize: Request or row -> Tokenized or Rejected.
      plan: the sizes of what is compiled.
      work: tokens scored so far, by how they are counted.
      about: what the checkpoint says about where it comes from (toolrm.json).
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: PreTrainedTokenizerBase,
        mesh: Mesh,
        *,
        dtype: str = "bfloat16",
        max_tokens: int | None = None,
        over_long: OverLong = "reject",
        batch_tokens: int | None = None,
        min_row: int = 256,
        raw: bool = False,
        workers: int = 0,
        about: dict[str, Any] | None = None,
    ):
        self.about = about or {}
        self.config, self.mesh, self.tokenizer = config, mesh, tokenizer
        self.max_tokens = _checked_max_tokens(max_tokens, config)
        self.plan = plan_for(config, mesh, self.max_tokens, batch_tokens, min_row)
        self.tokenize = RequestTokenizer(Renderer(tokenizer, raw=raw), self.max_tokens, over_long)
        self.work = Work()
        self._workers = OrderedPool(self.tokenize, workers)
        self.params = params
        with jax.set_mesh(mesh):
            self._forward = make_score_batch(config, dtype)
        self._layout = NamedSharding(mesh, logical_to_spec(("rows",)))
        self._programs: dict[tuple[RowShape, int], Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str = "bfloat16",
        devices: Sequence[jax.Device] | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> "Scorer":
        """Opens a reward model: a training workdir of ours, a Hugging Face directory or hub id, or
        a GGUF file.

        Args:
          name: where it is.
          dtype: the compute type, "bfloat16" or "float32".
          devices: of this host; default: all of them.
          cache_dir: of compiled programs; see `use_compilation_cache`.
          **options: of `Scorer`: max_tokens (longest sequence; default: the model's limit, at most
            8,192), over_long ("reject" or "drop-oldest-turns"), batch_tokens, min_row (the
            shortest row), raw (render text
            responses as they stand), workers (processes that tokenise; 0: a thread).

        Raises:
          AssetError, CheckpointError, UnsupportedModel: it cannot be opened; the message says why.
          OptionError: it cannot be scored with these options.
        """
        if devices is not None and not len(devices):
            raise OptionError("devices=[]: name at least one, or leave the option out for all.")
        use_compilation_cache(cache_dir)
        model = load_model(str(name), dtype, devices)
        options |= {"dtype": dtype, "about": model.about}
        return cls(model.config, model.params, model.tokenizer, model.mesh, **options)

    # --- Requests ---------------------------------------------------------------------------------

    def score(
        self,
        requests: Iterable[Request | dict[str, Any]],
        *,
        errors: Literal["raise", "return"] = "raise",
    ) -> Iterator[Scored]:
        """The scores of requests, in order, as a stream that reads a bounded number ahead.

        Rewards come when a window of requests is full, or the requests end: where a request waits
        for the reward of the one before, score each by itself, `(scored,) = score([request])`. A
        stream that is left does not wait for its source.

        Args:
          requests: {"tools", "messages", "responses"}, or any row that `request_of` reads.
          errors: what becomes of a request that cannot be scored: "raise" a ScoringError in its
            place, or "return" a Rejected there and go on.

        Raises at once:
          ValueError, TypeError: `errors` is neither; `requests` is a single one.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors={errors!r}: use 'raise' or 'return'.")
        if isinstance(requests, Mapping | Request | str | bytes):  # its keys would be scored
            raise TypeError(
                f"Found a single {type(requests).__name__}, expected a list of requests (or a "
                f"stream of them): give a list, score([request])."
            )
        return self._score(requests, errors)

    def _score(self, requests: Iterable[Request | dict[str, Any]], errors: str) -> Iterator[Scored]:
        windows = self.windows_of(self._workers.map(requests))
        number = 0
        for outcomes, _ in self.score_tokenized(windows):
            for outcome in outcomes:
                if isinstance(outcome, Rejected) and errors == "raise":
                    raise ScoringError(number, outcome)
                yield outcome  # type: ignore[misc]  # Rejected only where it was asked for
                number += 1

    def score_tokenized(
        self,
        windows: Iterable[Sequence[Tokenized | Rejected]],
        *,
        fetched: Callable[[Work], None] | None = None,
    ) -> Iterator[tuple[list[Scored | Rejected], Work]]:
        """The same for requests that are tokens already, a window at a time; nothing is shared
        across windows. `fetched` as in `score_windows`."""
        waiting: collections.deque[Sequence[Tokenized | Rejected]] = collections.deque()

        def flat() -> Iterator[list[np.ndarray]]:
            for window in windows:
                waiting.append(window)
                yield [s for t in window if isinstance(t, Tokenized) for s in t.sequences()]

        for scores in self.score_windows(flat(), fetched=fetched):
            yield _regrouped(waiting.popleft(), scores), scores.work

    def windows_of(
        self, tokenized: Iterable[Tokenized | Rejected]
    ) -> Iterator[list[Tokenized | Rejected]]:
        """Cuts a stream into windows: small ones at first, so that rewards come soon."""
        sizes = [n * self.plan.batch_tokens for n in _WINDOW_BATCHES]
        window: list[Tokenized | Rejected] = []
        tokens = 0
        for item in tokenized:
            window.append(item)
            if isinstance(item, Tokenized):
                tokens += len(item.rendered.prompt) + sum(map(len, item.rendered.responses))
            if tokens >= sizes[0] or len(window) >= 4096:
                yield window
                window, tokens, sizes = [], 0, sizes[1:] or sizes
        if window:
            yield window

    # --- Token ids: the one way that everything is scored -----------------------------------------

    def score_sequences(self, sequences: Sequence[Any]) -> SequenceScores:
        """The rewards of whole sequences of token ids (prompt and response, as rendered)."""
        (scores,) = self.score_windows([sequences])
        return scores

    def score_windows(
        self,
        windows: Iterable[Sequence[Any]],
        *,
        fetched: Callable[[Work], None] | None = None,
    ) -> Iterator[SequenceScores]:
        """Rewards, window by window, each planned by itself; reads at most three windows ahead.

        A sequence that cannot be scored is rejected by itself: empty, longer than max_tokens, not
        token ids of the model's vocabulary, or with a reward that is not finite. `fetched` is told
        of each batch's work when it is done, in the order of the windows: of none before the window
        ahead of its own is given out.
        """
        prepared = Ahead(map(self._prepare, windows))
        begun: collections.deque[_Prepared] = collections.deque()
        running: _Running = collections.deque()
        try:
            while True:
                if not prepared.ready:  # while there is nothing to dispatch, fetch what runs
                    _fetch(running, 0, fetched)
                    yield from self._finished(begun)
                window = next(prepared, None)
                if window is None:
                    break
                begun.append(window)
                for planned, batch in window.batches:
                    running.append((window, planned, self._dispatch(batch)))
                    _fetch(running, _IN_FLIGHT - 1, fetched)
                    yield from self._finished(begun)
                yield from self._finished(begun)  # where it has no batch
            _fetch(running, 0, fetched)
            yield from self._finished(begun)
        finally:
            prepared.close()

    def compile(self, programs: Iterable[tuple[RowShape, int]] | None = None) -> None:
        """Compiles all (or some) of `plan.programs()` now, not when they are first needed."""
        for shape, rows in self.plan.programs() if programs is None else programs:
            self._program(shape, rows)

    @property
    def programs(self) -> tuple[tuple[RowShape, int], ...]:
        """What is compiled so far: (row shape, rows)."""
        with self._lock:
            return tuple(self._programs)

    def close(self) -> None:
        """Ends worker processes, if there are any."""
        self._workers.close()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, sequences: Sequence[Any]) -> "_Prepared":
        checked = [self._checked(tokens) for tokens in sequences]
        good = [i for i, tokens in enumerate(checked) if not isinstance(tokens, Rejected)]
        window = plan_window([checked[i] for i in good], self.plan)  # type: ignore[misc]
        rejected = {i: tokens for i, tokens in enumerate(checked) if isinstance(tokens, Rejected)}
        return _Prepared(window, good, rejected)

    def _checked(self, tokens: Any) -> np.ndarray | Rejected:
        try:
            ids = np.asarray(tokens)
        except ValueError as error:
            return Rejected(NOT_TOKENS, str(error))
        if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
            kind = f"an array of {ids.dtype} of shape {ids.shape}"
            return Rejected(NOT_TOKENS, f"expected at least one integer in a list, found {kind}")
        if len(ids) > self.max_tokens:
            return Rejected(OVER_LONG, f"{len(ids)} tokens; at most {self.max_tokens} are scored")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            return Rejected(
                NOT_TOKENS,
                f"ids from {ids.min()} to {ids.max()}; the model's vocabulary has "
                f"{self.config.vocab_size}",
            )
        return ids.astype(np.int32)

    def _dispatch(self, batch: Batch) -> jax.Array:
        """Starts a batch; its rewards, on their way."""
        rows, tokens = batch.tokens.shape
        program = self._program(RowShape(tokens, batch.ends.shape[1]), rows)
        return program(self.params, jax.device_put(batch, self._layout))

    def _program(self, shape: RowShape, rows: int) -> Any:
        with self._lock:
            if (shape, rows) not in self._programs:
                batch = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._layout),
                    empty_batch(rows, shape),
                )
                with jax.set_mesh(self.mesh):
                    lowered = self._forward.lower(self.params, batch)
                    self._programs[shape, rows] = lowered.compile()
            return self._programs[shape, rows]

    def _finished(self, begun: "collections.deque[_Prepared]") -> Iterator[SequenceScores]:
        """Takes the windows that are done off the left end."""
        while begun and begun[0].done:
            scores = begun.popleft().scores()
            with self._lock:
                self.work += scores.work
            yield scores


def make_score_batch(config: ModelConfig, dtype: str) -> Any:
    """The jitted forward pass, `score_batch(params, batch) -> rewards_BM`; under a mesh."""
    forward = Forward(config, Compute(dtype, remat="none"))

    def score_batch(params: Params, batch: Batch) -> jax.Array:  # named, for profiles
        return forward(params, batch)

    return jax.jit(score_batch)


class _Prepared:
    """A window on its way: its batches, filled, and the rewards that are there so far."""

    def __init__(self, window: Window, good: list[int], rejected: dict[int, Rejected]):
        self.window, self.good, self.rejected = window, good, rejected
        self.batches = [(planned, window.fill(planned)) for planned in window.batches]
        self._left = len(self.batches)
        self._rewards = np.full(len(good), np.nan, np.float32)

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, planned: PlannedBatch, rewards_BM: jax.Array) -> None:
        """Waits for a batch's rewards and puts them in their places."""
        self.window.scatter(planned, np.asarray(rewards_BM), self._rewards)
        self._left -= 1

    def scores(self) -> SequenceScores:
        rewards = np.full(len(self.good) + len(self.rejected), np.nan, np.float32)
        rewards[self.good] = self._rewards
        bad = {
            self.good[i]: Rejected(NOT_FINITE, f"it is {self._rewards[i]}")
            for i in np.flatnonzero(~np.isfinite(self._rewards))
        }
        rewards[list(bad)] = np.nan
        return SequenceScores(rewards, self.rejected | bad, self.window.work)


_Running = collections.deque[tuple[_Prepared, PlannedBatch, jax.Array]]


def _fetch(running: _Running, leave: int, fetched: Callable[[Work], None] | None) -> None:
    """Waits for the oldest batches until no more than `leave` are running."""
    while len(running) > leave:
        window, planned, rewards_BM = running.popleft()
        window.take(planned, rewards_BM)
        if fetched is not None:
            fetched(window.window.work_of(planned))


def _regrouped(
    window: Sequence[Tokenized | Rejected], scores: SequenceScores
) -> list[Scored | Rejected]:
    """Sequence by sequence -> request by request; one bad response rejects its request."""
    found: list[Scored | Rejected] = []
    at = 0
    for item in window:
        if isinstance(item, Rejected):
            found.append(item)
            continue
        lengths = item.lengths
        bad = [(i, scores.rejected.get(at + i)) for i in range(len(lengths))]
        why = next(((i, r) for i, r in bad if r is not None), None)
        if why is not None:
            found.append(Rejected(why[1].reason, f"responses[{why[0]}]: {why[1].detail}"))
        else:
            rewards = scores.rewards[at : at + len(lengths)]
            found.append(Scored(rewards, np.array(lengths, np.int32), item.dropped_messages))
        at += len(lengths)
    return found


def _checked_max_tokens(max_tokens: int | None, config: ModelConfig) -> int:
    if max_tokens is None:
        return min(config.max_positions, DEFAULT_MAX_TOKENS)
    max_tokens = _whole("max_tokens", max_tokens)
    if not 1 <= max_tokens <= config.max_positions:
        raise OptionError(
            f"max_tokens={max_tokens}: use 1 to {config.max_positions}, the model's own limit."
        )
    return max_tokens


def _whole(name: str, value: Any) -> int:
    """The value of an option, if it is a whole number; numpy's are."""
    try:
        return operator.index(value)
    except TypeError:
        raise OptionError(f"{name}={value!r}: use a whole number.") from None


def _positive(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number < 1:
        raise OptionError(f"{name}={number}: use at least 1.")
    return number


def plan_for(
    config: ModelConfig, mesh: Mesh, max_tokens: int, batch_tokens: int | None, min_row: int
) -> ScorePlan:
    """The sizes that a scorer compiles on this mesh."""
    devices = mesh.devices.size
    platform = mesh.devices.flat[0].platform
    per_device = _BATCH_TOKENS.get(platform, _BATCH_TOKENS_ELSEWHERE)
    batch_tokens = per_device * devices if batch_tokens is None else batch_tokens
    plain = config.flops_per_token(0)
    per_key = config.flops_per_token(1) - plain
    return ScorePlan(
        max_tokens=max_tokens,
        batch_tokens=_positive("batch_tokens", batch_tokens),
        row_multiple=row_shards(mesh),
        min_row=_positive("min_row", min_row),
        # A token attends to half of its group on average; and a FLOP of attention takes about twice
        # as long as one of a projection.
        equal_work=max(plain / per_key, 1.0),
    )
