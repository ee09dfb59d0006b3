"""Rows come whole or with an error; an input is told from another by all of its content."""

import gzip
import json
import os
import random
import types

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from toolrm_jax import row_source
from toolrm_jax.row_source import RowSourceError, open_rows


def lines(count: int) -> list[bytes]:
    """Rows that do not compress well, so that most bytes of an archive are theirs."""
    chance = random.Random(0)
    return [json.dumps({"id": i, "x": chance.randbytes(60).hex()}).encode() for i in range(count)]


def as_parquet(path, *rows) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


# --- Archives -------------------------------------------------------------------------------------

PACK = {"gz": gzip.compress, "zst": zstandard.compress}


@pytest.fixture(scope="module", params=PACK)
def archive(request):
    """(ending, rows, an archive of two members or frames, where the first of these ends)."""
    rows, pack = lines(2000), PACK[request.param]
    first = pack(b"\n".join(rows[:900]) + b"\n")
    return request.param, rows, first + pack(b"\n".join(rows[900:]) + b"\n"), len(first)


def test_archives_are_read_across_their_parts(archive, tmp_path):
    ending, rows, packed, _ = archive
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(packed)
    found = list(open_rows(str(path)))
    assert [line.rstrip() for _, line in found] == rows
    assert [number for number, _ in found] == list(range(1, 2001))


def test_an_archive_that_is_cut_short_is_an_error_wherever_it_is_cut(archive, tmp_path):
    """But where its first part ends: what is left is a whole archive."""
    ending, rows, packed, border = archive
    cuts = {0, 1, 3, 5, 11, border - 9, border - 1, border + 1, border + 5, len(packed) - 1}
    cuts |= {random.Random(1).randrange(len(packed)) for _ in range(60)} - {border}
    for cut in cuts:
        path = tmp_path / f"in.jsonl.{ending}"
        path.write_bytes(packed[:cut])
        found = []
        with pytest.raises(RowSourceError, match=r"damaged after line \d+: .*Nothing after it"):
            found.extend(line.rstrip() for _, line in open_rows(str(path)))
        assert found == rows[: len(found)]


def test_a_damaged_archive_is_an_error(archive, tmp_path):
    ending, _, packed, _ = archive
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(packed + b"junk after it")
    with pytest.raises(RowSourceError, match="damaged after line 2000"):
        list(open_rows(str(path)))


def test_skippable_frames_are_skipped(tmp_path):
    """As seekable .zst files have them."""
    skipped = b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"12345678"
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(skipped + zstandard.compress(b"{}\n") + skipped)
    assert list(open_rows(str(path))) == [(1, b"{}\n")]


def test_an_archive_may_need_a_long_window_and_an_ending_may_be_in_capitals(tmp_path):
    window = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=window).compressobj()
    (tmp_path / "IN.JSONL.ZST").write_bytes(packer.compress(b"{}\n") + packer.flush())
    (tmp_path / "IN.JSONL.GZ").write_bytes(gzip.compress(b"{}\n"))
    as_parquet(tmp_path / "IN.PARQUET", {"id": "1"})
    for name, row in (("JSONL.ZST", b"{}\n"), ("JSONL.GZ", b"{}\n"), ("PARQUET", {"id": "1"})):
        assert list(open_rows(str(tmp_path / f"IN.{name}"))) == [(1, row)]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf{}\n\xef\xbb\xbf{}\n")
    assert list(open_rows(str(tmp_path / "in.jsonl"))) == [(1, b"{}\n"), (2, b"\xef\xbb\xbf{}\n")]


# --- Which input it is ----------------------------------------------------------------------------


def test_one_byte_anywhere_makes_another_input(tmp_path):
    """Also in a file too large to be read at once."""
    path = tmp_path / "in.jsonl"
    data = bytearray(b'{"messages": "%s"}\n' % (b"x" * (200 * 2**20)))
    digests = set()
    for place in (None, 100, 77 * 2**20 + 12345, len(data) - 10):
        if place is not None:
            data[place] ^= 1
        path.write_bytes(data)
        digests.add(open_rows(str(path)).digest())
    assert len(digests) == 4


