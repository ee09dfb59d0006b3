"""Prefix sharing computes the fewest tokens that one level of sharing allows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax.prefix_sharing import Group, share

# Few tokens and short sequences, so that prefixes are shared, nested and repeated.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=6)
MANY = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), max_size=40)


def arrays(lists):
    return [np.array(tokens, np.int32) for tokens in lists]


def partitions(items):
    """Every way to put items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for smaller in partitions(rest):
        yield [[first], *smaller]
        for i, group in enumerate(smaller):
            yield [*smaller[:i], [first, *group], *smaller[i + 1 :]]


def cost(group):
    """Tokens computed for distinct sequences that share the longest prefix they can."""
    depth = min(len(tokens) for tokens in group) - 1
    while len({tokens[:depth] for tokens in group}) > 1:
        depth -= 1
    return depth + sum(len(tokens) - depth for tokens in group)


@settings(max_examples=300, deadline=None)
@given(SEQUENCES)
def test_no_grouping_computes_fewer_tokens(lists):
    sequences = arrays(lists)
    found = sum(group.tokens(sequences) for group in share(sequences))
    distinct = sorted({tuple(tokens) for tokens in lists})
    assert found == min(sum(map(cost, groups)) for groups in partitions(distinct))


@settings(max_examples=100, deadline=None)
@given(MANY)
def test_every_sequence_is_in_one_branch_whole(lists):
    sequences = arrays(lists)
    seen = []
    for group in share(sequences):
        item = group.item(sequences)
        for same, response in zip(group.branches, item.responses, strict=True):
            seen += same
            assert len(response) > 0
            for number in same:
                assert [*item.prompt, *response] == lists[number]
    assert sorted(seen) == list(range(len(lists)))


@settings(max_examples=100, deadline=None)
@given(MANY, st.integers(12, 30), st.integers(1, 4))
def test_parts_fit_and_lose_nothing(lists, max_tokens, max_branches):
    sequences = arrays(lists)
    for group in share(sequences):
        parts = group.parts(sequences, max_tokens, max_branches)
        assert tuple(same for part in parts for same in part.branches) == group.branches
        for part in parts:
            assert part.tokens(sequences) <= max_tokens
            assert len(part.branches) <= max_branches
            item = part.item(sequences)
            for same, response in zip(part.branches, item.responses, strict=True):
                assert [*item.prompt, *response] == lists[same[0]]


def test_a_catalogue_shared_by_prompts_is_not_preferred_to_longer_prompts():
    catalogue, questions = [7] * 5, ([1] * 20, [2] * 20)
    sequences = arrays([catalogue + q + [answer] for q in questions for answer in range(3)])
    groups = share(sequences)
    assert groups == [
        Group(25, ((0,), (1,), (2,))),
        Group(25, ((3,), (4,), (5,))),
    ]


def test_a_catalogue_is_shared_where_prompts_have_one_response():
    sequences = arrays([[7] * 50 + [q] * 5 for q in range(4)])
    assert share(sequences) == [Group(50, ((0,), (1,), (2,), (3,)))]


def test_some_prompts_share_and_others_join_the_catalogue():
    alone = [[7] * 50 + [q] * 5 for q in (1, 2)]
    together = [[7] * 50 + [3] * 60 + [answer] for answer in range(4)]
    groups = share(arrays(alone + together))
    assert groups == [Group(50, ((0,), (1,))), Group(110, ((2,), (3,), (4,), (5,)))]


def test_equal_sequences_are_one_branch():
    sequences = arrays([[1, 2, 3], [1, 2, 4], [1, 2, 3]])
    assert share(sequences) == [Group(2, ((0, 2), (1,)))]


def test_a_growing_conversation_of_hundreds_of_turns():
    sequences = arrays([list(range(n)) for n in range(1, 600)])
    groups = share(sequences)
    assert sum(len(group.branches) for group in groups) == 599
    # Sharing the first half saves most: about a quarter of n^2 / 2 ... and halves again.
    assert sum(group.tokens(sequences) for group in groups) < 0.35 * sum(map(len, sequences))


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        share(arrays([[1], []]))
