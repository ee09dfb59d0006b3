"""Parameters on a mesh, read from tensors by rows: no process reads, or holds, more than its share.

    Hugging Face, layer by layer    [rows, columns]     bytes of a file: row after row
    a parameter, transposed         [L, columns, rows]

A device that holds some rows of a tensor needs one range of bytes of it. A device that holds some
columns needs a piece of every row: 2.5 KB of each 10 KB, for a 14B over four hosts. An object
store answers a request in tens of milliseconds, so it pays neither to ask for thousands of such
pieces nor to read all rows on all hosts. Therefore, where a mesh has several processes, a matrix is
read SPREAD: its rows are split over all devices, whatever the layout they are wanted in, so that
every byte of the model is read once, by one process, in long ranges; the devices then exchange
their parts over the interconnect (`all_to_all` from rows to columns, `all_gather` for copies).

    wanted   [L, columns over fsdp, rows over tensor], a copy per data
    spread   [L, columns,           rows over (tensor, fsdp, data)]

One process alone reads the rows that its devices hold, once, and cuts them on the way.

Memory: a parameter is read into arrays of its shards, which on CPU become the parameter without a
copy; of the file's bytes, there are only pieces of 32 MB. The exchange holds, for one parameter at
a time, a device's share of it twice more.

    with ParamReader(tensors, spread=False) as reader:
        q = reader.read("model.layers.{}.self_attn.q_proj.weight", "transposed", target)
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from toolrm_jax.tensors import Tensors, piece_rows

# How a parameter differs from its Hugging Face tensors: not at all, by transposing, or as the
# vector that is the only row of a matrix.
Form = Literal["same", "transposed", "one row"]

# Reading waits for a disk or a network more than for a core: 8 x 32 MB are in flight.
_READERS = 8
# XLA takes host memory as it is from here on; numpy's own begins at a multiple of 16.
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Which of the tensor's rows those of an array are: each `block` of the array's holds so many
    of the tensor's (`real_block`), and then padding."""

    block: int
    real_block: int

    def real(self, held: range) -> tuple[int, int]:
        """First and end of the tensor's rows among those held, which are all of one block."""
        block, first = divmod(held.start, self.block)
        ends = (min(row, self.real_block) for row in (first, first + len(held)))
        start, stop = (block * self.real_block + end for end in ends)
        return start, stop


