"""The one table of accelerator facts: peak arithmetic, memory, and the links between chips.

    chip_of(jax.devices()[0].device_kind)  -> Chip, or None for one that is not in the table
    CHIPS["v5p"].peak_flops                -> 459e12

The console divides by `peak_flops` for MFU; the planner puts a compiled program against all of it.
Figures are per chip, as published (their sources stand beside them), but for two:

- `usable_bytes` of a TPU is the limit that libtpu 0.0.42 states where a program does not fit; where
  that is more than is sold (v5p), what is sold. Of a GPU it is 92% of what the driver shows: NCCL
  and cuDNN allocate beside JAX, which takes 75% unless told more by XLA_PYTHON_CLIENT_MEM_FRACTION.
- `link_bandwidth` of a TPU is the part of the published rate that "How to Scale Your Model"
  (https://jax-ml.github.io/scaling-book/tpus/) says is reached: 90%.

    >>> chip_of("TPU v5 lite").name, chip_of("cpu")
    ('v5e', None)
"""

import dataclasses

GIB, MIB = 2**30, 2**20


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler asks of a GPU beyond a chip's memory, its size and speed.

    NVIDIA's architecture white papers of A100 and H100; what the driver says of a B200
    (pytorch/ao#4002); the tables of compute capabilities in the CUDA C++ Programming Guide.

    Attributes:
      capability: the compute capability, major and minor.
      cores: streaming multiprocessors (SM).
      fpus_per_core: float32 units of an SM.
      shared_kib: shared memory of an SM.
      l2_bytes: cache of the whole chip.
      clock_ghz: the highest.
    """

    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    shared_kib: int
    l2_bytes: int
    clock_ghz: float


_H100 = Gpu((9, 0), cores=132, fpus_per_core=128, shared_kib=228, l2_bytes=50 * MIB, clock_ghz=1.98)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator chip. A device of JAX is a chip: megacore joins the two cores of a v4, v5p.
    (TPU7x is left out: there JAX lists two devices a chip, which share its links.)

    Attributes:
      peak_flops: dense bfloat16 products with float32 sums, FLOP/s.
      hbm_bytes: memory as sold.
      usable_bytes: what a program can get of it.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s in one direction, of one link to a neighbour (TPU), or of all of a
        GPU's links to the switch of its node.
      torus_axes: dimensions of the network of links, two links a chip each; 0: every chip reaches
        every other in its node at the full rate, through a switch.
      network_bandwidth: bytes/s a chip in one direction between slices (TPU) or nodes (GPU).
      network_is_assumed: whether that depends on the cluster, and the usual one is given.
      chips_per_node: of a GPU's node; 0 for a TPU, whose links do not end at its host.
      device_kinds: what `jax.Device.device_kind` says.
      gpu: of a GPU alone.
    """

    name: str
    platform: str  # "tpu" or "gpu"
    peak_flops: float
    hbm_bytes: float
    usable_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    torus_axes: int
    network_bandwidth: float
    device_kinds: tuple[str, ...]
    chips_per_node: int = 0
    network_is_assumed: bool = False
    gpu: Gpu | None = None


_TABLE = (
    # https://cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1,200 GB/s, 3D torus, 6 links.
    # Network: no figure is published; that of the v5p is taken.
    Chip(
        name="v4",
        platform="tpu",
        peak_flops=275e12,
        hbm_bytes=32 * GIB,
        usable_bytes=30.5 * GIB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=4.5e10,
        torus_axes=3,
        network_bandwidth=6.25e9,
        network_is_assumed=True,
        device_kinds=("TPU v4",),
    ),
    # https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s; 400 GB/s both ways over
    # 4 links (2D torus); 6.4 Tb/s between pods of 256 chips, so 25 Gb/s a chip.
    Chip(
        name="v5e",
        platform="tpu",
        peak_flops=197e12,
        hbm_bytes=16 * GIB,
        usable_bytes=15.75 * GIB,
        hbm_bandwidth=8.19e11,
        link_bandwidth=4.5e10,
        torus_axes=2,
        network_bandwidth=3.125e9,
        device_kinds=("TPU v5 lite", "TPU v5e"),
    ),
    # https://cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2,765 GB/s; 1,200 GB/s both ways
    # over 6 links (3D torus); 50 Gb/s a chip between slices.
    Chip(
        name="v5p",
        platform="tpu",
        peak_flops=459e12,
        hbm_bytes=95 * GIB,
        usable_bytes=95 * GIB,  # libtpu says 95.74, which is more than is sold
        hbm_bandwidth=2.765e12,
        link_bandwidth=9e10,
        torus_axes=3,
        network_bandwidth=6.25e9,
        device_kinds=("TPU v5p", "TPU v5"),
    ),
    # https://cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1,638 GB/s; 800 GB/s both ways over
    # 4 links (2D torus); 25.6 Tb/s between pods of 256 chips, so 100 Gb/s a chip.
    Chip(
        name="v6e",
        platform="tpu",
        peak_flops=918e12,
        hbm_bytes=32 * GIB,
        usable_bytes=31.25 * GIB,
        hbm_bandwidth=1.638e12,
        link_bandwidth=9e10,
        torus_axes=2,
        network_bandwidth=1.25e10,
        device_kinds=("TPU v6 lite", "TPU v6e"),
    ),
    # https://www.nvidia.com/en-us/data-center/a100: SXM, 80 GB: 312 TFLOP/s dense, 2,039 GB/s,
    # NVLink 600 GB/s both ways. Network: DGX A100, 8 x 200 Gb/s.
    Chip(
        name="a100",
        platform="gpu",
        peak_flops=312e12,
        hbm_bytes=80e9,
        usable_bytes=0.92 * 79.1 * GIB,
        hbm_bandwidth=2.039e12,
        link_bandwidth=3e11,
        torus_axes=0,
        network_bandwidth=2.5e10,
        network_is_assumed=True,
        chips_per_node=8,
        device_kinds=("NVIDIA A100-SXM4-80GB",),
        gpu=Gpu(
            capability=(8, 0),
            cores=108,
            fpus_per_core=64,
            shared_kib=164,
            l2_bytes=40 * MIB,
            clock_ghz=1.41,
        ),
    ),
    # https://www.nvidia.com/en-us/data-center/h100: SXM: 989 TFLOP/s dense (1,979 with sparsity),
    # 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways. Network: DGX H100, 8 x 400 Gb/s.
    Chip(
        name="h100",
        platform="gpu",
        peak_flops=989e12,
        hbm_bytes=80e9,
        usable_bytes=0.92 * 79.1 * GIB,
        hbm_bandwidth=3.35e12,
        link_bandwidth=4.5e11,
        torus_axes=0,
        network_bandwidth=5e10,
        network_is_assumed=True,
        chips_per_node=8,
        device_kinds=("NVIDIA H100 80GB HBM3",),
        gpu=_H100,
    ),
    # https://www.nvidia.com/en-us/data-center/h200: the H100's arithmetic; 141 GB, 4.8 TB/s.
    Chip(
        name="h200",
        platform="gpu",
        peak_flops=989e12,
        hbm_bytes=141e9,
        usable_bytes=0.92 * 139.8 * GIB,
        hbm_bandwidth=4.8e12,
        link_bandwidth=4.5e11,
        torus_axes=0,
        network_bandwidth=5e10,
        network_is_assumed=True,
        chips_per_node=8,
        device_kinds=("NVIDIA H200",),
        gpu=_H100,
    ),
    # https://www.nvidia.com/en-us/data-center/dgx-b200, an eighth each: 2,250 TFLOP/s dense (72
    # PFLOP/s FP8 with sparsity), 180 GB (1,440), 8 TB/s (64), NVLink 1,800 GB/s both ways (14.4
    # TB/s), 400 Gb/s a GPU. The driver shows 178.35 GiB (pytorch/ao#4002).
    Chip(
        name="b200",
        platform="gpu",
        peak_flops=2250e12,
        hbm_bytes=180e9,
        usable_bytes=0.92 * 178.35 * GIB,
        hbm_bandwidth=8e12,
        link_bandwidth=9e11,
        torus_axes=0,
        network_bandwidth=5e10,
        network_is_assumed=True,
        chips_per_node=8,
        device_kinds=("NVIDIA B200",),
        gpu=Gpu(
            capability=(10, 0),
            cores=148,
            fpus_per_core=128,
            shared_kib=228,
            l2_bytes=253 * MIB // 2,
            clock_ghz=1.965,
        ),
    ),
)

CHIPS = {chip.name: chip for chip in _TABLE}


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a `jax.Device.device_kind`; None where the table does not have it."""
    found = [chip for chip in _TABLE if device_kind in chip.device_kinds]
    return found[0] if found else None
