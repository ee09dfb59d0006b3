"""What a conversion writes."""

import json
import subprocess

import pytest
import tiny
from conversions import DTYPES, MODELS, assert_equal_bytes, start, weights_of, write_hf
from fake_hub import FakeHub
from safetensors.numpy import load_file

from toolrm_jax.convert import to_hf


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
