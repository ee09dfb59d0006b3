"""Turns (tools, messages, response) into token ids by the tokenizer's own chat template.

    tools, messages   <|im_start|>system ... <|im_start|>user ... <|im_start|>assistant\\n
    response 0        <tool_call>{"name": ...}</tool_call><|im_end|>\\n
    response 1        There is no tool for that.<|im_end|>\\n

    Rendered.prompt int32 [T]            what all responses share
    Rendered.responses  int32 [R_i]      the rest of each: prompt + response i is, token for token,
                                         apply_chat_template of the whole conversation

The border lies where the sequences part, not where a string ends: a byte-pair merge may cross the
end of the generation prompt (an answer that begins with a newline), and then the border is before
it. Every split of a sequence gets the same reward, so nothing depends on where the border is.

Surface form: a response that parses as calls is rendered from its canonical calls, anything else as
it stands (so that format errors stay visible); `raw=True` opts out of parsing and reordering. Calls
that are none, say one with "args" for "arguments", are shown as the JSON text that they are.

Example:

    >>> from toolrm_jax import assets, gguf_llama
    >>> tokenizer = prepare_tokenizer(gguf_llama.read_gguf(assets.smollm2_gguf()).tokenizer)
    >>> question = [{"role": "user", "content": "Rain in Rome?"}]
    >>> rendered = Renderer(tokenizer).render([], question, ["Yes.", "Never."])
    >>> tokenizer.decode(rendered.prompt)
    '<|im_start|>user\\nRain in Rome?<|im_end|>\\n<|im_start|>assistant\\n'
    >>> [tokenizer.decode(response) for response in rendered.responses]
    ['Yes.<|im_end|>\\n', 'Never.<|im_end|>\\n']
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from transformers import PreTrainedTokenizerBase

from toolrm_jax import tool_calls
from toolrm_jax.chat_template import ChatTemplateError, prepare_tokenizer, probe_texts
from toolrm_jax.errors import InputError
from toolrm_jax.examples import Message, Response, Tool
from toolrm_jax.literals import read_json
from toolrm_jax.schema import unwrapped

__all__ = ["ChatTemplateError", "RenderError", "Rendered", "Renderer", "prepare_tokenizer"]

ROLES = ("system", "user", "assistant", "tool")
# Of a conversation, times its responses: rendering takes some milliseconds a million.
_MOST_CHARACTERS = 2**30


class RenderError(InputError, ValueError):
    """Tools, messages or a response that cannot be rendered; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One prompt and its responses, as token ids; prompt + response is the whole sequence."""

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]

    def whole(self, index: int) -> np.ndarray:
        """The sequence that a model without shared prompts would read. int32 [T + R_index]"""
        return np.concatenate([self.prompt, self.responses[index]])


class TooManyTokens(Exception):
    """A prompt and its response `index` have more tokens than were asked for at most."""

    def __init__(self, index: int, tokens: int):
        super().__init__(f"prompt and responses[{index}] have {tokens} tokens")
        self.index, self.tokens = index, tokens


class Renderer:
    """Renders by one tokenizer; see `prepare_tokenizer` for what a tokenizer must be able to do."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, raw: bool = False):
        self.tokenizer = tokenizer
        self.raw = raw
        self._borders = _hard_borders(tokenizer)
        user = [{"role": "user", "content": "probe"}]
        # What the template writes before an answer, say "<|im_start|>assistant\n".
        self._opening = self._apply(user, [], add_generation_prompt=True).removeprefix(
            self._apply(user, [])
        )

    def conversation(
        self, tools: list[Tool], messages: list[Message], response: Response
    ) -> dict[str, Any]:
        """The arguments for which `tokenizer.apply_chat_template(**...)` gives the tokens."""
        turn = assistant_turn(response, tools, raw=self.raw)
        turns = [checked_message(message, i) for i, message in enumerate(messages)]
        return {"conversation": [*turns, turn], "tools": _wrapped_tools(tools) or None}

    def text(self, tools: list[Tool], messages: list[Message], response: Response) -> str:
        """The whole conversation as text."""
        return self._apply(**self.conversation(tools, messages, response))

    def tokens(self, tools: list[Tool], messages: list[Message], response: Response) -> list[int]:
        """The whole conversation as token ids, in the plainest way; `render` gives the same ids."""
        return self._apply(**self.conversation(tools, messages, response), tokenize=True)

    def render(
        self,
        tools: list[Tool],
        messages: list[Message],
        responses: Sequence[Response],
        *,
        max_tokens: int | None = None,
    ) -> Rendered:
        """One prompt with N >= 1 responses; each response keeps at least one token.

        Raises:
          RenderError: something of it cannot be rendered.
          TooManyTokens: a sequence is longer than `max_tokens`; nothing after it is rendered.
        """
        if isinstance(responses, str | dict) or not responses:
            raise RenderError(
                f"Expected a list of at least one response, got {_short(responses)}. A single "
                f"response goes in a list of its own; a turn that calls nothing is '' or []."
            )
        catalogue = _wrapped_tools(tools)
        turns = [checked_message(message, i) for i, message in enumerate(messages)]
        # Each when it is its turn: an over-long first one ends it all.
        whole = (
            self._apply([*turns, assistant_turn(response, tools, raw=self.raw)], catalogue)
            for response in responses
        )
        first = next(whole)
        if len(first) * len(responses) > _MOST_CHARACTERS:
            raise RenderError(
                f"{len(responses)} responses to a conversation of {len(first):,} characters: at "
                f"most {_MOST_CHARACTERS:,} are rendered together. Ask for fewer at a time."
            )
        texts = _Texts(self, first, max_tokens)
        for text in whole:
            texts.add(text)
        if len(responses) > 1:
            return texts.rendered()
        # A single response leaves nothing to compare with but the prompt alone.
        texts.add(self._up_to_answer(turns, catalogue, first), is_response=False)
        return texts.rendered(responses=1)

    def _apply(self, conversation: list[Message], tools: Any, **options: Any) -> Any:
        options = {"tokenize": False, "return_dict": False} | options
        try:
            return self.tokenizer.apply_chat_template(conversation, tools=tools or None, **options)
        except jinja2.TemplateError as error:
            roles = [message["role"] for message in conversation]
            raise RenderError(
                f"The tokenizer's chat template refuses a conversation of {roles}: {error}"
            ) from error
        except RecursionError:
            raise RenderError(
                "The tools, or the arguments of a call in messages, nest too deeply to be shown."
            ) from None

    def _up_to_answer(self, turns: list[Message], catalogue: list[Tool], whole: str) -> str:
        """The text of the prompt alone, where a single response leaves nothing to compare with."""
        if turns:
            return self._apply(turns, catalogue, add_generation_prompt=True)
        # transformers renders no empty conversation, so the answer's opening is looked up.
        start = whole.find(self._opening)
        return whole[: start + len(self._opening)] if start >= 0 else whole

    def _encode(self, text: str) -> np.ndarray:
        if not _is_unicode(text):
            bad = next(i for i, char in enumerate(text) if not _is_unicode(char))
            raise RenderError(
                f"The text holds half a surrogate pair, which no tokenizer takes, after "
                f"{text[max(0, bad - 40) : bad]!r}. Replace it before scoring."
            )
        ids = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False)
        return np.asarray(ids["input_ids"], np.int32)


