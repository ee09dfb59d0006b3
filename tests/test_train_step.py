"""The training step: accumulation, padding, mesh change nothing; it traces once per shape."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import BF16, F32, VOCAB, batch_of, on_mesh, random_params, tiny

from toolrm_jax.batch import Batch, TokenizedPrompt
from toolrm_jax.loss import pair_sums
from toolrm_jax.model import Forward
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer, schedule
from toolrm_jax.sharding import make_mesh
from toolrm_jax.train_step import make_train_step, new_state

ETA = 0.01
CONFIG = tiny("qwen2")
# Adam's first step is the gradient's sign, which a rounding error flips where it is nought: eps
# makes it a function without a jump, so that equal gradients give equal parameters.
OPTIMIZER = OptimizerConfig(1e-2, steps=100, warmup_fraction=0.0, eps=1e-2)
TOKENS, RESPONSES = 40, 8


def preference(rng, rights: int, wrongs: int) -> TokenizedPrompt:
    """Right responses hold the token 7; nothing else does."""
    prompt = rng.integers(8, VOCAB, rng.integers(3, 9))
    responses = [rng.integers(8, VOCAB, rng.integers(2, 5)) for _ in range(rights + wrongs)]
    for response in responses[:rights]:
        response[rng.integers(len(response))] = 7
    right = [True] * rights + [False] * wrongs
    return TokenizedPrompt(prompt, responses, right)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    kinds = [(1, 1), (1, 3), (1, 1), (2, 2), (1, 1), (1, 2), (1, 1), (1, 1)]
    return [preference(rng, *kind) for kind in kinds]


def stacked(*micro_batches: list[list[TokenizedPrompt]]) -> Batch:
    """Micro-batches [k, B, ...], on the host."""
    batches = [batch_of(rows, TOKENS, RESPONSES) for rows in micro_batches]
    return jax.tree.map(lambda *x: np.stack(x), *batches)


@functools.cache
def step_on(mesh, compute=F32):
    """The jitted step on a mesh, its optimizer, and the shapes [B, S] that it was traced for."""
    traces = []

    class Counting(Forward):
        def __call__(self, params, batch):
            traces.append(batch.tokens.shape)
            return super().__call__(params, batch)

    optimizer = make_optimizer(OPTIMIZER)
    return make_train_step(Counting(CONFIG, compute), optimizer, ETA), optimizer, traces


def run(batches: Batch, mesh, steps: int = 1, compute=F32):
    """The state and metrics after some steps on the same batches."""
    with jax.set_mesh(mesh):
        step, optimizer, _ = step_on(mesh, compute)
        state = new_state(random_params(CONFIG), optimizer)
        batches = on_mesh(batches, mesh, ("micro", "rows"))
        metrics = []
        for _ in range(steps):
            state, metric = step(state, batches)
            metrics.append({name: float(value) for name, value in metric.items()})
        return jax.device_get(state), metrics


def loss_and_gradients(examples, mesh):
    """Of the mean over the prompts, one a row, as a function of the parameters."""

    def mean_loss(params, batch):
        return pair_sums(Forward(CONFIG, F32)(params, batch), batch, ETA).loss / len(examples)

    with jax.set_mesh(mesh):
        batch = on_mesh(batch_of([[item] for item in examples], TOKENS, RESPONSES), mesh)
        found = jax.jit(jax.value_and_grad(mean_loss))(random_params(CONFIG), batch)
        return jax.device_get(found)


def assert_same(got, expected, tolerance=1e-5):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=str(path))


@pytest.fixture(scope="module")
def one_batch(examples):
    """Two steps on one device, on one big micro-batch, one prompt a row."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return run(stacked([[item] for item in examples]), mesh, steps=2)


@pytest.fixture(scope="module")
def gradients(examples):
    """(loss, gradients) on one device."""
    return loss_and_gradients(examples, make_mesh(devices=jax.devices()[:1]))


