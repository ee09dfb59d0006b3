"""A conversion that is interrupted, or has no room, leaves nothing half-written."""

import contextlib
import re
from pathlib import Path

import pytest
from conversions import (
    assert_equal_bytes,
    start,
)

from toolrm_jax import assets, output_folder
from toolrm_jax.convert import main, to_hf
from toolrm_jax.output_folder import OutputError, new_folder
from toolrm_jax.pretrained import open_pretrained

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
