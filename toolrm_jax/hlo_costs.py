"""What a compiled program does on one chip: FLOPs, memory traffic, and what travels between chips.

    costs = count(parse(compiled.as_text()))
    costs.flops, costs.hbm_bytes, costs.collectives

XLA's own `cost_analysis()` counts the body of a loop once, and knows nothing of Pallas kernels.
Here every loop's body counts as often as it runs (from its condition: a scan compares a counter
with a constant), kernels by a formula (`KERNELS`), and a conditional by its dearest branch.

FLOPs are those of matrix products and of the kernels; what the vector unit does shows as the memory
traffic of its operations. Traffic is what an operation reads and writes in the chip's main memory:
of a stack that is sliced, the slice; of what the compiler keeps in VMEM, nothing.

A TPU gathers beside computation in a chain of operations, each of which names the exchange:

    async-collective-start -> products that carry it on, in fusions with it -> async-collective-done

It is one exchange, and its array is read and written once, where it begins.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable

from toolrm_jax.hlo import Computation, Instruction, Program, Shape
from toolrm_jax.hlo_groups import replica_groups
from toolrm_jax.hlo_loops import trip_count

# Instructions that move no data, or whose data the instruction that they belong to counts.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
        *("partition-id", "replica-id", "opt-barrier", "domain", "add-dependency"),
        "async-update",
    )
)
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips; `payload` is the whole array of a chip's group, in bytes.

    Gathered: the output. Reduced or exchanged: the input.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]  # of the numbers of devices on the mesh; (): all of them
    payload: float


@dataclasses.dataclass(frozen=True)
class Work:
    """One operation of the program, as often as it runs."""

    kind: str  # "products", "kernels", "copies", "elementwise", "collectives"
    phase: str  # "forward", "backward", "recomputed", "other" (optimizer, embedding, metrics)
    flops: float
    bytes: float
    times: int
    slowdown: float = 1.0  # float32 products at full precision take six bfloat16 ones
    beside: bool = False  # copies and exchanges that run beside other operations


@dataclasses.dataclass
class Costs:
    """The totals of one chip, and the operations that they are made of."""

    work: list[Work] = dataclasses.field(default_factory=list)
    collectives: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    # Of these, during which products are computed, as the compiler has scheduled it.
    beside_products: collections.Counter[Collective] = dataclasses.field(
        default_factory=collections.Counter
    )
    loops: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # where from, trips
    kept_bytes: float = 0.0  # what the forward pass's loop over layers stores for the backward one
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def flops(self) -> dict[str, float]:
        """By phase."""
        return _sums((work.phase, work.flops * work.times) for work in self.work)

    @property
    def hbm_bytes(self) -> dict[str, float]:
        """By kind of operation."""
        return _sums((work.kind, work.bytes * work.times) for work in self.work)


def _sums(items) -> dict[str, float]:
    sums: dict[str, float] = collections.defaultdict(float)
    for name, amount in items:
        sums[name] += amount
    return {name: amount for name, amount in sums.items() if amount}


def count(program: Program) -> Costs:
    """All that one execution of the program does on one chip."""
    counter = _Counter(program)
    counter.run(program.entry, 1)
    return counter.costs


class _Counter:
    def __init__(self, program: Program):
        self.program, self.costs = program, Costs()

    def run(self, computation: Computation, times: int) -> None:
        """Counts a computation whose instructions are carried out one by one."""
        under_way = _UnderWay({})
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                self._loop(computation, instruction, times)
            elif instruction.opcode == "conditional":
                self._dearest_branch(instruction, times)
            elif instruction.opcode in ("call", "async-start"):
                for name in instruction.called("to_apply") + instruction.called("calls"):
                    self.run(self.program.computations[name], times)
            elif instruction.opcode.endswith("-done"):
                under_way.end(instruction.operands[0])
            elif instruction.opcode not in _FREE:
                self._operation(computation, instruction, times, under_way)

    def _loop(self, computation: Computation, loop: Instruction, times: int) -> None:
        body = self.program.computations[loop.called("body")[0]]
        trips = trip_count(self.program, computation, loop)
        if trips is None:
            self.costs.warnings.append(f"loop {loop.name} ({loop.op_name}): counted once")
        self.costs.loops.append((loop.op_name, trips or 1))
        if times == 1 and "transpose(" not in loop.op_name:
            self.costs.kept_bytes += _stacked_bytes(body, trips or 1)
        self.run(body, times * (trips or 1))

    def _dearest_branch(self, conditional: Instruction, times: int) -> None:
        names = (
            conditional.called("branch_computations")
            or conditional.called("true_computation") + conditional.called("false_computation")
        )  # fmt: skip
        counted = []
        for name in names:
            branch = _Counter(self.program)
            branch.run(self.program.computations[name], times)
            counted.append(branch.costs)
        costs = max(counted, key=lambda c: (sum(c.flops.values()), sum(c.hbm_bytes.values())))
        self.costs.work += costs.work
        self.costs.collectives += costs.collectives
        self.costs.beside_products += costs.beside_products
        self.costs.loops += costs.loops
        self.costs.kept_bytes += costs.kept_bytes
        self.costs.warnings += costs.warnings

    def _operation(
        self, computation: Computation, one: Instruction, times: int, under_way: "_UnderWay"
    ) -> None:
        inside = self._inside(computation, one)
        for collective in self._exchanges(inside, under_way):
            self.costs.collectives[collective] += times
        flops, slowdown, kind = 0.0, 1.0, "elementwise"
        if one.opcode.startswith("copy") or one.opcode.endswith("slice-start"):
            kind = "copies"
        for holder, instruction in inside:
            found = self._flops(holder, instruction)
            if found:
                library = (
                    instruction.opcode == "custom-call" and "cublas" not in instruction.attributes
                )
                kind = "kernels" if library else "products"
                slowdown = 6.0 if _is_exact_float32(holder, instruction) else slowdown
            flops += found
        for collective in under_way.met() if flops else ():
            self.costs.beside_products[collective] += times
        if _collective_kind(one) or any(_chain_end(each) for _, each in inside):
            kind = "collectives"
        phase = _phase(one, inside)
        beside = kind == "collectives" or one.opcode.endswith("-start")
        work = Work(kind, phase, flops, self._bytes(computation, one), times, slowdown, beside)
        self.costs.work.append(work)

    def _inside(
        self, computation: Computation, one: Instruction
    ) -> list[tuple[Computation, Instruction]]:
        """The instruction, or all that are fused in it."""
        if one.opcode != "fusion":
            return [(computation, one)]
        called = self.program.computations[one.called("calls")[0]]
        return [pair for i in called.instructions.values() for pair in self._inside(called, i)]

    # --- arithmetic ---------------------------------------------------------------------------

    def _flops(self, computation: Computation, one: Instruction) -> float:
        if one.opcode == "dot":
            contracted = _dims(_operand(computation, one, 0), one.ints("lhs_contracting_dims"))
            return 2.0 * one.shapes[0].size * contracted
        if one.opcode == "convolution":
            return convolution_flops(
                one, _operand(computation, one, 0), _operand(computation, one, 1)
            )
        if one.opcode == "custom-call":
            return self._kernel(computation, one)
        return 0.0

    def _kernel(self, computation: Computation, one: Instruction) -> float:
        target = re.search(r'custom_call_target="([^"]*)"', one.attributes)
        name = target[1] if target else ""
        operands = [_operand(computation, one, i) for i in range(len(one.operands))]
        for pattern, formula in KERNELS.items():
            if re.search(pattern, f"{name} {one.name} {one.op_name}"):
                return formula(one, operands)
        if name == "tpu_custom_call" or "cudnn" in name or "triton" in name:
            self.costs.warnings.append(
                f"kernel {one.name} ({one.op_name}): no formula, counted as 0"
            )
        return 0.0

    # --- memory -------------------------------------------------------------------------------

    def _bytes(self, computation: Computation, one: Instruction) -> float:
        if one.opcode == "fusion":
            called = self.program.computations[one.called("calls")[0]]
            if (end := _chain_end(called.instructions[called.root])) == "Done":
                return 0.0
            if end == "Start":  # -> (what is sent, the whole, flags ...)
                return sum(map(_traffic, one.shapes[:2]))
            handed_on = _handed_on(called)
            read = sum(
                _main(_operand(computation, one, number)) and self._read(called, name)
                for number, name in called.parameters().items()
                if name not in handed_on
            )
            return read + self._written(called, one.shapes, handed_on)
        if one.opcode == "custom-call" and "AllocateBuffer" in one.attributes:
            return 0.0
        operands = [_operand(computation, one, i) for i in range(len(one.operands))]
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            operands = list(one.shapes)
        if one.opcode in ("slice-start", "dynamic-slice-start"):
            return one.shapes[1].bytes + _traffic(one.shapes[1])  # (the whole, the slice, ...)
        if one.opcode == "dynamic-update-slice":
            return 2 * _traffic(operands[1])
        written = one.shapes[:1] if one.opcode.endswith("-start") else one.shapes
        return sum(map(_traffic, operands)) + sum(map(_traffic, written))

    def _read(self, computation: Computation, name: str) -> float:
        """Of a fusion's parameter, what is read: of a sliced one the slices."""
        whole = computation.instructions[name].shapes[0].bytes
        read = 0.0
        for user in computation.users(name):
            if user.opcode in ("bitcast", "reshape"):
                read += self._read(computation, user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                read += user.shapes[0].bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                read += 0.0  # written in place
            elif user.opcode == "fusion":
                called = self.program.computations[user.called("calls")[0]]
                names = called.parameters()
                numbers = [n for n, operand in enumerate(user.operands) if operand == name]
                read += sum(self._read(called, names[number]) for number in numbers)
            else:
                return whole
        return min(read, whole)

    def _written(
        self, called: Computation, outputs: tuple[Shape, ...], handed_on: set[str]
    ) -> float:
        root = called.instructions[called.root]
        parts = root.operands if root.opcode == "tuple" else (root.name,)
        if len(parts) != len(outputs):
            return sum(map(_traffic, outputs))
        return sum(
            self._update(called, name) if _main(shape) and name not in handed_on else 0.0
            for name, shape in zip(parts, outputs, strict=True)
        )

    def _update(self, computation: Computation, name: str) -> float:
        """What is written of a fusion's result: of one that is updated in place, the update."""
        one = computation.instructions[name]
        if one.opcode == "bitcast":
            return self._update(computation, one.operands[0])
        if one.opcode in ("slice-start", "dynamic-slice-start"):
            return one.shapes[1].bytes + _traffic(one.shapes[1])  # (the whole, the slice, ...)
        if one.opcode == "dynamic-update-slice":
            return computation.instructions[one.operands[1]].shapes[0].bytes
        if one.opcode == "fusion" and len(one.shapes) == 1:
            called = self.program.computations[one.called("calls")[0]]
            return self._update(called, called.root)
        return one.shapes[0].bytes

    # --- between chips ------------------------------------------------------------------------

    def _exchanges(
        self, inside: list[tuple[Computation, Instruction]], under_way: "_UnderWay"
    ) -> list[Collective]:
        found = []
        for computation, one in inside:
            if (kind := _collective_kind(one)) is not None and not under_way.has(one):
                found.append(self._exchange(computation, one, kind))
                under_way.begin(one, found[-1])
        for _, one in inside:
            if _chain_end(one) == "Done":
                under_way.end(*filter(None, (_chain_link(each) for _, each in inside)))
        return found

    def _exchange(self, computation: Computation, one: Instruction, kind: str) -> Collective:
        given = sum(_operand(computation, one, i).bytes for i in range(len(one.operands)))
        users = computation.users(one.name)
        # A TPU's reduce-scatter is an all-reduce, fused with the slice that a chip keeps of it.
        if kind == "all-reduce" and users and all(u.opcode == "dynamic-slice" for u in users):
            kind = "reduce-scatter"
        groups = replica_groups(one.attributes)
        if kind == "all-gather":
            given *= len(groups[0]) if groups else 1
            given = given or sum(shape.bytes for shape in one.shapes)
        return Collective(kind, groups, given)


@dataclasses.dataclass
class _UnderWay:
    """Exchanges of one computation that have begun; those not ended, nor met by a product yet."""

    begun: dict[str, list[Collective]]

    def has(self, one: Instruction) -> bool:
        """Whether it carries on what has begun."""
        return _chain_link(one) in self.begun

    def begin(self, one: Instruction, exchange: Collective) -> None:
        """Notes it, unless it is over with this operation."""
        link = _chain_link(one) or (one.name if one.opcode.endswith("-start") else None)
        if link is not None:
            self.begun[link] = [exchange]

    def end(self, *links: str) -> None:
        """Products met from here on do not count."""
        for link in links:
            if link in self.begun:
                self.begun[link] = []

    def met(self) -> list[Collective]:
        """Those that a product is computed beside, each once."""
        met = [exchange for exchanges in self.begun.values() for exchange in exchanges]
        self.end(*self.begun)
        return met


def _collective_kind(one: Instruction) -> str | None:
    name = one.opcode.removesuffix("-start")
    return name if name in COLLECTIVES else None


def _chain_link(one: Instruction) -> str | None:
    """The exchange, if it is one that a chain of operations carries out."""
    found = re.search(r"channel_id=(\d+).*\bchain_id=", one.attributes)
    return found[1] if found else None


def _chain_end(one: Instruction) -> str | None:
    """ "Start" or "Done" of such a chain."""
    found = re.search(r'custom_call_target="AsyncCollective(Start|Done)"', one.attributes)
    return found[1] if found else None


def _handed_on(called: Computation) -> set[str]:
    """Of a fusion that carries an exchange on: its array and flags, which stay where they are."""
    links = {one.name for one in called.instructions.values() if _chain_link(one)}
    parameters = set(called.parameters().values())
    handed_on = set(called.instructions[called.root].operands) & (parameters | links)
    return handed_on if links else set()


def _operand(computation: Computation, one: Instruction, number: int) -> Shape:
    return computation.instructions[one.operands[number]].shapes[0]


def _main(shape: Shape) -> bool:
    return shape.space == 0


def _traffic(shape: Shape) -> float:
    return shape.bytes if _main(shape) else 0.0


def _dims(shape: Shape, numbers: tuple[int, ...]) -> int:
    return math.prod(shape.dims[number] for number in numbers)


def _is_exact_float32(computation: Computation, one: Instruction) -> bool:
    return "operand_precision={highest" in one.attributes and all(
        computation.instructions[name].shapes[0].dtype == "f32" for name in one.operands[:2]
    )


def _phase(one: Instruction, inside: list[tuple[Computation, Instruction]]) -> str:
    """Where the products come from, or else the operation itself."""
    names = [i.op_name for _, i in inside if i.opcode in ("dot", "convolution", "custom-call")]
    name = next(filter(None, names), one.op_name)
    if "rematted_computation" in name:
        return "recomputed"
    if "transpose(" in name:
        return "backward"
    return "forward" if "jvp(" in name or "while/body" in name else "other"


def _stacked_bytes(body: Computation, trips: int) -> float:
    """What the loop writes a slice of each time round: arrays [trips, ...] that it does not just
    hand on."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return 0.0
    total = 0.0
    for number, name in enumerate(root.operands):
        one = body.instructions[name]
        handed_on = one.opcode == "get-tuple-element" and f"index={number}" in one.attributes
        if not handed_on and len(one.shapes) == 1 and one.shapes[0].dims[:1] == (trips,):
            total += _traffic(one.shapes[0])
    return total


# --- convolutions, as which a TPU's compiler writes products --------------------------------------


def convolution_flops(one: Instruction, lhs: Shape, rhs: Shape) -> float:
    """2 x output x inputs to each of its elements. Batch dimensions are written as dilated spatial
    ones, of most of whose positions nothing comes: only pairs that meet count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    assert labels is not None, one
    sizes_in, kernel, out = (
        dict(zip(names, shape.dims, strict=True))
        for names, shape in zip(labels.groups(), (lhs, rhs, one.shapes[0]), strict=True)
    )
    groups = re.search(r"batch_group_count=(\d+)", one.attributes)
    flops = 2.0 * kernel["i"] * out["f"] * sizes_in["b"] / (int(groups[1]) if groups else 1)
    window = re.search(r"window=\{([^}]*)\}", one.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis in sorted(name for name in out if name.isdigit()):
        flops *= _meetings(fields, int(axis), sizes_in[axis], kernel[axis], out[axis])
    return flops


def _meetings(fields: dict[str, str], axis: int, size: int, kernel: int, out: int) -> int:
    """Pairs of output and kernel positions that an input element lies under."""

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    stride, dilate = int(field("stride", "1")), int(field("lhs_dilate", "1"))
    kernel_dilate, low = int(field("rhs_dilate", "1")), int(field("pad", "0_0").split("_")[0])
    last = (size - 1) * dilate
    positions = (o * stride + k * kernel_dilate - low for o in range(out) for k in range(kernel))
    return sum(0 <= at <= last and at % dilate == 0 for at in positions)


# --- kernels --------------------------------------------------------------------------------------


def _library_product(one: Instruction, operands: list[Shape]) -> float:
    """2 x output x what is summed over, of a product that cuBLAS computes."""
    summed = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)
    numbers = tuple(int(n) for n in re.findall(r"\d+", summed[1])) if summed else ()
    return 2.0 * one.shapes[0].size * _dims(operands[0], numbers)


def _square_attention(products: float) -> Callable[[Instruction, list[Shape]], float]:
    """The same of the whole square: cuDNN takes the mask as a bias, and skips nothing."""

    def formula(one: Instruction, operands: list[Shape]) -> float:
        queries, keys = operands[0], operands[1]  # [B, S, N, H]
        return 2.0 * products * queries.size * max(keys.dims[1:3])

    return formula


def _attention_products(products: float) -> Callable[[Instruction, list[Shape]], float]:
    """2 x products x heads x queries x keys x head size, of the causal half of a whole row."""

    def formula(one: Instruction, operands: list[Shape]) -> float:
        # Queries and keys come first, whichever have more heads or tokens.
        arrays = [s for s in operands if len(s.dims) >= 3 and s.dtype in ("bf16", "f32", "f16")]
        queries, keys = arrays[:2]
        *heads, q, h = queries.dims
        return 2.0 * products * math.prod(heads) * q * keys.dims[-2] * h / 2

    return formula


KERNELS: dict[str, Callable[[Instruction, list[Shape]], float]] = {
    # splash: scores and output; backward in one kernel: scores again, and four gradients.
    r"splash.*fwd": _attention_products(2),
    r"splash.*dkv": _attention_products(5),
    r"splash.*dq": _attention_products(3),
    r"cudnn\$fmha\w*Backward": _square_attention(5),
    r"cudnn\$fmha": _square_attention(2),
    r"cublas": _library_product,
}
