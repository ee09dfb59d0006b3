"""Asks one model behind an OpenAI-compatible server, as often as the server can take it.

    Example --each sample--> cache? --> POST {url}/chat/completions --> cache --> Answer

    200 with a completion               the answer; the cache has it before anyone else. One that
                                        reached max_tokens is cut off, one that a filter of the
                                        server's withheld is filtered
    400, 413, 422                       refused: kept as such, not asked again; of a model that has
                                        answered nothing yet it may be the server's own fault (see
                                        below), and nothing is kept
    408, 409, 425, 429, 5xx             asked again after a pause: Retry-After, which holds all
                                        questions to this server back, else doubling, with jitter
    time-out, lost connection           the same; so are broken or truncated JSON, another content
                                        type, JSON that is no completion, and content that is no
                                        text
    401, 403, 404, anything else        the end: asking on would not help

Every fault is counted by its name. It is logged, where the question is asked again, in a line, and
so is a refusal: at most one in ten seconds, which then says how many it stands for. Every question
ends in one Outcome. A question that all tries left unanswered is none of the cache's: the next run
asks it again. One that was under way when a run was killed has no answer anywhere and is asked
again, too.

A server that was started without its parser of tool calls refuses every question alike. So what is
refused counts, until the model's first answer in this cache, as one that went in vain: the run ends
after `give_up_after` of them, and quotes the server. With the first answer it is kept as refused.

    endpoint = Endpoint(settings, cache, seed=0)
    outcomes = await endpoint.ask(example)
"""

import asyncio
import collections
import dataclasses
import email.utils
import json
import logging
import random
import time
from typing import Any

import httpx

from toolrm_jax.examples import Example, Response
from toolrm_jax.synth.answer_cache import AnswerCache, key
from toolrm_jax.synth.chat_request import read_message, request_body, text_of
from toolrm_jax.synth.endpoint_settings import EndpointError, EndpointSettings