def test_the_step_is_adamw_on_the_mean_over_prompts(examples, one_batch, gradients):
    state, metrics = one_batch
    loss, gradient = gradients
    assert metrics[0]["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics[0]["prompts"] == pytest.approx(len(examples))
    assert metrics[0]["pairs"] == 5 + 3 + 4 + 2
    norm = np.sqrt(sum(float(np.sum(g**2)) for g in jax.tree.leaves(gradient)))
    assert metrics[0]["gradient_norm"] == pytest.approx(norm, rel=1e-5)
    assert int(state.step) == 2
    assert metrics[1]["loss"] < metrics[0]["loss"]


def test_unequal_micro_batches_are_one_big_batch(examples, one_batch, single_device):
    """Prompts, pairs and rows differ between the three; the second step sees the moments, too."""
    parts = examples[:5], examples[5:6], examples[6:]
    rows = [[[item] for item in part] + [[]] * (5 - len(part)) for part in parts]
    state, metrics = run(stacked(*rows), single_device, steps=2)
    assert_same(state.params, one_batch[0].params)
    assert_same(state.opt_state, one_batch[0].opt_state)
    for ours, theirs in zip(metrics, one_batch[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_packing_and_padding_rows_change_nothing(examples, one_batch, single_device):
    rows = [examples[:2], [], examples[2:4], examples[4:6], [], [], examples[6:], []]
    state, metrics = run(stacked(rows), single_device, steps=2)
    assert_same(state.params, one_batch[0].params)
    assert metrics[1] == pytest.approx(one_batch[1][1], rel=1e-5)


def slow(**sizes):
    return pytest.param(sizes, marks=pytest.mark.slow)


MESHES = [
    {"fsdp": 8},
    {"data": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "sequence": 4},
    {"fsdp": 2, "sequence": 2, "tensor": 2},
    slow(data=8),
    slow(data=4, fsdp=2),
    slow(data=2, fsdp=4),
    slow(fsdp=4, tensor=2),
    slow(data=2, sequence=4),
    slow(sequence=4, tensor=2),
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_gradients_of_eight_devices_are_those_of_one(sizes, examples, gradients):
    assert_same(loss_and_gradients(examples, make_mesh(**sizes)), gradients)


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_eight_devices_are_one(sizes, examples, one_batch):
    mesh = make_mesh(**sizes)
    state, metrics = run(stacked([[item] for item in examples]), mesh, steps=2)
    assert_same(state.params, one_batch[0].params)
    assert_same(state.opt_state, one_batch[0].opt_state)  # the gradients' means and squares
    for ours, theirs in zip(metrics, one_batch[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_bfloat16_on_a_mesh_is_near_float32_on_one_device(examples, one_batch):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    state, metrics = run(stacked([[item] for item in examples]), mesh, compute=BF16)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    # Two layers of bf16 products and activations, 2^-8 each.
    for name in ("loss", "reward_mean", "gradient_norm"):
        assert metrics[0][name] == pytest.approx(one_batch[1][0][name], rel=0.05, abs=0.05)


def test_accumulation_on_a_mesh_is_one_big_batch_on_one_device(examples, one_batch):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    rows = [[[item] for item in examples[:4]], [[item] for item in examples[4:]]]
    state, _ = run(stacked(*rows), mesh, steps=2)
    assert_same(state.params, one_batch[0].params)


def test_the_step_traces_once_per_shape_and_moments_lie_where_their_parameters_do(examples):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        step, optimizer, traces = step_on(mesh)
        state = new_state(random_params(CONFIG), optimizer)
        large = stacked([[item] for item in examples])
        small = jax.tree.map(lambda x: x[:, :4], large)
        layouts, traced, compiled = [], [], []
        for batches in (large, small, large, small):
            state, _ = step(state, on_mesh(batches, mesh, ("micro", "rows")))
            layouts.append([x.sharding for x in jax.tree.leaves(state)])
            traced.append(len(traces))
            compiled.append(step._cache_size())
    assert traced[0] >= 1  # by this test, or by an earlier one of this shape
    assert traced[1:] == [traced[0] + 1] * 3
    assert compiled[1:] == [compiled[0] + 1] * 3
    assert all(layout == layouts[0] for layout in layouts)
    (adam,) = [s for s in jax.tree.leaves(state.opt_state, is_leaf=has_moments) if has_moments(s)]
    for moments in (adam.mu, adam.nu):
        pairs = zip(jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True)
        assert all(m.sharding == p.sharding for m, p in pairs)
    gate = adam.mu["blocks"]["gate"]
    assert gate.addressable_shards[0].data.size * 4 == gate.size


def has_moments(x) -> bool:
    return hasattr(x, "mu")


def test_the_state_is_donated(examples, single_device):
    step, optimizer, _ = step_on(single_device)
    state = new_state(random_params(CONFIG), optimizer)
    batches = on_mesh(stacked([[item] for item in examples]), single_device, ("micro", "rows"))
    step(state, batches)
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))


def test_a_step_of_padding_alone_changes_no_parameter(single_device):
    state, (metrics,) = run(stacked([[]] * 8), single_device)
    assert_same(state.params, jax.device_get(random_params(CONFIG)), 0)
    assert metrics["loss"] == metrics["gradient_norm"] == 0
    assert all(np.isfinite(value) for value in metrics.values())


def test_the_loss_falls_on_a_rule_that_can_be_learned(examples, single_device):
    _, metrics = run(stacked([[item] for item in examples]), single_device, 40)
    assert metrics[-1]["loss"] < 0.3 * metrics[0]["loss"]
    assert metrics[-1]["accuracy"] == pytest.approx(1.0)


# --- optimizer ----------------------------------------------------------------------------------


def test_the_learning_rate_goes_up_in_a_line_and_down_along_a_cosine():
    rate = schedule(OptimizerConfig(1.0, steps=100, warmup_fraction=0.1, final_fraction=0.2))
    assert [float(rate(step)) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert float(rate(54) + rate(55)) / 2 == pytest.approx(0.6)  # the middle of 9 to 100
    assert float(rate(100)) == pytest.approx(0.2)
    assert float(schedule(OptimizerConfig(1.0, steps=1))(0)) == pytest.approx(1.0)


def test_weight_decay_spares_norms_biases_and_the_head(single_device):
    chain = make_optimizer(dataclasses.replace(OPTIMIZER, weight_decay=0.5))
    params = random_params(CONFIG)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(chain.update)(zeros, jax.jit(chain.init)(params), params)
    decayed = {path[-1].key for path, x in jax.tree_util.tree_leaves_with_path(updates) if x.any()}
    assert decayed == {"embedding", "q", "k", "v", "o", "gate", "up", "down"}


def test_gradients_are_clipped_by_their_global_norm(single_device):
    chain = make_optimizer(dataclasses.replace(OPTIMIZER, clip_norm=1.0, weight_decay=0.0))
    params = random_params(CONFIG)
    huge = jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), params)
    _, state = jax.jit(chain.update)(huge, jax.jit(chain.init)(params), params)
    (adam,) = [s for s in jax.tree.leaves(state, is_leaf=has_moments) if has_moments(s)]
    norm = np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(adam.mu)))
    assert norm == pytest.approx(1 - OPTIMIZER.b1, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer.learning_rate=0.0: it must be a positive number"),
        ({"steps": 0}, r"optimizer.steps=0: it must be at least 1"),
        ({"warmup_fraction": 1.0}, r"optimizer.warmup_fraction=1.0: it must be in \[0, 1\)"),
        ({"clip_norm": -1.0}, r"optimizer.clip_norm=-1.0"),
        ({"b2": 1.0}, r"optimizer.b2=1.0: it must be in \[0, 1\)"),
    ],
)
def test_an_optimizer_that_means_nothing_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPTIMIZER, **changes)
