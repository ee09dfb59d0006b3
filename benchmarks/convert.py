"""Conversion against copying the same bytes: GB/s and peak memory, both ways.

    python -m benchmarks.convert [--size 4GB] [--repetitions 3] [--folder runs/bench-convert]

A random bf16 Qwen2 reward model of about that size (layers of the 7B's shapes) is written to the
folder. Then, by turns in one run: `cp` + `sync` + `sha256sum` of its weights (cp is given a source
that is not cached, as is each conversion); `from-hf`; `to-hf` of what that wrote. A conversion
reads, checks, writes, waits for the disk and reads back with SHA-256, as the other side does. GB/s
are bytes of weights over seconds; a conversion's seconds are those of the whole command, and of the
command without Python's start and imports. Three copies of the weights are on the disk at a time.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from benchmarks.peak_memory import measure
from toolrm_jax.convert import shard_size
from toolrm_jax.huggingface import placed, write_directory
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.output_folder import new_folder
from toolrm_jax.tensors import BFLOAT16, Spec, Tensors

# Qwen2.5-7B's shapes.
SHAPE_7B = ModelConfig(
    family="qwen2",
    vocab_size=152_064,
    width=3584,
    mlp_width=18_944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    qkv_bias=True,
)
_CODE = (
    "import json, sys, time; from toolrm_jax import convert; start = time.perf_counter(); "
    "code = convert.main(sys.argv[1:]); print(json.dumps(time.perf_counter() - start)); "
    "sys.exit(code)"
)


class RandomTensors(Tensors):
    """Random bf16 weights, Normal(0, 0.02^2), made as they are read: windows of one long draw."""

    def __init__(self, config: ModelConfig):
        self._config, self._placed = config, placed(config)
        draw = np.random.default_rng(0).standard_normal(1 << 24, np.float32)
        self._pool = (0.02 * draw).astype(BFLOAT16)

    def spec(self, name: str) -> Spec:
        entry, _ = self._placed[name]
        return Spec(entry.shape(self._config), BFLOAT16)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        shape = self.spec(name).shape
        width = int(np.prod(shape[1:], dtype=np.int64))
        # A place of its own in the pool for every tensor and row.
        first = zlib.crc32(f"{name} {start}".encode()) % len(self._pool)
        values = np.take(self._pool, np.arange(first, first + (stop - start) * width), mode="wrap")
        return values.reshape(stop - start, *shape[1:])

    def __iter__(self) -> Iterator[str]:
        return iter(self._placed)

    def __len__(self) -> int:
        return len(self._placed)


def sized(nbytes: int) -> ModelConfig:
    """The 7B with as many layers as fit, at least one."""
    embedding = 2 * SHAPE_7B.vocab_size * SHAPE_7B.width
    layers = max(1, round((nbytes - embedding) / (2 * SHAPE_7B.num_layer_parameters)))
    return dataclasses.replace(SHAPE_7B, num_layers=min(layers, SHAPE_7B.num_layers))


def make_model(folder: Path, config: ModelConfig) -> Path:
    """Writes the random model."""
    with new_folder(folder, is_ours=lambda _: True) as partial:
        write_directory(partial, config, RandomTensors(config), tiny_tokenizer())
    (folder / "tensor_sha256.json").unlink()  # as from anywhere else
    return folder


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that can render: the benchmark is about weights."""
    letters = [chr(code) for code in range(33, 127)]
    backend = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def weights_of(folder: Path) -> list[Path]:
    """Every file of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def evict(folder: Path) -> None:
    """Takes a folder's files out of the page cache, so that all sides read from the disk."""
    for path in weights_of(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def copy(source: Path, target: Path) -> float:
    """cp + sync + sha256sum of the safetensors; seconds."""
    evict(source)
    target.mkdir()
    files = [str(path) for path in sorted(source.glob("*.safetensors"))]
    copies = [str(target / Path(file).name) for file in files]
    start = time.perf_counter()
    subprocess.run(["cp", *files, str(target)], check=True)
    subprocess.run(["sync", *copies, str(target)], check=True)
    subprocess.run(["sha256sum", *copies], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(source: Path, *arguments: str) -> tuple[float, float, int]:
    """A conversion: seconds of the command, seconds without its start, peak bytes."""
    evict(source)
    total, peak, output = measure([sys.executable, "-c", _CODE, *arguments, "--quiet"])
    inner = json.loads(re.findall(r"^[\d.]+$", output, re.MULTILINE)[-1])
    return total, inner, peak


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=shard_size, default=shard_size("4GB"), help="of the model")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-convert"))
    args = parser.parse_args()
    config = sized(args.size)
    source = make_model(args.folder / "hf", config)
    ours, back = args.folder / "ours", args.folder / "back"
    nbytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    largest = max(spec.nbytes for spec in map(RandomTensors(config).spec, placed(config)))
    print(
        f"{config.num_layers} layers, {nbytes / 1e9:.2f} GB of bf16 weights, largest tensor "
        f"{largest / 1e9:.2f} GB; {os.cpu_count()} cores; {args.repetitions} turns",
        flush=True,
    )
    times: dict[str, list[tuple[float, float, int]]] = {"from-hf": [], "to-hf": []}
    copies = []
    for _ in range(args.repetitions):
        seconds = copy(source, args.folder / "copy")
        copies.append(seconds)
        print(f"  cp + sync + sha256sum {seconds:7.1f} s", flush=True)
        for name, arguments in (
            ("from-hf", ("--source", str(source), "--output", str(ours))),
            ("to-hf", ("--checkpoint", str(ours), "--output", str(back))),
        ):
            found = convert(source if name == "from-hf" else ours, name, *arguments)
            times[name].append(found)
            print(f"  {name:21} {found[0]:7.1f} s, {found[2] / 1e9:.2f} GB peak", flush=True)
        for folder in (ours, back):
            shutil.rmtree(folder)
    shutil.rmtree(source)
    _report(nbytes, largest, copies, times)


def _report(nbytes: int, largest: int, copies: list[float], times) -> None:
    print(f"cp + sync + sha256sum  {nbytes / statistics.median(copies) / 1e9:5.2f} GB/s")
    for name, found in times.items():
        whole, inner = (statistics.median(t[i] for t in found) for i in (0, 1))
        ratios, proper = (
            sorted(c / t[i] for c, t in zip(copies, found, strict=True)) for i in (0, 1)
        )
        peak = max(t[2] for t in found)
        print(
            f"{name:22} {nbytes / whole / 1e9:5.2f} GB/s, {100 * statistics.median(ratios):.0f}% "
            f"({100 * ratios[0]:.0f}-{100 * ratios[-1]:.0f}%) of copying; without the program's "
            f"start {nbytes / inner / 1e9:.2f} GB/s, {100 * statistics.median(proper):.0f}%; peak "
            f"{peak / 1e9:.2f} GB anonymous (bound {4 + largest / 1e9:.2f})"
        )


if __name__ == "__main__":
    main()
