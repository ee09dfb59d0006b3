"""What the server's four endpoints read and write. Pure functions: no sockets, no threads, no JAX.

    body --parse_json--> object --format.read--> Asked(sequences to score, by item)
                                                   ... scored, rewards by item ...
    response body <------------format.write------- Asked, rewards

    /v1/rewards      ours: {"tools", "messages", "responses"}, or {"requests": [...]} of these
    /get_reward      OpenRLHF's: {"query": [text, ...]}
    /classify        vLLM's, as verl calls it too: {"input": text | [text] | ids | [ids]} or
                     {"messages", "tools"}
    /v1/embeddings   SGLang's: {"input": as /classify's}

All of them take "use_activation" (a sigmoid) and "normalize" ((reward - mean) / std, by the
checkpoint's held-out statistics; before the sigmoid where both are asked for). What cannot be
scored is a WireError with its HTTP status, except among many requests of ours, where each one is
rejected by itself.

    >>> asked = FORMATS["/get_reward"].read({"query": ["..."]}, reader)
    >>> FORMATS["/get_reward"].write(asked, [[1.25]], "my-rm")["rewards"]
    [1.25]
"""

import dataclasses
import difflib
import json
import math
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.request_tokens import (
    RequestTokenizer,
    Tokenized,
)
from toolrm_jax.score_request import NO_REQUEST, NOT_JSON, Rejected, id_or_none
from toolrm_jax.text_tokens import TextTokenizer, TextTokens

NOT_FINITE = "normalised reward is not finite"
_FLAGS = ("use_activation", "activation", "normalize")
_REQUEST_FIELDS = ("id", "test_id", "tools", "messages", "responses")
# Details quote what was sent, which may be megabytes of it.
_MAX_DETAIL = 1000


class WireError(InputError):
    """An answer other than 200: its HTTP status, a reason from a short list, and the details."""

    def __init__(self, status: int, reason: str, detail: str, retry_after: int | None = None):
        super().__init__(f"{reason}: {detail}")
        self.status, self.reason, self.detail = status, reason, detail
        self.retry_after = retry_after  # seconds

    def body(self) -> dict[str, Any]:
        """What the client is told."""
        return {"error": error_of(Rejected(self.reason, self.detail))}


def error_of(rejected: Rejected) -> dict[str, str]:
    """{"reason", "detail"}, the detail of bounded length."""
    detail = rejected.detail
    if len(detail) > _MAX_DETAIL:
        detail = f"{detail[:_MAX_DETAIL]}..."
    return {"reason": rejected.reason, "detail": detail}


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a model's rewards on its held-out pairs."""

    mean: float
    std: float


def statistics_of(about: dict[str, Any]) -> Statistics | None:
    """The statistics that a checkpoint's toolrm.json holds, if it does."""
    heldout = about.get("heldout")
    try:
        found = Statistics(float(heldout["reward_mean"]), float(heldout["reward_std"]))  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return None
    usable = math.isfinite(found.mean) and math.isfinite(found.std) and found.std > 0
    return found if usable else None


@dataclasses.dataclass(frozen=True)
class Reader:
    """What bodies are read with."""

    requests: RequestTokenizer
    texts: TextTokenizer
    max_rows: int
    statistics: Statistics | None = None
    normalize: bool = False  # where a body does not say


