"""The elements of a JSON array one after the other: a file of any length, memory of one element.

    [{"id": 0},            ->  (1, {"id": 0})
     {"id": 1}]                (2, {"id": 1})          (the line where it begins, the element)

Many upstreams publish one array of all their rows. Where the text is broken, what follows cannot be
told apart any more, so that reading ends there with a BrokenArray.
"""

import contextlib
import gzip
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from toolrm_jax.paths import as_path

_CHUNK = 1 << 20  # characters
_LONGEST = 1 << 25  # characters of one element
_BETWEEN = re.compile(r"[ \t\r\n]*")


class BrokenArray(ValueError):
    """The text is no array from this line on; `encoding`: its bytes are not UTF-8."""

    def __init__(self, line: int, detail: str, *, encoding: bool = False):
        super().__init__(f"{detail}. Nothing after it was read.")
        self.line, self.encoding = line, encoding


def holds_array(name: str) -> bool:
    """Is it a .json file whose text begins with a bracket, rather than JSON lines?"""
    if not name.endswith((".json", ".json.gz")):
        return False
    path = as_path(name)
    if not path.exists() or path.is_dir():
        return False
    with _opened(name) as file:
        try:
            return file.read(64).lstrip()[:1] == "["
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile):
            return False


def array_rows(name: str) -> Iterator[tuple[int, Any]]:
    """Every element with the line where it begins. Raises BrokenArray."""
    with _opened(name) as file:
        yield from _Reader(file).elements()


@contextlib.contextmanager
def _opened(name: str) -> Iterator[io.TextIOWrapper]:
    with contextlib.ExitStack() as opened:
        file: Any = opened.enter_context(as_path(name).open("rb"))
        if name.endswith(".gz"):
            file = opened.enter_context(gzip.open(file))
        yield opened.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig"))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class _Reader:
    """A window on the text: what was read and not yet given out."""

    def __init__(self, file: io.TextIOWrapper):
        self.file, self.text, self.at, self.line, self.ended = file, "", 0, 1, False
        self.decoder = json.JSONDecoder(parse_constant=_no_constant)

    def elements(self) -> Iterator[tuple[int, Any]]:
        self._take("[")
        if self._next() == "]":
            return
        while True:
            self._next()
            yield self.line, self._element()
            if self._next() == "]":
                return
            self._take(",")

    def _element(self) -> Any:
        """The value at the window's start; as much more is read as it takes."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
                # A number at the window's end may go on behind it.
                if end < len(self.text) or self.ended:
                    self._advance(end)
                    return value
            except RecursionError:
                raise BrokenArray(self.line, "nested too deeply") from None
            except ValueError as error:
                if self.ended or len(self.text) - self.at > _LONGEST:
                    raise BrokenArray(self.line, str(error)) from None
            self._fill(max(_CHUNK, len(self.text) - self.at))

    def _take(self, wanted: str) -> None:
        found = self._next()
        if found != wanted:
            raise BrokenArray(self.line, f"expected {wanted!r}, found {found!r}")
        self._advance(self.at + 1)

    def _next(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            match = _BETWEEN.match(self.text, self.at)
            self._advance(match.end() if match else self.at)
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._fill(_CHUNK)

    def _advance(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def _fill(self, size: int) -> None:
        try:
            more = self.file.read(size)
        except UnicodeDecodeError as error:
            raise BrokenArray(self.line, str(error), encoding=True) from None
        self.ended = not more
        self.text, self.at = self.text[self.at :] + more, 0
