"""What a plan says: memory, work, and two bounds of speed; as JSON, as text, as rows of a table.

    Plan.to_json()       every figure, for scripts
    Plan.text()          the same for people, with what the prediction leaves out
    pareto(plans)        of a sweep, those that nothing beats in both memory and time
    sweep_result(plans)  the same for people; where nothing fits, what needs the least memory

MFU is useful FLOPs over what the chips could do in the time: three times the forward FLOPs
(`ModelConfig.flops_per_token`) of distinct tokens that are no padding. What is computed twice to
save memory, or computed for padding, counts as nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from toolrm_jax.chips import GIB
from toolrm_jax.topology import parse_topology

LEFT_OUT = (
    "operations at less than the roofline (products of these sizes reach 80-95% of a chip's peak, "
    "kernels of attention 50-70%)",
    "the latency of each collective, and links shared by several at once",
    "the vector unit's own time, beyond the memory traffic of its operations",
    "waiting for input, saving, evaluating, compiling, and restarts",
    "allocations outside of the program (the runtime's own, and fragmentation)",
)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is assumed of the data; the defaults are of real rows, mixed as the paper mixes them.

    Attributes:
      tokens_per_pair: distinct tokens: the prompt once, and both responses.
      keys_per_token: keys that a token attends to, on average.
      padding_share: of the computed tokens.
      pairs: of an epoch; 180,000 in the paper.
    """

    tokens_per_pair: float = 1000.0
    keys_per_token: float = 650.0
    padding_share: float = 0.05
    pairs: int = 180_000

    def __post_init__(self):
        if not (self.tokens_per_pair > 0 and self.keys_per_token >= 0 and self.pairs > 0):
            raise ValueError(f"{self}: tokens_per_pair and pairs must be positive.")
        if not 0 <= self.padding_share < 1:
            raise ValueError(f"padding_share={self.padding_share}: it must be in [0, 1).")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip; where the compiler refused the program, `parts` has what is known."""

    peak: float
    usable: float
    parts: dict[str, float]
    refusal: str = ""  # the compiler's words

    @property
    def fits(self) -> bool:
        """Does the program run?"""
        return not self.refusal and self.peak <= self.usable

    @property
    def free_share(self) -> float:
        """Of the usable memory; negative by how much is missing."""
        return 1 - self.peak / self.usable

    def verdict(self) -> str:
        """In words."""
        figures = f"{self.peak / GIB:.1f} GiB of {self.usable / GIB:.1f} usable"
        if self.fits:
            return f"fits: {figures}, {100 * self.free_share:.0f}% free"
        return f"does not fit: needs {figures}"


@dataclasses.dataclass(frozen=True)
class Bound:
    """A step's time under one assumption about overlap, and what follows from it."""

    step_seconds: float
    tokens_per_second: float  # distinct tokens that are no padding
    pairs_per_second: float
    mfu: float
    hours_per_epoch: float
    cost_per_epoch: float | None  # at the given price


@dataclasses.dataclass(frozen=True)
class Plan:
    """One compiled program, predicted. FLOPs and bytes are of one chip and one step."""

    what: str  # "training step" or "scoring batch"
    config: str
    source: str
    parameters: int
    topology: str
    chip: str
    chips: int
    mesh: dict[str, int]
    remat: str
    rows: dict[str, int]
    memory: Memory
    workload: Workload
    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    hbm_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    collective_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    binding: str = ""
    overlapped: Bound | None = None
    serial: Bound | None = None
    compile_seconds: float = 0.0
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the verdict and what is left out."""
        memory = {
            "fits": self.memory.fits,
            "verdict": self.memory.verdict(),
            "free_share": self.memory.free_share,
        }
        found = dataclasses.asdict(self)
        return found | {
            "memory": found["memory"] | memory,
            "warnings": list(self.warnings),
            "left_out": list(self.left_out()),
        }

    def left_out(self) -> tuple[str, ...]:
        """What is in none of the figures; of an assumed network, where the chips share it."""
        topology = parse_topology(self.topology)
        chip, part = topology.chip, topology.chips // topology.parts
        if self.chips <= part or not chip.network_is_assumed:
            return LEFT_OUT
        ends = "nodes" if chip.platform == "gpu" else "slices"
        speed = f"{chip.network_bandwidth / 1e9:g} GB/s a chip, the usual one"
        return (*LEFT_OUT, f"your own network between {ends} ({speed}, is assumed)")

    def text(self) -> str:
        """For people."""
        return "\n".join([*self._head(), *self._memory(), *self._work(), *self._speed()])

    def _head(self) -> list[str]:
        mesh, rows = _mesh(self.mesh, "of one"), self.rows
        return [
            f"{self.what} of {self.config} ({self.source}, "
            f"{self.parameters / 1e9:.2f}B parameters)",
            f"{self.topology}: {self.chips} chips, mesh {mesh}, remat {self.remat!r}, "
            f"{rows['micro_batches']} x {rows['rows']} rows of {rows['tokens']} tokens; compiled "
            f"in {self.compile_seconds:.0f} s",
            "",
        ]

    def _memory(self) -> list[str]:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.memory.parts.items())
        lines = [f"memory      {self.memory.verdict()}", f"            GiB a chip: {parts}"]
        return lines + ([f"            {self.memory.refusal}"] if self.memory.refusal else [])

    def _work(self) -> list[str]:
        return [
            _amounts("TFLOP", self.flops, 1e12),
            _amounts("HBM GB", self.hbm_bytes, 1e9),
            _amounts("links GB", self.collective_bytes, 1e9),
            *([_amounts("links ms", self.collective_seconds, 1e-3)] if self.seconds else []),
            *([_amounts("roofline ms", self.seconds, 1e-3, total=False)] if self.seconds else []),
        ]

    def _speed(self) -> list[str]:
        if self.overlapped is None or self.serial is None:
            return []
        w = self.workload
        lines = [
            "",
            f"bound by {self.binding}; lower bounds of a step's time, so the best possible:",
        ]
        lines += [
            _speed("all collectives overlapped", self.overlapped, w.pairs),
            _speed("none overlapped", self.serial, w.pairs),
            f"assumed: {w.tokens_per_pair:,.0f} distinct tokens a pair, each attending to "
            f"{w.keys_per_token:,.0f} keys; {100 * w.padding_share:.0f}% padding",
            f"left out: {'; '.join(self.left_out())}.",
        ]
        return lines + [f"warning: {text}" for text in self.warnings]


def bound(
    seconds: float,
    computed_tokens: float,
    useful_flops_per_token: float,
    peak_flops: float,
    chips: int,
    workload: Workload,
    price_per_chip_hour: float | None,
) -> Bound:
    """What a step's time means. `computed_tokens` are of a step on all chips, with padding."""
    useful = computed_tokens * (1 - workload.padding_share)
    pairs_per_second = useful / workload.tokens_per_pair / seconds
    hours = workload.pairs / pairs_per_second / 3600
    return Bound(
        step_seconds=seconds,
        tokens_per_second=useful / seconds,
        pairs_per_second=pairs_per_second,
        mfu=useful * useful_flops_per_token / (seconds * chips * peak_flops),
        hours_per_epoch=hours,
        cost_per_epoch=None if price_per_chip_hour is None else hours * chips * price_per_chip_hour,
    )


