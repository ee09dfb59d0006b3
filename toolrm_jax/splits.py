"""Train and held-out tasks that share no task, no tool and no request.

    task                                   keys
    "What is 5% of 300?"                   request/what is 5 of 300
      finance.calculate_share              tool/finance.calculate_share    segment/calculateshare
      financials.calculateShare            tool/financials.calculateShare  segment/calculateshare

Tasks that share a key hang together: a tool's name, the last segment of that name (near-identical
tools differ in their namespace only), or the words of the request. Each such component goes to one
side whole. Components are taken in the order of a hash of the seed, so the split depends on nothing
else; one larger than the held-out share always goes to the training side.

    train, heldout = split(examples, seed=0, heldout_share=0.2)
"""

import collections
import hashlib
import re
from collections.abc import Sequence

from toolrm_jax.examples import Example, Message

_WORD = re.compile(r"[^\W_]+")
_TELLING_WORDS = 4  # a shorter request ("Yes, please.") is that of many tasks
# Japanese and Chinese put no spaces between words: there a character counts as one.
_NO_SPACES = re.compile(r"[\u3040-\u9fff]")


def digest(*parts: object) -> str:
    """A hash that is the same in every process and on every machine."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def request_key(messages: Sequence[Message]) -> str:
    """What a conversation's user turns say, in twelve digits; "" where that is too short to tell.

    >>> asked = [{"role": "user", "content": "What is 5% of 300?"}]
    >>> request_key(asked) == request_key([{**asked[0], "content": "what is 5 % of 300"}])
    True
    """
    request = " ".join(words(" ".join(_user_texts(messages))))
    count = request.count(" ") + 1 + len(_NO_SPACES.findall(request))
    return digest(request)[:12] if count >= _TELLING_WORDS else ""


def components(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples grouped so that no two groups share a key."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first = {example.id: f"task/{example.id}" for example in examples}
    for example in examples:
        for key in keys(example):
            parent[root(key)] = root(first[example.id])
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(root(first[example.id]), []).append(example)
    return list(groups.values())


def keys(example: Example) -> set[str]:
    """What no two sides may share: the tools, the last segments of their names, the request."""
    names = [tool["name"] for tool in example.tools]
    found = {f"tool/{name}" for name in names}
    found |= {f"segment/{''.join(words(name.rpartition('.')[2]))}" for name in names}
    request = " ".join(words(" ".join(_user_texts(example.messages))))
    return found | ({f"request/{request}"} if request else set())


def _user_texts(messages: Sequence[Message]) -> list[str]:
    return [str(m.get("content", "")) for m in messages if m.get("role") == "user"]


def words(text: str) -> list[str]:
    """The words and numbers of a text in lower case: get_area, getArea and GetArea have the same
    letters."""
    return _WORD.findall(text.lower())


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
    check_disjoint(train, heldout)
    return train, heldout


def join(
    sides: Sequence[list[Example]], others: Sequence[Example], rooms: Sequence[int], *, seed: int
) -> collections.Counter[str]:
    """Adds other tasks to the sides, as many as each has room for; counts those left, by reason.

    A task goes to the side that it shares a key with; one that shares none, to the side that lacks
    more. So they tie no components together, which a split of all tasks at once would let them.
    """
    held = [set().union(*map(keys, side)) for side in sides]
    room = list(rooms)
    left: collections.Counter[str] = collections.Counter()
    for task in sorted(others, key=lambda task: digest(seed, task.id)):
        found = keys(task)
        tied = [i for i in range(len(sides)) if found & held[i]]
        if len(tied) > 1:
            left["they share a tool or request with both sides"] += 1
            continue
        lacking = max(range(len(sides)), key=lambda i: room[i] / max(1, rooms[i]))
        at = tied[0] if tied else lacking
        if room[at] <= 0:
            left["beyond their share"] += 1
            continue
        room[at] -= 1
        sides[at].append(task)
        held[at] |= found
    return left


def check_disjoint(train: Sequence[Example], heldout: Sequence[Example]) -> None:
    """Both sides' tasks and keys have nothing in common; anything else is a bug of ours."""
    sides = [set().union(*map(keys, side)) | {e.id for e in side} for side in (train, heldout)]
    shared = sides[0] & sides[1]
    assert not shared, f"train and held-out share {sorted(shared)[:3]}"
