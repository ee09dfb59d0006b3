"""Named tensors that can be read a few rows at a time, wherever they are stored; and moving them.

    safetensors, GGUF, Orbax, memory --> Tensors.rows(name, start, stop) --> safetensors, Orbax

A 15 GB model passes through a few pieces of 32 MB: `transfer` reads each tensor piece by piece,
several tensors at once, hashes what it reads and hands it to a writer. Names, shapes and bytes are
always Hugging Face's, so the SHA-256 of a tensor is the same in every kind of checkpoint.

    >>> tensors = Held({"score.weight": np.ones((1, 4), np.float32)})
    >>> tensors.spec("score.weight").nbytes
    16
"""

import abc
import contextlib
import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import ml_dtypes
import numpy as np
from tqdm import tqdm

from toolrm_jax.errors import InputError

# Just below 32 MiB, glibc's limit for reusing freed memory: above it every piece would be mapped,
# and zeroed by the kernel, anew.
PIECE_BYTES = (32 << 20) - (64 << 10)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# The types that weights can have, by the name that safetensors gives them.
DTYPES = {"F32": np.dtype(np.float32), "BF16": BFLOAT16, "F16": np.dtype(np.float16)}


class CheckpointError(InputError, ValueError):
    """A checkpoint that is incomplete, damaged, or not what its config says."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return self.nbytes // max(self.shape[0], 1)


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for, whole or by rows (the first axis)."""

    @abc.abstractmethod
    def spec(self, name: str) -> Spec:
        """Shape and type, without reading the tensor."""

    @abc.abstractmethod
    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), contiguous; safe to call from several threads."""

    def row_step(self, name: str) -> int:
        """Pieces of a multiple of so many rows are read without reading anything twice."""
        return 1

    def stated_sha256(self, name: str) -> str | None:
        """The SHA-256 of the tensor's bytes that the checkpoint itself states, if it does."""
        return None

    def __contains__(self, name: object) -> bool:
        # A Mapping's own reads the whole tensor to find out.
        return any(name == known for known in self)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.rows(name, 0, self.spec(name).shape[0])


class Held(Tensors):
    """Tensors in memory."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self._tensors = tensors

    def spec(self, name: str) -> Spec:
        tensor = self._tensors[name]
        return Spec(tensor.shape, np.dtype(tensor.dtype))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.ascontiguousarray(self._tensors[name][start:stop])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def by_rows(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """`tensors` itself, or a mapping of arrays as Tensors."""
    return tensors if isinstance(tensors, Tensors) else Held(tensors)


class Cast(Tensors):
    """The same tensors in another type, each piece cast as it is read (round to nearest even)."""

    def __init__(self, tensors: Tensors, dtype: np.dtype):
        self._tensors, self._dtype = tensors, dtype

    def spec(self, name: str) -> Spec:
        return dataclasses.replace(self._tensors.spec(name), dtype=self._dtype)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._tensors.rows(name, start, stop).astype(self._dtype, copy=False)

    def row_step(self, name: str) -> int:
        return self._tensors.row_step(name)

    def stated_sha256(self, name: str) -> str | None:
        same = self._tensors.spec(name).dtype == self._dtype
        return self._tensors.stated_sha256(name) if same else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def piece_rows(spec: Spec) -> int:
    """Rows in a piece of at most PIECE_BYTES, all pieces of a tensor being of about one size."""
    rows = max(spec.shape[0], 1)
    parts = min(rows, max(1, -(-spec.nbytes // PIECE_BYTES)))
    return -(-rows // parts)


def pieces(spec: Spec, step: int = 1) -> Iterator[tuple[int, int]]:
    """Row ranges that cover a tensor in pieces, each of a multiple of `step` rows."""
    rows = spec.shape[0]
    size = max(1, piece_rows(spec) // step) * step
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, uncopied. uint8 [nbytes]"""
    return array.reshape(-1).view(np.uint8)


def non_finite(array: np.ndarray) -> bool:
    """Whether any number is infinite or NaN: all bits of its exponent are set."""
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits.dtype)
    sign = bits.dtype.type(~(1 << (8 * bits.itemsize - 1)) & ((1 << (8 * bits.itemsize)) - 1))
    # In parts that stay in the cache: twice as fast as over a whole piece.
    part = 1 << 18
    return any((bits[i : i + part] & sign).max() >= infinity for i in range(0, bits.size, part))


Write = Callable[[str, int, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a pass over tensors found: their checksums, and what is wrong with them."""

    sha256: dict[str, str]
    problems: list[str]


def transfer(tensors: Tensors, write: Write | None, bar: tqdm, workers: int | None = None) -> Found:
    """Reads every tensor once, in pieces, and calls `write(name, first row, piece)` for each.

    `workers` tensors are in flight at once (default: the cores, at most 4), a piece of each in
    memory. Problems (numbers that are not finite, bytes that are not those the checkpoint states)
    are gathered over all tensors. Errors of `write` and of reading stop it and are raised.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    stop = threading.Event()
    found = Found({}, [])

    def move(name: str) -> None:
        spec, digest, finite = tensors.spec(name), hashlib.sha256(), True
        for start, end in pieces(spec, tensors.row_step(name)):
            if stop.is_set():
                return
            piece = tensors.rows(name, start, end)
            digest.update(as_bytes(piece).data)
            finite = finite and not non_finite(piece)
            if write is not None:
                write(name, start, piece)
            bar.update(piece.nbytes)
        found.sha256[name] = digest.hexdigest()
        if not finite:
            found.problems.append(f"{name} holds numbers that are not finite")
        if tensors.stated_sha256(name) not in (None, digest.hexdigest()):
            found.problems.append(f"{name} is not what its stated SHA-256 says: damaged")

    # The largest first, so that no worker is left alone with one at the end.
    names = sorted(tensors, key=lambda name: -tensors.spec(name).nbytes)
    with ThreadPoolExecutor(workers, "transfer") as pool, _stopping(stop):
        jobs = [pool.submit(move, name) for name in names]
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in done:
            job.result()
    found.problems.sort()
    return found


@contextlib.contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Lets the workers end at their next piece, whatever it is that ends this thread's part."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def progress(tensors: Tensors, what: str, *, show: bool = True) -> tqdm:
    """A bar over the bytes of all tensors, with GB/s and the time left."""
    total = sum(tensors.spec(name).nbytes for name in tensors)
    return tqdm(
        desc=what,
        total=total,
        unit="B",
        unit_scale=True,
        disable=None if show else True,
        leave=show,
    )
