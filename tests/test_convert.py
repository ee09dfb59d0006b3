"""Conversion: equal bytes both ways, nothing half-written, and every error names all it found."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_gguf_llama
import tiny
from fake_hub import FakeHub
from processes import without_torch
from safetensors.numpy import load_file, save_file
from test_gguf_llama import tiny_weights, write_tiny
from tiny_models import random_params
from tiny_models import tiny as tiny_config

from toolrm_jax import assets, convert, output_folder, tensors
from toolrm_jax.convert import from_hf, main, to_hf
from toolrm_jax.huggingface import (
    CheckpointError,
    ParamTensors,
    fresh_head,
    load_params,
    to_hf_tensors,
    write_directory,
)
from toolrm_jax.model_config import Rope, UnsupportedModel
from toolrm_jax.orbax_folder import find_step
from toolrm_jax.output_folder import OutputError, new_folder
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.sharding import make_mesh
from toolrm_jax.tensors import Cast
from toolrm_jax.train import train

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
YARN = (("factor", 4.0), ("original_max_position_embeddings", 16))


def config_of(family: str = "qwen2", **changes):
    return tiny_config(family, **{"vocab_size": len(tiny.tokenizer())} | changes)


MODELS = {
    "qwen2": config_of("qwen2"),
    "qwen2, tied, yarn": config_of("qwen2", tied_embeddings=True, rope=Rope(1e6, "yarn", YARN)),
    "qwen3": config_of("qwen3"),
    "qwen3, tied": config_of("qwen3", tied_embeddings=True),
    "llama": config_of("llama"),
    "llama, tied, with a bias": config_of("llama", tied_embeddings=True, head_bias=True),
}


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """A tiny tensor goes through as many pieces as a large one would."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", 500)


def write_hf(folder: Path, config, dtype: str = "float32") -> Path:
    """A random reward model as a Hugging Face directory, in a type."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = random_params(config)
    weights = Cast(ParamTensors(config, params), np.dtype(DTYPES[dtype]))
    with new_folder(folder, is_ours=lambda _: True) as partial:
        write_directory(partial, config, weights, tiny.tokenizer())
    (folder / "tensor_sha256.json").unlink()  # as from anywhere else
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A Qwen2 reward model in float32; for tests to read, or to copy."""
    return write_hf(tmp_path_factory.mktemp("whole") / "hf", MODELS["qwen2"])


@pytest.fixture
def hf(whole, tmp_path) -> Path:
    """A copy of it, for a test to damage."""
    subprocess.run(["cp", "-r", str(whole), str(tmp_path / "hf")], check=True)
    return tmp_path / "hf"


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """All tensors, by the safetensors package."""
    return {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}


def assert_equal_bytes(one: Path, other: Path) -> None:
    a, b = weights_of(one), weights_of(other)
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def rewrite(folder: Path, change, config: dict | None = None) -> Path:
    """Changes tensors in place, and fields of config.json ("absent": none)."""
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text()) | (config or {})
    fields = {name: value for name, value in fields.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def nothing(_) -> None:
    pass


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_hugging_face_model_comes_back_in_equal_bytes(name, dtype, tmp_path):
    source = write_hf(tmp_path / "hf", MODELS[name], dtype)
    from_hf(str(source), tmp_path / "ours")
    done = to_hf(str(tmp_path / "ours"), tmp_path / "back")
    assert_equal_bytes(source, tmp_path / "back")
    before, after = (json.loads((f / "config.json").read_text()) for f in (source, done.path))
    assert after == before
    assert after["dtype"] == dtype
    assert open_pretrained(str(tmp_path / "ours")).source.config == MODELS[name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "hf", "ours"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_of_ours_comes_back_in_equal_bytes(dtype, tmp_path, single_device):
    write_hf(tmp_path / "hf", MODELS["qwen3"], dtype)
    first = from_hf(str(tmp_path / "hf"), tmp_path / "first")
    to_hf(str(first.path), tmp_path / "between")
    second = from_hf(str(tmp_path / "between"), tmp_path / "second")
    assert second.sha256 == first.sha256
    arrays = ["params.blocks.q/0.0.0", "params.embedding/1.0", "params.blocks.mlp_norm/0.0"]
    for array in arrays:
        one, other = (path / "state" / array for path in (first.path, second.path))
        assert one.read_bytes() == other.read_bytes()
        assert one.read_bytes().strip(b"\0")
    for name in ("tokenizer.json", "chat_template.jinja"):
        one, other = (path / "tokenizer" / name for path in (first.path, second.path))
        assert one.read_bytes() == other.read_bytes()


def test_orbax_restores_what_was_converted(hf, tmp_path, single_device):
    """Like any checkpoint, onto a mesh, in the parameters' own layout."""
    from_hf(str(hf), tmp_path / "ours")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params = load_params(open_pretrained(str(hf)).source, mesh)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "ours" / "state", {"params": like})["params"]
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(restored), strict=True):
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(one, other)


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


