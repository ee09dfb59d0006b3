"""The pool: a stream of examples in, the answers of all its members out, in the examples' order.

Endpoints are asked at the same time, some examples ahead of the one whose answers come next, so
memory does not grow with the number of examples. The order of the answers is that of the examples,
the members and the samples, never that of arrival: the same cache gives the same stream.

Answers of models without a permissive licence are left out and counted; such a model's endpoint is
not asked at all. `"permissive": true` in a member's entry vouches for its model, and
`permissive_only=False` lets all in.

    with Pool(entries, seed=0, cache="answers.sqlite") as pool:
        for answer in pool.answers(examples): ...
    pool.counts()
"""

import collections
import concurrent.futures
import dataclasses
import importlib.util
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Self

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example, Response
from toolrm_jax.synth.answer import CORRUPTION, Answer
from toolrm_jax.synth.answer_cache import AnswerCache
from toolrm_jax.synth.background_loop import BackgroundLoop
from toolrm_jax.synth.corruption_answers import corruption_answers
from toolrm_jax.synth.endpoint_settings import EndpointError, EndpointSettings
from toolrm_jax.synth.members import (
    CorruptionSettings,
    check_names,
    member_settings,
    permissive,
    why_not_permissive,
)
from toolrm_jax.synth.replay import Reject, Replay, ReplaySettings

Translate = Callable[[Example, Response], Response]
Repeats = Callable[[Example], Sequence[str]]
_OPEN = ("no answer", "over budget")  # what another run may ask again
AHEAD = 256  # examples under way; one whose questions are slow holds up no more than these


def check_asking(
    entries: Sequence[Mapping[str, Any]],
    *,
    cache: str | os.PathLike[str],
    permissive_only: bool = True,
) -> None:
    """Raises InputError where a pool of these members could not ask its endpoints: a key is not
    set, httpx is not installed, or the cache cannot be used (a new one is made)."""
    asked = [
        settings
        for settings in map(member_settings, entries)
        if isinstance(settings, EndpointSettings) and (permissive(settings) or not permissive_only)
    ]
    for settings in asked:
        settings.secret()
    if asked:
        _check_httpx()
        AnswerCache(cache).close()


def _check_httpx() -> None:
    if importlib.util.find_spec("httpx") is None:
        raise InputError("Asking endpoints needs httpx: pip install 'toolrm_jax[synth]'.")


