"""Train and held-out tasks that share no task and no tool name.

Tasks whose catalogues share a tool name hang together; each such component goes to one side whole.
Components are taken in the order of a hash of the seed, so the split depends on nothing else; one
larger than the held-out share always goes to the training side.

    train, heldout = split(examples, seed=0, heldout_share=0.2)
"""

import hashlib
from collections.abc import Sequence

from toolrm_jax.examples import Example


def digest(*parts: object) -> str:
    """A hash that is the same in every process and on every machine."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def components(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples grouped so that no two groups share a tool name."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first = {example.id: _names(example)[0] for example in examples}
    for example in examples:
        for name in _names(example):
            parent[root(name)] = root(first[example.id])
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(root(first[example.id]), []).append(example)
    return list(groups.values())


def _names(example: Example) -> list[str]:
    # A task without tools hangs together with nothing.
    return [f"tool/{tool['name']}" for tool in example.tools] or [f"task/{example.id}"]


def split(
    examples: Sequence[Example], *, seed: int, heldout_share: float
) -> tuple[list[Example], list[Example]]:
    """(train, held-out), the latter of about heldout_share of the tasks."""
    if not 0 <= heldout_share < 1:
        raise ValueError(f"heldout_share is {heldout_share}; expected at least 0 and below 1")
    room = round(heldout_share * len(examples))
    chosen: set[str] = set()
    groups = components(examples)
    for group in sorted(groups, key=lambda group: digest(seed, min(e.id for e in group))):
        if len(chosen) + len(group) <= room:
            chosen.update(example.id for example in group)
    train = [example for example in examples if example.id not in chosen]
    heldout = [example for example in examples if example.id in chosen]
    _check_disjoint(train, heldout)
    return train, heldout


def _check_disjoint(train: Sequence[Example], heldout: Sequence[Example]) -> None:
    for what, of in (("task", lambda e: {e.id}), ("tool", lambda e: {t["name"] for t in e.tools})):
        shared = set().union(*map(of, train)) & set().union(*map(of, heldout))
        assert not shared, f"train and held-out share a {what}: {sorted(shared)[:3]}"
