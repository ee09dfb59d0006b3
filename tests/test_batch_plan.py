"""The batch plan: a pure function that places every example once, alike on every process."""

import dataclasses

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import loader as bench
from toolrm_jax import batch_plan
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import (
    Lengths,
    PlanConfig,
    padding_share,
    plan_epoch,
    process_rows,
    too_long,
)
from toolrm_jax.loader import RowTokenizer
from toolrm_jax.rendering import Renderer

SHAPES = (RowShape(64, 4), RowShape(16, 8), RowShape(32, 3))


@st.composite
def lengths(draw, most: int = 80):
    sizes = draw(st.lists(st.tuples(st.integers(2, 80), st.integers(1, 9)), max_size=most))
    tokens, responses = np.array(sizes, int).reshape(-1, 2).T
    return Lengths(tokens, responses)


@st.composite
def configs(draw):
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, unique=True))
    return PlanConfig(
        shapes=tuple(shapes),
        batch_tokens=draw(st.sampled_from([1, 64, 200])),
        micro_batches=draw(st.integers(1, 3)),
        row_multiple=draw(st.sampled_from([1, 4])),
        window=draw(st.sampled_from([1, 7, 256])),
    )


def realistic(n: int = 600) -> Lengths:
    rng = np.random.default_rng(0)
    return Lengths(np.clip(rng.lognormal(2.7, 0.5, n).astype(int), 4, 64), rng.integers(2, 4, n))


@settings(max_examples=100, deadline=None)
@given(lengths(), configs(), st.integers(0, 3), st.booleans())
def test_every_example_that_fits_is_in_exactly_one_row_and_no_row_overflows(
    sizes, config, epoch, shuffle
):
    steps = plan_epoch(sizes, config, seed=5, epoch=epoch, shuffle=shuffle)
    placed = [i for step in steps for i in step.examples()]
    fitting = [
        i
        for i in range(len(sizes))
        if any(
            sizes.tokens[i] <= s.tokens and sizes.responses[i] <= s.responses for s in config.shapes
        )
    ]
    assert sorted(placed) == fitting
    assert sorted({*fitting, *too_long(sizes, config.shapes)}) == list(range(len(sizes)))
    assert len(fitting) + len(too_long(sizes, config.shapes)) == len(sizes)
    for step in steps:
        assert step.shape in config.shapes
        assert step.examples(), "a step of padding alone"
        assert len(step.micro_batches) == config.micro_batches
        for rows in step.micro_batches:
            assert len(rows) == config.rows(step.shape)
            for row in rows:
                assert sizes.tokens[list(row)].sum() <= step.shape.tokens
                assert sizes.responses[list(row)].sum() <= step.shape.responses


@settings(max_examples=30, deadline=None)
@given(lengths(), configs())
def test_the_padding_share_counts_tokens_that_are_not_there(sizes, config):
    steps = plan_epoch(sizes, config, seed=0, epoch=0)
    computed = useful = 0
    for step in steps:
        for rows in step.micro_batches:
            for row in rows:
                computed += step.shape.tokens
                useful += sum(sizes.tokens[i] for i in row)
    expected = 1 - useful / computed if computed else 1.0
    assert padding_share(steps, sizes, config) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(lengths(), configs())
def test_the_budget_of_a_micro_batch_is_kept_in_whole_row_multiples(sizes, config):
    for shape in config.shapes:
        rows = config.rows(shape)
        assert rows % config.row_multiple == 0
        assert rows * shape.tokens <= config.batch_tokens or rows == config.row_multiple
        assert (rows + config.row_multiple) * shape.tokens > config.batch_tokens


def test_the_plan_is_a_function_of_its_arguments_alone():
    config = PlanConfig(SHAPES, 200)
    first = plan_epoch(realistic(), config, seed=1, epoch=2)
    np.random.default_rng().random(10)
    assert plan_epoch(realistic(), config, seed=1, epoch=2) == first