class _Texts:
    """Texts that begin alike, tokenised one after the other; what they share, once.

    head            tails       the texts are cut before a special token, where the parts
    |-------------|------|      tokenise as the whole does; a text that begins otherwise moves
                  |---------|   the cut back
    """

    def __init__(self, renderer: Renderer, first: str, max_tokens: int | None):
        self._renderer, self._max_tokens = renderer, max_tokens
        self._first = first
        # A guess: where the answer begins, if it does not itself hold what opens one.
        opening = renderer._opening
        begins = first.rfind(opening) + len(opening) if opening and opening in first else 0
        self._prefix = first[: self._border(first[:begins])]
        self._head = renderer._encode(self._prefix)
        self._tails: list[np.ndarray] = []
        self.add(first)

    def add(self, text: str, *, is_response: bool = True) -> None:
        """Tokenises the next text; TooManyTokens if it is too long."""
        if not text.startswith(self._prefix):
            self._cut_at(self._border(_common_prefix([self._prefix, text])))
        tail = self._renderer._encode(text[len(self._prefix) :])
        tokens = len(self._head) + len(tail)
        if is_response and self._max_tokens is not None and tokens > self._max_tokens:
            raise TooManyTokens(len(self._tails), tokens)
        self._tails.append(tail)

    def rendered(self, responses: int | None = None) -> Rendered:
        """The first `responses` of the texts, parted where the tokens of any two differ."""
        tails = self._tails[:responses]
        border = min(_shared_length(self._tails), *(len(tail) - 1 for tail in tails))
        if border < 0 and self._prefix:  # a response ends where the cut is
            self._cut_at(0)
            return self.rendered(responses)
        border = max(border, 0)
        prompt = np.concatenate([self._head, tails[0][:border]])
        return Rendered(prompt, tuple(tail[border:] for tail in tails))

    def _border(self, text: str) -> int:
        return _last_border(text, self._renderer._borders)

    def _cut_at(self, cut: int) -> None:
        moved = self._renderer._encode(self._first[cut : len(self._prefix)])
        self._tails = [np.concatenate([moved, tail]) for tail in self._tails]
        self._head = self._head[: len(self._head) - len(moved)]
        self._prefix = self._first[:cut]


