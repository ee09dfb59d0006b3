"""Makes a tokenizer fit for scoring tool calls; what is changed is saved with the tokenizer.

    the tokenizer's template                 becomes
    shows no tools or calls, or is missing   chat_template.jinja of this package (ChatML only)
    asks for today's date                    the same, with the date pinned to PINNED_DATE
    ends a conversation in the pad token     the same, with another pad token

A score must depend on its input alone, so no date of the day may enter it; and transformers reads
the reward at the last token that is not padding, so a conversation must not end in the pad token.

Example:

    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(directory))
    tokenizer.save_pretrained(checkpoint)   # loads anywhere, and renders the same ids there
"""

from importlib import resources
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from toolrm_jax.errors import InputError


class ChatTemplateError(InputError, ValueError):
    """A tokenizer's chat template cannot serve; the message says what is wrong and what to do."""


# The date that Llama 3's own template falls back to where it is given none, 26 July 2024, by
# strftime directive. Spelled out: strftime itself would follow the locale of the day.
PINNED_DATE = {
    "%Y": "2024",
    "%y": "24",
    "%m": "07",
    "%B": "July",
    "%b": "Jul",
    "%d": "26",
    "%-d": "26",
    "%A": "Friday",
    "%a": "Fri",
    "%j": "208",
    "%H": "00",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%p": "AM",
}
_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({directive!r}, {value!r})" for directive, value in PINNED_DATE.items())
    + " }}{% endmacro %}\n"
)

# The pad token, where it has to be chosen: the first of these that the vocabulary has and that no
# conversation ends in; then the special token of the lowest id that the template never writes.
PAD_CHOICES = (
    "<|endoftext|>",
    "<|finetune_right_pad_id|>",
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<unk>",
)

_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_offered_tool",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"probe_parameter": {"type": "string"}}},
    },
}
_CALL = {"name": "probe_called_tool", "arguments": {"probe_argument": "probe_value"}}
_USER = {"role": "user", "content": "probe"}
# The three kinds of turn that are ever scored: a call, words, nothing.
_TURNS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": _CALL}]},
    {"role": "assistant", "content": "probe"},
    {"role": "assistant", "content": ""},
]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives the tokenizer, in place, a template with tools, a pinned date and a safe pad token."""
    tokenizer.chat_template = _pinned(_template_with_tools(tokenizer))
    _choose_pad(tokenizer)
    return tokenizer


def probe_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Small conversations as the template renders them, one per kind of turn."""
    chats = [[_USER, turn] for turn in _TURNS]
    return [str(tokenizer.apply_chat_template(c, tools=[_TOOL], tokenize=False)) for c in chats]


def _template_with_tools(tokenizer: PreTrainedTokenizerBase) -> str:
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several named templates: one must serve with and without tools
        own = own.get("tool_use") or own.get("default")
    fault = "it has none" if not own else _tool_fault(tokenizer, own)
    if fault is None:
        assert isinstance(own, str)
        return own
    if not {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.get_added_vocab()):
        raise ChatTemplateError(
            f"The tokenizer's chat template cannot serve ({fault}), and this project's own needs "
            f"the tokens <|im_start|> and <|im_end|>, which this vocabulary lacks. Set "
            f"tokenizer.chat_template to one that renders tools and tool calls."
        )
    return resources.files("toolrm_jax").joinpath("chat_template.jinja").read_text("utf-8")


def _tool_fault(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """What keeps the template from rendering tools and calls, found by rendering a probe."""
    try:
        text = tokenizer.apply_chat_template(
            [_USER, _TURNS[0]], tools=[_TOOL], tokenize=False, chat_template=template
        )
    except (jinja2.TemplateError, TypeError) as error:
        return f"it fails on a tool call: {error}"
    if "probe_offered_tool" not in text or "probe_parameter" not in text:
        return "it does not show the tools on offer"
    if "probe_called_tool" not in text or "probe_value" not in text:
        return "it does not show the calls of an assistant turn"
    return None


def _pinned(template: str) -> str:
    """The template with `strftime_now` overridden, if it uses it, by a macro of a fixed date."""
    # The macro ends in a newline, which Jinja takes with it (trim_blocks): nothing is added to the
    # text, and the template's own first line still begins a line.
    if "strftime_now" not in template or template.startswith("{% macro strftime_now("):
        return template
    return _DATE_MACRO + template


def _choose_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in probe_texts(tokenizer)
    ]
    last = {sequence[-1] for sequence in ids}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in last:
        return
    written = {token for sequence in ids for token in sequence}
    special = {
        token.content: index
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special
    }
    listed = [name for name in PAD_CHOICES if name in special and special[name] not in last]
    others = [name for name, index in special.items() if index not in written]
    for name in listed + others:
        tokenizer.pad_token = name
        return
    ends = tokenizer.convert_ids_to_tokens(sorted(last))
    raise ChatTemplateError(
        f"The chat template ends a conversation in one of {ends}, the pad token is "
        f"{tokenizer.pad_token!r}, and no other special token can stand in. The reward is read at "
        f"the last token that is not padding: set tokenizer.pad_token to a token that no "
        f"conversation ends in."
    )
