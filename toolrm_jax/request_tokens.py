"""Requests -> token ids, within the model's length. Runs in worker processes: no JAX in here.

    Request --normalise tools, render--> Tokenized(prompt, responses) | Rejected(reason, detail)

A sequence is over-long when prompt and response together exceed `max_tokens`. What happens then is
the policy's to say, and always reported:

    reject               the whole request is rejected (the default), by its first response that is
                         too long; those after it are not looked at
    drop-oldest-turns    the oldest turns are left out until every response fits; a turn is a user's
                         message with all that follows it up to the next one. Tools, system messages
                         and the last turn stay; where that is still too long, it is rejected.

    tokenize = RequestTokenizer(Renderer(tokenizer), max_tokens=8192)
    tokenize(request).sequences()
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from toolrm_jax.examples import Message
from toolrm_jax.literals import read_json
from toolrm_jax.rendering import Rendered, Renderer, RenderError, TooManyTokens
from toolrm_jax.schema import ToolSchemaError, normalize_tools
from toolrm_jax.score_request import (
    BAD_TOOL,
    CANNOT_RENDER,
    NO_REQUEST,
    NOT_JSON,
    OVER_LONG,
    Rejected,
    Request,
    RequestError,
    id_or_none,
    no_number_in,
    request_of,
)

OverLong = Literal["reject", "drop-oldest-turns"]
POLICIES: tuple[str, ...] = get_args(OverLong)


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """A request's tokens, and how many messages were left out to make it fit."""

    rendered: Rendered
    dropped_messages: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response's whole sequence."""
        return [len(self.rendered.prompt) + len(r) for r in self.rendered.responses]

    def sequences(self) -> list[np.ndarray]:
        """The whole sequences, int32 [lengths[i]] each."""
        return [self.rendered.whole(i) for i in range(len(self.rendered.responses))]


@dataclasses.dataclass(frozen=True)
class RequestTokenizer:
    """Renders and measures requests; see the module's docstring for `over_long`."""

    renderer: Renderer
    max_tokens: int
    over_long: OverLong = "reject"

    def __post_init__(self):
        if self.over_long not in POLICIES:
            raise ValueError(f"over_long {self.over_long!r}: use one of {', '.join(POLICIES)}.")

    def __call__(self, row: Request | dict) -> Tokenized | Rejected:
        """The tokens of a request, or of a row that `request_of` reads; never raises for its
        content."""
        try:
            request = request_of(row)
            if odd := _no_numbers(request):
                return Rejected(NOT_JSON, odd)
            request = dataclasses.replace(request, tools=normalize_tools(request.tools))
            return self._fitted(request)
        except RequestError as error:
            return Rejected(NO_REQUEST, str(error))
        except ToolSchemaError as error:
            return Rejected(BAD_TOOL, str(error))
        except RenderError as error:
            return Rejected(CANNOT_RENDER, str(error))
        except RecursionError:
            return Rejected(CANNOT_RENDER, "it is nested too deeply")
        except MemoryError:  # says nothing about the request
            raise
        # A chat template is a program: what it makes of a strange request is not for us to list.
        except Exception as error:
            return Rejected(CANNOT_RENDER, f"{type(error).__name__}: {error}")

    def _fitted(self, request: Request) -> Tokenized | Rejected:
        found = self._render(request, ())
        if isinstance(found, Tokenized) or self.over_long == "reject":
            return found
        # The fewest turns to drop, by bisection: each try renders what it leaves.
        turns = oldest_turns(request.messages)
        low, high = 1, len(turns)
        best: Tokenized | Rejected = found
        while low <= high:
            middle = (low + high) // 2
            shorter = self._render(request, [i for turn in turns[:middle] for i in turn])
            if isinstance(shorter, Tokenized):
                best, high = shorter, middle - 1
            else:
                best = best if isinstance(best, Tokenized) else shorter
                low = middle + 1
        return best

    def _render(self, request: Request, dropped: Sequence[int]) -> Tokenized | Rejected:
        """The request without some of its messages; rejected if that is too long."""
        left_out = set(dropped)
        messages = [m for i, m in enumerate(request.messages) if i not in left_out]
        most = self.max_tokens
        try:
            rendered = self.renderer.render(
                request.tools, messages, request.responses, max_tokens=most
            )
        except TooManyTokens as error:
            left = " with the oldest turns left out" if left_out else ""
            return Rejected(
                OVER_LONG,
                f"prompt and responses[{error.index}] have {error.tokens} tokens{left}; at most "
                f"{most} are scored",
            )
        return Tokenized(rendered, len(left_out))


def _no_numbers(request: Request) -> str:
    """Where the request holds what is no number of JSON's, and what; "" if nowhere."""
    for name in ("tools", "messages", "responses"):
        if found := no_number_in(getattr(request, name)):
            return f"{name}: {found} is not JSON"
    return ""


def oldest_turns(messages: list[Message]) -> list[list[int]]:
    """The turns that may be dropped, oldest first, as numbers of messages; the last one may not.

    >>> roles = ["system", "user", "assistant", "user", "assistant", "tool", "user"]
    >>> oldest_turns([{"role": role} for role in roles])
    [[1, 2], [3, 4, 5]]
    """
    turns: list[list[int]] = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role == "system":
            continue
        if role == "user" or not turns:
            turns.append([])
        turns[-1].append(number)
    return turns[:-1]


@dataclasses.dataclass(frozen=True)
class Line:
    """A row of an input file: where it stands, what it calls itself, what became of it."""

    number: int
    id: str | int | None
    outcome: Tokenized | Rejected


@dataclasses.dataclass(frozen=True)
class LineTokenizer:
    """Rows of a file, as bytes of JSON or as objects, to tokens; never raises for their content."""

    tokenize: RequestTokenizer

    def __call__(self, numbered: tuple[int, bytes | dict[str, Any]]) -> Line:
        number, row = numbered
        if isinstance(row, bytes):
            try:
                row = read_json(row.decode("utf-8"))
            except UnicodeDecodeError as error:
                return Line(number, None, Rejected(NOT_JSON, f"it is not UTF-8: {error}"))
            except ValueError as error:
                return Line(number, None, Rejected(NOT_JSON, str(error)))
        return Line(number, id_or_none(row), self.tokenize(row))


@dataclasses.dataclass(frozen=True)
class ChunkTokenizer:
    """The same with the number of the chunk that a row is in, which is passed along."""

    tokenize: LineTokenizer

    def __call__(
        self, numbered: tuple[int, tuple[int, bytes | dict[str, Any]]]
    ) -> tuple[int, Line]:
        chunk, row = numbered
        return chunk, self.tokenize(row)
