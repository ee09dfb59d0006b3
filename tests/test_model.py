"""The reward of a response is its own: nothing that shares a row, batch or shape with it counts."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from tiny_models import (
    BF16,
    F32,
    VOCAB,
    alone,
    batch_of,
    forward,
    on_mesh,
    random_params,
    random_prompt,
    reward_sum_gradient,
    rewards_in_order,
    tiny,
)

from toolrm_jax.batch import TokenizedPrompt
from toolrm_jax.model import Compute, Forward, RewardModel, abstract_params, init_params
from toolrm_jax.sharding import AXES, make_mesh

FAMILIES = ("qwen2", "qwen3", "llama")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def no_implicit_broadcasts():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def prompts():
    """Three prompts of different lengths with 1 to 4 responses of different lengths."""
    rng = np.random.default_rng(0)
    lengths = ((17, 3, 1, 9, 5), (6, 4, 4), (11, 7))
    return [random_prompt(rng, *each) for each in lengths]


def rewards(config, params, mesh, rows, tokens, responses, compute=F32):
    """Rewards of the rows' responses, in order."""
    batch = batch_of(rows, tokens, responses)
    return rewards_in_order(forward(config, compute)(params, on_mesh(batch, mesh)), batch)


def separate_rewards(config, params, mesh, prompts, compute=F32):
    """Rewards of every prompt + response run alone, without any branch."""
    rows = [[single] for prompt in prompts for single in alone(prompt)]
    return rewards(config, params, mesh, rows, 32, 1, compute)


@pytest.mark.parametrize(
    "config", [*map(tiny, FAMILIES), tiny(num_kv_heads=1)], ids=[*FAMILIES, "one key head"]
)
def test_shared_prefix_rewards_equal_separate_sequences(config, prompts, single_device):
    params = random_params(config)
    separate = separate_rewards(config, params, single_device, prompts)
    packed = rewards(config, params, single_device, [prompts, []], 80, 8)
    assert np.ptp(separate) > 0.5
    np.testing.assert_allclose(packed, separate, **TOLERANCE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_shared_prefix_gradients_equal_separate_sequences(family, prompts, single_device):
    config = tiny(family)
    params, gradient = random_params(config), reward_sum_gradient(config)
    rows = [[single] for prompt in prompts for single in alone(prompt)]
    separate = gradient(params, on_mesh(batch_of(rows, 32, 1), single_device))
    shared = gradient(params, on_mesh(batch_of([prompts, []], 80, 8), single_device))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(shared), jax.tree.leaves(separate), strict=True
    ):
        assert a.dtype == jnp.float32
        distance, size = np.linalg.norm(a - b), np.linalg.norm(b)
        assert size > 0, path
        assert distance <= 1e-5 * size, path


def layouts(prompts):
    """The same responses in other batches, shapes, rows and orders: (name, rows, S, M, order)."""
    a, b, c = prompts
    in_order = np.arange(7)
    yield "one row each", [[a], [b], [c]], 48, 4, in_order
    yield "packed, large row", [prompts], 112, 12, in_order
    yield "beside padding rows", [[], [a, b], [], [c]], 80, 8, in_order
    yield "other order of prompts", [[c, b, a]], 80, 8, [6, 4, 5, 0, 1, 2, 3]
    backwards = TokenizedPrompt(a.prompt, a.responses[::-1])
    yield "other order of responses", [[backwards, b, c]], 80, 8, [3, 2, 1, 0, 4, 5, 6]
    split = [TokenizedPrompt(a.prompt, [response]) for response in a.responses]
    yield "N = 1", [[*split[:2]], [*split[2:]], [b, c]], 80, 8, in_order
    crowd = random_prompt(np.random.default_rng(9), 20, 8, 8)
    yield "among strangers", [[crowd, a], [b, c, crowd]], 80, 8, None