def test_training_starts_from_a_converted_model_as_from_its_source(run, single_device):
    one, other = (open_pretrained(str(run / name)).source for name in ("model", "ours"))
    assert not one.has_head
    assert other.has_head
    for a, b in zip(
        *(jax.tree.leaves(load_params(s, single_device, 0)) for s in (one, other)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_runs_checkpoint_gives_the_same_directory_as_its_export(run, tmp_path):
    """From the workdir, its checkpoints, the newest step: weights, config, card, split."""
    export = run / "workdir" / "export"
    for number, path in enumerate(("", "checkpoints", "checkpoints/2")):
        done = to_hf(str(run / "workdir" / path), tmp_path / f"{number}", name="workdir")
        assert_equal_bytes(done.path, export)
        for name in ("config.json", "toolrm.json", "tokenizer.json", "chat_template.jinja"):
            assert (done.path / name).read_text() == (export / name).read_text(), name
        assert (done.path / "README.md").read_text() == (export / "README.md").read_text()
    earlier = to_hf(str(run / "workdir" / "checkpoints" / "1"), tmp_path / "earlier").path
    assert json.loads((earlier / "toolrm.json").read_text())["heldout"] is None
    assert weights_of(earlier)["score.weight"].any()
    with pytest.raises(AssertionError):
        assert_equal_bytes(earlier, export)


def test_a_run_without_a_tokenizer_takes_that_of_its_base(run, tmp_path):
    workdir = tmp_path / "workdir"
    subprocess.run(["cp", "-r", str(run / "workdir"), str(workdir)], check=True)
    subprocess.run(["rm", "-r", str(workdir / "tokenizer")], check=True)
    done = to_hf(str(workdir), tmp_path / "out")
    exported = run / "workdir" / "export" / "tokenizer.json"
    assert (done.path / "tokenizer.json").read_text() == exported.read_text()
    for meta in workdir.glob("checkpoints/*/meta/metadata"):
        # A name as long: the list of a checkpoint's files has their sizes.
        meta.write_text(meta.read_text().replace(str(run / "ours"), str(run / "gone")))
    with pytest.raises(assets.AssetError, match=r"has no tokenizer.*cannot be opened.*Copy the"):
        to_hf(str(workdir), tmp_path / "other")


@pytest.mark.parametrize("damage", ["cut", "gone", "no list"])
def test_a_damaged_newest_checkpoint_is_passed_over(run, tmp_path, damage, caplog):
    checkpoints = tmp_path / "workdir" / "checkpoints"
    shutil.copytree(run / "workdir" / "checkpoints", checkpoints)
    largest = max((checkpoints / "2" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    if damage == "cut":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "gone":
        largest.unlink()
    else:
        (checkpoints / "2" / "files.json").unlink()
    assert find_step(tmp_path / "workdir") == checkpoints / "1"
    assert f"checkpoint {checkpoints / '2'} is damaged and is passed over: " in caplog.text


def test_an_output_may_stand_in_a_folder_called_checkpoints(run, tmp_path):
    done = from_hf(str(run / "model"), tmp_path / "checkpoints" / "ours")
    assert find_step(done.path) == done.path


def test_a_chunk_of_a_runs_checkpoint_is_no_more_than_a_layer(run):
    """Else a whole stack would have to be read for one of its layers."""
    folder = find_step(run / "workdir")
    assert folder == run / "workdir" / "checkpoints" / "2"
    opened = open_pretrained(str(folder)).source.tensors
    layers = opened._arrays[("blocks", "up")]
    assert layers.shape[0] == 2
    assert layers.chunk_layout.read_chunk.shape[0] == 1


@pytest.mark.parametrize("tied", [True, False])
def test_a_causal_model_gives_its_decoder_and_a_new_head(tied, hf, tmp_path):
    def causal(weights):
        del weights["score.weight"]
        if not tied:
            weights["lm_head.weight"] = np.ones_like(weights["model.embed_tokens.weight"])

    fields = {"architectures": ["Qwen2ForCausalLM"], "num_labels": "absent"}
    rewrite(hf, causal, fields | {"tie_word_embeddings": tied})
    done = from_hf(str(hf), tmp_path / "ours", seed=3)
    assert "drawn with seed 3" in done.notes[0]
    assert any("lm_head.weight is left out" in note for note in done.notes) is not tied
    back = weights_of(to_hf(str(done.path), tmp_path / "back").path)
    before = weights_of(hf)
    assert set(back) == set(before) - {"lm_head.weight"} | {"score.weight"}
    for name in set(back) & set(before):
        np.testing.assert_array_equal(back[name], before[name])
    np.testing.assert_array_equal(back["score.weight"][0], fresh_head(MODELS["qwen2"], 3))
    assert "random (seed 3)" in (tmp_path / "back" / "README.md").read_text()
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is tied
    )


def test_a_half_precision_base_with_its_new_head_keeps_both_exactly(tmp_path, single_device):
    """The head is float32 as in training from the directory itself, so the config says float32."""
    source = write_hf(tmp_path / "hf", MODELS["llama"], "bfloat16")
    rewrite(source, lambda w: w.pop("score.weight"), {"architectures": ["LlamaForCausalLM"]})
    from_hf(str(source), tmp_path / "ours")
    done = to_hf(str(tmp_path / "ours"), tmp_path / "back")
    back = weights_of(done.path)
    assert back["score.weight"].dtype == np.float32
    assert back["model.norm.weight"].dtype == ml_dtypes.bfloat16
    assert json.loads((done.path / "config.json").read_text())["dtype"] == "float32"
    one, other = (open_pretrained(str(p)).source for p in (source, done.path))
    for a, b in zip(
        *(jax.tree.leaves(load_params(s, single_device)) for s in (one, other)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_layers_of_several_types_share_one_that_holds_them_all(hf, tmp_path, single_device):
    name = "model.layers.1.mlp.up_proj.weight"

    def mix(weights):
        weights[name] = weights[name].astype(ml_dtypes.bfloat16)

    rewrite(hf, mix)
    from_hf(str(hf), tmp_path / "ours")
    back = weights_of(to_hf(str(tmp_path / "ours"), tmp_path / "back").path)
    assert back[name].dtype == np.float32
    np.testing.assert_array_equal(back[name], weights_of(hf)[name].astype(np.float32))


def test_a_tiny_gguf_file_is_converted(tmp_path, monkeypatch):
    tokens = ["<|im_start|>", "<|im_end|>", *test_gguf_llama.TOKENS[2:]]  # of the template
    monkeypatch.setattr(test_gguf_llama, "TOKENS", tokens)
    path = write_tiny(tmp_path / "m.gguf", tied=False, pad=1)
    from_hf(str(path), tmp_path / "ours")
    weights = weights_of(to_hf(str(tmp_path / "ours"), tmp_path / "hf").path)
    for name, expected in tiny_weights(tied=False).items():
        if name != "lm_head.weight":  # a reward model has none
            np.testing.assert_array_equal(weights[name], expected, err_msg=name)


@pytest.mark.slow
def test_a_gguf_file_is_converted(smollm2_path, tmp_path, monkeypatch):
    """SmolLM2 from its Q4_1 file, both ways: the weights that it dequantises to."""
    monkeypatch.setattr(tensors, "PIECE_BYTES", 8 << 20)
    from_hf(str(smollm2_path), tmp_path / "ours")
    done = to_hf(str(tmp_path / "ours"), tmp_path / "hf", dtype="bfloat16", max_shard_bytes=10**8)
    weights, source = weights_of(done.path), open_pretrained(str(smollm2_path)).source
    assert len(list(done.path.glob("model-*.safetensors"))) == 3
    for name in ("model.embed_tokens.weight", "model.layers.29.self_attn.k_proj.weight"):
        expected = source.tensors[name].astype(ml_dtypes.bfloat16)
        assert weights[name].tobytes() == expected.tobytes()


# --- what is written ------------------------------------------------------------------------------


def test_shards_have_an_index_and_the_size_that_was_asked_for(hf, tmp_path):
    done = to_hf(str(hf), tmp_path / "out", max_shard_bytes=8000)
    index = json.loads((done.path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in done.path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights_of(hf).values())
    for file in files:
        held = load_file(done.path / file)
        # A tensor that is larger than a shard has one of its own.
        assert sum(w.nbytes for w in held.values()) <= 8000 or len(held) == 1
        assert {name for name, f in index["weight_map"].items() if f == file} == set(held)
    assert_equal_bytes(hf, done.path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_type_rounds_to_nearest(dtype, hf, tmp_path):
    done = to_hf(str(hf), tmp_path / "out", dtype=dtype)
    back, before = weights_of(done.path), weights_of(hf)
    for name, weights in before.items():
        assert back[name].tobytes() == weights.astype(DTYPES[dtype]).tobytes()
    assert json.loads((done.path / "config.json").read_text())["dtype"] == dtype
    assert any("rewards in half precision tie" in note for note in done.notes)


def test_the_directory_holds_all_that_a_user_needs_and_nothing_else(hf, tmp_path):
    (hf / "generation_config.json").write_text("{}")
    done = to_hf(str(hf), tmp_path / "out")
    assert sorted(path.name for path in done.path.iterdir()) == [
        "README.md",
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tensor_sha256.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "toolrm.json",
    ]
    config = json.loads((done.path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert (config["num_labels"], config["id2label"]) == (1, {"0": "reward"})
    assert config["problem_type"] == "regression"
    assert config["pad_token_id"] == tiny.tokenizer().pad_token_id


def test_the_card_says_where_it_comes_from_and_how_to_use_it(run, tmp_path):
    card = (run / "workdir" / "export" / "README.md").read_text()
    for words in (
        "pipeline_tag: text-classification",
        "- base model: ours",
        "- training: `train.jsonl`, 40 prompts",
        "- held out: `heldout.jsonl`, 12 prompts",
        "| all pairs | 36 |",
        "| Parameter value error | 12 |",
        "AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)",
        "RewardTrainer",
        "vllm serve workdir --runner pooling --dtype float32",
        "sglang.launch_server",
        "bfloat16 has 8 significant bits",
        "count ties as half",
    ):
        assert words in card, words
    assert str(run) not in card


def test_a_bias_of_the_head_is_kept_and_its_trap_is_named(tmp_path):
    write_hf(tmp_path / "hf", MODELS["llama, tied, with a bias"])
    done = to_hf(str(tmp_path / "hf"), tmp_path / "out")
    assert "score.bias" in weights_of(done.path)
    assert any("the head has a bias" in note for note in done.notes)
    assert "`score.bias`, which transformers' own class" in (done.path / "README.md").read_text()


def push(hf, out, url: str, token: str, *more: str) -> subprocess.CompletedProcess:
    """`to-hf --push-to-hub org/rm` to a hub on loopback."""
    program = "import sys; from toolrm_jax.convert import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["to-hf", "--checkpoint", str(hf), "--output", str(out), "--push-to-hub", "org/rm"]
    hub = {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return start(program, *arguments, *more, **hub)


def test_an_export_is_pushed_to_the_hub_whole_and_private(hf, tmp_path):
    with FakeHub() as hub:
        done = push(hf, tmp_path / "out", hub.url, hub.token)
        assert done.returncode == 0, done.stderr
    assert f"Uploaded to {hub.url}/org/rm" in done.stdout
    assert [asked["visibility"] for asked in hub.created] == ["private"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == {"org/rm": written}
    assert b"vllm serve org/rm" in written["README.md"]


def test_a_hub_that_refuses_leaves_the_directory_and_says_how_to_go_on(hf, tmp_path):
    with FakeHub() as hub:
        done = push(hf, tmp_path / "out", hub.url, "hf_wrong")
    assert done.returncode == 2
    assert "error: 'org/rm' could not be uploaded" in done.stderr
    assert f"complete at {tmp_path / 'out'}: log in with `hf auth login`" in done.stderr
    assert_equal_bytes(hf, tmp_path / "out")


# --- nothing half-written -------------------------------------------------------------------------

_DIES = """
import os, signal, sys
from toolrm_jax import convert, tensors
tensors.PIECE_BYTES = 500
# As in a terminal; a job in the background inherits that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
rows, left = tensors.Tensors.__getitem__, [int(sys.argv[1])]
def dying(self, name, start, stop, read={holder}.rows):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.{signal})
    return read(self, name, start, stop)
{holder}.rows = dying
sys.exit(convert.main(sys.argv[2:]))
"""


def start(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs a program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | without_torch() | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


# Half-way through writing, and while it is read back.
@pytest.mark.parametrize(
    ("sent", "code", "command", "piece"),
    [
        ("SIGKILL", -9, "from-hf", "20"),
        ("SIGKILL", -9, "to-hf", "60"),
        ("SIGTERM", 143, "from-hf", "20"),
        ("SIGINT", 130, "to-hf", "20"),
    ],
)
def test_an_interrupted_conversion_leaves_nothing_that_opens(
    sent, code, command, piece, hf, tmp_path
):
    program = "from toolrm_jax import safetensors_folder" + _DIES.format(
        signal=sent, holder="safetensors_folder.SafetensorsFolder"
    )
    out = tmp_path / "out"
    arguments = {"from-hf": "--source", "to-hf": "--checkpoint"}[command], str(hf)
    done = start(program, piece, command, *arguments, "--output", str(out))
    assert done.returncode == code, done.stderr
    assert not out.exists()
    left = [path for path in tmp_path.iterdir() if path != hf]
    assert left == ([] if sent != "SIGKILL" else [tmp_path / "out.partial"])
    for path in left:
        with pytest.raises((FileNotFoundError, assets.AssetError)):
            open_pretrained(str(path))
    to_hf(str(hf), out)
    assert_equal_bytes(hf, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_an_existing_output_is_replaced_only_when_asked(hf, tmp_path, capsys):
    arguments = ["to-hf", "--checkpoint", str(hf), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    (tmp_path / "out" / "stale.txt").write_text("old")
    assert main(arguments) == 2
    assert "is a checkpoint already: choose another output, or replace it" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "out" / "stale.txt").exists()
    assert main([*arguments, "--overwrite"]) == 0
    assert not (tmp_path / "out" / "stale.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    arguments[-1] = str(tmp_path / "other")
    for more in ([], ["--overwrite"]):
        assert main([*arguments, *more]) == 2
        assert "is no checkpoint to be replaced" in capsys.readouterr().err
    assert (tmp_path / "other" / "thesis.txt").exists()


def test_a_training_run_is_never_replaced(run, hf, capsys):
    arguments = ["to-hf", "--checkpoint", str(hf), "--output", str(run / "workdir"), "--overwrite"]
    assert main(arguments) == 2
    assert "is no checkpoint to be replaced" in capsys.readouterr().err
    assert (run / "workdir" / "checkpoints").is_dir()


def test_two_runs_cannot_write_one_output(hf, tmp_path):
    with new_folder(tmp_path / "out", lambda _: True) as folder:
        (folder / "first").write_text("1")
        with pytest.raises(OutputError, match=r"Another run is writing .*out now.*wait for it"):
            to_hf(str(hf), tmp_path / "out")
    assert (tmp_path / "out" / "first").exists()


def test_too_little_space_is_known_before_anything_is_read(hf, tmp_path, monkeypatch, capsys):
    usage = output_folder.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(output_folder.shutil, "disk_usage", lambda _: usage)
    for command in (["from-hf", "--source"], ["to-hf", "--checkpoint"]):
        assert main([*command, str(hf), "--output", str(tmp_path / "out")]) == 2
        assert re.search(
            r"No space left for .*out: 0\.\d+ GB are needed, 0.00 GB are free there. Free some, or",
            capsys.readouterr().err,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_gets_full_is_one_error_and_leaves_nothing(hf, tmp_path):
    """The limit on the size of a file stands in for a small disk: the system refuses to write."""
    program = (
        "import resource, sys; from toolrm_jax import convert; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); "
        "sys.exit(convert.main(sys.argv[1:]))"
    )
    # The tokenizer is larger than the limit.
    with contextlib.suppress(FileNotFoundError):
        (hf / "tokenizer.json").unlink()
    small = _small_tokenizer(hf)
    for command in (["from-hf", "--source"], ["to-hf", "--checkpoint"]):
        done = start(program, *command, str(small), "--output", str(tmp_path / "out"))
        assert done.returncode == 2, done.stderr
        assert "error: No space left for" in done.stderr
        assert "Traceback" not in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def _small_tokenizer(folder: Path) -> Path:
    """The same model with a tokenizer of a few tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE(vocab={"a": 0}, merges=[]))
    backend.add_special_tokens(["</s>", "<pad>"])
    template = (
        "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role }}{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}</s>{% endfor %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", chat_template=template
    ).save_pretrained(folder)
    return folder


# --- what is amiss --------------------------------------------------------------------------------


def test_everything_that_does_not_fit_is_named_at_once(hf, tmp_path, capsys):
    """Missing, unexpected and misshapen tensors, and tokens without rows."""

    def damage(weights):
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(6, np.float32)
        weights["score.weight"] = np.ones((2, 16), np.float32)
        weights["model.embed_tokens.weight"] = np.ones((500, 16), np.float32)

    rewrite(hf, damage, {"vocab_size": 500})
    highest = len(tiny.tokenizer()) - 1
    beyond = f"ids up to {highest}, the embedding 500 rows: {highest - 499} tokens have none"
    for command in (["from-hf", "--source"], ["to-hf", "--checkpoint"]):
        assert main([*command, str(hf), "--output", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        for words in (
            beyond,
            "missing: model.layers.1.mlp.up_proj.weight",
            "unexpected: model.layers.0.self_attn.q_norm.weight",
            "shape of score.weight: (2, 16), expected (1, 16)",
            "model.resize_token_embeddings(len(tokenizer))",
        ):
            assert words in told, words
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_embedding_that_is_not_as_the_config_says_is_an_error(hf, tmp_path):
    rewrite(hf, nothing, {"vocab_size": len(tiny.tokenizer()) + 8})
    with pytest.raises(CheckpointError, match=r"shape of model.embed_tokens.weight: .*expected"):
        from_hf(str(hf), tmp_path / "out")


def test_more_rows_than_tokens_are_fine(tmp_path):
    """As in Qwen2.5, whose embedding is padded."""
    write_hf(tmp_path / "hf", config_of("qwen2", vocab_size=len(tiny.tokenizer()) + 40))
    from_hf(str(tmp_path / "hf"), tmp_path / "out")


def test_labels_architecture_and_rope_are_refused_together(hf, tmp_path):
    fields = {
        "num_labels": 3,
        "rope_parameters": {"rope_type": "longrope"},
        "use_sliding_window": True,
    }
    rewrite(hf, nothing, fields)
    with pytest.raises(UnsupportedModel) as error:
        from_hf(str(hf), tmp_path / "out")
    for words in ("a classifier with 3 labels", "num_labels=1", "'longrope'", "use_sliding_window"):
        assert words in str(error.value)
    rewrite(hf, nothing, {"architectures": ["GemmaForTokenClassification"], "model_type": "gemma"})
    with pytest.raises(
        UnsupportedModel, match=r"'GemmaForTokenClassification'.*model_type 'gemma'"
    ):
        from_hf(str(hf), tmp_path / "out")


def test_all_that_is_wrong_with_shards_and_config_is_named_at_once(hf, tmp_path):
    done = to_hf(str(hf), tmp_path / "sharded", max_shard_bytes=8000).path
    files = sorted(done.glob("*.safetensors"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-10])
    files[2].write_bytes(b"\xff" * 100)
    config = json.loads((done / "config.json").read_text()) | {"hidden_act": "gelu"}
    (done / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        from_hf(str(done), tmp_path / "out")
    for words in (
        f"names files that are not there: {files[0].name}",
        f"{files[1].name} is not a readable safetensors file",
        f"{files[2].name} is not a readable safetensors file",
        "hidden_act='gelu'",
        "Fetch it again",
    ):
        assert words in str(error.value), words


def test_an_index_cannot_lead_out_of_its_folder(hf, tmp_path):
    (hf / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    weight_map = {"model.norm.weight": "../elsewhere.safetensors"}
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"no usable weight_map: .*names of files beside it"):
        from_hf(str(hf), tmp_path / "out")


def test_types_that_are_not_weights_are_named(hf, tmp_path):
    def damage(weights):
        weights["model.norm.weight"] = weights["model.norm.weight"].astype(np.float64)
        weights["score.weight"] = weights["score.weight"].astype(np.int8)

    rewrite(hf, damage)
    with pytest.raises(
        CheckpointError,
        match=r"(model.norm.weight is stored as F64.*score.weight is stored as I8|"
        r"score.weight is stored as I8.*model.norm.weight is stored as F64)",
    ):
        from_hf(str(hf), tmp_path / "out")


def test_pickles_are_refused_with_their_names(hf, tmp_path, capsys):
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    assert main(["from-hf", "--source", str(hf), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "reading a pickle runs code: save pytorch_model.bin again as safetensors" in told


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(bytes(content))


def test_a_flipped_bit_is_found_by_the_checksums_that_we_write(hf, tmp_path):
    exported = to_hf(str(hf), tmp_path / "exported").path
    ours = from_hf(str(hf), tmp_path / "ours").path
    flip(exported / "model.safetensors", -40)
    with pytest.raises(CheckpointError, match=r"score.weight is not what its stated SHA-256 says"):
        from_hf(str(exported), tmp_path / "out")
    flip(ours / "state" / "params.blocks.up" / "1.0.0", 40)
    flip(ours / "state" / "params.embedding" / "0.0", 40)
    with pytest.raises(CheckpointError) as error:
        to_hf(str(ours), tmp_path / "out")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        assert f"{name} is not what its stated SHA-256 says" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "hf", "ours"]


def test_a_flipped_bit_in_a_header_is_an_error(hf, tmp_path):
    for offset in (2, 12, 40, 90):
        content = (hf / "model.safetensors").read_bytes()
        flip(hf / "model.safetensors", offset)
        with pytest.raises(CheckpointError, match=r"safetensors|missing|unexpected|shape"):
            from_hf(str(hf), tmp_path / "out")
        (hf / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_not_finite_are_found_in_every_tensor(dtype, tmp_path):
    hf = write_hf(tmp_path / "hf", MODELS["qwen2"], dtype)

    def damage(weights):
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
        weights["score.weight"][0, -1] = -np.inf
        weights["model.norm.weight"][0] = np.finfo(np.float16).max  # large, and fine

    rewrite(hf, damage)
    with pytest.raises(CheckpointError) as error:
        to_hf(str(hf), tmp_path / "out")
    assert str(error.value).startswith(
        "model.layers.1.mlp.up_proj.weight holds numbers that are not finite; "
        "score.weight holds numbers that are not finite. Nothing was written"
    )


def test_what_reads_back_differently_is_never_given_its_name(hf, tmp_path, monkeypatch):
    from toolrm_jax import safetensors_folder

    write = safetensors_folder._write_from

    def forgetful(descriptor, data, offset):
        write(descriptor, data if len(data) > 100 else np.zeros_like(data), offset)

    monkeypatch.setattr(safetensors_folder, "_write_from", forgetful)
    with pytest.raises(CheckpointError, match=r"score.weight is not what its stated SHA-256"):
        to_hf(str(hf), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_checkpoint_of_ours_that_lacks_arrays_names_them_all(hf, tmp_path):
    ours = from_hf(str(hf), tmp_path / "ours").path
    for name in ("params.blocks.q", "params.head"):
        subprocess.run(["rm", "-r", str(ours / "state" / name)], check=True)
    with pytest.raises(CheckpointError, match=r"params.blocks.q .*params.head .*not complete"):
        to_hf(str(ours), tmp_path / "out")
    (ours / "meta" / "metadata").write_text("{}")
    with pytest.raises(CheckpointError, match=r"metadata does not describe a model"):
        to_hf(str(ours), tmp_path / "out")


def test_a_chunk_that_is_not_there_is_an_error_and_not_zeros(hf, tmp_path):
    ours = from_hf(str(hf), tmp_path / "ours").path
    (ours / "state" / "params.blocks.up" / "1.0.0").unlink()
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight cannot be read"):
        to_hf(str(ours), tmp_path / "out")


# --- verify, inspect, and the command line --------------------------------------------------------


def test_verify_finds_equal_what_is_equal(run, tmp_path, capsys):
    export = str(run / "workdir" / "export")
    assert main(["verify", str(run / "workdir"), export]) == 0
    told = capsys.readouterr().out
    assert "21 of 21 tensors have equal bytes" in told
    assert re.search(r"Rewards of 6 responses: largest difference 0 \(tolerance 0.0001\)", told)
    assert main(["verify", str(run / "model"), str(run / "ours"), "--no-rewards"]) == 0


def test_verify_names_differences_and_exits_with_1(hf, tmp_path, capsys):
    half = str(to_hf(str(hf), tmp_path / "half", dtype="bfloat16").path)
    assert main(["verify", str(hf), half, "--no-rewards"]) == 1
    told = capsys.readouterr().out
    assert "0 of 27 tensors have equal bytes" in told
    gap = abs(
        weights_of(hf)["score.weight"] - weights_of(Path(half))["score.weight"].astype("f4")
    ).max()
    assert f"score.weight: largest difference {gap:.3g}" in told
    assert told.strip().endswith("DIFFERENT")
    loose = ["--tolerance", "0.02", "--reward-tolerance", "9"]
    assert main(["verify", str(hf), half, *loose]) == 0
    assert "(within 0.02)" in capsys.readouterr().out
    assert main(["verify", str(hf), half, "--tolerance", "0.02", "--reward-tolerance", "0"]) == 1
    wide = str(to_hf(half, tmp_path / "wide", dtype="float32").path)
    assert main(["verify", half, wide, "--no-rewards"]) == 0
    assert "equal values" in capsys.readouterr().out


def test_verify_reads_prompts_and_exits_with_2_where_it_cannot(hf, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    row = {"messages": [{"role": "user", "content": "Hi"}], "responses": ["Yes", "No", ""]}
    prompts.write_text(json.dumps(row) + "\n")
    assert main(["verify", str(hf), str(hf), "--prompts", str(prompts)]) == 0
    assert "Rewards of 3 responses" in capsys.readouterr().out
    prompts.write_text('{"messages": []}\n{"x"\n')
    assert main(["verify", str(hf), str(hf), "--prompts", str(prompts)]) == 2
    assert "line 1 (KeyError: 'responses'), line 2 (JSONDecodeError" in capsys.readouterr().err
    assert main(["verify", str(hf), str(tmp_path / "nowhere")]) == 2
    assert "No model at" in capsys.readouterr().err


def test_verify_tells_a_bias_and_other_shapes(hf, tmp_path, capsys):
    write_hf(tmp_path / "bias", config_of("qwen2", head_bias=True))
    write_hf(tmp_path / "deep", config_of("qwen2", num_layers=3, mlp_width=32))
    assert main(["verify", str(hf), str(tmp_path / "bias"), "--no-rewards"]) == 1
    assert "score.bias: only in the second" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "deep"), str(hf), "--no-rewards"]) == 1
    told = capsys.readouterr().out
    assert "model.layers.2.mlp.up_proj.weight: only in the first" in told
    assert "model.layers.0.mlp.up_proj.weight: shapes (32, 16) and (24, 16)" in told


def test_inspect_says_what_a_checkpoint_is(run, hf, capsys):
    assert main(["inspect", str(run / "workdir")]) == 0
    told = capsys.readouterr().out
    for words in (
        "(Orbax)",
        "Llama",
        "one label",
        f"{run / 'ours'}, step 2",
        "4 heads on 2 key heads of 8",
        "PreTrainedTokenizerFast" if "PreTrainedTokenizerFast" in told else "TokenizersBackend",
        "problems     none",
    ):
        assert words in told, words
    assert main(["inspect", str(run / "model")]) == 0
    assert "none (a causal LM: a fresh one is drawn)" in capsys.readouterr().out
    assert main(["inspect", str(run / "ours")]) == 0
    told = capsys.readouterr().out
    assert "random (seed 0): not trained yet" in told
    assert "checksums    of 21 tensors" in told
    assert main(["inspect", str(hf), "--tensors"]) == 0
    assert re.search(
        r"model.layers.1.mlp.up_proj.weight +\[24, 16\] float32", capsys.readouterr().out
    )


def test_inspect_gives_json(hf, capsys):
    assert main(["inspect", str(hf), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    total = sum(w.size for w in weights_of(hf).values())
    assert found["dtypes"] == {"float32": total}
    assert (found["parameters"], found["family"], found["kind"]) == (total, "Qwen2", "Hugging Face")
    assert len(found["template_sha256"]) == 64
    assert len(found["tensors"]) == 27


def test_the_file_in_tools_is_the_same_command(hf, tmp_path):
    command = [sys.executable, "tools/convert_checkpoints.py"]
    done = subprocess.run(
        [*command, "to-hf", "--checkpoint", str(hf), "--output", str(tmp_path / "out")],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "27 tensors, written and read back" in done.stdout
    helped = subprocess.run(
        [*command, "verify", "--help"], cwd=tiny.ROOT, capture_output=True, text=True, timeout=300
    )
    assert "exit code: 0 equal within the tolerances, 1 different, 2" in helped.stdout


def test_sizes_of_shards():
    assert convert.shard_size("5GB") == 5 * 10**9
    assert convert.shard_size("1.5 GiB") == 3 * 2**29
    assert convert.shard_size("700") == 700
    for wrong in ("", "GB", "-5GB", "5XB", "0"):
        with pytest.raises(convert.argparse.ArgumentTypeError, match=r"expected a size like 5GB"):
            convert.shard_size(wrong)


def test_signals_are_as_they_were_after_a_command(hf):
    before = signal.getsignal(signal.SIGTERM)
    assert main(["inspect", str(hf)]) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_parameters_in_memory_and_from_a_directory_are_one(hf, single_device):
    """The table both ways, over a converted model."""
    source = open_pretrained(str(hf)).source
    params = load_params(source, single_device)
    for name, weights in to_hf_tensors(source.config, params):
        np.testing.assert_array_equal(weights, source.tensors[name])