def spans_processes(mesh: jax.sharding.Mesh) -> bool:
    """Whether devices of several processes are in it."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


class ParamReader:
    """Reads parameters from Hugging Face's tensors; open while it reads."""

    def __init__(self, tensors: Tensors, spread: bool):
        self._tensors, self._spread = tensors, spread

    def __enter__(self) -> "ParamReader":
        self._pool = ThreadPoolExecutor(_READERS, "read-params")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, name: str, form: Form, target: jax.ShapeDtypeStruct) -> jax.Array:
        """The parameter `target`, of the tensors `name` ({}: the layer, along its first axis)."""
        stacked = "{}" in name
        names = [name.format(i) for i in range(target.shape[0] if stacked else 1)]
        exchange = _exchange(target, form, stacked) if self._spread else None
        if exchange is None:
            whole = theirs(np.broadcast_to(np.int8(0), target.shape), form, stacked).shape[1]
            return self._read(names, form, stacked, target, _Rows(whole, whole))
        dtype = _narrower(self._tensors, names, target.dtype)
        return exchange.run(self._read(names, form, stacked, exchange.spread(dtype), exchange.rows))

    def _read(
        self, names: list[str], form: Form, stacked: bool, layout: jax.ShapeDtypeStruct, rows: _Rows
    ) -> jax.Array:
        """An array laid out as `layout`, whose rows stand for the tensors' as `rows` says."""
        places = layout.sharding.addressable_devices_indices_map(layout.shape)
        shards: dict[Any, _Shard] = {}
        for index in places.values():
            if (key := str(index)) not in shards:
                shards[key] = _Shard(layout, index, form, stacked, rows)
        self._fill(names, list(shards.values()))
        parts = [jax.device_put(shards[str(index)].value, d) for d, index in places.items()]
        return jax.make_array_from_single_device_arrays(layout.shape, layout.sharding, parts)

    def _fill(self, names: list[str], shards: list["_Shard"]) -> None:
        """Reads every row that a shard holds, once."""

        def move(layer: int, start: int, stop: int) -> None:
            piece = self._tensors.rows(names[layer], start, stop)
            for shard in shards:
                shard.take(layer, start, piece)

        jobs = [
            self._pool.submit(move, layer, start, stop)
            for layer, name in enumerate(names)
            for held in _union([shard.rows for shard in shards if layer in shard.layers])
            for start, stop in self._pieces(name, *held)
        ]
        for job in jobs:
            job.result()

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        step = self._tensors.row_step(name)
        size = max(1, piece_rows(self._tensors.spec(name)) // step) * step
        cuts = [start, *range((start // size + 1) * size, stop, size), stop]
        return itertools.pairwise(cuts)


class _Shard:
    """What a device holds, and what it is of the tensors: [layers, rows, ...]."""

    def __init__(
        self, layout: jax.ShapeDtypeStruct, index: Any, form: Form, stacked: bool, rows: _Rows
    ):
        # Which numbers of each axis, as the tensors have the axes.
        counted = [range(*part.indices(n)) for part, n in zip(index, layout.shape, strict=True)]
        self.value = _aligned(tuple(map(len, counted)), layout.dtype)
        self._view = theirs(self.value, form, stacked)
        axes = [*(() if stacked else (range(1),)), *counted]
        if form == "transposed":
            axes[-1], axes[-2] = axes[-2], axes[-1]
        elif form == "one row":
            axes.insert(-1, range(1))
        self.layers, held, *columns = axes
        self.rows = rows.real(held)
        self._columns = tuple(slice(part.start, part.stop) for part in columns)

    def take(self, layer: int, first: int, piece: np.ndarray) -> None:
        """Keeps what is its own of rows first, first + 1, ... of a layer; casts it."""
        start, stop = max(first, self.rows[0]), min(first + len(piece), self.rows[1])
        if layer in self.layers and start < stop:
            to = self._view[layer - self.layers.start, start - self.rows[0] : stop - self.rows[0]]
            to[...] = piece[(slice(start - first, stop - first), *self._columns)]


def theirs(value: np.ndarray, form: Form, stacked: bool) -> np.ndarray:
    """A view of a parameter, or a shard of one, as its tensors: [layers, rows, ...]."""
    value = value if stacked else value[None]
    if form == "one row":
        return value[:, None]
    return value.swapaxes(-1, -2) if form == "transposed" else value


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that becomes a CPU device's as it is: no second copy of the weights."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    return room[first : first + size].view(dtype).reshape(shape)


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges, sorted, those that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


def _narrower(tensors: Tensors, names: list[str], wanted: Any) -> np.dtype:
    """The type in which a parameter travels: its file's where that is smaller than its own."""
    found = {tensors.spec(name).dtype for name in names}
    dtype = found.pop() if len(found) == 1 else np.dtype(wanted)
    return dtype if dtype.itemsize < np.dtype(wanted).itemsize else np.dtype(wanted)


# --- the exchange ---------------------------------------------------------------------------------


def _exchange(target: jax.ShapeDtypeStruct, form: Form, stacked: bool) -> "_Exchange | None":
    """How to get `target` from the layout it is read in; None where that is its own."""
    if form == "one row" or len(target.shape) - stacked < 2:
        return None  # vectors are smaller than what a request costs
    sharding = target.sharding
    spec = [_names(part) for part in sharding.spec]
    spec += [()] * (len(target.shape) - len(spec))
    row = len(target.shape) - (1 if form == "transposed" else 2)
    column = len(target.shape) - (2 if form == "transposed" else 1)
    used = {name for names in spec for name in names}
    spare = tuple(n for n, size in sharding.mesh.shape.items() if n not in used and size > 1)
    found = _Exchange(target, row, column, tuple(spec), spare)
    return found if found.parts > 1 else None


def _names(part: Any) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """From rows over all devices to the layout that is wanted."""

    target: jax.ShapeDtypeStruct
    row: int  # the parameter's axis that the tensor's rows are
    column: int
    spec: tuple[tuple[str, ...], ...]  # of the target: mesh axes by axis
    spare: tuple[str, ...]  # mesh axes that the target has copies on

    @property
    def parts(self) -> int:
        """Into how many parts the target's blocks of rows are split."""
        return math.prod(self._mesh.shape[n] for n in (*self.spec[self.column], *self.spare))

    @property
    def rows(self) -> _Rows:
        """A block of the target's rows, and the same made divisible by the parts."""
        blocks = math.prod(self._mesh.shape[n] for n in self.spec[self.row])
        real = self.target.shape[self.row] // blocks
        return _Rows(-(-real // self.parts) * self.parts, real)

    def spread(self, dtype: np.dtype) -> jax.ShapeDtypeStruct:
        """The array to be read: rows over all devices, columns whole."""
        shape = list(self.target.shape)
        shape[self.row] = shape[self.row] // self.rows.real_block * self.rows.block
        sharding = NamedSharding(self._mesh, self._spread_spec)
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)

    def run(self, spread: jax.Array) -> jax.Array:
        """The target, of what was read; every process of the mesh must call it."""

        def exchange(x: jax.Array) -> jax.Array:
            for name in reversed(self.spare):
                x = jax.lax.all_gather(x, name, axis=self.row, tiled=True)
            if moved := self.spec[self.column]:
                x = jax.lax.all_to_all(x, moved, self.column, self.row, tiled=True)
            x = jax.lax.slice_in_dim(x, 0, self.rows.real_block, axis=self.row)
            return x.astype(self.target.dtype)

        wanted = PartitionSpec(*self.spec)
        run = jax.shard_map(
            exchange,
            mesh=self._mesh,
            in_specs=self._spread_spec,
            out_specs=wanted,
            # The copies of `all_gather` are equal, which its type does not say.
            check_vma=False,
        )
        with jax.set_mesh(self._mesh):
            # Waits: else the next parameter's buffers would come on top of this one's.
            done = jax.block_until_ready(jax.jit(run)(spread))
        spread.delete()
        # JAX writes an equal layout in its own way; under another spelling, a step is traced anew.
        parts = [shard.data for shard in done.addressable_shards]
        return jax.make_array_from_single_device_arrays(done.shape, self.target.sharding, parts)

    @property
    def _mesh(self) -> jax.sharding.Mesh:
        return self.target.sharding.mesh

    @property
    def _spread_spec(self) -> PartitionSpec:
        spec = list(self.spec)
        spec[self.row] = (*spec[self.row], *spec[self.column], *self.spare)
        spec[self.column] = ()
        return PartitionSpec(*spec)