class Pool:
    """The members of a config, open.

    Args:
      entries: the members, as `members` lists them.
      seed: of all choices and of the questions' own seeds.
      cache: a file on a local disk for what endpoints answer; needed where there are any.
      permissive_only: leaves out answers of models without a permissive licence.
      translate: turns a replayed response into the example's own names, where those were replaced.
      repeats: the ids of examples that ask the very same; what was replied to them counts too.
      reject: is told what had to be left out: reason, detail, and where it stood; of questions to
        endpoints at the end of the stream, the model and "refused", "cut off" or "filtered".
      leave_open: the same of questions that another run may ask again: the model and "no answer",
        "over budget", or "refused" if the model has answered nothing yet. Default: as `reject`.

    Raises:
      InputError: a member cannot be used; EndpointError where that shows on the way only.
    """

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        *,
        seed: int,
        cache: str | os.PathLike[str] | None = None,
        permissive_only: bool = True,
        translate: Translate | None = None,
        repeats: Repeats = lambda _: (),
        reject: Reject | None = None,
        leave_open: Reject | None = None,
    ):
        settings = [member_settings(entry) for entry in entries]
        self._seed, self._permissive_only, self._translate = seed, permissive_only, translate
        self._repeats = repeats
        self._reject = reject or (lambda *_: None)
        self._leave_open = leave_open or self._reject
        self._counts: collections.Counter[str] = collections.Counter()
        self._endpoints: list[Any] = []
        self._without: list[tuple[Any, str, Any]] = []  # endpoint, example, outcome: of no response
        self._close: list[Callable[[], object]] = []
        files = [s for s in settings if isinstance(s, ReplaySettings)]
        models = [s for s in settings if isinstance(s, EndpointSettings)]
        self._corrupts = any(isinstance(s, CorruptionSettings) for s in settings)
        check_names(models)
        try:
            self._replay = Replay(files, seed=seed, reject=self._reject)
            self._close.append(self._replay.close)
            self._open_endpoints(models, cache)
        except BaseException:
            self.close()
            raise

    def _open_endpoints(
        self, models: list[EndpointSettings], cache: str | os.PathLike[str] | None
    ) -> None:
        self._barred = [m for m in models if not self._lets_in(permissive(m))]
        asked = [m for m in models if m not in self._barred]
        if not asked:
            return
        if cache is None:
            raise InputError("The pool has endpoints: name a file for their answers in `cache`.")
        _check_httpx()
        from toolrm_jax.synth.endpoint import Endpoint

        # httpx names every request in its log; a run makes hundreds of thousands.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        kept = AnswerCache(cache)
        self._close.append(kept.close)
        self._loop = BackgroundLoop()
        self._close.append(self._end)

        async def opened() -> None:
            for settings in asked:
                self._endpoints.append(Endpoint(settings, kept, seed=self._seed))

        self._loop.submit(opened()).result()

    def answers(self, examples: Iterable[Example]) -> Iterator[Answer]:
        """The answers to all examples, in their order."""
        waiting: collections.deque[tuple[Example, list[Any]]] = collections.deque()
        stream = iter(examples)
        self._without.clear()
        try:
            while True:
                for example in itertools.islice(stream, AHEAD - len(waiting)):
                    waiting.append((example, self._asked(example)))
                if not waiting:
                    self._tell_without()
                    return
                yield from self._of(*waiting.popleft())
        finally:
            left = [future for _, futures in waiting for future in futures]
            for future in left:
                future.cancel()

    def _asked(self, example: Example) -> list[concurrent.futures.Future[Any]]:
        for settings in self._barred:
            self._counts[f"{settings.model}: left out: {settings.license}"] += settings.samples
        return [self._loop.submit(endpoint.ask(example)) for endpoint in self._endpoints]

    def _of(self, example: Example, futures: list[Any]) -> Iterator[Answer]:
        for endpoint, future in zip(self._endpoints, futures, strict=True):
            yield from self._read(example, endpoint, future.result())
        for answer in self._replayed(example):
            if not self._lets_in(answer.permissive):
                self._counts[f"{answer.model}: left out: not permissive"] += answer.count
                continue
            self._counts[f"{answer.model}: answers"] += answer.count
            yield self._translated(example, answer)
        if self._corrupts:
            for answer in corruption_answers(example, seed=self._seed):
                self._counts[f"{CORRUPTION}: answers"] += 1
                yield answer

    def _replayed(self, example: Example) -> Iterator[Answer]:
        yield from self._replay.answers(example.id)
        for other in self._repeats(example):
            for answer in self._replay.answers(other):
                yield dataclasses.replace(answer, example_id=example.id)

    @property
    def not_asked(self) -> dict[str, str]:
        """The models that are left out, and why."""
        return {settings.model: why_not_permissive(settings) for settings in self._barred}

    @property
    def samples(self) -> int:
        """How many questions an example makes."""
        return sum(endpoint.settings.samples for endpoint in self._endpoints)

    @property
    def replayed_rows(self) -> int:
        """How many rows the files of answers have."""
        return self._replay.rows

    def unused(self, ids: Set[str]) -> int:
        """How many of the replayed answers are to examples other than these."""
        return self._replay.count_beside(ids)

    def _tell_without(self) -> None:
        """Says why questions have no response: what was refused before a model's first answer is
        known by now to be the question's fault, or still open."""
        for endpoint, example_id, outcome in self._without:
            model, reason = endpoint.settings.model, outcome.reason
            is_open = reason in _OPEN or (reason == "refused" and not endpoint.has_answered)
            tell = self._leave_open if is_open else self._reject
            where = f"{model}, sample {outcome.sample} of {example_id}"
            tell(f"{model}: {reason}", outcome.detail, where)
        self._without.clear()

    def _read(self, example: Example, endpoint: Any, outcomes: Any) -> Iterator[Answer]:
        settings = endpoint.settings
        for outcome in outcomes:
            if outcome.reason == "ended":
                raise EndpointError(outcome.detail)
            if outcome.response is None:
                self._without.append((endpoint, example.id, outcome))
                continue
            yield Answer(
                example_id=example.id,
                model=settings.model,
                license=settings.license,
                permissive=permissive(settings),
                response=outcome.response,
            )

    def _translated(self, example: Example, answer: Answer) -> Answer:
        if self._translate is None:
            return answer
        return dataclasses.replace(answer, response=self._translate(example, answer.response))

    def _lets_in(self, permissive: bool) -> bool:
        return permissive or not self._permissive_only

    def counts(self) -> dict[str, int]:
        """What each member gave, left out and suffered: "MODEL: what" -> how often."""
        return dict(sorted((self.given() | self.asked()).items()))

    def given(self) -> dict[str, int]:
        """Of the counts, those that another run with the same cache has as well."""
        found = collections.Counter(self._counts)
        found.update(self._of_endpoints(of_run=False))
        found.update({f"replay: {what}": n for what, n in self._replay.counts.items()})
        return dict(found)

    def asked(self) -> dict[str, int]:
        """Of the counts, those of this run alone: what it asked, and with what faults."""
        return self._of_endpoints(of_run=True)

    def _of_endpoints(self, *, of_run: bool) -> dict[str, int]:
        return {
            f"{endpoint.settings.model}: {what}": number
            for endpoint in self._endpoints
            for what, number in endpoint.counts.items()
            if (what in ("asked", "from cache") or what.startswith("fault: ")) == of_run
        }

    def _end(self) -> None:
        self._loop.cancel_all()
        for endpoint in self._endpoints:
            self._loop.submit(endpoint.close()).result()
        self._loop.close()

    def close(self) -> None:
        """Ends what is under way; an open stream of answers ends with it."""
        while self._close:
            self._close.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
