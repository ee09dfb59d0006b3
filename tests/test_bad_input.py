"""What a training run refuses: one clear error each, before any time is lost."""

import json
import shutil

import gguf
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from toolrm_jax.errors import InputError
from toolrm_jax.train import train


def refusal(toy, workdir, **changes) -> str:
    """The message of the expected error with which a run ends."""
    with pytest.raises((InputError, OSError)) as error:
        train(tiny.run_config(toy, **changes), workdir)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.steps": -1}, "config.train.steps=-1: it must be 0 or more"),
        ({"train.steps": 0, "train.epochs": 0.0}, "config.train.epochs=0.0: with train.steps=0"),
        ({"train.log_every": 0}, "config.train.log_every=0: it must be 1 or more"),
        ({"train.checkpoint_every": -1}, "config.train.checkpoint_every=-1: it must be 0 or more"),
        ({"train.keep_checkpoints": 0}, "config.train.keep_checkpoints=0: it must be 1 or more"),
        ({"train.eval_every": -5}, "config.train.eval_every=-5: it must be 0 or more"),
        ({"data.workers": -1}, "config.data.workers=-1: it must be 0 or more"),
        ({"data.max_tokens": -1}, "config.data.max_tokens=-1: it must be 0 or more"),
        ({"loss.eta": float("nan")}, "config.loss.eta=nan: it must be 0 or more"),
        ({"model.num_layers": -1}, "config.model.num_layers=-1: it must be 0 or more"),
        ({"model.dtype": "float64"}, "config.model: compute dtype 'float64': use 'bfloat16'"),
        ({"model.remat": "some"}, "config.model: remat 'some': use one of 'none'"),
        ({"mesh.fsdp": 3}, "config.mesh: The mesh (data=1, fsdp=3, sequence=1, tensor=1) does not"),
        ({"mesh.data": -1}, "expected positive sizes, and at most one -1"),
        ({"data.batch_tokens": 100}, "config.data: batch_tokens=100 is less than one row of 384"),
        ({"data.micro_batches": 0}, "config.data: plan.batch_tokens, micro_batches"),
        ({"data.row_shapes": ()}, "config.data: plan.shapes is empty"),
        ({"data.row_shapes": ((384,),)}, "config.data: row_shapes has (384,); expected (tokens,"),
        ({"data.row_shapes": ((384, 0),)}, "config.data: row_shapes has (384, 0); expected"),
        (
            {"mesh.sequence": 8, "mesh.fsdp": 1, "data.row_shapes": ((380, 64),)},
            "config.data: row_shapes has 380 tokens, which mesh.sequence=8 devices cannot share",
        ),
        ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate=0.0: it must be a positive"),
        ({"optimizer.clip_norm": -1.0}, "optimizer.clip_norm=-1.0: it must be a positive"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_its_field_before_anything_is_opened(
    toy, tmp_path, changes, said
):
    workdir = tmp_path / "run"
    assert said in refusal(toy, workdir, **changes, **{"model.source": "nowhere"})
    assert not workdir.exists()


def test_a_config_with_a_missing_or_an_unknown_field_is_told_so(toy, tmp_path):
    config = tiny.run_config(toy).unlock()
    del config.data.max_tokens
    with pytest.raises(InputError, match=r"config\.data\.max_tokens is missing"):
        train(config, tmp_path)
    config = tiny.run_config(toy).unlock()
    config.optimizer.momentum = 0.9
    with pytest.raises(InputError, match=r"config\.optimizer: .*'momentum'"):
        train(config, tmp_path)


def test_more_layers_than_the_model_has(toy, tmp_path):
    said = refusal(toy, tmp_path, **{"model.num_layers": 9})
    assert said.startswith("config.model: num_layers=9: ")
    assert "has 2 layers; use 1 to that many, or 0 for all." in said


def test_a_model_folder_without_a_tokenizer(toy, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((toy / "model" / name).read_bytes())
    said = refusal(toy, tmp_path / "run", **{"model.source": str(folder)})
    assert f"'{folder}' has no tokenizer that transformers can open" in said
    assert "\n" not in said


def test_a_classifier_whose_head_was_lost(toy, tmp_path):
    folder = shutil.copytree(toy / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("score.weight", None)
    save_file(tensors, folder / "model.safetensors")
    said = refusal(toy, tmp_path / "run", **{"model.source": str(folder)})
    assert "LlamaForSequenceClassification without score.weight: its reward head was lost" in said


def test_a_mesh_that_does_not_divide_the_model(toy, tmp_path):
    said = refusal(toy, tmp_path / "run", **{"mesh.tensor": 8, "mesh.fsdp": 1})
    assert "config.mesh: num_heads=" in said or "config.mesh: num_kv_heads=" in said


def test_a_gguf_file_of_another_architecture(toy, tmp_path):
    path = tmp_path / "gemma.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "gemma" in refusal(toy, tmp_path / "run", **{"model.source": str(path)})


def test_a_bucket_as_workdir(toy):
    assert "--workdir=s3://bucket/run: expected" in refusal(toy, "s3://bucket/run")


def test_commands_print_the_message_alone(toy, tmp_path):
    command = tiny.command(toy, tmp_path / "run", **{"model.source": str(tmp_path / "none")})
    process = tiny.start(command, devices=1)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert output.strip().splitlines()[-1].startswith("error: No model at")
    assert "Traceback" not in output


def test_a_data_file_that_is_not_there(toy, tmp_path):
    said = refusal(toy, tmp_path / "run", **{"data.heldout": str(tmp_path / "none.jsonl")})
    assert said == f"{tmp_path}/none.jsonl not found: expected a preference file (JSON lines)."


def test_a_malformed_row_in_the_middle_of_the_data(toy, tmp_path):
    lines = [json.dumps(row) for row in tiny.rows("train", 6)]
    lines[3] = lines[3][:-20]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(lines))
    said = refusal(toy, tmp_path / "run", **{"data.train": str(path)})
    assert said.startswith(f"{path}, line 4: expected one JSON object a line")


def test_a_tool_schema_that_stays_invalid(toy, tmp_path):
    rows = tiny.rows("train", 3)
    rows[1]["tools"][0]["parameters"]["properties"]["city"]["type"] = "town"
    path = tiny.write_lines(tmp_path / "train.jsonl", rows)
    said = refusal(toy, tmp_path / "run", **{"data.train": str(path)})
    assert said.startswith(f"{path}, line 2: ")
    assert "get_weather" in said


def test_training_rows_among_the_held_out_ones(toy, tmp_path):
    path = tiny.write_lines(tmp_path / "heldout.jsonl", tiny.rows("train", 3))
    said = refusal(toy, tmp_path / "run", **{"data.heldout": str(path)})
    assert said.startswith("3 ids are in both data.train and data.heldout (such as 'train/0')")


def test_rows_none_of_which_fits(toy, tmp_path):
    changes = {"data.row_shapes": ((128, 16),)}
    assert "No row of" in refusal(toy, tmp_path / "run", **changes)
    assert "40 x over-long" in refusal(toy, tmp_path / "run", **changes)


def test_a_workdir_that_is_a_file(toy, tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    assert str(path) in refusal(toy, path)
