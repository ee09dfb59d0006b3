"""How fast a compiled step can be: operations against the chip, exchanges against the links.

    chip         sum over operations of max(FLOPs / peak, bytes / memory bandwidth); at least all
                 bytes / memory bandwidth, those of copies that run beside operations included
    collectives  sum over exchanges of what a chip must take in / its links' bandwidth; ring steps
                 (collective-permute): the bytes on the busiest link / its bandwidth
    overlapped = max(chip, collectives)        serial = chip + collectives

The truth lies between the two bounds where operations run at the roofline; they run below it, so
both are lower bounds of the time. Roofline: Williams et al., doi:10.1145/1498765.1498785.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from toolrm_jax.hlo_costs import Collective, Costs
from toolrm_jax.topology import Link, Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step on each chip."""

    compute: float  # all products at the chip's peak
    memory: float  # all traffic at the memory's bandwidth
    chip: float  # operation by operation, the longer of the two
    collectives: dict[str, float]  # by kind and size of the group
    compute_bound: float  # of `chip`, in operations that compute bounds

    @property
    def exchanging(self) -> float:
        """All collectives, one after the other."""
        return sum(self.collectives.values())

    @property
    def overlapped(self) -> float:
        """All collectives behind computation, or the other way round."""
        return max(self.chip, self.exchanging)

    @property
    def serial(self) -> float:
        """No collective behind computation."""
        return self.chip + self.exchanging

    @property
    def binding(self) -> str:
        """What the overlapped bound consists of: "compute", "memory" or "collectives"."""
        if self.exchanging > self.chip:
            return "collectives"
        return "compute" if self.compute_bound > self.chip / 2 else "memory"


def roofline(costs: Costs, topology: Topology, devices: Sequence[Any]) -> Roofline:
    """Puts costs against a topology's chips; `devices` in the order of the mesh."""
    chip = topology.chip
    compute = memory = both = bound = 0.0
    for work in costs.work:
        products = work.flops * work.slowdown / chip.peak_flops
        traffic = work.bytes / chip.hbm_bandwidth
        compute += products * work.times
        memory += traffic * work.times
        if not work.beside:
            both += max(products, traffic) * work.times
            bound += products * work.times if products >= traffic else 0.0
    seconds: dict[str, float] = collections.defaultdict(float)
    loads: collections.Counter[Link] = collections.Counter()
    for exchange, times in costs.collectives.items():
        if exchange.kind == "collective-permute":
            for source, target in exchange.groups:
                for link in topology.route(devices[source], devices[target]):
                    loads[link] += times * exchange.payload  # type: ignore[assignment]
        else:
            seconds[_label(exchange, len(devices))] += times * _seconds(exchange, topology, devices)
    if loads:
        # Steps of rings in both directions run at once: each link has its own load.
        seconds["collective-permute"] = max(
            load / topology.link_speed(link) for link, load in loads.items()
        )
    return Roofline(compute, memory, max(both, memory), dict(seconds), bound)


def collective_bytes(costs: Costs, devices: int) -> dict[str, float]:
    """What a chip takes in from others, by kind and size of the group."""
    total: dict[str, float] = collections.defaultdict(float)
    for exchange, times in costs.collectives.items():
        size = _size(exchange, devices)
        share = (size - 1) / size * (2 if exchange.kind == "all-reduce" else 1)
        if exchange.kind == "collective-permute":
            share = 1.0
        elif exchange.kind == "all-to-all":
            share = (size - 1) / size
        total[_label(exchange, devices)] += times * share * exchange.payload
    return dict(total)


def _size(exchange: Collective, devices: int) -> int:
    return max(map(len, exchange.groups)) if exchange.groups else devices


def _label(exchange: Collective, devices: int) -> str:
    if exchange.kind == "collective-permute":
        return exchange.kind
    return f"{exchange.kind} of {_size(exchange, devices)}"


def _seconds(exchange: Collective, topology: Topology, devices: Sequence[Any]) -> float:
    groups = exchange.groups or (tuple(range(len(devices))),)
    # Groups run side by side: the slowest one is waited for.
    return max(
        topology.seconds(exchange.kind, [devices[n] for n in group], exchange.payload)
        for group in groups
    )
