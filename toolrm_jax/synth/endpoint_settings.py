"""One model behind an OpenAI-compatible server: what a config says of it, checked.

    {"kind": "endpoint", "model": "Qwen/Qwen2.5-7B-Instruct", "license": "apache-2.0",
     "url": "http://127.0.0.1:8000/v1", "samples": 4, "temperature": 0.8}

vLLM, SGLang, llama.cpp, Ollama, `transformers serve` and hosted ones speak the same language. A key
stands in the environment; the config names the variable, and nothing writes the key down.

>>> EndpointSettings(model="m", license="MIT", url="http://localhost:8000/v1").samples
1
"""

import dataclasses
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from toolrm_jax.errors import InputError

_OURS = {"model", "messages", "tools", "temperature", "max_tokens", "seed", "n", "stream"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class EndpointError(InputError):
    """A server that cannot be used; what it has answered is in the cache."""


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """What to ask of whom, and how hard.

    Args:
      model: the name in answers, counts and the cache.
      license: the model's.
      url: up to and without /chat/completions.
      served_as: the name that the server knows the model by; default: `model`.
      permissive: whether the licence is, True or False; default: by `model_license`'s list.
      key_variable: the name of the environment's variable that holds the key, never the key;
        default: none is sent.
      samples: answers an example.
      temperature: of the sampling; 0 with one sample only.
      max_tokens: of an answer.
      tools: "native": given to the server's own parser and template; "text": written into the
        system message, answers in Hermes's form wanted.
      send_seed: whether a seed goes along, from the run's seed, the example's id and the sample.
      extra: more fields of the body, such as {"top_p": 0.9}; part of the cache's key.
      keep_cut: whether answers that reached max_tokens are kept: they are no fault of the model's.
      concurrency: requests under way at a time.
      timeout: seconds for a whole answer, however slowly it comes.
      tries: how often a question is asked at most.
      first_pause: seconds before the second try; doubles, up to longest_pause.
      longest_pause: seconds; a server's Retry-After is obeyed up to ten times as long.
      give_up_after: questions in a row that got no answer after which the run ends; of what was
        refused, those count that came before the model's first answer.
      budget_requests: requests at most, each failed try included, over all runs with one cache;
        but for what was under way when a run was killed.
      budget_tokens: the same of tokens, questions included, as the server counts them in its
        answers; what failed tries took is in no count. What is under way when they are used up is
        still taken. A server that sends no count ends the run at its first answer.
      retry_refused: asks again what the server refused in an earlier run.
    """

    model: str
    license: str
    url: str
    served_as: str = ""
    permissive: bool | None = None
    key_variable: str = ""
    samples: int = 1
    temperature: float = 0.7
    max_tokens: int = 1024
    tools: Literal["native", "text"] = "native"
    send_seed: bool = True
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep_cut: bool = False
    concurrency: int = 8
    timeout: float = 120.0
    tries: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    give_up_after: int = 20
    budget_requests: int | None = None
    budget_tokens: int | None = None
    retry_refused: bool = False

    def __post_init__(self) -> None:
        for field in ("model", "license"):
            if not getattr(self, field) or not isinstance(getattr(self, field), str):
                self._bad(field, "expected a name")
        for field in ("samples", "max_tokens", "concurrency", "tries", "give_up_after", "timeout"):
            if not self._number(field) > 0:
                self._bad(field, "expected a positive number")
        for field in ("samples", "max_tokens", "concurrency", "tries", "give_up_after"):
            if not isinstance(getattr(self, field), int):
                self._bad(field, "expected a whole number")
        for field in ("budget_requests", "budget_tokens"):
            budget = getattr(self, field)
            if budget is not None and (not isinstance(budget, int) or budget < 0):
                self._bad(field, "expected a whole number, or None for no budget")
        for field in ("temperature", "first_pause", "longest_pause"):
            if not self._number(field) >= 0:
                self._bad(field, "expected zero or more")
        if self.tools not in ("native", "text"):
            self._bad("tools", "expected 'native' or 'text'")
        if self.temperature == 0 and self.samples > 1:
            self._bad("samples", "temperature 0 gives one answer however often it is asked")
        if taken := _OURS & set(self.extra):
            self._bad("extra", f"{', '.join(sorted(taken))} have fields of their own, or are fixed")
        if not isinstance(self.permissive, bool | None):
            self._bad("permissive", "expected True, False, or None to go by the licence")
        self._check_key_variable()
        self._check_url()

    def _number(self, field: str) -> float:
        value = getattr(self, field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._bad(field, "expected a number")
        return value

    def _check_key_variable(self) -> None:
        # What is no name may be the key itself: it is not repeated.
        name = self.key_variable
        if not isinstance(name, str) or (name and not _VARIABLE.fullmatch(name)):
            raise InputError(
                f"Endpoint {self.model!r}: key_variable is no name of a variable (letters, digits, "
                "underscores). Put the key into the environment, and the variable's name here."
            )

    def _check_url(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            self._bad("url", "expected one such as 'http://127.0.0.1:8000/v1'")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                f"Endpoint {self.model!r}: its url holds a user, a password or a query. What is "
                "secret belongs into the environment: name the variable in key_variable."
            )

    def _bad(self, field: str, expected: str) -> NoReturn:
        raise InputError(f"Endpoint {self.model!r}: {field}={getattr(self, field)!r}; {expected}.")

    def secret(self) -> str | None:
        """The key from the environment, None where none is wanted."""
        if not self.key_variable:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        # An HTTP library would show a key that cannot stand in a header in its error.
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            state = "holds a key that cannot stand in a header" if key else "is not set"
            # Some keys are spelt like names ("hf_..."): what looks like none is not repeated.
            known = self.key_variable in os.environ or self.key_variable.isupper()
            name = self.key_variable if known else "variable that key_variable names"
            raise InputError(
                f"Endpoint {self.model!r}: the environment's {name} {state}. Set it, or leave "
                "key_variable out if the server wants no key."
            )
        return key
