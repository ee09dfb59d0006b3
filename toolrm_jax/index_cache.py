"""What indexing found out about rows, kept in the workdir: processes share the work of tokenising,
and a run that is started again tokenises nothing.

    chunk 0  chunk 1  chunk 2  chunk 3 ...      1,024 rows each, one file each
    process 0         process 0                 measures its chunks that are not there, or are not
             process 1         process 1        sound, and stores them
    then every process reads all of them

A file says of which rows it is, by which tokenizer, settings and code, and has a checksum; one that
is of others, cut off or damaged is none. A chunk that a process cannot read in the end it measures
itself: so all have the same index in any case.

    index = build_index(rows, tokenize, shapes, measure=IndexCache(workdir / "index").measure)
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from itertools import islice

import jax
from etils import epath

from toolrm_jax.errors import InputError
from toolrm_jax.files import write_text
from toolrm_jax.loader import Measured, PreferenceRows, RowTokenizer, measure_rows
from toolrm_jax.processes import Exchange
from toolrm_jax.train_config import TrainingError

CHUNK_ROWS = 1024
# What decides about tokens beside this package's own code.
_LIBRARIES = ("jinja2", "tokenizers", "transformers")
Chunk = list[Measured]


class IndexCache:
    """Measures rows by way of files in a folder that the processes of a run share; for each row it
    calls `moved`, so that a watchdog hears of it."""

    def __init__(self, folder: epath.Path, moved: Callable[[], None] = lambda: None):
        self._folder, self._moved = folder, moved

    def measure(
        self, rows: PreferenceRows, tokenize: RowTokenizer, workers: int, label: str
    ) -> Iterator[Measured]:
        """What `measure_rows` gives of all rows; all processes must take part.

        Raises:
          InputError: a row that is none, on whichever process.
        """
        key, exchange = _key(rows, tokenize), Exchange("index")
        # Processes that differ have nothing to share, and are refused later, with what differs.
        if set(exchange.gather(key)) != {key} or not key:
            return self._followed(measure_rows(rows, tokenize, workers, label))
        files = _Files(self._folder, label, key)
        chunks = range(-(-len(rows) // CHUNK_ROWS))
        mine = chunks[jax.process_index() :: jax.process_count()]

        def measured(numbers: list[int]) -> Iterator[tuple[int, Chunk]]:
            """Those chunks, tokenised in one go: starting workers takes seconds."""
            parts = {number: _rows_of(number, len(rows)) for number in numbers}
            wanted = [row for part in parts.values() for row in part]
            found = self._followed(measure_rows(rows, tokenize, workers, label, wanted))
            for number, part in parts.items():
                yield number, list(islice(found, len(part)))
            next(found, None)  # past the end, where workers are let go

        try:
            for number, chunk in measured(files.missing(mine)):
                files.write(number, chunk)
        except (InputError, OSError) as error:
            exchange.gather(str(error))
            raise
        if problems := [text for text in exchange.gather("") if text]:
            raise TrainingError(problems[0])
        whole = files.read(chunks)
        whole |= measured([number for number in chunks if number not in whole])
        return (row for number in chunks for row in whole[number])

    def _followed(self, found: Iterable[Measured]) -> Iterator[Measured]:
        for row in found:
            self._moved()
            yield row


class _Files:
    """The chunks of one side of the data: `train-00003.json` in the folder."""

    def __init__(self, folder: epath.Path, label: str, key: str):
        self._folder, self._label, self._key = folder, label, key

    def _path(self, number: int) -> epath.Path:
        return self._folder / f"{self._label}-{number:05d}.json"

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those that must be measured."""
        there = self.read(numbers)
        return [number for number in numbers if number not in there]

    def read(self, numbers: Iterable[int]) -> dict[int, Chunk]:
        """Those that are there, and sound."""
        numbers = list(numbers)
        with ThreadPoolExecutor(16) as threads:  # a store answers each in some 50 ms
            found = list(threads.map(self._read, numbers))
        return {n: chunk for n, chunk in zip(numbers, found, strict=True) if chunk is not None}

    def _read(self, number: int) -> Chunk | None:
        try:
            head, _, text = self._path(number).read_text().partition("\n")
        except (OSError, UnicodeDecodeError):
            return None
        if head != self._head(number, text):
            return None
        return [
            Measured(name, tuple(sizes), tuple(kept), problems, digest, request)
            for name, sizes, kept, problems, digest, request in json.loads(text)
        ]

    def write(self, number: int, chunk: Chunk) -> None:
        """Whole, or not at all."""
        text = json.dumps(chunk)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._path(number), f"{self._head(number, text)}\n{text}")

    def _head(self, number: int, text: str) -> str:
        return f"{self._key} {number} {hashlib.sha256(text.encode()).hexdigest()}"


def _rows_of(chunk: int, rows: int) -> range:
    return range(chunk * CHUNK_ROWS, min(rows, (chunk + 1) * CHUNK_ROWS))


def _key(rows: PreferenceRows, tokenize: RowTokenizer) -> str:
    """A digest of all that the measures follow from; "" where a tokenizer cannot be digested."""
    renderer = tokenize.renderer
    tokenizer = renderer.tokenizer
    if not tokenizer.is_fast:
        return ""
    digest = hashlib.sha256()
    for part in (
        rows.sha256,
        tokenizer.backend_tokenizer.to_str(),
        json.dumps(tokenizer.chat_template),
        json.dumps(tokenizer.special_tokens_map, default=str),  # templates may write them
        f"raw={renderer.raw} blind={tokenize.blind} rows={CHUNK_ROWS}",
        *(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES),
        *_code(),
    ):
        digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def _code() -> list[str]:
    """The package's modules: a change in one of them may change how rows are rendered."""
    modules = [f for f in resources.files("toolrm_jax").iterdir() if f.name.endswith(".py")]
    return [module.read_text("utf-8") for module in sorted(modules, key=lambda f: f.name)]