LAYOUTS = [name for name, *_ in layouts([random_prompt(np.random.default_rng(0), 2, 1, 1)] * 3)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("compute", [F32, BF16], ids=["float32", "bfloat16"])
def test_a_reward_does_not_depend_on_what_it_is_computed_with(
    name, compute, prompts, single_device
):
    config = tiny("qwen2")
    params = random_params(config)
    base = rewards(config, params, single_device, [prompts, []], 80, 8, compute)
    _, rows, tokens, responses, order = next(x for x in layouts(prompts) if x[0] == name)
    result = rewards(config, params, single_device, rows, tokens, responses, compute)
    result = result[2:9] if order is None else result
    expected = base if order is None else base[np.asarray(order)]
    if compute is F32:
        np.testing.assert_allclose(result, expected, **TOLERANCE)
    else:
        # Sums in another order round to another bf16 neighbour (2^-8) now and then, layer by layer.
        np.testing.assert_allclose(result, expected, atol=0.02 * np.ptp(base))


def test_other_tokens_do_change_a_reward(prompts, single_device):
    """The tests above would pass for a model that reads nothing."""
    config = tiny("qwen2")
    params = random_params(config)
    a = prompts[0]
    base = rewards(config, params, single_device, [[a]], 80, 8)
    for place in (0, len(a.prompt) - 1):
        changed = a.prompt.copy()
        changed[place] = (changed[place] + 1) % VOCAB
        other = rewards(
            config, params, single_device, [[TokenizedPrompt(changed, a.responses)]], 80, 8
        )
        assert (np.abs(other - base) > 1e-3).all()
    first = a.responses[0].copy()
    first[0] = (first[0] + 1) % VOCAB
    item = TokenizedPrompt(a.prompt, [first, *a.responses[1:]])
    other = rewards(config, params, single_device, [[item]], 80, 8)
    assert abs(other[0] - base[0]) > 1e-3
    np.testing.assert_allclose(other[1:], base[1:], **TOLERANCE)


def test_bfloat16_rewards_are_near_float32_ones_and_come_in_float32(prompts, single_device):
    config = tiny("qwen2")
    params = random_params(config)
    exact = rewards(config, params, single_device, [prompts, []], 80, 8)
    low = rewards(config, params, single_device, [prompts, []], 80, 8, BF16)
    assert low.dtype == np.float32
    # Two layers of bf16 products and activations, 2^-8 each.
    np.testing.assert_allclose(low, exact, atol=0.05 * np.ptp(exact))


@pytest.mark.parametrize("tokens", [80, pytest.param(136, marks=pytest.mark.slow)])
def test_bfloat16_gradients_are_near_float32_ones(tokens, prompts, single_device):
    """In one block of queries and in two: XLA:CPU has no kernel for some forms of bf16 products."""
    config = tiny("qwen2")
    params = random_params(config)
    batch = on_mesh(batch_of([prompts, []], tokens, 8), single_device)
    exact, low = (reward_sum_gradient(config, compute)(params, batch) for compute in (F32, BF16))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(low), jax.tree.leaves(exact), strict=True
    ):
        assert a.dtype == jnp.float32
        # As far as plain autodiff of bf16 attention: 6% for q and k, whose gradients cancel most.
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b), path


def test_layers_compute_in_the_compute_type_and_the_head_in_float32(prompts, single_device):
    batch = on_mesh(batch_of([prompts], 80, 8), single_device)
    abstract = nnx.eval_shape(lambda: RewardModel(tiny(), nnx.Rngs(0), BF16))
    model = nnx.merge(nnx.graphdef(abstract), random_params(tiny()))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {np.dtype("float32")}
    assert jax.eval_shape(model.hidden_states, batch).dtype == jnp.bfloat16
    # Rewards closer than bf16 could tell stay apart.
    reward = jax.jit(model.reward)
    near_BMD = np.ones((1, 2, 16), np.float32) + np.array([0, 1e-3])[None, :, None] * np.eye(16)[0]
    (near,) = reward(near_BMD.astype(np.float32))
    assert near.dtype == jnp.float32
    assert 0 < abs(near[0] - near[1]) < 2**-9 * abs(near[0])