def pareto(plans: Sequence[Plan]) -> list[Plan]:
    """Of plans that fit, those than which none has both less memory and a shorter step; fastest
    first. Steps of different size are compared by the time of a pair."""

    def worth(plan: Plan) -> tuple[float, float]:
        assert plan.overlapped is not None
        assert plan.serial is not None
        # Between the bounds lies the truth: the middle of both.
        return (
            1 / plan.overlapped.pairs_per_second + 1 / plan.serial.pairs_per_second,
            plan.memory.peak,
        )

    fitting = sorted((p for p in plans if p.memory.fits and p.overlapped), key=worth)
    best: list[Plan] = []
    for plan in fitting:
        if not best or worth(plan)[1] < worth(best[-1])[1]:
            best.append(plan)
    return best


def sweep_result(plans: Sequence[Plan]) -> str:
    """For people: the plans that nothing beats; where none fits, the one that needs the least."""
    if best := pareto(plans):
        return f"Nothing beats these in both memory and time:\n\n{table(best)}"
    if not plans:
        return "The model can be split for none of these meshes."
    least = min(plans, key=lambda plan: plan.memory.peak)
    variant = f"Mesh {_mesh(least.mesh, 'of one')}, remat {least.remat!r}"
    needed = least.memory.verdict().removeprefix("does not fit: needs ")
    return f"Nothing fits. {variant} needs least: {needed}."


def table(plans: Sequence[Plan]) -> str:
    """Plans as a Markdown table."""
    return "\n".join([table_head(), *(table_row(plan.to_json()) for plan in plans)])


def table_head() -> str:
    """Its first two lines."""
    names = ["config", "topology", "mesh", "remat", "peak GiB", "free", "step s", "tokens/s"]
    names += ["MFU", "hours per epoch", "bound by"]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def table_row(plan: dict[str, Any]) -> str:
    """One line, from `Plan.to_json()`; of two figures the first is of the overlapped bound."""
    name = plan["config"].rsplit("/", 1)[-1].removesuffix(".py")
    memory, low, high = plan["memory"], plan["overlapped"], plan["serial"]
    cells = [
        name if plan["what"] == "training step" else f"{name}, {plan['what']}",
        plan["topology"],
        _mesh(plan["mesh"], "1"),
        plan["remat"] if plan["what"] == "training step" else "-",
        f"{memory['peak'] / GIB:.1f} of {memory['usable'] / GIB:.1f}",
        f"{100 * memory['free_share']:.0f}%" if memory["fits"] else "does not fit",
    ]
    if low and memory["fits"]:
        cells += [
            f"{low['step_seconds']:.2f} / {high['step_seconds']:.2f}",
            f"{low['tokens_per_second']:,.0f} / {high['tokens_per_second']:,.0f}",
            f"{100 * low['mfu']:.0f}% / {100 * high['mfu']:.0f}%",
            f"{low['hours_per_epoch']:.2f} / {high['hours_per_epoch']:.2f}",
            plan["binding"],
        ]
    return f"| {' | '.join(cells + [''] * (11 - len(cells)))} |"


def _mesh(sizes: dict[str, int], of_one: str) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or of_one


def _amounts(name: str, parts: dict[str, float], unit: float, total: bool = True) -> str:
    listed = [f"{part} {amount / unit:,.4g}" for part, amount in parts.items() if amount]
    whole = f"{sum(parts.values()) / unit:,.4g}: " if total else ""
    return f"{name:<12}{whole}{', '.join(listed) or 'none'}"


def _speed(name: str, found: Bound, pairs: int) -> str:
    cost = f", {found.cost_per_epoch:,.2f}" if found.cost_per_epoch is not None else ""
    return (
        f"  {name:<27} {found.step_seconds:.3f} s a step, {found.tokens_per_second:,.0f} tokens/s, "
        f"{found.pairs_per_second:,.1f} pairs/s, MFU {100 * found.mfu:.1f}%, "
        f"{pairs:,} pairs in {found.hours_per_epoch:.2f} h{cost}"
    )
