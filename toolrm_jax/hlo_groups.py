"""Which devices exchange with each other, as a compiled program says it.

    replica_groups("replica_groups=[2,2]<=[4], ...")  ->  ((0, 1), (2, 3))

Devices are given by their numbers on the mesh.
"""

import math
import re


def replica_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The groups that exchange with each other, in any of the forms in which HLO writes them.

    {{0,1},{2,3}}    [2,2]<=[4]    [2,2]<=[2,2]T(1,0)    mesh['a'=2,'b'=2] {'b'}
    """
    found = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\})", attributes)
    if found:
        return tuple(
            tuple(int(n) for n in group.split(","))
            for group in re.findall(r"\{([\d,]+)\}", found[1])
        )
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if found:
        shape, dims = _numbers(found[1]), _numbers(found[2])
        order = _numbers(found[3]) if found[3] else tuple(range(len(dims)))
        return _cut(_transposed(dims, order), shape[-1])
    found = re.search(r"replica_groups=mesh\[([^\]]*)\](?:\([^)]*\))? *\{([^}]*)\}", attributes)
    if found:
        axes = re.findall(r"'([^']*)'=(\d+)", found[1])
        chosen = re.findall(r"'([^']*)'", found[2])
        names, dims = [name for name, _ in axes], tuple(int(size) for _, size in axes)
        last = [names.index(name) for name in chosen]
        order = (*(n for n in range(len(dims)) if n not in last), *last)
        return _cut(_transposed(dims, order), math.prod(dims[n] for n in last))
    return ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _transposed(dims: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """0, 1, ... in an array of these dimensions, read with its axes in another order."""
    strides = [math.prod(dims[n + 1 :]) for n in range(len(dims))]
    numbers = [0]
    for axis in order:
        numbers = [base + at * strides[axis] for base in numbers for at in range(dims[axis])]
    return numbers


def _cut(numbers: list[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers[start : start + size]) for start in range(0, len(numbers), size))
