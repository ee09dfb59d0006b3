"""The mesh and its one table: unknown or colliding axes and sizes that do not fit are errors."""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from toolrm_jax import sharding
from toolrm_jax.sharding import (
    AXES,
    MESH_AXES,
    MeshError,
    logical_to_spec,
    make_inference_mesh,
    make_mesh,
    row_shards,
)


def test_the_table_names_mesh_axes_alone_and_stays_small():
    named = {
        a for axes in AXES.values() for a in ((axes,) if isinstance(axes, str) else axes or ())
    }
    assert named == set(MESH_AXES)
    assert len(AXES) <= 15


def test_logical_axes_become_mesh_axes():
    assert logical_to_spec(("layers", "width", "mlp")) == PartitionSpec(
        None, ("fsdp", "sequence"), "tensor"
    )
    assert logical_to_spec(("rows", None)) == PartitionSpec(("data", "fsdp"), None)


def test_an_unknown_axis_is_named():
    with pytest.raises(
        ValueError, match=r"Unknown logical axes \['widht'\]; known ones: .*'width'"
    ):
        logical_to_spec(("widht", "mlp"))


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("width", "width"), ("rows", "width")])
def test_two_axes_on_one_mesh_axis_collide(axes):
    with pytest.raises(ValueError, match=r"put one mesh axis on two dimensions"):
        logical_to_spec(axes)


def test_one_size_may_be_left_to_the_devices():
    mesh = make_mesh(data=2, fsdp=-1, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert row_shards(mesh) == 4
    assert set(make_mesh(devices=jax.devices()[:1]).shape.values()) == {1}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (1, 1, 1), (4, 4, 1)])
def test_sizes_that_do_not_cover_the_devices_are_an_error(sizes):
    with pytest.raises(ValueError, match=r"does not cover the 8 devices exactly: .*is 8"):
        make_mesh(*sizes)


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 8, 1), (-2, 4, 1)])
def test_sizes_that_mean_nothing_are_an_error(sizes):
    with pytest.raises(ValueError, match=r"expected positive sizes, and at most one -1"):
        make_mesh(*sizes)


# --- Where weights are scored ---------------------------------------------------------------------


@dataclasses.dataclass
class Device:
    """A device of 100 bytes, in the place of one that does not say what it has."""

    real: jax.Device

    def memory_stats(self) -> dict:
        return {"bytes_limit": 100}


@pytest.fixture
def devices(monkeypatch):
    """Eight of them; meshes are made of the real ones."""

    def of_real(devices, **sizes):
        return make_mesh(devices=[device.real for device in devices], **sizes)

    monkeypatch.setattr(sharding, "make_mesh", of_real)
    return [Device(device) for device in jax.devices()]


@pytest.mark.parametrize(
    ("nbytes", "width", "data", "fsdp"),
    [
        (50, 16, 8, 1),  # half of a device's memory: a copy on each
        (51, 16, 4, 2),
        (100, 16, 4, 2),
        (101, 16, 2, 4),
        (201, 16, 1, 8),
        (101, 12, 2, 4),
        (51, 9, None, None),  # no number of devices divides the width
        (401, 16, None, None),
    ],
)
def test_weights_are_copied_where_they_fit_else_sharded_over_the_fewest_devices(
    devices, nbytes, width, data, fsdp
):
    if data is None:
        with pytest.raises(MeshError, match="score on more or larger devices"):
            make_inference_mesh(width, nbytes, devices)
        return
    mesh = make_inference_mesh(width, nbytes, devices)
    assert (mesh.shape["data"], mesh.shape["fsdp"], mesh.size) == (data, fsdp, 8)


def test_devices_of_a_cpu_share_the_hosts_memory_and_take_what_does_not_fit():
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    two = jax.devices()[:2]
    assert make_inference_mesh(16, host // 5, two).shape["data"] == 2
    assert (
        make_inference_mesh(16, host // 3, two).shape["fsdp"] == 2
    )  # two would fill more than half
    assert make_inference_mesh(16, 10**15, two).shape["fsdp"] == 2
    assert make_inference_mesh(15, 10**15, two).shape["data"] == 2


def test_a_commands_cpu_is_two_devices_unless_the_environment_says_otherwise():
    code = """if True:
        import jax
        from toolrm_jax.sharding import split_cpu
        split_cpu()
        print(len(jax.devices()))
    """
    counts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": given},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for given in ("-1", "1", "3")
    ]
    assert counts == [str(min(2, os.cpu_count())), "1", "3"]


@pytest.fixture(scope="module")
def two_slices():
    """Eight chips in two slices that are not there."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    from toolrm_jax.topology import open_topology

    return list(open_topology("v5e:2x2:2").devices)


def test_between_slices_only_the_data_axis_communicates(two_slices, caplog):
    for data, fsdp in ((2, 4), (4, 2)):
        mesh = make_mesh(data=data, fsdp=fsdp, devices=two_slices)
        for copy in mesh.devices:  # of the weights: within one slice
            assert len({device.slice_index for device in copy.flat}) == 1
    assert not caplog.records
    make_mesh(fsdp=8, devices=two_slices)
    assert "not a multiple of the 2 slices" in caplog.text
