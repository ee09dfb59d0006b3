"""Devices to compile for that are not there: `v5p:2x2x4`, `v5e:4x8`, `h100:2x8`, by their names.

    topology = open_topology("v5p:2x2x4")
    mesh = make_mesh(fsdp=-1, devices=topology.devices)     # 16 chips to lower and compile for
    topology.seconds("all-gather", group, payload)          # how long its links take

TPU: generation and torus, as `gcloud` writes it; `v5p:2x2x4:2` are two such slices. The compiler is
libtpu's (`pip install 'toolrm_jax[plan]'`). GPU: nodes x GPUs, through the CUDA plugin
(`toolrm_jax[cuda]`, 5 GB), told the chip's facts in XLA's own form. Neither needs the hardware.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from toolrm_jax.chips import CHIPS, Chip
from toolrm_jax.errors import InputError, first_line

EXAMPLES = "v5p:2x2x4, v6e:4x4, v5e:4x8, v5p:2x2x4:2 (two slices), h100:8, h100:2x8"

# libtpu looks for the TPU of the machine that it is loaded on: it would ask the cloud's metadata
# server, and complain that there is none. One process alone may have a TPU, but any may compile.
_WITHOUT_A_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# A torus closes its rings only where a dimension is as long as this (a whole pod's side of v5e and
# v6e, https://cloud.google.com/tpu/docs/v6e; the cube of v4 and v5p, which optical switches join).
_WRAPS_FROM = {2: 16, 3: 4}


Link = tuple[Any, Any]
"""From one end to another, in that direction: places on a torus, or a GPU and its switch."""


class TopologyError(InputError, ValueError):
    """A topology that cannot be compiled for; the message lists what is known."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices in the order in which JAX lists them, and how they are wired."""

    name: str
    chip: Chip
    sides: tuple[int, ...]  # of a slice's torus; (GPUs of a node,) for GPUs
    parts: int  # slices, or nodes
    devices: Sequence[jax.Device] = ()

    @property
    def chips(self) -> int:
        """All of them."""
        return self.parts * math.prod(self.sides)

    def bandwidth(self, members: Sequence[Any]) -> float:
        """Bytes/s at which every chip of a group can take in what the others of its part have.

        On a torus: over one link in each dimension that the group spans (a corner chip has no
        more), two where the dimension closes to a ring.
        """
        if not self.chip.torus_axes:
            return self.chip.link_bandwidth
        links = 0
        for axis, side in enumerate(self.sides):
            spanned = len({member.coords[axis] for member in members})
            rings = self._is_ring(axis) and spanned == side
            links += 0 if spanned == 1 else 2 if rings else 1
        return max(links, 1) * self.chip.link_bandwidth

    def _is_ring(self, axis: int) -> bool:
        # A v4 or v5p slice has rings only from a whole cube of 4 x 4 x 4 on.
        shortest = min(self.sides) if self.chip.torus_axes == 3 else self.sides[axis]
        return shortest >= _WRAPS_FROM[self.chip.torus_axes]

    def route(self, source: Any, target: Any) -> list[Link]:
        """The links that a message takes: on a torus dimension by dimension, the shorter way."""
        here, there = self._part(source), self._part(target)
        if here != there or not self.chip.torus_axes:
            network = "network" if here != there else "switch"
            return [((source.id, network), network), (network, (target.id, network))]
        links, place = [], tuple(source.coords)
        for axis, side in enumerate(self.sides):
            for step in _steps(place[axis], target.coords[axis], side, self._is_ring(axis)):
                moved = (*place[:axis], (place[axis] + step) % side, *place[axis + 1 :])
                links.append(((here, place), (here, moved)))
                place = moved
        return links

    def link_speed(self, link: Link) -> float:
        """Bytes/s of a link of `route`."""
        return self.chip.network_bandwidth if "network" in link else self.chip.link_bandwidth

    def seconds(self, kind: str, members: Sequence[Any], payload: float) -> float:
        """How long an exchange takes at least, by what a chip must take in; latency left out.

        Args:
          kind: one of `hlo_costs.COLLECTIVES` but for collective-permute, which `route` is for.
          members: the devices of one group.
          payload: bytes of the whole array: the gathered, reduced or exchanged one.
        """
        size = len(members)
        if size < 2:
            return 0.0
        times = 2 if kind == "all-reduce" else 1
        parts = len({self._part(member) for member in members})
        within = size // parts
        # Groups of parts exchange what each has gathered; its chips share the network.
        across = (parts - 1) / parts * payload / within / self.chip.network_bandwidth
        inside = (within - 1) / within * payload / self.bandwidth(members) if within > 1 else 0.0
        if kind == "all-to-all":  # each chip sends only its own part of the array, on average
            inside, across = inside / within * _hops(members, self), across / size * within
        return times * max(inside, across)

    def _part(self, device: Any) -> int:
        if self.chip.platform == "gpu":
            return device.id // self.sides[0]
        return getattr(device, "slice_index", 0) or 0


