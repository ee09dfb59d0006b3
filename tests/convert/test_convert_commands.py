"""verify, inspect, and the command line."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from conversions import (
    config_of,
    weights_of,
    write_hf,
)

from toolrm_jax import convert
from toolrm_jax.convert import main, to_hf
from toolrm_jax.huggingface import (
    load_params,
    to_hf_tensors,
)
from toolrm_jax.pretrained import open_pretrained


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