# --- what is rendered -----------------------------------------------------------------------------


def assistant_turn(response: Response, tools: list[Tool], *, raw: bool = False) -> Message:
    """The assistant message that stands for a response: canonical calls, or the text as it is."""
    if isinstance(response, dict):
        return _turn_of_message(response, tools, raw)
    if isinstance(response, str):
        return _turn_of_text(response, tools, raw)
    if not isinstance(response, list):
        raise RenderError(
            f"A response is a list of calls {{'name': str, 'arguments': dict}}, a string, or an "
            f"assistant message; got {_short(response)}."
        )
    return _turn_of_calls("", response, tools, raw)


def _turn_of_calls(content: str, made: Any, tools: list[Tool], raw: bool) -> Message:
    calls = tool_calls.parse_calls({"role": "assistant", "tool_calls": made})
    if calls is None:
        items = made if isinstance(made, list) else [made]
        return _turn("\n".join([*filter(None, [content]), *map(_call_as_text, items)]), [])
    return _turn(content, calls if raw else tool_calls.canonical_calls(calls, tools))


def _turn_of_text(text: str, tools: list[Tool], raw: bool) -> Message:
    calls = None if raw else tool_calls.parse_calls(text)
    if calls is None:
        return _turn(text, [])
    before, tag, _ = text.partition("<tool_call>")
    words = before.strip() if tag and calls else ""
    return _turn(words, tool_calls.canonical_calls(calls, tools))


def _turn_of_message(message: Message, tools: list[Tool], raw: bool) -> Message:
    if message.get("role") != "assistant":
        raise RenderError(f"A response's role is 'assistant', got {_short(message.get('role'))}.")
    reasoning = {k: message[k] for k in ("reasoning_content",) if message.get(k)}
    content = message.get("content") or ""
    if not isinstance(content, str):
        raise RenderError(f"A response's content is a string, got {_short(content)}.")
    made = message.get("tool_calls")
    if not made:
        return _turn_of_text(content, tools, raw) | reasoning
    return _turn_of_calls(content, made, tools, raw) | reasoning


def _turn(content: str, calls: list[dict[str, Any]]) -> Message:
    turn: Message = {"role": "assistant", "content": content}
    if calls:
        turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def _call_as_text(call: Any) -> str:
    inner = call.get("function", call) if isinstance(call, dict) else call
    if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
        name = json.dumps(inner.get("name"), ensure_ascii=False)
        inner = f'{{"name": {name}, "arguments": {inner["arguments"]}}}'
    elif not isinstance(inner, str):
        inner = _json_text(inner)
    return f"<tool_call>\n{inner}\n</tool_call>"


