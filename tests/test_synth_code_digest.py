"""The digest of a stage's code: whatever makes its rows changes it, and nothing else."""

import shutil

import pytest

from toolrm_jax.synth import code_digest as module
from toolrm_jax.synth.code_digest import code_digest


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """The digests of a copy of the package, after a text is added to one of its files."""
    package = tmp_path / "toolrm_jax"
    shutil.copytree(module._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "_PACKAGE", package)

    def after(file: str, text: str) -> dict[str, str]:
        with (package / file).open("a") as source:
            source.write(text)
        _forget()
        names = ("reading", "thinning", "answering", "pairing", "card")
        return {name: code_digest(f"toolrm_jax.synth.{name}") for name in names}

    yield after
    _forget()


def _forget() -> None:
    module._imported.cache_clear()
    code_digest.cache_clear()


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("synth/judging.py", {"pairing"}),
        ("synth/selection.py", {"pairing"}),
        ("synth/endpoint.py", {"answering"}),  # imported in a function
        ("value_corruptions.py", {"answering", "pairing"}),
        ("synth/sources/sgd.py", {"reading", "thinning", "answering", "pairing"}),
        ("synth/output.py", {"card"}),
        ("train_step.py", set()),
    ],
)
def test_a_changed_file_changes_the_digests_of_the_stages_that_use_it(digests, file, changed):
    before, after = digests(file, ""), digests(file, "\n")
    assert {name for name in before if before[name] != after[name]} == changed
