"""The mesh, and the one table that lays arrays out on it.

Every parameter and activation names its axes logically ("width", "mlp", "rows"); `AXES` says which
mesh axis each one is split over. The mesh has four axes, of any sizes, (1, 1, 1, 1) on a laptop:

    data      copies of the model, each with its own rows; across slices or nodes
    fsdp      rows, too; and the weights, which are gathered where they are used
    sequence  the tokens of a row, for rows that are too long for one device; and the weights
    tensor    heads and MLP columns within a layer

Mesh axes are explicit: an array's layout is part of its type, and a mismatch is an error at trace
time.

    >>> logical_to_spec(("width", "mlp"))
    PartitionSpec(('fsdp', 'sequence'), 'tensor')
"""

import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from toolrm_jax.errors import InputError


class MeshError(InputError, ValueError):
    """A mesh that these devices, or this model, cannot be laid out on."""


MESH_AXES = ("data", "fsdp", "sequence", "tensor")

AXES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "vocab": None,
    "width": ("fsdp", "sequence"),
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    # activations
    "rows": ("data", "fsdp"),
    "micro": None,
    "tokens": "sequence",
}


def logical_to_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose axes have these logical names (None: not split)."""
    unknown = [axis for axis in axes if axis is not None and axis not in AXES]
    if unknown:
        raise ValueError(f"Unknown logical axes {unknown}; known ones: {sorted(AXES)}.")
    spec = [AXES[axis] if axis is not None else None for axis in axes]
    used = [name for part in spec for name in ((part,) if isinstance(part, str) else part or ())]
    if len(used) != len(set(used)):
        raise ValueError(f"Logical axes {tuple(axes)} put one mesh axis on two dimensions: {spec}.")
    return PartitionSpec(*spec)


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    sequence: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with the given axis sizes; at most one may be -1, and takes the devices left over.

    Neighbours on the mesh are neighbours in the wiring. Between slices of a pod (or nodes of GPUs)
    only `data` communicates, where its size is a multiple of their number; a warning says so where
    it is not.

    Raises:
      MeshError: the sizes do not cover the devices exactly.
    """
    devices = list(devices if devices is not None else jax.devices())
    sizes = _filled((data, fsdp, sequence, tensor), len(devices))
    axis_types = (AxisType.Explicit,) * len(MESH_AXES)
    return Mesh(_arranged(sizes, devices), MESH_AXES, axis_types=axis_types)