def _hops(members: Sequence[Any], topology: Topology) -> float:
    """Links that a message crosses on the way to another chip, on average over a line of chips."""
    if not topology.chip.torus_axes:
        return 1.0
    spans = [
        len({member.coords[axis] for member in members}) for axis in range(len(topology.sides))
    ]
    return sum(span / 3 for span in spans if span > 1) or 1.0


def _steps(start: int, end: int, side: int, ring: bool) -> list[int]:
    """The way from start to end along one dimension, in steps of 1 or -1."""
    forward = (end - start) % side
    if ring:
        return [1] * forward if forward <= side - forward else [-1] * (side - forward)
    return [1 if end > start else -1] * abs(end - start)


def open_topology(name: str) -> Topology:
    """The devices of a topology by its name.

    Raises:
      TopologyError: no such topology, or its compiler is not installed.
    """
    topology = parse_topology(name)
    make = _tpu_devices if topology.chip.platform == "tpu" else _gpu_devices
    devices = make(topology)
    if len(devices) != topology.chips:
        raise TopologyError(f"{name}: expected {topology.chips} devices, found {len(devices)}.")
    return dataclasses.replace(topology, devices=devices)


def parse_topology(name: str) -> Topology:
    """Its chip and sizes, without devices."""
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?::(\d+))?", name)
    if not found or found[1] not in CHIPS:
        raise TopologyError(
            f"--topology={name!r}: expected a chip ({', '.join(CHIPS)}) and its arrangement, such "
            f"as {EXAMPLES}."
        )
    chip, sizes = CHIPS[found[1]], tuple(int(size) for size in found[2].split("x"))
    if chip.platform == "gpu":
        nodes, gpus = sizes if len(sizes) == 2 else (1, sizes[0])
        if len(sizes) > 2 or not 1 <= gpus <= chip.chips_per_node or found[3] or not nodes:
            raise TopologyError(
                f"--topology={name!r}: expected GPUs, or nodes x GPUs with at most "
                f"{chip.chips_per_node} GPUs a node, such as h100:8 or h100:2x8."
            )
        return Topology(name, chip, (gpus,), nodes)
    if len(sizes) != chip.torus_axes:
        raise TopologyError(
            f"--topology={name!r}: {chip.name} chips are wired in {chip.torus_axes} dimensions: "
            f"give {chip.torus_axes} sizes, such as "
            f"{'4x8' if chip.torus_axes == 2 else '2x2x4'}."
        )
    return Topology(name, chip, sizes, int(found[3] or 1))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _tpu_devices(topology: Topology) -> Sequence[jax.Device]:
    if not _is_installed("libtpu"):
        raise TopologyError(
            "libtpu, the TPU's compiler, is not installed: pip install 'toolrm_jax[plan]' (no TPU "
            "is needed)."
        )
    for variable, value in _WITHOUT_A_TPU.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # as its machines have it: two cores, one device
    if topology.parts > 1:
        options["num_slices"] = topology.parts
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.sides))}"
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(
            f"--topology={topology.name!r}: the compiler does not know it "
            f"({first_line(error)}). Examples: {EXAMPLES}."
        ) from error


def target_config(chip: Chip) -> str:
    """The facts of a GPU, in the text that XLA's compiler reads them from: GpuTargetConfigProto.

    What all of them have in common is from the CUDA C++ Programming Guide's tables of compute
    capabilities.
    """
    gpu = chip.gpu
    assert gpu is not None, chip.name
    major, minor = gpu.capability
    shared = gpu.shared_kib * 1024
    fields = {
        "core_count": gpu.cores,
        "fpus_per_core": gpu.fpus_per_core,
        "l2_cache_size": gpu.l2_bytes,
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "threads_per_core_limit": 2048,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": shared - 1024,
        "shared_memory_per_core": shared,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "clock_rate_ghz": gpu.clock_ghz,
        "device_memory_size": int(chip.hbm_bytes),
        "memory_bandwidth": int(chip.hbm_bandwidth),
    }
    device = "\n".join(f"  {name}: {value}" for name, value in fields.items())
    return (
        f"gpu_device_info {{\n{device}\n"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\n'
        f"dnn_version_info {{ major: 9 minor: 8 patch: 0 }}\n"
        f'device_description_str: "{chip.device_kinds[0]}"\n'
    )


def _gpu_devices(topology: Topology) -> Sequence[jax.Device]:
    if not _is_installed("jax_plugins.xla_cuda12"):
        raise TopologyError(
            "The CUDA plugin, the GPUs' compiler, is not installed: pip install 'toolrm_jax[cuda]' "
            "(5 GB; no GPU is needed)."
        )
    shape = f"{topology.parts}x{topology.sides[0]}x1"
    found = topologies.get_topology_desc(
        "", "cuda", target_config=target_config(topology.chip), topology=shape
    )
    return found.devices
