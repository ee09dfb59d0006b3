"""Conversion: equal bytes both ways."""

import json
import shutil
import subprocess

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_gguf_llama
from conversions import DTYPES, MODELS, assert_equal_bytes, rewrite, weights_of, write_hf
from test_gguf_llama import tiny_weights, write_tiny

from toolrm_jax import assets, tensors
from toolrm_jax.convert import from_hf, to_hf
from toolrm_jax.huggingface import (
    fresh_head,
    load_params,
)
from toolrm_jax.orbax_folder import find_step
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.sharding import make_mesh


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
