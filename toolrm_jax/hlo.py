"""A compiled program's text (HLO), parsed: computations of instructions, with shapes and operands.

    program = parse(compiled.as_text())
    program.entry.instructions["fusion.3"].operands

Only what `hlo_costs.py` counts with is kept. The text is the compiler's own, after it has chosen
layouts, fused and scheduled: one instruction is one piece of work on the chip.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array; `space` 0 is the chip's main memory (1: a TPU's VMEM, 5: the host's)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Without the padding of tiles; a token has none."""
        bits = re.search(r"\d+", "pred8" if self.dtype == "pred" else self.dtype)
        return self.size * int(bits[0]) / 8 if bits else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `text` is what stands between the operands' parentheses."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # a tuple's arrays, flattened
    operands: tuple[str, ...]
    text: str
    attributes: str

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names: `calls`, `body`, `branch_computations`, ..."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return (
            [name.strip().lstrip("%") for name in found[1].strip("{}").split(",")] if found else []
        )

    def ints(self, attribute: str) -> tuple[int, ...]:
        """A list of integers, such as `dimensions={0,1}`."""
        found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return _ints(found[1]) if found else ()

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from: "jit(train_step)/jvp()/while/body/..."."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; parameters by their number."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def parameters(self) -> dict[int, str]:
        """The names of the parameters."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(i.text): i.name for i in found}

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read it."""
        return [i for i in self.instructions.values() if name in i.operands]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: its computations, and the one that it starts with."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = None
    for is_entry, name, lines in _blocks(text):
        instructions, root = {}, ""
        for line in lines:
            if (read := _instruction(line)) is not None:
                is_root, instruction = read
                instructions[instruction.name] = instruction
                root = instruction.name if is_root else root
        computations[name] = Computation(name, instructions, root)
        entry = computations[name] if is_entry else entry
    if entry is None:
        raise ValueError("This is no HLO text: no computation in it is the ENTRY.")
    return Program(computations, entry)


def _blocks(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """(is it the entry?, name, lines) of each computation."""
    lines: list[str] | None = None
    for line in text.splitlines():
        if lines is None:
            header = _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                is_entry, name, lines = bool(header[1]), header[2], []
        elif line.rstrip() == "}":
            yield is_entry, name, lines
            lines = None
        elif lines and not _INSTRUCTION.match(line):
            lines[-1] += line  # a Pallas kernel's metadata hold line breaks
        else:
            lines.append(line)


def _instruction(line: str) -> tuple[bool, Instruction] | None:
    head = _INSTRUCTION.match(line)
    if head is None:
        return None
    rest = _COMMENT.sub("", line[head.end() :])
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shapes, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    operands = tuple(_NAME.findall(inside))
    name = head[2]
    return bool(head[1]), Instruction(
        name, rest[:start], _shapes(shapes), operands, inside, rest[end + 1 :]
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"A parenthesis is left open in the HLO line {text[:80]!r}.")


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, _ints(dims), _space(layout)) for dtype, dims, layout in _SHAPE.findall(text)
    )


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
