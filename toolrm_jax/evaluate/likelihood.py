"""The log-likelihood ranker: what a causal language model thinks of an answer, by its own words.

    score = mean over the answer's tokens of log P(token | prompt, tokens before)

The mean, for the sum would prefer short answers. The text is the tokenizer's own, as everywhere
here, to the end-of-turn token. It runs in transformers on PyTorch (pip install torch), which has
every model's language head; a baseline need not be fast.
"""

import collections
import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolrm_jax.assets import EMBEDDED_MODEL, smollm2_gguf
from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Case
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer, RenderError
from toolrm_jax.score_request import CANNOT_RENDER, OVER_LONG

MOST_TOKENS = 8192
_GROUP_TOKENS = 512  # of answers computed together, padding included: a bound for their logits


def _groups(numbers: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of answers that are computed together, of like length. One by one, a product
    spends more time on bringing the weights than on the few tokens of an answer."""
    ordered = sorted(numbers, key=lambda number: lengths[number])
    while ordered:
        count = 1
        while count < len(ordered) and (count + 1) * lengths[ordered[count]] <= _GROUP_TOKENS:
            count += 1
        group, ordered = ordered[:count], ordered[count:]
        yield group


def _where(path: str) -> dict[str, str]:
    """The model in transformers' words."""
    file = smollm2_gguf() if path == EMBEDDED_MODEL else Path(path)
    if file.suffix == ".gguf":
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return {"pretrained_model_name_or_path": path}


class LikelihoodScorer:
    """Ranks by a causal model: a folder or hub id in Hugging Face's form, a GGUF file, or
    "embedded:smollm2". Sequences of more than `max_tokens` (None: 8,192) are not scored.

    Attributes:
      card: which model, and how it is computed.
      rejected: how many candidates could not be scored, by reason.
    """

    is_log_odds = False

    def __init__(self, path: str, name: str = "", *, max_tokens: int | None = None):
        try:
            import torch
            from transformers import AutoModelForCausalLM
        except ModuleNotFoundError as error:
            raise InputError(
                f"The log-likelihood ranker needs {error.name}: pip install torch."
            ) from None
        self.name = name or f"log-likelihood of {path}"
        self._torch = torch
        self._max_tokens = MOST_TOKENS if max_tokens is None else max_tokens
        self._renderer = Renderer(open_pretrained(path).tokenizer)
        where = _where(path)
        self._model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
        self.card = {
            "path": path,
            "parameters": sum(weights.numel() for weights in self._model.parameters()),
            "dtype": "float32",
            "max_tokens": self._max_tokens,
        }
        self.rejected: collections.Counter[str] = collections.Counter()
        # transformers renames it in 5.24.
        known = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"

    def score(self, cases: Sequence[Case]) -> Iterator[np.ndarray]:
        """The mean log-probabilities; NaN for what cannot be rendered or is too long."""
        for case in cases:
            responses = case.request().responses
            try:
                found = self._renderer.render(case.tools, case.messages, responses)
            except RenderError:
                self.rejected[CANNOT_RENDER] += len(responses)
                yield np.full(len(responses), np.nan)
                continue
            responses_ids = [found.whole(i)[len(found.prompt) :] for i in range(len(responses))]
            yield self._means(found.prompt, responses_ids)

    def _means(self, prompt: np.ndarray, responses: Sequence[np.ndarray]) -> np.ndarray:
        """The prompt is computed once. Without one, an answer's first token has no probability."""
        means = np.full(len(responses), np.nan)
        fitting = [i for i, r in enumerate(responses) if len(prompt) + len(r) <= self._max_tokens]
        if len(fitting) < len(responses):
            self.rejected[OVER_LONG] += len(responses) - len(fitting)
        with self._torch.inference_mode():
            cache, before = self._begun(prompt) if len(prompt) and fitting else (None, None)
            for group in _groups(fitting, [len(ids) for ids in responses]):
                means[group] = self._of_group(cache, before, [responses[i] for i in group])
        return means

    def _of_group(self, cache: Any, before: Any, responses: Sequence[np.ndarray]) -> np.ndarray:
        """Padded on the right, which no token before it sees."""
        torch, lengths = self._torch, np.array([len(ids) for ids in responses])
        given = torch.zeros(len(responses), int(lengths.max()), dtype=torch.int64)
        for row, ids in zip(given, responses, strict=True):
            row[: len(ids)] = torch.from_numpy(ids.astype(np.int64))
        kept = copy.deepcopy(cache)  # the model appends to it
        if kept is not None:
            kept.batch_repeat_interleave(len(responses))
        logits = self._model(given, **{self._cache_name: kept}).logits[:, :-1]
        if before is not None:
            logits = torch.cat([before.expand(len(responses), 1, -1), logits], 1)
        first = given.shape[1] - logits.shape[1]  # 1 where the first token has no probability
        found = logits.log_softmax(-1).gather(2, given[:, first:, None])[..., 0].numpy()
        real = np.arange(first, given.shape[1]) < lengths[:, None]
        with np.errstate(invalid="ignore"):  # an answer of one token and no prompt has none: NaN
            return np.where(real, found, 0).sum(1) / real.sum(1)

    def _begun(self, prompt: np.ndarray) -> tuple[Any, Any]:
        """What the model keeps of the prompt, and its logits for the token after it [1, V]."""
        given = self._torch.from_numpy(prompt.astype(np.int64))[None]
        found = self._model(given, use_cache=True, logits_to_keep=1)
        return found[self._cache_name], found.logits[0]
