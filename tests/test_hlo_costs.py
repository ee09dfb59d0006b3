"""Counting what a compiled program does: on programs whose cost is known beforehand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import shared_compilations
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from toolrm_jax.compilation_cache import compilation_cache_off
from toolrm_jax.hlo import parse
from toolrm_jax.hlo_costs import Collective, count
from toolrm_jax.hlo_groups import replica_groups
from toolrm_jax.sharding import TPU_OPTIONS

F32 = 4


def compiled(function, *shapes, devices, specs=None, options=None):
    """The costs of a function of float32 arrays, compiled for some devices."""
    mesh = Mesh(np.asarray(devices), ("x",))
    specs = specs or [P()] * len(shapes)
    arrays = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    with compilation_cache_off():
        program = jax.jit(function).lower(*arrays).compile(compiler_options=options)
    return count(parse(program.as_text()))


@pytest.fixture(scope="module")
def tpus():
    """Four chips that are not there."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    from toolrm_jax.topology import open_topology

    return list(open_topology("v5e:2x2").devices)


def test_programs_for_absent_devices_are_not_cached(tpus, tmp_path):
    """They would be written, and could not be read the next time."""
    with shared_compilations(tmp_path):
        for _ in range(2):
            compiled(lambda x: x @ x, (128, 128), devices=tpus[:1])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_loop_counts_as_often_as_it_runs(tpus):
    def chain(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0]

    costs = compiled(chain, (256, 512), (512, 512), devices=tpus[:1])
    assert sum(costs.flops.values()) == 7 * 2 * 256 * 512 * 512
    assert [trips for _, trips in costs.loops] == [7]
    assert costs.warnings == []


def test_loops_multiply(tpus):
    def chain(x, w):
        def outer(x, _):
            return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x), None

        return jax.lax.scan(outer, x, None, length=5)[0]

    costs = compiled(chain, (128, 256), (256, 256), devices=tpus[:1])
    assert sum(costs.flops.values()) == 15 * 2 * 128 * 256 * 256


@pytest.mark.parametrize(
    ("formula", "shapes", "expected"),
    [
        ("mk,kn->mn", [(256, 384), (384, 128)], 2 * 256 * 384 * 128),
        ("bmk,bkn->bmn", [(6, 128, 256), (6, 256, 384)], 2 * 6 * 128 * 256 * 384),
        ("bmk,bnk->bmn", [(3, 4 * 128, 256), (3, 384, 256)], 2 * 3 * 512 * 256 * 384),
        ("bkm,bkn->mn", [(2, 256, 128), (2, 256, 384)], 2 * 2 * 256 * 128 * 384),
    ],
)
def test_products_count_in_whatever_form_the_compiler_writes_them(formula, shapes, expected, tpus):
    """On a TPU all are convolutions, and batches are dilated windows."""
    costs = compiled(lambda a, b: jnp.einsum(formula, a, b), *shapes, devices=tpus[:1])
    assert sum(costs.flops.values()) == expected
    (work,) = [w for w in costs.work if w.kind == "products"]
    assert work.phase == "other"


def test_products_of_other_backends_count_too():
    """XLA:CPU keeps dots, and states the trips of a loop."""

    def chain(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=4)[0]

    costs = compiled(chain, (64, 32), (32, 32), devices=jax.devices()[:1])
    assert sum(costs.flops.values()) == 4 * 2 * 64 * 32 * 32


def test_gradients_and_recomputation_are_told_apart(tpus):
    N = 4096  # more than fits a chip's VMEM

    def loss(x, w):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, w)[0])

    costs = compiled(jax.grad(loss, argnums=1), (N, N), (3, N, N), devices=tpus[:1])
    one = 3 * 2 * N**3
    assert costs.flops == {"forward": one, "recomputed": one, "backward": 2 * one}
    assert costs.kept_bytes == 3 * N * N * 2  # the input of each layer, in the products' bfloat16


def test_traffic_of_a_stack_that_is_sliced_is_that_of_the_slices(tpus):
    """4,096 x 512 x 512 floats: each is read once, not the whole stack in each round."""

    def chain(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x * w), None), x, w)[0]

    costs = compiled(chain, (512, 512), (400, 512, 512), devices=tpus[:1])
    stack = 400 * 512 * 512 * F32
    assert stack <= sum(costs.hbm_bytes.values()) < 4 * stack


def test_elementwise_work_is_its_traffic(tpus):
    costs = compiled(lambda x, y: jnp.tanh(x) * y, (8192, 8192), (8192, 8192), devices=tpus[:1])
    assert costs.hbm_bytes == {"elementwise": 3 * 8192 * 8192 * F32}
    assert costs.flops == {}


