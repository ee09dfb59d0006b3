"""What cannot be converted is refused, and every error names all it found."""

import json
import subprocess

import numpy as np
import pytest
import tiny
from conversions import DTYPES, MODELS, config_of, flip, nothing, rewrite, write_hf

from toolrm_jax.convert import from_hf, main, to_hf
from toolrm_jax.huggingface import (
    CheckpointError,
)
from toolrm_jax.model_config import UnsupportedModel


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