def _filled(sizes: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The sizes with -1 replaced; their product is the number of devices."""
    wanted = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(f"The mesh ({wanted}): expected positive sizes, and at most one -1.")
    known = math.prod(size for size in sizes if size != -1)
    sizes = tuple(devices // known if size == -1 else size for size in sizes)
    if math.prod(sizes) != devices:
        raise MeshError(
            f"The mesh ({wanted}) does not cover the {devices} devices exactly: choose sizes "
            f"whose product is {devices}, or set one of them to -1."
        )
    return sizes


def _arranged(sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """The devices as an array of these sizes, by their wiring."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] % slices == 0:
        within, across = (sizes[0] // slices, *sizes[1:]), (slices, *(1 for _ in sizes[1:]))
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    if slices > 1:
        logging.warning(
            "mesh.data=%d is not a multiple of the %d slices: the weights will be gathered across "
            "them, which is slow.",
            sizes[0],
            slices,
        )
        return np.asarray(devices).reshape(sizes)
    if sum(size > 1 for size in sizes) == 1 and (ring := _ring(devices)):
        return np.asarray(ring).reshape(sizes)
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def _ring(devices: list[jax.Device]) -> list[jax.Device] | None:
    """A TPU slice in an order in which each device is wired to the next, and the last to the first;
    None where that cannot be. XLA passes parts of weights and gradients round such rings: in JAX's
    own order of 2x2x4 chips the busiest link carries twice as much."""
    places = {tuple(getattr(device, "coords", ())): device for device in devices}
    if len(places) != len(devices) or () in places:
        return None
    sides = [max(at) + 1 for at in zip(*places, strict=True)]
    order = sorted(range(len(sides)), key=sides.__getitem__)  # the longest last
    places = {tuple(place[axis] for axis in order): places[place] for place in places}
    sides = [sides[axis] for axis in order]
    rows, columns = _walk(sides[:-1]), list(range(sides[-1]))
    if math.prod(sides) != len(devices) or len(rows) % 2 or len(columns) < 2:
        return None
    # Forth along all but the first column, turning at each end, and back along the first.
    found = []
    for number, row in enumerate(rows):
        turned = columns[1:] if number % 2 == 0 else columns[:0:-1]
        found += [(*row, column) for column in turned]
    found += [(*row, 0) for row in reversed(rows)]
    return [places[place] for place in found]


def _walk(sides: list[int]) -> list[tuple[int, ...]]:
    """All places of a box, each beside the one before."""
    ways: list[tuple[int, ...]] = [()]
    for side in sides:
        ways = [
            (*way, at)
            for number, way in enumerate(ways)
            for at in (range(side) if number % 2 == 0 else reversed(range(side)))
        ]
    return ways


def split_cpu(devices: int = 2) -> None:
    """Lets JAX see this host's CPU as several devices, which work side by side, unless
    JAX_NUM_CPU_DEVICES says how many; to be called before JAX starts its devices.

    XLA runs a product on all cores, but what lies between the products of a loop (attention's
    softmax, norms) on one: of two devices each has such a core. Scoring gains by it
    (docs/score.md); a training step does not.
    """
    if jax.config.values["jax_num_cpu_devices"] < 0 and (os.cpu_count() or 1) >= devices:
        jax.config.update("jax_num_cpu_devices", devices)


def make_inference_mesh(
    width: int,
    bytes_per_model: int,
    devices: Sequence[jax.Device] | None = None,
    limit: float | None = None,
) -> Mesh:
    """A mesh of this host's own devices: a copy of the weights on each where one fits, else on the
    fewest devices that hold one together. Hosts do not depend on each other.

    `limit` is a device's memory in bytes; by default what it says itself, and of a CPU's devices
    their share of the host's, where weights that do not fit are sharded over all.

    Raises:
      MeshError: the weights do not fit all of the devices together.
    """
    devices = list(devices if devices is not None else jax.local_devices())
    if limit is None:
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    of_host = limit is None  # a CPU does not say
    if limit is None:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    count = len(devices)
    sizes = [n for n in range(1, count + 1) if count % n == 0 and width % n == 0]
    for fsdp in sizes:
        # Half of the memory is left for activations, and for the layer that is being gathered.
        fits = bytes_per_model / fsdp <= limit / 2
        if fits or (of_host and fsdp == sizes[-1]):  # it may swap
            return make_mesh(data=-1, fsdp=fsdp, devices=devices)
    raise MeshError(
        f"The weights take {bytes_per_model / 2**30:.1f} GiB, and half of the memory of this "
        f"host's {len(devices)} devices is {len(devices) * limit / 2**31:.1f} GiB: score "
        f"on more or larger devices."
    )


def width_shards(mesh: Any) -> int:
    """Over how many devices the weights' width is split."""
    return mesh.shape["fsdp"] * mesh.shape["sequence"]


def row_shards(mesh: Mesh) -> int:
    """Over how many shards a batch's rows are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def gather_weight(w: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weight as it is used: cast first, so that gathering its width moves fewer bytes."""
    spec = jax.typeof(w).sharding.spec
    whole = PartitionSpec(*(None if axis == AXES["width"] else axis for axis in spec))
    return jax.sharding.reshard(w.astype(dtype), whole)


def platform() -> str:
    """Of the current mesh's devices, which may be absent ones to compile for: "tpu", "cpu", ..."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


# XLA gathers weights beside the products before them where both are asked for; unasked, it did so
# for v5e alone (libtpu 0.0.42), and v5p and v6e waited for each gather.
TPU_OPTIONS = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
}


def compiler_options() -> dict[str, str] | None:
    """Options for programs that gather weights, by the devices of the current mesh."""
    return TPU_OPTIONS if platform() == "tpu" else None


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays traced under `mesh`, as ShapeDtypeStructs laid out on its devices."""

    def laid_out(x):
        # Its own sharding speaks of an abstract mesh, which neither device_put nor Orbax takes;
        # a scalar has none.
        sharding = NamedSharding(mesh, x.sharding.spec if x.sharding else PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(laid_out, tree)
