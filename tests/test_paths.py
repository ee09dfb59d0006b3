"""Files and objects through one type; the store is a fake of Google's, the clients are real."""

from pathlib import Path

import numpy as np
import pytest
from fake_gcs import FakeGcs, Read

from toolrm_jax.paths import (
    PathError,
    ShortFile,
    as_path,
    is_remote,
    local_file,
    local_folder,
    read_range,
    upload,
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TOOLRM_CACHE_DIR", str(tmp_path / "cache"))
    with FakeGcs() as store, store.reached():
        yield store


@pytest.mark.parametrize("path", ["s3://b/x", "http://h/x", "memory://x", Path("gs://b/x")])
def test_what_is_no_usable_path_is_refused(path):
    with pytest.raises(PathError, match="gs://bucket/folder"):
        as_path(path)


def test_a_store_without_its_client_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PathError, match=r"pip install 'toolrm_jax\[gcs\]'"):
        as_path("gs://bucket/x")


def test_objects_are_read_by_exactly_the_bytes_asked_for(store):
    path = as_path("gs://bucket/folder/x")
    assert is_remote(path)
    assert not path.exists()
    path.write_bytes(bytes(range(100)))
    assert path.exists()
    assert path.stat().length == 100
    assert path.parent.is_dir()
    assert [p.name for p in path.parent.iterdir()] == ["x"]
    store.reads.clear()
    np.testing.assert_array_equal(read_range(path, 10, 20), np.arange(10, 20))
    assert store.reads == [Read("folder/x", 10, 20)]
    with pytest.raises(ShortFile):
        read_range(path, 90, 110)
    path.unlink()
    assert not path.exists()


def test_files_are_read_by_range_too(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    np.testing.assert_array_equal(read_range(as_path(tmp_path / "x"), 98, 100), [98, 99])
    with pytest.raises(ShortFile):
        read_range(as_path(tmp_path / "x"), 98, 101)
    assert local_file(tmp_path / "x") == tmp_path / "x"


def test_an_object_is_copied_here_once_and_anew_when_it_has_changed(store):
    path = as_path("gs://bucket/rows.jsonl")
    path.write_text("one")
    first = local_file(path)
    assert first.name == "rows.jsonl"
    assert first.read_text() == "one"
    reads = len(store.reads)
    assert local_file(path) == first
    assert len(store.reads) == reads
    path.write_text("two")
    assert local_file(path).read_text() == "two"
    assert first.read_text() == "one"


def test_a_folder_is_copied_by_endings(store):
    store.objects.clear()
    for name in ("tokenizer.json", "model.safetensors", "deeper/x.json"):
        store.put(f"m/{name}", name.encode())
    found = local_folder("gs://bucket/m", (".json",))
    assert [p.name for p in found.iterdir()] == ["tokenizer.json"]


def test_a_folder_is_stored_with_its_marker_last_and_nothing_else_stays(store, tmp_path):
    for name in ("config.json", "a.bin", "z.bin"):
        (tmp_path / name).write_text(name)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x").write_text("x")
    for old in ("old", "config.json"):
        store.put(f"out/{old}", b"before")
    store.uploads.clear()
    upload(tmp_path, as_path("gs://bucket/out"), last="config.json")
    assert store.uploads[0] == "out/.partial"
    assert store.uploads[-1] == "out/config.json"
    assert sorted(store.objects) == ["out/a.bin", "out/config.json", "out/deep/x", "out/z.bin"]
