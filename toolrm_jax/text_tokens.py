"""Texts and token ids as other frameworks send them -> token ids to score.

    "...<|im_end|>"        ends at the end of a turn: the template's tail is appended ("\\n" after
                           ChatML's), so that the reward is that of the rendered conversation
    "...<|im_end|>\\n"      is complete already
    "...<|im_end|><|im..." an end after an end is padding, where the pad is the end: it is taken off
    "...and the wea"       is scored as it stands, and flagged as truncated
    [151644, 8948, ...]    ids are scored as they are; flagged where they do not end as a turn does,
                           or are padded

The tokenizer's special tokens are added where they are asked for, but no second BOS, and none after
a finished turn: a tokenizer that ends each text in its EOS would put it after the template's tail.

What ends a turn, and what follows, is read off the tokenizer's own template, by rendering probes.

    >>> texts = TextTokenizer(tokenizer, max_tokens=8192)
    >>> texts("<|im_start|>user\\nHi<|im_end|>\\n...", add_special_tokens=False).truncated
    True
"""

import dataclasses
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from toolrm_jax.chat_template import probe_texts
from toolrm_jax.score_request import CANNOT_RENDER, OVER_LONG, Rejected


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a finished turn ends: a special token, and what the template writes after it."""

    token: str
    tail: str


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """A whole sequence, and whether it stops short of the end of its last turn."""

    ids: Any  # int32 [T], or a list of ids as it was sent
    truncated: bool


class TextTokenizer:
    """Tokenises whole conversations that are text already; may be used from several threads.

    Attributes:
      ending: how a turn ends; None where the template ends turns in no special token, and then no
        text is completed or flagged.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.ending = ending_of(tokenizer)
        whole = self.ending.token + self.ending.tail if self.ending else ""
        # A turn that says nothing, under a template that writes no role before it, may end where
        # the one before it ended; under any other, a second end is padding.
        self._may_be_padded = self.ending is not None and not any(
            self.ending.token * 2 in text or whole + self.ending.token in text
            for text in probe_texts(tokenizer)
        )
        # This first call also turns off what padding and truncation a tokenizer's file may ask for;
        # from then on it is only read, which threads may do together.
        self._end_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        self._added_after = _added_after(tokenizer, "a" + whole)

    def __call__(self, text: str, *, add_special_tokens: bool) -> TextTokens | Rejected:
        """The text's tokens, completed; with the tokenizer's own special tokens if asked for, but
        never a second BOS before one that the text begins with, nor any after a finished turn."""
        text, truncated = self._completed(text)
        try:
            text.encode()
        except UnicodeEncodeError:
            return Rejected(CANNOT_RENDER, "the text holds half a surrogate pair")
        options = {"add_special_tokens": add_special_tokens, "return_attention_mask": False}
        ids = self.tokenizer(text, **options)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if add_special_tokens and bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if add_special_tokens and self.ending is not None and not truncated:
            ids = ids[: len(ids) - self._added_after]
        return self._fitting(np.asarray(ids, np.int32), truncated)

    def of_ids(self, ids: list[int]) -> TextTokens | Rejected:
        """The same for token ids; the scorer checks that they are of its vocabulary."""
        end = self._end_ids
        padded = self._may_be_padded and ids[-2 * len(end) :] == end * 2
        return self._fitting(ids, bool(end) and (padded or ids[-len(end) :] != end))

    def _completed(self, text: str) -> tuple[str, bool]:
        if self.ending is None:
            return text, False
        token, whole = self.ending.token, self.ending.token + self.ending.tail
        if not text.endswith((token, whole)):
            return text, True
        if text.endswith(whole):
            text = text.removesuffix(self.ending.tail)
        length = len(text) - len(token)
        while self._may_be_padded and text.endswith(token, 0, length):
            length -= len(token)
        bare = text[:length]
        if self._may_be_padded and bare.endswith(whole):
            return bare, False
        return bare + whole, False

    def _fitting(self, ids: Any, truncated: bool) -> TextTokens | Rejected:
        if len(ids) > self.max_tokens:
            return Rejected(OVER_LONG, f"{len(ids)} tokens; at most {self.max_tokens} are scored")
        return TextTokens(ids, truncated)


def _added_after(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """How many special tokens the tokenizer puts after a text: as many after any other."""
    bare, whole = (tokenizer(text, add_special_tokens=add)["input_ids"] for add in (False, True))
    room = len(whole) - len(bare)
    before = next((n for n in range(room) if whole[n : n + len(bare)] == bare), room)
    return room - before


def ending_of(tokenizer: PreTrainedTokenizerBase) -> Ending | None:
    """How the template ends an assistant's turn, whatever the turn says; None if in no special
    token."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    found = {_after_last(text, special) for text in probe_texts(tokenizer)}
    # The probes end in different turns: where these reach into what is found, nothing is.
    return found.pop() if len(found) == 1 else None


def _after_last(text: str, special: list[str]) -> Ending | None:
    ends = [(text.rfind(token) + len(token), token) for token in special if token in text]
    if not ends:
        return None
    end, token = max(ends)
    return Ending(token, text[end:])