def _json_text(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
        return text if _is_unicode(text) else json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"A call is JSON, got {type(value).__name__} ({error}).") from None


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can carry the text: half a surrogate pair, as JSON may escape it, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_message(message: Message, index: int = 0) -> Message:
    """An earlier message in the form that every template reads, or an error that names its place.

    Calls get OpenAI's wrapper, and arguments given as JSON text are decoded: Qwen2.5's template
    would encode them a second time.
    """
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ROLES:
        raise RenderError(
            f"messages[{index}]: expected a dict with one of the roles {', '.join(ROLES)}, got "
            f"{_short(message)}. Templates drop roles that they do not know without a word."
        )
    calls, content = message.get("tool_calls"), message.get("content")
    if calls and not isinstance(calls, list):
        raise RenderError(
            f"messages[{index}] ({role}): expected a list as tool_calls, got {_short(calls)}."
        )
    if content is None and (calls or message.get("reasoning_content")):
        content = ""
    if not isinstance(content, str):
        raise RenderError(
            f"messages[{index}] ({role}): expected a string as content, got {_short(content)}. "
            f"Join text parts; write a tool's result as JSON text."
        )
    checked = {key: value for key, value in message.items() if value is not None}
    checked.pop("tool_calls", None)
    checked["content"] = content
    if calls:
        checked["tool_calls"] = [_wrapped_call(call, index) for call in calls]
    return checked


def _wrapped_call(call: Any, index: int) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RenderError(
            f"messages[{index}]: a tool call needs a name and arguments, got {_short(call)}."
        )
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _decoded(arguments)
    kept = {key: value for key, value in call.items() if key in ("id", "type")}
    return (
        {"type": "function"} | kept | {"function": {"name": inner["name"], "arguments": arguments}}
    )


def _decoded(arguments: str) -> Any:
    try:
        value = read_json(arguments) if arguments.strip() else {}
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _wrapped_tools(tools: list[Tool] | None) -> list[Tool]:
    plain = [unwrapped(tool) if isinstance(tool, dict) else {} for tool in tools or []]
    for i, tool in enumerate(plain):
        if not isinstance(tool.get("name"), str):
            raise RenderError(f"tools[{i}]: a tool needs a name, got {_short((tools or [])[i])}.")
    return [{"type": "function", "function": tool} for tool in plain]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


# --- where a text can be cut ----------------------------------------------------------------------


def _hard_borders(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Special tokens, of those that the template writes, before which a text can be cut.

    A fast tokenizer first finds its added tokens in the text and then treats the stretches between
    them one by one, so no merge crosses an added token. Cut before one, the two parts tokenise as
    the whole does, provided that no other added token can cover the cut. Where that is not
    certain the list is empty, and texts are tokenised whole.
    """
    if not tokenizer.is_fast or getattr(tokenizer, "split_special_tokens", False):
        return []
    added = list(tokenizer.added_tokens_decoder.values())
    texts = probe_texts(tokenizer)
    return [
        token.content
        for token in added
        if token.special
        and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        and not any(_can_cover_start(other.content, token.content) for other in added)
        and any(token.content in text for text in texts)
    ]


def _can_cover_start(other: str, token: str) -> bool:
    """Can `other` begin before `token` does and reach into it?"""
    rests = (other[i:] for i in range(1, len(other)))
    return any(token.startswith(rest) or rest.startswith(token) for rest in rests)


def _last_border(text: str, borders: list[str]) -> int:
    return max([0, *(text.rfind(border) for border in borders)])


def _common_prefix(texts: list[str]) -> str:
    # All texts lie between the first and the last in order, so what these two share, all share.
    first, last = min(texts), max(texts)
    low, high = 0, min(len(first), len(last))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == last[low:middle]:
            low = middle
        else:
            high = middle - 1
    return first[:low]


def _shared_length(sequences: list[np.ndarray]) -> int:
    shortest = min(len(sequence) for sequence in sequences)
    table = np.stack([sequence[:shortest] for sequence in sequences])
    differs = (table != table[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest
