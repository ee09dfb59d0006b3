"""Requests -> token ids, within the model's length. Runs in worker processes: no JAX in here.

    Request --normalise tools, render--> Tokenized(prompt, responses) | Rejected(reason, detail)

A sequence is over-long when prompt and response together exceed `max_tokens`. What happens then is
the policy's to say, and always reported:

    reject               the whole request is rejected (the default)
    drop-oldest-turns    the oldest turns are left out until every response fits; a turn is a user's
                         message with all that follows it up to the next one. Tools, system messages
                         and the last turn stay; where that is still too long, it is rejected.

    tokenize = RequestTokenizer(Renderer(tokenizer), max_tokens=8192)
    tokenize(request).sequences()
"""

import dataclasses
import json
from typing import Any, Literal, get_args

import numpy as np

from toolrm_jax.examples import Message
from toolrm_jax.rendering import Rendered, Renderer, RenderError
from toolrm_jax.schema import ToolSchemaError, normalize_tools
from toolrm_jax.score_request import Rejected, Request, RequestError, request_of

OverLong = Literal["reject", "drop-oldest-turns"]
POLICIES: tuple[str, ...] = get_args(OverLong)

# Why something is not scored.
NOT_JSON = "not JSON"
NO_REQUEST = "not a request"
BAD_TOOL = "bad tool"
CANNOT_RENDER = "cannot be rendered"
OVER_LONG = "over-long"


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

    def _fitted(self, request: Request) -> Tokenized | Rejected:
        whole = self._render(request, request.messages)
        if self._fits(whole):
            return whole
        if self.over_long == "reject":
            return self._too_long(whole, request)
        # The fewest turns to drop, by bisection: each try renders everything.
        turns = oldest_turns(request.messages)
        low, high, best = 1, len(turns), None
        while low <= high:
            middle = (low + high) // 2
            dropped = {i for turn in turns[:middle] for i in turn}
            kept = [m for i, m in enumerate(request.messages) if i not in dropped]
            shorter = dataclasses.replace(
                self._render(request, kept), dropped_messages=len(dropped)
            )
            if self._fits(shorter):
                best, high = shorter, middle - 1
            else:
                whole, low = shorter, middle + 1
        return best or self._too_long(whole, request)

    def _render(self, request: Request, messages: list[Message]) -> Tokenized:
        return Tokenized(self.renderer.render(request.tools, messages, request.responses))

    def _fits(self, tokenized: Tokenized) -> bool:
        return max(tokenized.lengths) <= self.max_tokens

    def _too_long(self, tokenized: Tokenized, request: Request) -> Rejected:
        long = [i for i, length in enumerate(tokenized.lengths) if length > self.max_tokens]
        left = " with the oldest turns left out" if tokenized.dropped_messages else ""
        return Rejected(
            OVER_LONG,
            f"{len(long)} of {len(request.responses)} responses, such as responses[{long[0]}] with "
            f"{tokenized.lengths[long[0]]} tokens{left}; at most {self.max_tokens} are scored",
        )


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
    """A row of an input file: where it stands, what it is called, what became of it."""

    number: int
    id: Any
    outcome: Tokenized | Rejected


@dataclasses.dataclass(frozen=True)
class LineTokenizer:
    """Rows of a file, as bytes of JSON or as objects, to tokens; never raises for their content."""

    tokenize: RequestTokenizer

    def __call__(self, numbered: tuple[int, bytes | dict[str, Any]]) -> Line:
        number, row = numbered
        if isinstance(row, bytes):
            try:
                row = json.loads(row.decode("utf-8"), parse_constant=_no_constant)
            except UnicodeDecodeError as error:
                return Line(number, number, Rejected(NOT_JSON, f"it is not UTF-8: {error}"))
            except (ValueError, RecursionError) as error:
                return Line(number, number, Rejected(NOT_JSON, str(error)))
        return Line(number, _id_of(row, number), self.tokenize(row))


def _id_of(row: Any, number: int) -> Any:
    """The row's own name, or the number of its line."""
    if not isinstance(row, dict):
        return number
    name = row.get("id", row.get("test_id"))
    return name if isinstance(name, str | int) else number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