@dataclasses.dataclass(frozen=True)
class Item:
    """What belongs together in an answer: a request of ours, or one text."""

    sequences: list[Any]  # token ids
    truncated: bool = False
    dropped_messages: int = 0

    @property
    def tokens(self) -> list[int]:
        """Of each sequence."""
        return [len(sequence) for sequence in self.sequences]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a body asks for."""

    items: list[Item | Rejected]
    statistics: Statistics | None  # to normalise by; None: rewards stay as they are
    use_activation: bool
    ids: list[Any] = dataclasses.field(default_factory=list)  # the client's names for its requests
    single: bool = True  # one request, not {"requests": [...]}

    def sequences(self) -> list[Any]:
        """Of all items, in order."""
        return [s for item in self.items if isinstance(item, Item) for s in item.sequences]

    def regrouped(self, outcomes: list[float | Rejected]) -> list[list[float] | Rejected]:
        """Sequence by sequence -> item by item, in the scale that was asked for."""
        rest = iter(outcomes)
        return [
            item if isinstance(item, Rejected) else self._rewards([next(rest) for _ in item.tokens])
            for item in self.items
        ]

    def _rewards(self, outcomes: list[float | Rejected]) -> list[float] | Rejected:
        found: list[float] = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Rejected):
                where = f"responses[{number}]: " if len(outcomes) > 1 else ""
                return Rejected(outcome.reason, where + outcome.detail)
            scaled = self._scaled(outcome)
            if not math.isfinite(scaled):  # statistics with a tiny deviation, or a huge mean
                return Rejected(NOT_FINITE, f"{outcome} normalised by {self.statistics}")
            found.append(scaled)
        return found

    def _scaled(self, reward: float) -> float:
        if self.statistics is not None:
            reward = (reward - self.statistics.mean) / self.statistics.std
        # As tanh: exp of a large negative reward would overflow.
        return 0.5 * (1 + math.tanh(reward / 2)) if self.use_activation else reward


Answers = list[list[float] | Rejected]


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """One endpoint: how its body is read and its answer written."""

    read: Callable[[dict[str, Any], Reader], Asked]
    write: Callable[[Asked, Answers, str], dict[str, Any]]


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in a body; strict: UTF-8, no NaN, no number beyond a double."""
    try:
        # A byte order mark, as some editors write it, is no part of the text.
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise WireError(400, NOT_JSON, f"the body is not UTF-8: {error}") from None
    except RecursionError:
        raise WireError(400, NOT_JSON, "the body is nested too deeply") from None
    except ValueError as error:
        raise WireError(400, NOT_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise WireError(422, NO_REQUEST, f"expected an object, found {type(value).__name__}")
    return value


# --- Ours -----------------------------------------------------------------------------------------


def read_rewards(body: dict[str, Any], reader: Reader) -> Asked:
    """One request, or many under "requests"."""
    single = "requests" not in body
    if not single and (fault := _unknown_field(body, ("requests", *_FLAGS))):
        raise WireError(422, NO_REQUEST, fault)
    rows = [body] if single else _list(body["requests"], "requests")
    responses = [row.get("responses") if isinstance(row, dict) else None for row in rows]
    _check_rows(max(len(rows), sum(len(r) for r in responses if isinstance(r, list))), reader)
    statistics, activation = _scale(body, reader)
    fields = (*_REQUEST_FIELDS, *_FLAGS) if single else _REQUEST_FIELDS
    items = [_conversation(row, reader, fields) for row in rows]
    ids = [id_or_none(row) for row in rows]
    return Asked(items, statistics, activation, ids, single)


def write_rewards(asked: Asked, answers: Answers, model: str) -> dict[str, Any]:
    """Rewards and tokens of each request, or why there are none."""
    results = [_result(*found) for found in zip(asked.ids, asked.items, answers, strict=True)]
    if not asked.single:
        return {"model": model, "results": results}
    _raise_rejected(answers, "{}")
    return results[0] | {"model": model}


def _conversation(row: Any, reader: Reader, known: Sequence[str]) -> Item | Rejected:
    """One request of ours, of the `known` fields; of the forms that `request_of` reads only this
    one, and no list as text: `max_rows` counts responses before they are read."""
    if not isinstance(row, dict):
        return Rejected(NO_REQUEST, f"expected an object, found {type(row).__name__}")
    if fault := _unknown_field(row, known):
        return Rejected(NO_REQUEST, fault)
    if not isinstance(row.get("responses"), list):
        found = _found(row.get("responses"))
        return Rejected(NO_REQUEST, f"responses: expected a list, found {found}")
    return _tokenized({name: row.get(name) for name in _REQUEST_FIELDS}, reader)


def _unknown_field(fields: dict[str, Any], known: Sequence[str]) -> str | None:
    """What is wrong with the first field that is not known: ignored, a misspelt flag or one in the
    wrong place would give rewards on another scale than was asked for."""
    name = next((n for n, value in fields.items() if value is not None and n not in known), None)
    if name is None:
        return None
    if name in _FLAGS:
        return f"{name}: say it beside 'requests'; it holds for all of them"
    near = difflib.get_close_matches(name[:40], known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown field {name!r:.100}: expected {', '.join(known)}{hint}"


def _tokenized(fields: dict[str, Any], reader: Reader) -> Item | Rejected:
    found = reader.requests(fields)
    if isinstance(found, Tokenized):
        return Item(list(found.sequences()), dropped_messages=found.dropped_messages)
    return found


def _result(name: Any, item: Item | Rejected, answer: list[float] | Rejected) -> dict[str, Any]:
    if isinstance(item, Rejected) or isinstance(answer, Rejected):
        rejected = answer if isinstance(answer, Rejected) else item
        assert isinstance(rejected, Rejected)
        return {"id": name, "error": error_of(rejected)}
    return {
        "id": name,
        "rewards": answer,
        "tokens": item.tokens,
        "dropped_messages": item.dropped_messages,
    }


# --- OpenRLHF's -----------------------------------------------------------------------------------


def read_get_reward(body: dict[str, Any], reader: Reader) -> Asked:
    """Texts with all their special tokens in them; there may be none."""
    texts = _list(body.get("query"), "query")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise _unexpected(f"query[{number}]", "a string", text)
    return _asked_texts(texts, "query", body, reader, add_special_tokens=False)


def write_get_reward(asked: Asked, answers: Answers, model: str) -> dict[str, Any]:
    """The rewards twice, as OpenRLHF reads them, and what it may log beside them."""
    items = _good(asked, answers, "query[{}]")
    rewards = [reward for _, reward in items]
    logs = {
        "truncated": [float(item.truncated) for item, _ in items],
        "tokens": [float(item.tokens[0]) for item, _ in items],
    }
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


# --- vLLM's ---------------------------------------------------------------------------------------


def read_classify(body: dict[str, Any], reader: Reader) -> Asked:
    """Texts, token ids, or a conversation whose last message is the one to be scored."""
    if body.get("messages") is None:
        return read_input(body, reader)
    _check_input(body)
    messages = _list(body["messages"], "messages")
    last = messages[-1] if messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise WireError(422, NO_REQUEST, "messages: expected an assistant message as the last one")
    fields = {"tools": body.get("tools"), "messages": messages[:-1], "responses": [last]}
    statistics, activation = _scale(body, reader)
    return Asked([_tokenized(fields, reader)], statistics, activation)


def write_classify(asked: Asked, answers: Answers, model: str) -> dict[str, Any]:
    """A reward stands where vLLM puts the probability of the one class."""
    items = _good(asked, answers, "input[{}]")
    data = [
        {"index": n, "label": "reward", "probs": [reward], "num_classes": 1} | _remarks(item)
        for n, (item, reward) in enumerate(items)
    ]
    head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    return head | {"model": model, "data": data, "usage": _usage(items)}


# --- SGLang's -------------------------------------------------------------------------------------


def read_input(body: dict[str, Any], reader: Reader) -> Asked:
    """{"input": text | [text, ...] | ids | [ids, ...]}; special tokens are added by default."""
    _check_input(body)
    special = _flag(body, "add_special_tokens", True)
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and _is_id(given[0])):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _unexpected("input", "a text, a list of token ids, or a list of either", given)
    return _asked_texts(given, "input", body, reader, add_special_tokens=special)


def write_embeddings(asked: Asked, answers: Answers, model: str) -> dict[str, Any]:
    """A reward is an embedding of one number."""
    items = _good(asked, answers, "input[{}]")
    data = [
        {"object": "embedding", "index": n, "embedding": [reward]} | _remarks(item)
        for n, (item, reward) in enumerate(items)
    ]
    return {"object": "list", "model": model, "data": data, "usage": _usage(items)}


FORMATS = {
    "/v1/rewards": WireFormat(read_rewards, write_rewards),
    "/get_reward": WireFormat(read_get_reward, write_get_reward),
    "/classify": WireFormat(read_classify, write_classify),
    "/v1/embeddings": WireFormat(read_input, write_embeddings),
}


# --- what they share ------------------------------------------------------------------------------


def _asked_texts(
    given: list[Any], name: str, body: dict[str, Any], reader: Reader, *, add_special_tokens: bool
) -> Asked:
    _check_rows(len(given), reader)
    statistics, activation = _scale(body, reader)
    items: list[Item | Rejected] = []
    for number, one in enumerate(given):
        if isinstance(one, str):
            found = reader.texts(one, add_special_tokens=add_special_tokens)
        elif isinstance(one, list) and one and all(map(_is_id, one)):
            found = reader.texts.of_ids(one)
        else:
            raise _unexpected(f"{name}[{number}]", "a text or a list of token ids", one)
        if isinstance(found, TextTokens):
            items.append(Item([found.ids], found.truncated))
        else:
            items.append(found)
    return Asked(items, statistics, activation)


def _scale(body: dict[str, Any], reader: Reader) -> tuple[Statistics | None, bool]:
    older = _flag(body, "activation", False)
    activation = _flag(body, "use_activation", older)
    if not _flag(body, "normalize", reader.normalize):
        return None, activation
    if reader.statistics is None:
        raise WireError(
            422,
            "no statistics",
            "normalize: the checkpoint has no held-out reward_mean and reward_std (toolrm.json of "
            "a training run's export has); ask for raw rewards",
        )
    return reader.statistics, activation


def _good(asked: Asked, answers: Answers, where: str) -> list[tuple[Item, float]]:
    """Each text with its reward; one that has none fails them all."""
    _raise_rejected(answers, where + ": {}")
    pairs = zip(asked.items, answers, strict=True)
    return [(i, a[0]) for i, a in pairs if isinstance(i, Item) and isinstance(a, list)]


def _raise_rejected(answers: Answers, where: str) -> None:
    for number, answer in enumerate(answers):
        if isinstance(answer, Rejected):
            parts = (number, answer.detail) if where.count("{}") == 2 else (answer.detail,)
            raise WireError(422, answer.reason, where.format(*parts))


def _remarks(item: Item) -> dict[str, Any]:
    dropped = {"dropped_messages": item.dropped_messages} if item.dropped_messages else {}
    return {"truncated": item.truncated} | dropped


def _usage(items: list[tuple[Item, float]]) -> dict[str, Any]:
    tokens = sum(sum(item.tokens) for item, _ in items)
    return {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}


def _check_input(body: dict[str, Any]) -> None:
    if body.get("input") is not None and body.get("messages") is not None:
        raise WireError(422, NO_REQUEST, "found 'input' and 'messages': give one of them")
    if body.get("truncate_prompt_tokens") is not None:
        raise WireError(
            422,
            NO_REQUEST,
            "truncate_prompt_tokens: nothing is ever cut here; leave it out, and shorten the input",
        )


def _check_rows(rows: int, reader: Reader) -> None:
    if rows > reader.max_rows:
        raise WireError(
            413, "too many rows", f"{rows} sequences; at most {reader.max_rows} a request"
        )


def _flag(body: dict[str, Any], name: str, default: bool) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _unexpected(name, "true or false", value)
    return default if value is None else value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _unexpected(name, "a list", value)
    return value


def _unexpected(name: str, expected: str, value: Any) -> WireError:
    return WireError(422, NO_REQUEST, f"{name}: expected {expected}, found {_found(value)}")


def _found(value: Any) -> str:
    if value == []:
        return "an empty list"
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return kinds.get(type(value)) or json.dumps(value)


def _is_id(value: Any) -> bool:
    return type(value) is int  # a bool is none


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is beyond the range of a double")
    return number