_REFUSED = (400, 413, 422)
_AGAIN = (408, 409, 425, 429)
_LONGEST_REASON = 300
_SAID_EVERY = 10.0  # seconds at least between two lines on retries: thousands may fail at once

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one question: a response, or the reason why there is none."""

    sample: int
    response: Response | None
    reason: str = ""  # "refused", "no answer", "over budget", "cut off", "filtered", "ended"
    detail: str = ""


class _Fault(Exception):
    """A try that failed and may be repeated: its name, and how long the server wants to be left."""

    def __init__(self, name: str, wanted: float | None = None):
        super().__init__(name)
        self.name, self.wanted = name, wanted


class _Refused(Exception):
    """A question that the server will not answer."""


class _OverBudget(Exception):
    """A question for which a budget is used up."""


class Endpoint:
    """One server; to be used in one event loop.

    `counts` holds "asked" (requests sent), "fault: ..." (tries that failed), "from cache",
    "answers", and the reasons of the questions without one.

    After the end (see the module's list, `give_up_after` questions in a row without an answer, or
    an answer without a count of its tokens where they have a budget) nothing more is asked.

    `has_answered` says whether the model has given any answer that the cache holds.
    """

    def __init__(self, settings: EndpointSettings, cache: AnswerCache, *, seed: int):
        self.settings, self._cache, self._seed = settings, cache, seed
        self.counts: collections.Counter[str] = collections.Counter()
        self._secret = settings.secret()
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        # No redirects, httpx's default: the key goes to this server and to no other.
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        self._address = f"{settings.url.rstrip('/')}/chat/completions"
        self._room = asyncio.Semaphore(settings.concurrency)
        self._under_way: dict[str, asyncio.Lock] = {}
        self._not_before = 0.0
        self._in_vain = 0  # questions in a row that brought no answer
        self.has_answered = cache.has_answer(settings.model)
        self._refused: dict[str, dict[str, Any]] = {}  # by key; until the first answer
        self._quiet_until, self._unsaid = 0.0, 0
        self._end: str | None = None
        self._requests, self._tokens = cache.spent(settings.model)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def ask(self, example: Example) -> list[Outcome]:
        """The outcome of every sample, in their order."""
        async with asyncio.TaskGroup() as group:
            numbers = range(self.settings.samples)
            tasks = [group.create_task(self._one(example, sample)) for sample in numbers]
        outcomes = [task.result() for task in tasks]
        self.counts.update(outcome.reason or "answers" for outcome in outcomes)
        return outcomes

    async def _one(self, example: Example, sample: int) -> Outcome:
        try:
            return await self._outcome(example, sample)
        except EndpointError as error:
            # Handed over, not raised: many questions meet it, and the first in order is to tell.
            return Outcome(sample, None, "ended", str(error))

    async def _outcome(self, example: Example, sample: int) -> Outcome:
        body = request_body(example, self.settings, sample, self._seed)
        found = key(self.settings.model, body, sample)
        # Equal questions wait for the first of them, and find its answer in the cache.
        lock = self._under_way.setdefault(found, asyncio.Lock())
        try:
            async with lock:
                return await self._cached(found, body, sample)
        finally:
            if not lock.locked():
                self._under_way.pop(found, None)

    async def _cached(self, found: str, body: dict[str, Any], sample: int) -> Outcome:
        entry = self._cache.get(found)
        if entry is not None and not ("refused" in entry and self._asks_refused_again()):
            self.counts["from cache"] += 1
            return self._read(entry, sample)
        async with self._room:
            try:
                entry = await self._persist(body)
            except _OverBudget:
                return Outcome(sample, None, "over budget")
            except _Fault as fault:
                return self._no_answer(fault, sample)
            except _Refused as refusal:
                entry = self._take_refusal(found, refusal)
            else:
                self._cache.put(found, self.settings.model, entry, "asked")
                self._take_answer(entry)
        return self._read(entry, sample)

    def _asks_refused_again(self) -> bool:
        return self.settings.retry_refused or not self.has_answered

    def _take_answer(self, entry: dict[str, Any]) -> None:
        self._in_vain, self.has_answered = 0, True
        for key_, refused in self._refused.items():
            self._cache.put(key_, self.settings.model, refused)
        self._refused.clear()
        self._count_tokens(entry)

    def _take_refusal(self, found: str, refusal: _Refused) -> dict[str, Any]:
        """The entry of a refused question. Raises EndpointError after too many, and no answer."""
        self._cache.note(self.settings.model, "asked")
        self._say(f"refused: {refusal}")
        entry = {"refused": str(refusal)}
        if self.has_answered:
            self._cache.put(found, self.settings.model, entry)
            return entry
        self._refused[found] = entry
        self._in_vain += 1
        if self._in_vain >= self.settings.give_up_after:
            raise self._ended(
                f"it has answered nothing yet, and of the last {self._in_vain} questions none; the "
                f"last was refused with {refusal}. Is the server set up for these questions (its "
                "parser of tool calls, the length of its context)? Nothing is kept as refused: "
                "mend the server, and the same command goes on from here. If it is right to refuse "
                "so many, raise give_up_after."
            )
        return entry

    def _count_tokens(self, entry: dict[str, Any]) -> None:
        """Raises EndpointError where tokens have a budget and the server does not count them."""
        tokens = entry.get("tokens")
        if tokens is None and self.settings.budget_tokens is not None:
            raise self._ended(
                "budget_tokens is set, but an answer came without its usage.total_tokens, so that "
                "nothing would end the spending. Set budget_requests in its place (an answer has "
                f"max_tokens={self.settings.max_tokens} at most); the answers so far are kept."
            )
        self._tokens += tokens or 0

    def _spent(self) -> bool:
        budgets = (
            (self._requests, self.settings.budget_requests),
            (self._tokens, self.settings.budget_tokens),
        )
        return any(budget is not None and used >= budget for used, budget in budgets)

    def _read(self, entry: dict[str, Any], sample: int) -> Outcome:
        if "refused" in entry:
            return Outcome(sample, None, "refused", entry["refused"])
        if entry.get("finish_reason") == "length" and not self.settings.keep_cut:
            detail = f"the answer has reached max_tokens={self.settings.max_tokens}"
            return Outcome(sample, None, "cut off", detail)
        if entry.get("finish_reason") == "content_filter":
            return Outcome(sample, None, "filtered", "the server's filter ended or withheld it")
        return Outcome(sample, read_message(entry["message"]))

    def _no_answer(self, fault: _Fault, sample: int) -> Outcome:
        self._in_vain += 1
        if self._in_vain >= self.settings.give_up_after:
            raise self._ended(
                f"{self._in_vain} questions in a row got no answer in {self.settings.tries} "
                f"tries each, the last for: {fault.name}. Is the server up, and large enough for "
                "the concurrency? Run again to go on from here."
            )
        return Outcome(sample, None, "no answer", f"{self.settings.tries} tries; {fault.name}")

    def _ended(self, why: str) -> EndpointError:
        """The error that ends the run; every question after it meets the same one."""
        if self._end is None:
            name = f"The endpoint of {self.settings.model!r} at {self.settings.url}"
            self._end = f"{name}: {why}"
        return EndpointError(self._end)

    # One question ---------------------------------------------------------------------------------

    async def _persist(self, body: dict[str, Any]) -> dict[str, Any]:
        """An entry for the cache; after the last try its fault is raised."""
        for attempt in range(1, self.settings.tries + 1):
            await self._wait_turn()
            if self._end is not None:
                raise EndpointError(self._end)
            if self._spent():
                raise _OverBudget
            self._requests += 1  # before the reply, so that those under way count
            self.counts["asked"] += 1
            try:
                return await self._try(body)
            except _Fault as fault:
                self.counts[f"fault: {fault.name}"] += 1
                self._cache.note(self.settings.model, "asked", f"fault: {fault.name}")
                if attempt == self.settings.tries:
                    raise
                await self._pause(attempt, fault)
            except EndpointError:
                self._cache.note(self.settings.model, "asked")
                raise
        raise AssertionError("tries is positive")

    async def _wait_turn(self) -> None:
        while (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait * random.uniform(1.0, 1.1))

    async def _pause(self, attempt: int, fault: _Fault) -> None:
        longest = self.settings.longest_pause
        if fault.wanted is not None:
            pause = min(fault.wanted, 10 * longest)
            self._not_before = max(self._not_before, time.monotonic() + pause)
            self._say_retry(attempt, fault, pause)
            return
        # Half of it by chance: what failed together does not come back together.
        pause = min(longest, self.settings.first_pause * 2 ** (attempt - 1))
        pause *= random.uniform(0.5, 1.0)
        self._say_retry(attempt, fault, pause)
        await asyncio.sleep(pause)

    def _say_retry(self, attempt: int, fault: _Fault, pause: float) -> None:
        tries = f"try {attempt} of {self.settings.tries}"
        self._say(f"{fault.name}, {tries}; the next in {pause:.1f} s")

    def _say(self, what: str) -> None:
        now = time.monotonic()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid:,} more since the last such line)" if self._unsaid else ""
        _log.warning(f"{self.settings.model} at {self.settings.url}: {what}{more}")
        self._quiet_until, self._unsaid = now + _SAID_EVERY, 0

    async def _try(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            # httpx counts from one piece to the next: a trickle would never time out.
            async with asyncio.timeout(self.settings.timeout):
                reply = await self._client.post(self._address, json=body)
        except (TimeoutError, httpx.TimeoutException):
            raise _Fault("time-out") from None
        except httpx.TransportError as error:
            raise _Fault(f"connection: {type(error).__name__}") from None
        except httpx.DecodingError:
            raise _Fault("broken encoding") from None
        if reply.status_code == 200:
            # As it came: a key may be a word of the answer ("none", "EMPTY").
            return _entry(reply.headers.get("Content-Type", ""), reply.text)
        if reply.status_code in _AGAIN or reply.status_code >= 500:
            wanted = _seconds(reply.headers.get("Retry-After"))
            raise _Fault(f"status {reply.status_code}", wanted)
        said = " ".join(self._redacted(reply.text).split())[:_LONGEST_REASON]
        if reply.status_code in _REFUSED:
            raise _Refused(f"status {reply.status_code}: {said}")
        remedy = self._remedy(reply.status_code)
        raise self._ended(f"it answered {reply.status_code}: {said}. {remedy}")

    def _redacted(self, text: str) -> str:
        # Some servers repeat the key in their errors.
        return text.replace(self._secret, "[key]") if self._secret else text

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            variable = self.settings.key_variable
            return f"Is the key in {variable} right?" if variable else "Set key_variable."
        if status == 404:
            return "Does url end before /chat/completions, and does the server know served_as?"
        return "Expected a chat completion; is it an OpenAI-compatible server?"


def _entry(content_type: str, text: str) -> dict[str, Any]:
    """What the cache keeps of a completion; a fault where the body is none."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise _Fault("another content type")
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise _Fault("broken JSON") from None
    try:
        choice = reply["choices"][0]
        message = {
            name: choice["message"][name]
            for name in ("content", "tool_calls", "refusal")
            if choice["message"].get(name)
        }
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Fault("no completion") from None
    if not isinstance(message.get("tool_calls", []), list) or text_of(message) is None:
        raise _Fault("no completion")
    return {
        "message": message,
        "finish_reason": choice.get("finish_reason"),
        "tokens": _tokens(reply.get("usage")),
    }


def _tokens(usage: Any) -> int | None:
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and total >= 0 else None


def _seconds(wanted: str | None) -> float | None:
    """A Retry-After header in seconds: a number, or a date."""
    if wanted is None:
        return None
    try:
        return max(0.0, float(wanted))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(wanted).timestamp() - time.time())
    except ValueError:
        return None
