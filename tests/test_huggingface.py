"""Hugging Face directories: what is written reads back bit for bit; what is amiss is named."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import TEMPLATE, random_params, tiny, tiny_tokenizer
from transformers import AutoTokenizer

from toolrm_jax import huggingface
from toolrm_jax.huggingface import (
    CheckpointError,
    Source,
    fresh_head,
    load_params,
    open_directory,
    save_directory,
    to_hf_tensors,
    truncate,
)
from toolrm_jax.model_config import ModelConfig, Rope, UnsupportedModel
from toolrm_jax.sharding import make_mesh

CONFIG = tiny("qwen2", vocab_size=97)


@pytest.fixture(scope="module")
def params():
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        return random_params(CONFIG)


@pytest.fixture
def checkpoint(params, tmp_path):
    """A complete directory, for a test to damage."""
    return save_directory(tmp_path / "model", CONFIG, params, tiny_tokenizer())


def rewrite(folder, change) -> None:
    """Changes the tensors of a directory: `change(tensors)` in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def assert_bit_equal(got, expected):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


YARN_16 = (("factor", 4.0), ("original_max_position_embeddings", 16))
CONFIGS = {
    "qwen2": CONFIG,
    "qwen2, yarn": dataclasses.replace(CONFIG, rope=Rope(1e6, "yarn", YARN_16)),
    "qwen3, tied": tiny("qwen3", tied_embeddings=True, norm_eps=1e-5),
    "llama": tiny("llama"),
    "bias of the head": dataclasses.replace(CONFIG, head_bias=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_reads_back_bit_for_bit(name, tmp_path, single_device):
    config = CONFIGS[name]
    params = random_params(config)
    folder = save_directory(tmp_path / "out", config, params, tiny_tokenizer())
    source = open_directory(folder)
    assert source.config == config
    assert_bit_equal(load_params(source, single_device), params)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_parameters_are_loaded_onto_any_mesh(checkpoint, params):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    loaded = load_params(open_directory(checkpoint), mesh)
    assert_bit_equal(jax.device_get(loaded), jax.device_get(params))
    assert loaded["blocks"]["up"].addressable_shards[0].data.shape == (2, 8, 12)


def test_the_config_says_that_it_is_a_regression_with_one_label(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert (config["num_labels"], config["problem_type"]) == (1, "regression")
    assert config["pad_token_id"] == tiny_tokenizer().pad_token_id
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == TEMPLATE


def test_extra_files_are_saved_beside_the_weights(params, tmp_path):
    folder = save_directory(
        tmp_path / "deep" / "out", CONFIG, params, tiny_tokenizer(), {"split.json": '["a"]'}
    )
    assert (folder / "split.json").read_text() == '["a"]'


def test_a_fresh_head_follows_the_stated_rule(checkpoint, single_device):
    """Normal(0, 1/(D + 1)), drawn where the source is a causal LM."""

    def drop_head(tensors):
        del tensors["score.weight"]
        tensors["lm_head.weight"] = np.zeros((97, 16), np.float32)

    rewrite(checkpoint, drop_head)
    reconfigure(checkpoint, architectures=["Qwen2ForCausalLM"], num_labels="absent")
    source = open_directory(checkpoint)
    assert not source.has_head
    first, again, other = (load_params(source, single_device, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first["head"], fresh_head(CONFIG, 3))
    np.testing.assert_array_equal(first["head"], again["head"])
    assert not np.array_equal(first["head"], other["head"])
    wide = fresh_head(dataclasses.replace(CONFIG, width=4095), 0)
    assert np.std(wide) == pytest.approx(1 / 64, rel=0.05)
    assert abs(np.mean(wide)) < 1e-3


def test_the_first_layers_alone_can_be_loaded(checkpoint, params, single_device):
    source = truncate(open_directory(checkpoint), 1)
    loaded = load_params(source, single_device)
    np.testing.assert_array_equal(loaded["blocks"]["q"], params["blocks"]["q"][:1])
    assert truncate(source, 0) is source


@pytest.mark.parametrize("layers", [-1, 3])
def test_more_layers_than_there_are_is_an_error(checkpoint, layers):
    with pytest.raises(ValueError, match=rf"num_layers={layers}: .*model has 2 layers; use 1 to"):
        truncate(open_directory(checkpoint), layers)


# --- what is amiss ------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_tensors_are_all_named_at_once(checkpoint, single_device):
    def damage(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(6, np.float32)
        tensors["score.weight"] = np.ones((2, 16), np.float32)
        tensors["model.layers.1.self_attn.k_proj.weight"] = np.ones((12, 15), np.float32)

    rewrite(checkpoint, damage)
    with pytest.raises(CheckpointError) as error:
        load_params(open_directory(checkpoint), single_device)
    for line in (
        "missing: model.layers.1.mlp.up_proj.weight;",
        "missing: model.norm.weight;",
        "unexpected: model.layers.0.self_attn.q_norm.weight;",
        "shape of score.weight: (2, 16), expected (1, 16)",
        "shape of model.layers.1.self_attn.k_proj.weight: (12, 15), expected (12, 16);",
    ):
        assert line in str(error.value)
    assert str(checkpoint) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_truncated_safetensors_are_an_error_that_names_the_file(checkpoint, share, single_device):
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a readable safetensors"):
        load_params(open_directory(checkpoint), single_device)


def shard(folder, absent=()) -> None:
    """Splits model.safetensors in two by an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()) - set(absent):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_shards_are_read_by_their_index(checkpoint, params, single_device):
    shard(checkpoint)
    assert_bit_equal(load_params(open_directory(checkpoint), single_device), params)


def test_an_index_that_names_an_absent_shard_is_an_error(checkpoint):
    shard(checkpoint, absent=["model-2-of-2.safetensors"])
    with pytest.raises(CheckpointError, match=r"names files that are not there: model-2-of-2.saf"):
        open_directory(checkpoint)


def test_an_index_that_names_a_tensor_its_shard_lacks_is_an_error(checkpoint, single_device):
    shard(checkpoint)
    index = checkpoint / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"]
    files["score.weight"] = next(f for f in files.values() if f != files["score.weight"])
    index.write_text(json.dumps({"weight_map": files}))
    with pytest.raises(CheckpointError, match=r"of-2.safetensors: score.weight cannot be read"):
        load_params(open_directory(checkpoint), single_device)


def test_pickles_are_not_read(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no model.safetensors.*pickle files are not read"):
        open_directory(checkpoint)


def test_no_config_or_a_broken_one_is_an_error(checkpoint, tmp_path):
    (checkpoint / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        open_directory(checkpoint)
    (checkpoint / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json holds a list; expected an object"):
        open_directory(checkpoint)
    with pytest.raises(FileNotFoundError, match=r"nowhere has no config.json"):
        open_directory(tmp_path / "nowhere")


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gemma3"},
            r"model_type 'gemma3' is not supported; supported: llama, qwen2",
        ),
        ({"architectures": ["Qwen2ForTokenClassification"]}, r"'Qwen2ForTokenClassification'"),
        ({"num_labels": 2}, r"a classifier with 2 labels; a reward model has exactly 1"),
        ({"num_labels": "absent", "id2label": {"0": "a", "1": "b", "2": "c"}}, r"3 labels"),
        ({"num_labels": "absent", "id2label": "absent"}, r"2 labels"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu' \(supported: 'silu'\)"),
        ({"use_sliding_window": True}, r"use_sliding_window=True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config"),
        ({"rope_parameters": {"rope_type": "longrope"}}, r"rope scaling 'longrope' \(supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, r"'linear' without factor"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            r"without low_freq_factor; .*without high_freq_factor",
        ),
        (
            {"rope_parameters": YARN | {"mrope_section": [1]}},
            r"mrope_section of 'yarn' is not known",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, r"full_attention of"),
        ({"hidden_size": "absent"}, r"hidden_size is missing"),
        ({"num_key_value_heads": 3}, r"num_attention_heads=4 is not a multiple of num_key_value_h"),
        ({"head_dim": 5}, r"head_dim=5 is odd"),
        ({"hidden_act": "relu", "use_sliding_window": True}, r"hidden_act.*use_sliding_window"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(checkpoint, changes, message):
    reconfigure(checkpoint, **changes)
    with pytest.raises(UnsupportedModel, match=message):
        open_directory(checkpoint)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_biases_that_would_be_ignored_are_refused(family):
    hf = tiny(family).to_hf()
    with pytest.raises(UnsupportedModel, match=r"attention_bias=True"):
        ModelConfig.from_hf(hf | {"attention_bias": True})
    with pytest.raises(UnsupportedModel, match=r"mlp_bias=True"):
        ModelConfig.from_hf(hf | {"mlp_bias": True})


def test_rope_settings_are_read_from_the_older_form_alike():
    new = tiny().to_hf() | {"rope_parameters": YARN | {"rope_theta": 5e5}}
    old = tiny().to_hf() | {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 5e5}
    del old["rope_parameters"]
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)
    rope = ModelConfig.from_hf(old).rope
    assert (rope.type, rope.theta) == ("yarn", 5e5)
    assert dict(rope.scaling)["original_max_position_embeddings"] == 32_768
    unscaled = tiny().to_hf() | {"rope_scaling": None, "rope_theta": 5e5}
    del unscaled["rope_parameters"]
    assert ModelConfig.from_hf(unscaled).rope == Rope(5e5)


# --- saving safely ------------------------------------------------------------------------------


def test_an_interrupted_save_leaves_the_old_checkpoint_and_nothing_that_opens(
    checkpoint, params, monkeypatch
):
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}

    def interrupt(folder, *_):
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface, "write_safetensors", interrupt)
    changed = jax.tree.map(lambda x: x + 1, params)
    with pytest.raises(KeyboardInterrupt):
        save_directory(checkpoint, CONFIG, changed, tiny_tokenizer())
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == before
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_an_existing_checkpoint_is_replaced_whole(checkpoint, params, single_device):
    (checkpoint / "stale.json").write_text("{}")
    changed = jax.tree.map(lambda x: x + 1, params)
    for _ in range(2):
        save_directory(checkpoint, CONFIG, changed, tiny_tokenizer())
    assert not (checkpoint / "stale.json").exists()
    assert_bit_equal(load_params(open_directory(checkpoint), single_device), changed)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_folder_of_something_else_is_not_replaced(params, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds files but no config.json"):
        save_directory(tmp_path, CONFIG, params, tiny_tokenizer())
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    save_directory(tmp_path / "empty", CONFIG, params, tiny_tokenizer())


def test_the_table_maps_every_parameter_to_one_name_in_both_directions(params):
    tensors = dict(to_hf_tensors(CONFIG, params))
    total = sum(x.size for x in tensors.values())
    assert total == CONFIG.num_parameters == sum(x.size for x in jax.tree.leaves(params))
    assert tensors["model.layers.1.self_attn.q_proj.weight"].shape == (24, 16)
    assert all(x.flags.c_contiguous and x.dtype == np.float32 for x in tensors.values())
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        source = Source(CONFIG, tensors, "memory")
        assert_bit_equal(load_params(source, jax.sharding.get_mesh()), params)