@pytest.mark.parametrize("remat", ["none", "full"])
def test_what_the_backward_pass_keeps_does_not_change_gradients(remat, prompts, single_device):
    config = tiny()
    params = random_params(config)
    batch = on_mesh(batch_of([prompts, []], 80, 8), single_device)
    usual = reward_sum_gradient(config)(params, batch)
    other = reward_sum_gradient(config, Compute("float32", remat))(params, batch)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(usual), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_padding_makes_no_nan_in_values_or_gradients(prompts, single_device):
    config = tiny()
    params = random_params(config)
    batch = on_mesh(batch_of([prompts, []], 80, 8), single_device)
    with jax.debug_nans(True):
        assert np.isfinite(forward(config)(params, batch)).all()
        gradients = reward_sum_gradient(config)(params, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_a_bias_of_the_head_is_added(prompts, single_device):
    config = tiny(head_bias=True)
    params = random_params(config)
    without = {name: x for name, x in params.items() if name != "head_bias"}
    bare = dataclasses.replace(config, head_bias=False)
    np.testing.assert_allclose(
        rewards(config, params, single_device, [prompts, []], 80, 8),
        rewards(bare, without, single_device, [prompts, []], 80, 8) + float(params["head_bias"][0]),
        rtol=1e-6,
    )


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_names_its_axes_and_is_counted(family, single_device):
    config = tiny(family, head_bias=True)
    model = nnx.eval_shape(lambda: RewardModel(config, nnx.Rngs(0)))
    parameters = nnx.to_flat_state(nnx.state(model))
    for path, parameter in parameters:
        assert len(parameter.axes) == len(parameter.shape), path
        assert set(parameter.axes) <= set(AXES), path
        assert (parameter.axes[0] == "layers") == (path[0] == "blocks"), path
    assert config.num_parameters == sum(math.prod(p.shape) for _, p in parameters)


def test_a_fresh_model_follows_the_stated_rules(single_device):
    config = tiny(width=256, init_scale=0.05)
    params = init_params(config, seed=0)
    assert (np.asarray(params["final_norm"]) == 1).all()
    assert not np.asarray(params["blocks"]["q_bias"]).any()
    assert np.std(params["blocks"]["gate"]) == pytest.approx(0.05, rel=0.05)
    assert np.std(params["head"]) == pytest.approx(257**-0.5, rel=0.2)
    layers = np.asarray(params["blocks"]["q"])
    assert not np.array_equal(layers[0], layers[1])


def test_parameters_are_made_where_the_table_puts_them():
    config = tiny()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    expected = abstract_params(config, mesh)
    with jax.set_mesh(mesh):
        made = init_params(config, seed=0)
    same = jax.tree.map(
        lambda a, b: a.shape == b.shape and a.sharding.is_equivalent_to(b.sharding, a.ndim),
        made,
        expected,
    )
    assert all(jax.tree.leaves(same))
    q = made["blocks"]["q"]
    assert q.sharding.spec == PartitionSpec(None, ("fsdp", "sequence"), "tensor")
    assert q.addressable_shards[0].data.size == q.size // 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 8}, r"num_heads=4 cannot be split over tensor=8 devices: choose"),
        ({"data": 2, "tensor": 4}, r"num_kv_heads=2 cannot be split over tensor=4"),
        ({"fsdp": 8}, r"width=20 cannot be split over fsdp \* sequence=8"),
    ],
)
def test_a_mesh_that_cannot_split_the_model_is_an_error(sizes, message):
    with jax.set_mesh(make_mesh(**sizes)), pytest.raises(ValueError, match=message):
        Forward(tiny(width=20))


def test_without_a_mesh_the_error_says_how_to_set_one():
    with pytest.raises(ValueError, match=r"No mesh is set: .*jax.set_mesh"):
        Forward(tiny())


def test_compute_settings_are_checked_by_name():
    with pytest.raises(ValueError, match=r"compute dtype 'float16': use 'bfloat16' or 'float32'"):
        Compute("float16")
    with pytest.raises(ValueError, match=r"remat 'some': use one of 'none', 'projections', 'full'"):
        Compute(remat="some")


def test_float32_products_ask_for_float32_on_every_device(prompts, single_device):
    """TPUs and GPUs would otherwise round the inputs of a product to bf16 or TF32."""
    config = tiny()
    batch = on_mesh(batch_of([prompts], 80, 8), single_device)
    text = str(jax.make_jaxpr(Forward(config, F32))(abstract_params(config, single_device), batch))
    asked = re.findall(r"precision=(.*)", text)
    assert len(asked) >= 9  # seven projections, two products of attention, the head
    assert all("HIGHEST" in precision for precision in asked)
