"""A window's plan: every sequence once, a few static shapes, little padding, always the same."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolrm_jax.rendering import Renderer
from toolrm_jax.request_tokens import RequestTokenizer, Tokenized
from toolrm_jax.score_plan import ScorePlan, plan_window

PLAN = ScorePlan(max_tokens=96, batch_tokens=128, row_multiple=2, min_row=32)
PROMPTS = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(1, 30), min_size=1, max_size=30)),
    max_size=12,
)


def window_of(prompts):
    """Sequences of random tokens: each prompt's length, and its responses'."""
    rng = np.random.default_rng(0)
    found = []
    for length, responses in prompts:
        prompt = rng.integers(0, 50, length)
        found += [np.concatenate([prompt, rng.integers(0, 50, n)]) for n in responses]
    return [tokens.astype(np.int32) for tokens in found]


def read_back(window):
    """What the batches' rows hold: every response's tokens in order, with its place."""
    for planned in window.batches:
        batch = window.fill(planned)
        for row in range(len(planned.rows)):
            for slot in np.flatnonzero(batch.answers[row]):
                segment = batch.segments[row] == batch.answers[row, slot]
                branch = batch.branches[row]
                mine = segment & ((branch == 0) | (branch == slot + 1))
                assert np.flatnonzero(mine)[-1] == batch.ends[row, slot]
                positions = batch.positions[row][mine]
                assert positions.tolist() == list(range(len(positions)))
                yield planned, row, slot, batch.tokens[row][mine]


@settings(max_examples=60, deadline=None)
@given(PROMPTS)
def test_every_sequence_gets_the_reward_of_its_own_tokens(prompts):
    sequences = window_of(prompts)
    window = plan_window(sequences, PLAN)
    rewards = {
        id(planned): np.zeros((len(planned.rows), planned.shape.responses), np.float32)
        for planned in window.batches
    }
    names = {tokens.tobytes(): number for number, tokens in enumerate(sequences)}
    for planned, row, slot, tokens in read_back(window):
        rewards[id(planned)][row, slot] = names[tokens.tobytes()] + 1
    out = np.zeros(len(sequences), np.float32)
    for planned in window.batches:
        window.scatter(planned, rewards[id(planned)], out)
    assert out.tolist() == [names[tokens.tobytes()] + 1 for tokens in sequences]


@settings(max_examples=60, deadline=None)
@given(PROMPTS)
def test_batches_have_planned_shapes_and_the_work_is_counted(prompts):
    sequences = window_of(prompts)
    window = plan_window(sequences, PLAN)
    assert {(b.shape, len(b.rows)) for b in window.batches} <= set(PLAN.programs())
    filled = [window.fill(planned) for planned in window.batches]
    assert window.work.computed_tokens == sum(batch.tokens.size for batch in filled)
    assert window.work.distinct_tokens == sum((batch.segments > 0).sum() for batch in filled)
    assert window.work.sequence_tokens == sum(map(len, sequences))
    assert window.work.responses == len(sequences)
    again = plan_window(sequences, PLAN)
    assert window.batches == again.batches


def test_shapes_end_at_the_longest_sequence():
    plan = ScorePlan(max_tokens=2000, batch_tokens=4096, min_row=256)
    assert [s.tokens for s in plan.shapes] == [256, 384, 512, 768, 1024, 1536, 2000]
    assert [s.tokens for s in ScorePlan(100, 4096).shapes] == [256]
    assert plan.heights(plan.shapes[0]) == [16, 4, 1]
    assert ScorePlan(2000, 32_768, row_multiple=8).heights(plan.shapes[0]) == [128, 32, 8]
    assert ScorePlan(2000, 64, row_multiple=8).heights(plan.shapes[0]) == [8]


def test_a_sequence_that_no_row_holds_is_refused():
    with pytest.raises(ValueError, match="97 tokens; at most 96"):
        plan_window([np.arange(97)], PLAN)


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_tokens=0"):
        ScorePlan(max_tokens=10, batch_tokens=0)


@pytest.fixture(scope="module")
def real(toolrm_data, smollm2_tokenizer):
    """Real pairs and pools of real candidates, as sequences, request by request."""
    tokenize = RequestTokenizer(Renderer(smollm2_tokenizer), 4096)

    def read(name):
        with gzip.open(toolrm_data / "data" / "eval" / name, "rt") as file:
            return [json.loads(line) for _, line in zip(range(200), file, strict=False)]

    pools = [
        {
            "tools": row["tools"],
            "messages": row["conversation"],
            "responses": [
                c["raw"] if c["calls"] is None else c["calls"] for c in row["candidates"]
            ],
        }
        for row in read("pools_dev.jsonl.gz")
    ]
    found = {}
    for name, rows in (("pairs", read("fcrb_dev.jsonl.gz")), ("pools", pools)):
        tokenized = [tokenize(row) for row in rows]
        found[name] = [t.sequences() for t in tokenized if isinstance(t, Tokenized)]
    return found


@pytest.mark.parametrize(("kind", "count"), [("pairs", 60), ("pairs", 200), ("pools", 60)])
@pytest.mark.parametrize("equal_work", [3072.0, 1e9])
def test_real_windows_have_at_most_8_percent_padding(real, kind, count, equal_work):
    sequences = [s for request in real[kind][:count] for s in request]
    work = plan_window(sequences, ScorePlan(4096, 4096, equal_work=equal_work)).work
    assert work.padding_share <= 0.08
    assert work.prefix_share > (0.4 if kind == "pairs" else 0.6)
