"""The table of accelerator facts: what JAX calls a device finds its chip."""

import pytest

from toolrm_jax.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_a_device_kind_names_its_chip(device_kind, name):
    assert chip_of(device_kind) is CHIPS[name]


@pytest.mark.parametrize("device_kind", ["cpu", "TPU v4 lite", "NVIDIA A100-SXM4-40GB", "TPU7x"])
def test_what_the_table_does_not_have_is_not_guessed(device_kind):
    assert chip_of(device_kind) is None


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_figures_are_of_the_right_size(chip):
    """A wrong unit (GB for Gb, sparse for dense) puts a ratio far outside of these."""
    assert 0.9 < chip.usable_bytes / chip.hbm_bytes <= 1
    assert 100 < chip.peak_flops / chip.hbm_bandwidth < 600
    assert chip.hbm_bandwidth > chip.link_bandwidth > chip.network_bandwidth
    assert (chip.torus_axes > 0) == (chip.platform == "tpu") == (chip.chips_per_node == 0)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_a_gpu_has_what_its_compiler_asks_for(chip):
    """Its float32 units, two FLOPs a cycle each, do 3 to 7% of what its matrix units do: a figure
    of another chip puts that far outside."""
    assert (chip.gpu is None) == (chip.platform == "tpu")
    if gpu := chip.gpu:
        plain = 2 * gpu.cores * gpu.fpus_per_core * gpu.clock_ghz * 1e9
        assert 0.03 < plain / chip.peak_flops < 0.1


def test_only_of_a_v5p_a_program_can_get_all_that_is_sold():
    assert [c.name for c in CHIPS.values() if c.usable_bytes == c.hbm_bytes] == ["v5p"]
