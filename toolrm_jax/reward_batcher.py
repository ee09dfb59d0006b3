"""Batches what many connections ask for at about the same time: an asyncio front, one thread.

    request --sequences--> queue (bounded by tokens) --window--> thread: score(all of them) --+
    request --sequences--> queue                                                             |
       ^---------------------------- its own rewards, one or a Rejected a sequence ----------+

The thread takes what is queued, a few milliseconds after the first of it arrived, up to a number of
tokens that keeps the device busy and the wait short. Requests are taken whole and in order; one
that is longer than a window is scored in slices of a window each. What is cancelled (a client that
left, a time-out) leaves the queue, or stops after the slice that is being scored: the device is
never busy for longer than a window with what nobody waits for. A window that fails is tried again
request by request, so that only the request that fails pays for it.

    batcher = RewardBatcher(scorer.score_sequences, max_queued_tokens=10**6, window_tokens=16_384)
    rewards = await batcher.rewards([[1, 2, 3], [1, 2, 4]])
    batcher.close()     # scores what it has accepted, then ends its thread
"""

import asyncio
import collections
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from toolrm_jax.score_request import TOO_MANY_TOKENS, Rejected
from toolrm_jax.scorer import SequenceScores
from toolrm_jax.wire_formats import WireError

_log = logging.getLogger(__name__)

Outcomes = list[float | Rejected]
# The longest time that a client is asked to wait before it tries again, in seconds.
_MAX_RETRY = 60


