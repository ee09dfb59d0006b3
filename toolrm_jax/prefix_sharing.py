"""Which beginnings are computed once: token sequences -> groups that share a prefix.

    0   1 2 3 4 5                group, depth 3        1 2 3 | 4 5 | 6     (0; 1 and 4)
    1   1 2 3 6
    2   1 9                      group, depth 1        1 | 9               (2)
    3   7 8 8                    group, depth 2        7 8 | 8             (3)
    4   1 2 3 6     = 1

A row (`batch.py`) knows one level of sharing: a prompt and its branches. So a prefix that n
sequences share at depth d is computed once instead of n times, which saves (n - 1) * d tokens, and
each sequence may share one prefix only. `share` finds the grouping that saves most, exactly:
sorted, the sequences are the leaves of a tree of common prefixes, and over that tree

    saved(node, d) = max(sum of saved(child, d),                        share nothing here
                         sum of saved(child, depth) - depth)            share the node's prefix
    saved(leaf, d) = d                     d: the depth shared by the nearest ancestor that shares

Token ids are all it sees, so repeated catalogues, plain texts and lists of ids profit alike.

    >>> share([np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), np.array([9, 9])])
    [Group(depth=3, branches=((0,), (1,))), Group(depth=1, branches=((2,),))]
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from toolrm_jax.batch import TokenizedPrompt


@dataclasses.dataclass(frozen=True)
class Group:
    """Sequences that are computed together; a branch holds the numbers of equal sequences."""

    depth: int  # tokens of the shared prefix
    branches: tuple[tuple[int, ...], ...]

    def tokens(self, sequences: Sequence[np.ndarray]) -> int:
        """Tokens computed: the prefix once, and the rest of every branch."""
        return self.depth + sum(len(sequences[same[0]]) - self.depth for same in self.branches)

    def item(self, sequences: Sequence[np.ndarray]) -> TokenizedPrompt:
        """The group as a prompt with responses, for a row."""
        first = [sequences[same[0]] for same in self.branches]
        return TokenizedPrompt(first[0][: self.depth], [tokens[self.depth :] for tokens in first])

    def parts(
        self, sequences: Sequence[np.ndarray], max_tokens: int, max_branches: int
    ) -> list["Group"]:
        """The group cut into as many as it takes to fit those limits, each with the prefix.

        A branch that is too long even alone stays alone.
        """
        parts: list[list[tuple[int, ...]]] = []
        room = 0
        for same in self.branches:
            need = len(sequences[same[0]]) - self.depth
            if not parts or need > room or len(parts[-1]) == max_branches:
                parts.append([])
                room = max_tokens - self.depth
            parts[-1].append(same)
            room -= need
        return [self._part(part, sequences) for part in parts]

    def _part(self, branches: list[tuple[int, ...]], sequences: Sequence[np.ndarray]) -> "Group":
        # Alone, nothing is shared: only its last token need be a branch.
        depth = self.depth if len(branches) > 1 else len(sequences[branches[0][0]]) - 1
        return Group(depth, tuple(branches))


def share(sequences: Sequence[np.ndarray]) -> list[Group]:
    """The grouping that computes the fewest tokens; every sequence (one token or more) is in one.

    Equal sequences become one branch, and every branch keeps a token of its own to be read at.
    """
    if any(len(tokens) == 0 for tokens in sequences):
        raise ValueError("An empty sequence: each needs at least one token.")
    if not sequences:
        return []
    leaves = _distinct(sequences)
    depths = _shared_depths([sequences[same[0]] for same in leaves])
    groups = [
        Group(depth or len(sequences[branches[0][0]]) - 1, tuple(branches))
        for depth, branches in _choose(leaves, _tree(depths))
    ]
    return sorted(groups, key=lambda group: group.branches[0][0])


def _distinct(sequences: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """Numbers of equal sequences, in an order in which common prefixes stand side by side."""
    same: dict[bytes, list[int]] = {}
    for number, tokens in enumerate(sequences):
        same.setdefault(np.asarray(tokens, np.int32).tobytes(), []).append(number)
    return [tuple(same[key]) for key in sorted(same)]


def _shared_depths(sequences: list[np.ndarray]) -> list[int]:
    """How much each sequence shares with the next; at least a token of either is left over."""
    return [_shared_depth(a, b) for a, b in itertools.pairwise(sequences)]


def _shared_depth(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b)) - 1
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclasses.dataclass
class _Node:
    """A prefix that neighbouring leaves share, with what lies below: nodes, or a leaf's number."""

    depth: int
    below: list["_Node | int"]
    # saved[k]: what is saved below if the k-th node on the way from the root shares its prefix.
    saved: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))


def _tree(depths: list[int]) -> _Node:
    """The tree of common prefixes of len(depths) + 1 leaves, its root at depth 0."""
    spine = [_Node(0, [])]  # the nodes that are still open, from the root down
    for leaf, depth in enumerate([*depths, 0]):
        if depth > spine[-1].depth:
            spine.append(_Node(depth, [leaf]))
            continue
        spine[-1].below.append(leaf)
        while depth < spine[-1].depth:
            closed = spine.pop()
            if depth > spine[-1].depth:
                spine.append(_Node(depth, [closed]))
            else:
                spine[-1].below.append(closed)
    return spine[0]


def _choose(
    leaves: list[tuple[int, ...]], root: _Node
) -> Iterator[tuple[int, list[tuple[int, ...]]]]:
    """(depth, branches) of every group; depth 0: a branch that shares nothing."""
    walk = list(_walk(root))
    for node, path in reversed(walk):  # from the leaves to the root
        node.saved = np.sum([_below(below, path) for below in node.below], axis=0)
        here = node.saved[-1] - node.depth
        if len(path) > 1:
            node.saved = np.append(np.maximum(node.saved[:-1], here), node.saved[-1])
    members: dict[int, list[int]] = {}
    sharing = {id(root): (root, 0)}  # the nearest node that shares, and its place on the path
    for node, path in walk:
        nearest, place = sharing.pop(id(node))
        plain = sum(_saved(below, path, place) for below in node.below)
        if len(path) > 1 and node.saved[-1] - node.depth > plain:
            nearest, place = node, len(path) - 1
        for below in node.below:
            if isinstance(below, _Node):
                sharing[id(below)] = (nearest, place)
            elif nearest is root:
                yield 0, [leaves[below]]
            else:
                members.setdefault(id(nearest), [nearest.depth]).append(below)
    for depth, *numbers in members.values():
        yield depth, [leaves[number] for number in numbers]


def _below(below: _Node | int, path: list[int]) -> np.ndarray:
    return below.saved[: len(path)] if isinstance(below, _Node) else np.array(path)


def _saved(below: _Node | int, path: list[int], place: int) -> int:
    return int(below.saved[place]) if isinstance(below, _Node) else path[place]


def _walk(root: _Node) -> Iterator[tuple[_Node, list[int]]]:
    """Every node, parents first, with the depths on the way to it, its own included."""
    todo = [(root, [0])]
    while todo:
        node, path = todo.pop()
        yield node, path
        todo += [(below, [*path, below.depth]) for below in node.below if isinstance(below, _Node)]
