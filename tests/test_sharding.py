"""The mesh and its one table: unknown or colliding axes and sizes that do not fit are errors."""

import jax
import pytest
from jax.sharding import PartitionSpec

from toolrm_jax.sharding import AXES, MESH_AXES, logical_to_spec, make_mesh, row_shards


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
