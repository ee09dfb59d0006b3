"""A scoring job in a bucket."""

from typing import ClassVar

import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from scoring_jobs import after, run

from toolrm_jax import score
from toolrm_jax.job_files import publish
from toolrm_jax.scorer import Scorer


class Bucket(MemoryFileSystem):
    """Objects in this process's memory, in the place of Google's store."""

    protocol = ("gcs", "gs")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("gs://", "/", 1))


@pytest.fixture
def bucket(monkeypatch):
    for kind in Bucket.protocol:
        monkeypatch.setitem(_registry, kind, Bucket)
    forget = epath.backend.fsspec_backend._get_filesystem.cache_clear
    forget()
    yield epath.Path("gs://bucket")
    forget()
    Bucket.store.clear()


def test_a_bucket_takes_input_parts_shards_and_output(model, data, finished, bucket, monkeypatch):
    (bucket / "in.jsonl").write_bytes(data.read_bytes())
    source, output = str(bucket / "in.jsonl"), str(bucket / "out.jsonl")
    shard = ("--shard", "0/2")
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_tokenized", after(2, OSError("gone")))
        assert run(model, source, output, *shard) == score.FAILED
    parts = bucket / "out.shard-00000-of-00002.jsonl.parts"
    assert len([path for path in parts.iterdir() if path.name.endswith(".part")]) == 2
    for index in range(2):
        assert run(model, source, output, "--shard", f"{index}/2") in (0, 3)
    assert [name for name in Bucket.store if ".parts/" in name] == []
    assert score.main(["merge", "--output", output]) == score.SOME_REJECTED
    for name in ("out.jsonl", "out.rejects.jsonl"):
        assert (bucket / name).read_bytes() == (finished / name).read_bytes()


def test_an_object_whose_rows_fail_half_way_never_appears(bucket):
    def failing():
        yield b"half"
        raise OSError("the shard is gone")

    with pytest.raises(OSError, match="the shard is gone"):
        publish(bucket / "out.jsonl", failing())
    assert not (bucket / "out.jsonl").exists()
