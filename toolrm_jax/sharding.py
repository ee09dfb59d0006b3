"""The mesh, and the one table that lays arrays out on it.

Every parameter and activation names its axes logically ("width", "mlp", "rows"); `AXES` says which
mesh axis each one is split over. The mesh has three axes, of any sizes, (1, 1, 1) on a laptop:

    data    copies of the model, each with its own rows
    fsdp    rows, too; and the weights, which are gathered where they are used
    tensor  heads and MLP columns within a layer

Mesh axes are explicit: an array's layout is part of its type, and a mismatch is an error at trace
time.

    >>> logical_to_spec(("width", "mlp"))
    PartitionSpec('fsdp', 'tensor')
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from toolrm_jax.errors import InputError


class MeshError(InputError, ValueError):
    """A mesh that these devices, or this model, cannot be laid out on."""


MESH_AXES = ("data", "fsdp", "tensor")

AXES: dict[str, str | tuple[str, ...] | None] = {
    # parameters
    "layers": None,
    "vocab": None,
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "norm": None,
    # activations
    "rows": ("data", "fsdp"),
    "micro": None,
    "tokens": None,
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
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the given axis sizes; at most one may be -1, and takes the devices left over."""
    devices = list(devices if devices is not None else jax.devices())
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise MeshError(f"Mesh sizes {dict(zip(MESH_AXES, sizes, strict=True))}: at most one -1.")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        wanted = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise MeshError(
            f"The mesh ({wanted}) does not cover the {len(devices)} devices exactly: choose sizes "
            f"whose product is {len(devices)}, or set one of them to -1."
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def make_inference_mesh(
    width: int, bytes_per_model: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of this host's own devices: a copy of the weights on each where one fits, else on the
    fewest devices that hold one together. Hosts do not depend on each other.

    Raises:
      MeshError: the weights do not fit all of the devices together.
    """
    devices = list(devices if devices is not None else jax.local_devices())
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")  # a CPU does not say
    for fsdp in range(1, len(devices) + 1):
        # Half of the memory is left for activations, and for the layer that is being gathered.
        fits = limit is None or bytes_per_model / fsdp <= limit / 2
        if fits and len(devices) % fsdp == 0 and width % fsdp == 0:
            return make_mesh(data=-1, fsdp=fsdp, devices=devices)
    raise MeshError(
        f"The weights take {bytes_per_model / 2**30:.1f} GiB, and half of the memory of this "
        f"host's {len(devices)} devices is {len(devices) * (limit or 0) / 2**31:.1f} GiB: score "
        f"on more or larger devices."
    )


def row_shards(mesh: Mesh) -> int:
    """Over how many shards a batch's rows are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def gather_weight(w: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weight as it is used: cast first, so that the gather over `fsdp` moves fewer bytes."""
    spec = jax.typeof(w).sharding.spec
    return jax.sharding.reshard(
        w.astype(dtype), PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
    )


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Abstract arrays traced under `mesh`, as ShapeDtypeStructs laid out on its devices."""

    def laid_out(x):
        # Its own sharding speaks of an abstract mesh, which neither device_put nor Orbax takes;
        # a scalar has none.
        sharding = NamedSharding(mesh, x.sharding.spec if x.sharding else PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(laid_out, tree)