def test_collectives_have_a_payload_and_groups(tpus):
    def mean(x):
        return jnp.sum(x, axis=0)

    costs = compiled(mean, (1024, 2048), devices=tpus, specs=[P("x", None)])
    assert dict(costs.collectives) == {Collective("all-reduce", ((0, 1, 2, 3),), 2048 * F32): 1}


def test_a_gathered_weight_is_an_all_gather_of_the_whole(tpus):
    costs = compiled(
        lambda x, w: jnp.matmul(x, w, precision="highest"),
        (4096, 1024),
        (1024, 512),
        devices=tpus,
        specs=[P("x", None), P("x", None)],
    )
    (exchange,) = costs.collectives
    assert (exchange.kind, exchange.payload) == ("all-gather", 1024 * 512 * F32)
    assert sum(costs.flops.values()) == 2 * 1024 * 1024 * 512  # of one chip
    # Float32 products at full precision are made of six bfloat16 ones.
    assert {work.slowdown for work in costs.work if work.flops} == {6.0}


# --- Exchanges beside products --------------------------------------------------------------------


def layers(devices):
    """A scan over layers of two products, whose weights are gathered: costs with some options."""
    N, whole = 2048, NamedSharding(Mesh(np.asarray(devices), ("x",)), P())

    def forward(x, *weights):
        def layer(x, ws):
            first, second = (jax.lax.with_sharding_constraint(w, whole) for w in ws)
            return jnp.tanh(jnp.tanh(x @ first) @ second), None

        return jax.lax.scan(layer, x, weights)[0]

    shapes = [(4 * N, N), (3, N, N), (3, N, N)]
    specs = [P("x"), P(None, "x"), P(None, "x")]
    return lambda options: compiled(forward, *shapes, devices=devices, specs=specs, options=options)


def gathers(costs):
    """(how often something is gathered, how often beside a product)"""
    found = [
        sum(times for exchange, times in counter.items() if exchange.kind == "all-gather")
        for counter in (costs.collectives, costs.beside_products)
    ]
    return tuple(found)


def test_a_gather_in_pieces_beside_products_is_one(tpus):
    """Three layers of two weights; the second is gathered while the first is multiplied with."""
    assert gathers(layers(tpus)(None)) == (6, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_weights_are_gathered_beside_products_on_every_generation(name):
    """With the options that training sets; but for v5e it takes them."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    from toolrm_jax.topology import open_topology

    costs = layers(list(open_topology(name).devices))
    assert gathers(costs(TPU_OPTIONS)) == (6, 3)
    assert gathers(costs(None)) == ((6, 3) if name == "v5e:2x2" else (6, 0))


@pytest.mark.slow
def test_gpus_gather_weights_beside_products_unasked():
    pytest.importorskip("jax_plugins.xla_cuda12", reason="the CUDA plugin (extra: cuda)")
    from toolrm_jax.topology import open_topology

    assert gathers(layers(list(open_topology("h100:4").devices))(None)) == (6, 3)


def test_what_is_gathered_beside_a_product_is_read_and_written_once():
    # What libtpu writes for a gather [4, 256] -> [16, 256], with its arrays in HBM; shortened.
    text = (Path(__file__).parent / "gather_beside_product.hlo").read_text()
    costs = count(parse(text))
    gather = Collective("all-gather", ((0, 1, 2, 3),), 16 * 256 * F32)
    assert dict(costs.collectives) == dict(costs.beside_products) == {gather: 1}
    product = (8 * 256 + 256 * 32 + 8 * 32) * F32
    moved = (4 + 16) * 256 * F32
    assert costs.hbm_bytes == {"products": product, "collectives": moved}
    assert [work.kind for work in costs.work if not work.beside] == ["products"]


# --- Groups and branches --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", ((0, 2), (1, 3))),
        ("replica_groups=[2,2]<=[4], x", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", ((0, 1, 2, 3),)),
        ("source_target_pairs={{0,1},{1,0}}, x", ((0, 1), (1, 0))),
        ("replica_groups={}, x", ()),
    ],
)
def test_groups_are_read_in_each_of_their_forms(text, groups):
    assert replica_groups(text) == groups


def test_a_conditional_counts_its_dearest_branch(tpus):
    def either(number, x, w):
        return jax.lax.cond(number[0] > 0, lambda: x @ w, lambda: x @ w @ w @ w)

    costs = compiled(either, (1,), (256, 256), (256, 256), devices=tpus[:1])
    assert sum(costs.flops.values()) == 3 * 2 * 256**3


def test_what_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="no computation in it is the ENTRY"):
        parse("HloModule nothing\n")