@dataclasses.dataclass(eq=False)
class _Job:
    """One request in the queue."""

    sequences: Sequence[Any]
    tokens: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Outcomes]
    arrived: float = dataclasses.field(default_factory=time.monotonic)

    def deliver(self, outcome: Outcomes | WireError) -> None:
        """From the scoring thread: wakes the request."""
        try:
            self.loop.call_soon_threadsafe(self._set, outcome)
        except RuntimeError:  # its loop is closed: nobody waits any more
            _log.debug("rewards of a request whose event loop is gone")

    def _set(self, outcome: Outcomes | WireError) -> None:
        if self.future.done():
            return
        if isinstance(outcome, WireError):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class RewardBatcher:
    """See the module.

    Args:
      score: sequences of token ids -> SequenceScores; called from one thread only.
      max_queued_tokens: of all requests that wait or are being scored.
      window_tokens: of the requests that are scored together; a longer one is scored alone, in
        slices.
      window_seconds: how long the first request of a window waits for company.
      on_window: called after each window or slice with its sequences and tokens, from the thread.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Any]], SequenceScores],
        *,
        max_queued_tokens: int,
        window_tokens: int,
        window_seconds: float = 0.005,
        on_window: Callable[[int, int], None] = lambda sequences, tokens: None,
    ):
        self._score, self._on_window = score, on_window
        self.max_queued_tokens = max_queued_tokens
        self._window_tokens, self._window_seconds = window_tokens, window_seconds
        self._jobs: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._running_tokens = 0
        self._tokens_per_second = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def queued_tokens(self) -> int:
        """Of requests that wait or are being scored."""
        with self._changed:
            return self._load()

    @property
    def queued_requests(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    async def rewards(self, sequences: Sequence[Any]) -> Outcomes:
        """A raw reward, or why there is none, for each sequence.

        Raises:
          WireError: the queue is full (429), has no room for this even when empty (413), is closed
            (503), or scoring failed (503).
        """
        if not sequences:
            return []
        tokens = sum(len(sequence) for sequence in sequences)
        loop = asyncio.get_running_loop()
        job = _Job(sequences, tokens, loop, loop.create_future())
        self._put(job)
        try:
            return await job.future
        finally:
            self._withdraw(job)

    def close(self) -> None:
        """Accepts nothing more; returns when all that was accepted is scored."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # --- the event loop's side --------------------------------------------------------------------

    def _put(self, job: _Job) -> None:
        with self._changed:
            self._check_room(job.tokens)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
                self._thread.start()
            self._jobs.append(job)
            self._changed.notify()

    def _check_room(self, tokens: int) -> None:
        most, load = self.max_queued_tokens, self._load()
        if self._closing:
            raise WireError(503, "shutting down", "the server accepts nothing more")
        if tokens > most:
            raise WireError(413, TOO_MANY_TOKENS, f"{tokens} tokens; at most {most} a request")
        if load + tokens > most:
            raise WireError(
                429,
                "queue is full",
                f"{load} tokens wait and this request has {tokens}; at most {most} may wait",
                self._retry_after(load + tokens - most),
            )

    def _retry_after(self, excess: int) -> int:
        """Seconds until there is room, at the rate of late."""
        seconds = excess / self._tokens_per_second if self._tokens_per_second else 1
        return max(1, min(math.ceil(seconds), _MAX_RETRY))

    def _load(self) -> int:
        return self._running_tokens + sum(job.tokens for job in self._jobs)

    def _withdraw(self, job: _Job) -> None:
        """Takes a job that nobody waits for out of the queue, if it is still there."""
        with self._changed:
            if job in self._jobs:
                self._jobs.remove(job)

    # --- the scoring thread's side ----------------------------------------------------------------

    def _run(self) -> None:
        # A call each: while it waits for more, it holds on to nothing.
        while self._take_and_score():
            pass

    def _take_and_score(self) -> bool:
        jobs = self._take()
        answers = self._score_window(jobs) if jobs else []
        # Counted before it is delivered: who has an answer finds it counted, and room again.
        with self._changed:
            self._running_tokens = 0
        for job, outcome in answers:
            job.deliver(outcome)
        return bool(jobs)

    def _take(self) -> list[_Job]:
        """Waits for the next window's jobs; none: closed, and all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return []
                self._gather_company()
                if jobs := self._cut():
                    return jobs

    def _gather_company(self) -> None:
        """Waits until the window of time is over, or there is a full window of tokens."""
        over = self._jobs[0].arrived + self._window_seconds
        while not self._closing and (left := over - time.monotonic()) > 0:
            if sum(job.tokens for job in self._jobs) >= self._window_tokens:
                return
            self._changed.wait(left)

    def _cut(self) -> list[_Job]:
        jobs: list[_Job] = []
        while self._jobs:
            tokens = self._running_tokens + self._jobs[0].tokens
            if jobs and tokens > self._window_tokens:
                break
            self._running_tokens = tokens
            jobs.append(self._jobs.popleft())
        return jobs

    def _score_window(self, jobs: list[_Job]) -> list[tuple[_Job, Outcomes | WireError]]:
        """The jobs with their outcomes; none where all of them were given up meanwhile."""
        found: Outcomes = []
        try:
            for part in _slices([s for job in jobs for s in job.sequences], self._window_tokens):
                if all(job.future.done() for job in jobs):
                    return []
                found += self._scored(part)
        except Exception as error:
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._score_window([job])]
            _log.exception("a request of %d tokens could not be scored", jobs[0].tokens)
            reason = f"{type(error).__name__}; the server's log has more"
            return [(jobs[0], WireError(503, "scoring failed", reason))]
        outcomes = iter(found)
        return [(job, [next(outcomes) for _ in job.sequences]) for job in jobs]

    def _scored(self, sequences: list[Any]) -> Outcomes:
        began = time.monotonic()
        outcomes = _outcomes(self._score(sequences))
        tokens = sum(map(len, sequences))
        rate = tokens / max(time.monotonic() - began, 1e-6)
        # The first window may have had to compile; later ones soon outweigh it.
        self._tokens_per_second += (rate - self._tokens_per_second) / 4
        self._on_window(len(sequences), tokens)
        return outcomes


def _slices(sequences: list[Any], most: int) -> Iterator[list[Any]]:
    """Parts of at most so many tokens; those that a sequence shares with the one before it, as
    responses share their prompt, are computed once and counted once."""
    part: list[Any] = []
    tokens = 0
    for sequence in sequences:
        new = len(sequence) - (_shared(part[-1], sequence) if part else 0)
        if part and tokens + new > most:
            yield part
            part, tokens, new = [], 0, len(sequence)
        part.append(sequence)
        tokens += new
    yield part


def _shared(a: Any, b: Any) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    length = min(len(a), len(b))
    differs = np.asarray(a[:length]) != np.asarray(b[:length])
    return int(differs.argmax()) if differs.any() else length


def _outcomes(scores: SequenceScores) -> Outcomes:
    found: Outcomes = [float(reward) for reward in scores.rewards]
    for number, rejected in scores.rejected.items():
        found[number] = rejected
    return found