def test_epochs_and_seeds_shuffle_differently_and_evaluation_does_not_shuffle():
    config = PlanConfig((RowShape(64, 8),), 256)
    sizes = Lengths(np.full(64, 16), np.full(64, 2))

    def order(**options):
        return [i for step in plan_epoch(sizes, config, **options) for i in step.examples()]

    base = order(seed=1, epoch=0)
    assert order(seed=1, epoch=1) != base
    assert order(seed=2, epoch=0) != base
    assert order(seed=1, epoch=0, shuffle=False) == order(seed=9, epoch=4, shuffle=False)
    assert order(seed=1, epoch=0, shuffle=False) == list(range(64))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_disjoint_slices_that_are_the_global_batch(processes):
    config = PlanConfig(SHAPES, 300, micro_batches=2, row_multiple=4)
    plans = [plan_epoch(realistic(), config, seed=3, epoch=0) for _ in range(processes)]
    assert all(plan == plans[0] for plan in plans)
    for number, step in enumerate(plans[0]):
        for micro, rows in enumerate(step.micro_batches):
            slices = [
                plans[p][number].micro_batches[micro][process_rows(len(rows), p, processes)]
                for p in range(processes)
            ]
            assert {len(part) for part in slices} == {len(rows) // processes}
            assert sum(slices, ()) == rows
            read = [i for part in slices for row in part for i in row]
            assert len(read) == len(set(read))


PLAN = """
import hashlib
import numpy as np
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import Lengths, PlanConfig, plan_epoch
rng = np.random.default_rng(5)
sizes = Lengths(rng.integers(10, 1000, 500), rng.integers(2, 6, 500))
config = PlanConfig((RowShape(1024, 32), RowShape(512, 16)), 4096)
steps = plan_epoch(sizes, config, seed=3, epoch=1)
print(hashlib.sha256(repr(steps).encode()).hexdigest())
"""


def test_processes_that_start_afresh_plan_alike():
    """Whatever their hash seed: nothing may follow the order of a set."""
    started = [
        tiny.start([], devices=1, program=PLAN, PYTHONHASHSEED=str(seed)) for seed in (1, 2, 3, 4)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in started]
    assert len(set(outputs)) == 1
    assert len(outputs[0].strip()) == 64


def test_rows_that_do_not_divide_among_processes_are_an_error():
    with pytest.raises(ValueError, match=r"6 rows do not divide among 4 processes"):
        process_rows(6, 0, 4)


def test_a_row_is_opened_in_the_smallest_shape_that_holds_the_example():
    config = PlanConfig(SHAPES, batch_tokens=1)  # a row a step, so that no step is incomplete
    sizes = Lengths(np.array([10, 30, 60, 10, 65]), np.array([8, 3, 4, 9, 2]))
    found = {i: step.shape for step in plan_epoch(sizes, config, 0, 0) for i in step.examples()}
    assert found == {0: RowShape(16, 8), 1: RowShape(32, 3), 2: RowShape(64, 4)}
    assert too_long(sizes, SHAPES).tolist() == [3, 4]


def test_packing_wastes_little_and_shapes_stay_few():
    config = PlanConfig((RowShape(128, 64), RowShape(64, 64)), 512)
    sizes = realistic()
    steps = plan_epoch(sizes, config, seed=0, epoch=0)
    assert {step.shape for step in steps} <= set(config.shapes)
    last_steps = 2 * 512 / sizes.tokens.sum()  # one of each shape may be all but empty
    assert padding_share(steps, sizes, config) < 0.05 + last_steps


def like_real(n: int) -> Lengths:
    """Pairs of about 450 tokens, with a long tail."""
    rng = np.random.default_rng(0)
    tokens = np.clip(rng.lognormal(np.log(450), 0.75, n).astype(int), 40, 6000)
    return Lengths(tokens, np.full(n, 2))


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(
    "shapes",
    [((4096, 64),), ((2048, 32), (4096, 64)), ((1024, 16), (2048, 32), (4096, 64))],
    ids=["one shape", "two", "three"],
)
def test_padding_of_a_row_a_chip_is_within_8_percent(shapes, rows):
    """The rows of 16 and of 32 chips, on an epoch of 20,000 pairs and on one of 2,000."""
    config = PlanConfig(tuple(RowShape(*shape) for shape in shapes), rows * 4096, row_multiple=rows)
    for sizes, most in ((like_real(20_000), 0.03), (like_real(2_000), 0.08)):
        steps = plan_epoch(sizes, config, seed=0, epoch=0)
        assert {step.shape for step in steps} <= set(config.shapes)
        assert padding_share(steps, sizes, config) < most


def test_padding_of_real_tasks_is_within_8_percent(toolrm_data, qwen_tokenizer):
    tokenize = RowTokenizer(Renderer(qwen_tokenizer("qwen2.5")))
    items = [tokenize(row)[0] for row in bench.real_rows(toolrm_data, every=50)]
    sizes = Lengths(
        np.array([item.tokens for item in items]), np.array([len(i.responses) for i in items])
    )
    assert len(items) > 1000
    for plan in bench.plan_table(sizes, 5_000):
        assert plan["padding"] < 0.08, plan


@settings(max_examples=50, deadline=None)
@given(lengths(), st.integers(1, 3), st.integers(0, 3))
def test_at_an_epochs_end_less_than_one_step_is_empty(sizes, micro_batches, seed):
    shapes = (RowShape(80, 9), RowShape(40, 9), RowShape(20, 9))
    config = PlanConfig(shapes, 240, micro_batches)
    steps = plan_epoch(sizes, config, seed, epoch=0)
    empty = [step.shape for step in steps for rows in step.micro_batches for row in rows if not row]
    if any(step.shape == shapes[0] for step in steps):
        assert set(empty) <= {shapes[0]}
    assert all(empty.count(s) < config.rows(s) * config.micro_batches for s in shapes)


def test_examples_are_dealt_to_every_micro_batch_of_a_short_step():
    config = PlanConfig((RowShape(16, 2),), 64, micro_batches=4)
    sizes = Lengths(np.full(5, 16), np.full(5, 2))
    (step,) = plan_epoch(sizes, config, seed=0, epoch=0)
    assert [sum(map(bool, rows)) for rows in step.micro_batches] == [2, 1, 1, 1]


def test_no_examples_make_no_steps():
    nothing = Lengths(np.zeros(0, int), np.zeros(0, int))
    assert plan_epoch(nothing, PlanConfig(SHAPES, 64), 0, 0) == []
    assert too_long(nothing, SHAPES).tolist() == []


def test_packing_searches_a_bounded_number_of_rows(monkeypatch):
    """A plan is made anew each epoch, for 180,000 examples say; a search over all rows that ever
    had room took minutes."""
    searched = []
    flatnonzero = np.flatnonzero

    def watched(mask):
        searched.append(len(mask))
        return flatnonzero(mask)

    monkeypatch.setattr(batch_plan.np, "flatnonzero", watched)
    rng = np.random.default_rng(0)
    n = 20_000
    sizes = Lengths(np.clip(rng.lognormal(6.2, 0.6, n).astype(int), 30, 4096), np.full(n, 3))
    config = PlanConfig((RowShape(4096, 8),), 32_768)
    steps = plan_epoch(sizes, config, seed=0, epoch=0)
    assert sum(len(step.examples()) for step in steps) == n
    assert len(searched) > n / 2
    assert max(searched) <= 4 * config.window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": ()}, r"plan.shapes is empty"),
        ({"batch_tokens": 0}, r"plan.batch_tokens.* at least 1"),
        ({"micro_batches": 0}, r"micro_batches.* at least 1"),
        ({"row_multiple": 0}, r"row_multiple.* at least 1"),
        ({"window": 0}, r"window.* at least 1"),
    ],
)
def test_a_config_that_means_nothing_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PlanConfig(SHAPES, 64), **changes)