def test_a_folder_is_told_by_what_its_files_hold(tmp_path):
    for name, words in (("a", "Hi"), ("b", "Hi"), ("c", "Ho")):
        (tmp_path / name).mkdir()
        as_parquet(tmp_path / name / "train.parquet", {"messages": words, "responses": ["x"]})
    a, b, c = (open_rows(str(tmp_path / name)).digest() for name in "abc")
    assert a == b != c


class Hub:
    """A hub of one data set, which is pushed to: each look finds the next commit."""

    def __init__(self, monkeypatch, *commits):
        self.commits, self.loaded = list(commits), []
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: self)
        monkeypatch.setattr("datasets.load_dataset", self.load)

    def dataset_info(self, name, *, revision, timeout):
        assert (name, revision) == ("org/name", None)
        return types.SimpleNamespace(sha=self.commits.pop(0))

    def load(self, path, **options):
        self.loaded.append((path, options["revision"], options["name"], options["streaming"]))
        return types.SimpleNamespace(info=types.SimpleNamespace(splits=None))


def test_a_hubs_data_set_is_read_at_the_commit_that_its_digest_names(monkeypatch):
    """A push in between would otherwise give rows of two data sets."""
    hub = Hub(monkeypatch, "one", "two", "two", "two")
    first, second, third = (open_rows("org/name").digest() for _ in range(3))
    fourth = open_rows("org/name", subset="s").digest()
    commits = [("one", None), ("two", None), ("two", None), ("two", "s")]
    assert hub.loaded == [("org/name", *commit, True) for commit in commits]
    assert second == third
    assert len({first, second, fourth}) == 3


def test_a_stream_that_breaks_off_is_an_error_with_its_place(tmp_path, monkeypatch):
    import httpx

    def breaking():
        yield {"id": "1"}
        raise httpx.ReadTimeout("The read operation timed out")

    (tmp_path / "set").mkdir()
    as_parquet(tmp_path / "set" / "train.parquet", {"id": "1"})
    rows = open_rows(str(tmp_path / "set"))
    monkeypatch.setattr(rows, "_data", breaking())
    with pytest.raises(RowSourceError, match=r"after row 1 \(ReadTimeout: The read"):
        list(rows)


@pytest.mark.parametrize("change", ["appended", "replaced", "rewritten", "deleted"])
def test_an_input_that_changes_is_noticed(tmp_path, change):
    path = tmp_path / "in.jsonl"
    path.write_text("{}\n")
    rows = open_rows(str(path))
    rows.digest()
    rows.check_unchanged()
    if change == "appended":
        with path.open("a") as file:
            file.write("{}\n")
    elif change == "replaced":
        (tmp_path / "new").write_text("[]\n")
        os.replace(tmp_path / "new", path)
    elif change == "rewritten":
        path.write_text("[]\n")
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(RowSourceError, match="changed while it was being scored"):
        rows.check_unchanged()


def test_a_folder_that_changes_is_noticed(tmp_path):
    as_parquet(tmp_path / "train.parquet", {"id": "1"})
    rows = open_rows(str(tmp_path))
    rows.digest()
    as_parquet(tmp_path / "more.parquet", {"id": "2"})
    with pytest.raises(RowSourceError, match="changed while"):
        rows.check_unchanged()


def test_a_pipe_is_refused_before_it_is_read(tmp_path):
    """It would be read dry by the digest."""
    os.mkfifo(tmp_path / "in.jsonl")
    for pipe in (tmp_path / "in.jsonl", "/dev/null"):
        with pytest.raises(RowSourceError, match=r"is no regular file .*give that"):
            open_rows(str(pipe))


# --- Buckets --------------------------------------------------------------------------------------


def test_a_bucket_without_its_client_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RowSourceError, match=r"gcsfs is not installed.*toolrm_jax\[gcs\]"):
        open_rows("gs://bucket/in.jsonl")


def test_other_stores_are_not_known():
    with pytest.raises(RowSourceError, match="this machine, or gs://"):
        open_rows("s3://bucket/in.jsonl")


def test_a_bucket_that_does_not_answer_is_given_up(monkeypatch):
    import threading

    wait = threading.Event()
    monkeypatch.setattr(row_source, "_ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("etils.epath.backend.fsspec_backend.exists", lambda _: wait.wait(10))
    with pytest.raises(RowSourceError, match=r"did not answer within 0\.05 s"):
        open_rows("gs://bucket/in.jsonl")
    wait.set()
