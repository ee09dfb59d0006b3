"""How often the loops of a compiled program run, by what their conditions compare.

trip_count(program, computation, loop)  ->  28, or None where that is not a counter
"""

import math
import re

from toolrm_jax.hlo import Computation, Instruction, Program


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop runs; None where its condition is not a counter against a constant."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    compare = condition.instructions[condition.root]
    if compare.opcode == "fusion":  # of the comparison alone
        inner = program.computations[compare.called("calls")[0]]
        test = inner.instructions[inner.root]
        names = [compare.operands[int(inner.instructions[o].text)] for o in test.operands
                 if inner.instructions[o].opcode == "parameter"]  # fmt: skip
        direction = test.attributes
    else:
        names, direction = list(compare.operands), compare.attributes
    sides = [condition.instructions[name] for name in names]
    bounds = [int(side.text) for side in sides if side.opcode == "constant"]
    counters = [side for side in sides if side.opcode == "get-tuple-element"]
    if len(bounds) != 1 or len(counters) != 1 or "direction=LT" not in direction:
        return None
    indices = re.findall(r"index=(\d+)", counters[0].attributes)
    if len(indices) != 1:
        return None
    number = int(indices[0])
    start = _start(computation, loop, number)
    step = _step(program.computations[loop.called("body")[0]], number)
    return max(0, math.ceil((bounds[0] - start) / step))


def _start(computation: Computation, loop: Instruction, number: int) -> int:
    """The counter's first value; 0 where it is not in sight (a scan's always is 0)."""
    one = computation.instructions[loop.operands[0]]
    if one.opcode == "tuple":
        one = computation.instructions[one.operands[number]]
    while one.opcode in ("copy", "bitcast", "convert") and one.operands:
        one = computation.instructions[one.operands[0]]
    return int(one.text) if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.text) else 0


def _step(body: Computation, number: int) -> int:
    """By what the counter grows; 1 where it is not in sight."""
    root = body.instructions[body.root]
    one = body.instructions[root.operands[number]] if root.opcode == "tuple" else root
    if one.opcode == "add":
        for name in one.operands:
            other = body.instructions[name]
            if other.opcode == "constant" and re.fullmatch(r"\d+", other.text):
                return max(1, int(other.text))
    return 1
