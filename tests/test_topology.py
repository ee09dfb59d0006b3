"""Topologies by name, and how long their links take."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from toolrm_jax.sharding import make_mesh
from toolrm_jax.topology import TopologyError, open_topology, parse_topology


@pytest.mark.parametrize(
    ("name", "chips", "chip"),
    [
        ("v5p:2x2x4", 16, "v5p"),
        ("v5e:4x8", 32, "v5e"),
        ("v5p:2x2x4:2", 32, "v5p"),
        ("h100:8", 8, "h100"),
        ("h100:2x8", 16, "h100"),
    ],
)
def test_a_name_is_a_chip_and_its_arrangement(name, chips, chip):
    topology = parse_topology(name)
    assert (topology.chips, topology.chip.name) == (chips, chip)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", r"'v9:2x2': expected a chip \(v4, v5e, v5p, .*such as v5p:2x2x4"),
        ("v5p", "expected a chip"),
        ("v5p:2x4", "v5p chips are wired in 3 dimensions: give 3 sizes, such as 2x2x4"),
        ("v5e:2x2x2", "v5e chips are wired in 2 dimensions"),
        ("h100:16", "nodes x GPUs with at most 8 GPUs a node, such as h100:8"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_that_lists_what_is_known(name, said):
    with pytest.raises(TopologyError, match=said):
        parse_topology(name)


def test_a_torus_that_does_not_exist_is_the_compilers_error():
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    with pytest.raises(TopologyError, match="'v5e:3x5': the compiler does not know it"):
        open_topology("v5e:3x5")


@pytest.mark.parametrize("other_plugins", [False, True])
def test_without_the_cuda_plugin_the_error_says_how_to_install_it(monkeypatch, other_plugins):
    plugins = ModuleType("jax_plugins") if other_plugins else None  # None: cannot be imported
    if plugins:
        plugins.__path__ = []
    monkeypatch.setitem(sys.modules, "jax_plugins", plugins)
    monkeypatch.delitem(sys.modules, "jax_plugins.xla_cuda12", raising=False)
    with pytest.raises(TopologyError, match=r"pip install 'toolrm_jax\[cuda\]'"):
        open_topology("h100:8")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_a_device_is_a_chip(name):
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    topology = open_topology(name)
    assert len(topology.devices) == topology.chips == 4
    assert {device.device_kind for device in topology.devices} <= set(topology.chip.device_kinds)


@pytest.mark.parametrize("name", ["v5p:2x2x4", "v5e:4x8", "v6e:2x2"])
def test_on_a_mesh_of_one_axis_each_chip_is_wired_to_the_next(name):
    """Rings of exchanges then use each link once."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    topology = open_topology(name)
    ring = list(make_mesh(fsdp=-1, devices=topology.devices).devices.flat)
    assert len({device.id for device in ring}) == topology.chips
    for device, after in zip(ring, [*ring[1:], ring[0]], strict=True):
        assert len(topology.route(device, after)) == 1


def torus(*sides):
    """Chips at all places of a torus."""
    places = [()]
    for side in sides:
        places = [(*place, at) for at in range(side) for place in places]
    return [SimpleNamespace(id=n, coords=place) for n, place in enumerate(places)]


def test_a_gather_is_as_fast_as_the_links_into_a_corner():
    v5p = parse_topology("v5p:2x2x4")
    chips = torus(2, 2, 4)
    # A link in each of three dimensions, 90 GB/s each.
    assert v5p.seconds("all-gather", chips, 16e9) == pytest.approx(15e9 / 270e9)
    assert v5p.seconds("reduce-scatter", chips, 16e9) == pytest.approx(15e9 / 270e9)
    assert v5p.seconds("all-reduce", chips, 16e9) == pytest.approx(2 * 15e9 / 270e9)
    column = [chip for chip in chips if chip.coords[:2] == (0, 0)]
    assert v5p.seconds("all-gather", column, 16e9) == pytest.approx(12e9 / 90e9)
    assert v5p.seconds("all-gather", chips[:1], 16e9) == 0


def test_a_dimension_that_closes_to_a_ring_has_two_links():
    pod = parse_topology("v5e:16x16")
    assert pod.bandwidth(torus(16, 16)) == 4 * 45e9
    assert parse_topology("v5e:4x16").bandwidth(torus(4, 16)) == 3 * 45e9
    cube = parse_topology("v5p:4x4x4")
    assert cube.bandwidth(torus(4, 4, 4)) == 6 * 90e9


def test_between_nodes_the_network_is_the_bottleneck():
    nodes = parse_topology("h100:2x8")
    gpus = [SimpleNamespace(id=n) for n in range(16)]
    pair = [gpus[0], gpus[8]]
    assert nodes.seconds("all-gather", pair, 16e9) == pytest.approx(8e9 / 50e9)
    assert nodes.seconds("all-gather", gpus[:8], 16e9) == pytest.approx(14e9 / 450e9)
    # A GPU takes in an eighth of the other node's half at 50 GB/s: the rest comes by its switch.
    assert nodes.seconds("all-gather", gpus, 16e9) == pytest.approx(14e9 / 450e9)


def test_a_message_goes_from_neighbour_to_neighbour_the_shorter_way():
    v5e = parse_topology("v5e:4x16")
    chips = {chip.coords: chip for chip in torus(4, 16)}
    assert len(v5e.route(chips[0, 0], chips[3, 2])) == 3 + 2
    assert len(v5e.route(chips[0, 1], chips[0, 15])) == 2  # 16 close to a ring
    (link,) = v5e.route(chips[0, 0], chips[1, 0])
    assert v5e.link_speed(link) == 45e9
    nodes = parse_topology("h100:2x8")
    far = nodes.route(SimpleNamespace(id=0), SimpleNamespace(id=8))
    assert {nodes.link_speed(link) for link in far} == {50e9}
