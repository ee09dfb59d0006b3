"""What the tests of conversion share: a model, a copy of it, a training run."""

import subprocess
from pathlib import Path

import pytest
import tiny
from conversions import MODELS, write_hf

from toolrm_jax import tensors
from toolrm_jax.convert import from_hf
from toolrm_jax.train import train


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """A tiny tensor goes through as many pieces as a large one would."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", 500)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A Qwen2 reward model in float32; for tests to read, or to copy."""
    return write_hf(tmp_path_factory.mktemp("whole") / "hf", MODELS["qwen2"])


@pytest.fixture
def hf(whole, tmp_path) -> Path:
    """A copy of it, for a test to damage."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "hf")], check=True)
    return tmp_path / "hf"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a causal LM, its conversion, and a training run that started from that."""
    folder = tmp_path_factory.mktemp("run")
    tiny.write_model(folder / "model")
    tiny.write_data(folder)
    from_hf(str(folder / "model"), folder / "ours")
    changes = {"model.source": str(folder / "ours"), "train.steps": 2, "train.checkpoint_every": 1}
    train(tiny.run_config(folder, **changes), folder / "workdir")
    return folder
