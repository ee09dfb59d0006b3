"""The index in the workdir: the same as without it, shared by processes, and never a wrong one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from processes import joined, without_torch

from toolrm_jax import index_cache
from toolrm_jax.batch import RowShape
from toolrm_jax.index_cache import IndexCache
from toolrm_jax.loader import RowFile, RowTokenizer, build_index
from toolrm_jax.rendering import Renderer

SHAPES = (RowShape(700, 16),)
ROWS, CHUNK = 22, 4  # six chunks, the last one of two rows


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(index_cache, "CHUNK_ROWS", CHUNK)


@pytest.fixture(scope="module")
def tokenize():
    return RowTokenizer(Renderer(tiny.tokenizer()))


@pytest.fixture
def rows(tmp_path):
    """Rows of many lengths; one without a usable pair, one that cannot be rendered."""
    made = tiny.rows("train", ROWS)
    for number, row in enumerate(made):
        row["messages"][0]["content"] += " Please." * (number * 7 % 30)
        row["rejected"][0]["margin"] = number / 4
    made[5]["rejected"] = [{"response": made[5]["chosen"]}]
    made[9]["messages"][0]["role"] = "oracle"
    return RowFile(tiny.write_lines(tmp_path / "rows.jsonl", made))


@pytest.fixture
def tokenised(monkeypatch):
    """Ids of the rows that are tokenised."""
    seen = []
    call = RowTokenizer.__call__

    def told(self, row):
        seen.append(row["id"])
        return call(self, row)

    monkeypatch.setattr(RowTokenizer, "__call__", told)
    return seen


def cached(rows, tokenize, folder, **options):
    return build_index(rows, tokenize, SHAPES, measure=IndexCache(folder).measure, **options)


def same(one, other) -> bool:
    """Everything in them."""
    lengths = [(i.lengths.tokens, i.lengths.responses, i.keys, i.usable) for i in (one, other)]
    lists = [(i.ids, i.kept, i.rejects, i.digests, i.fingerprint()) for i in (one, other)]
    return lists[0] == lists[1] and all(map(np.array_equal, *lengths))


def test_the_second_start_has_the_same_index_and_tokenises_nothing(
    rows, tokenize, tmp_path, tokenised
):
    plain = build_index(rows, tokenize, SHAPES)
    tokenised.clear()
    assert same(cached(rows, tokenize, tmp_path / "index"), plain)
    assert len(tokenised) == ROWS
    tokenised.clear()
    assert same(cached(rows, tokenize, tmp_path / "index"), plain)
    assert tokenised == []
    # Limits are no part of what is kept.
    limit = int(np.median(plain.lengths.tokens))
    limited = cached(rows, tokenize, tmp_path / "index", max_tokens=limit)
    assert 0 < limited.usable.sum() < plain.usable.sum()
    assert tokenised == []


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def no_text(path):
    path.write_bytes(b"\xff" + path.read_bytes())


def another_chunk(path):
    path.write_bytes(path.with_name("rows-00000.json").read_bytes())


def delete(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, no_text, another_chunk, delete])
def test_a_damaged_chunk_is_measured_again(rows, tokenize, tmp_path, tokenised, damage):
    plain = cached(rows, tokenize, tmp_path / "index")
    path = tmp_path / "index" / "rows-00002.json"
    sound = path.read_bytes()
    damage(path)
    tokenised.clear()
    assert same(cached(rows, tokenize, tmp_path / "index"), plain)
    assert set(tokenised) == {f"train/{number}" for number in range(8, 12)}
    assert path.read_bytes() == sound


def other_tokenizer(tokenize, rows):
    return RowTokenizer(Renderer(tiny.bos_tokenizer())), rows


def other_template(tokenize, rows):
    template = tiny.TEMPLATE.replace("system\n", "system\nUse tools.\n")
    changed = tiny.prepare_tokenizer(tiny.new_tokenizer(template=template))
    return RowTokenizer(Renderer(changed)), rows


def blind(tokenize, rows):
    return RowTokenizer(tokenize.renderer, blind=True), rows


def raw(tokenize, rows):
    return RowTokenizer(Renderer(tokenize.renderer.tokenizer, raw=True)), rows


def other_rows(tokenize, rows):
    path = rows.path.with_name("other.jsonl")
    path.write_text(rows.path.read_text().replace("Rome", "Roma"))
    return tokenize, RowFile(path)


@pytest.mark.parametrize("change", [other_tokenizer, other_template, blind, raw, other_rows])
def test_what_other_settings_have_measured_is_not_used(rows, tokenize, tmp_path, tokenised, change):
    cached(rows, tokenize, tmp_path / "index")
    changed, theirs = change(tokenize, rows)
    plain = build_index(theirs, changed, SHAPES)
    tokenised.clear()
    assert same(cached(theirs, changed, tmp_path / "index"), plain)
    assert len(set(tokenised)) == ROWS


def test_other_code_measures_again(rows, tokenize, tmp_path, tokenised, monkeypatch):
    cached(rows, tokenize, tmp_path / "index")
    code = index_cache._code()
    monkeypatch.setattr(index_cache, "_code", lambda: [*code, "x = 1\n"])
    tokenised.clear()
    cached(rows, tokenize, tmp_path / "index")
    assert len(tokenised) == ROWS


def test_a_start_that_was_killed_while_indexing_goes_on_with_what_is_missing(
    rows, tokenize, tmp_path, monkeypatch, tokenised
):
    written = []

    def killed(path, text):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr(index_cache, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(rows, tokenize, tmp_path / "index")
    tokenised.clear()
    cached(rows, tokenize, tmp_path / "index")
    assert len(set(tokenised)) == ROWS - 3 * CHUNK


def test_chunks_that_a_process_does_not_see_it_measures_itself(
    rows, tokenize, tmp_path, monkeypatch
):
    """As where the other's files take their time to appear: the index is the same."""
    plain = build_index(rows, tokenize, SHAPES)
    monkeypatch.setattr(index_cache.jax, "process_count", lambda: 2)
    assert same(cached(rows, tokenize, tmp_path / "index"), plain)
    names = sorted(path.name for path in (tmp_path / "index").iterdir())
    assert names == [f"rows-{chunk:05d}.json" for chunk in (0, 2, 4)]


# --- Two processes --------------------------------------------------------------------------------

# Rows that can be used, then rows with one that is none.
TWO = """
import json, sys
import jax
from etils import epath
from transformers import AutoTokenizer
from toolrm_jax import index_cache, loader
from toolrm_jax.cluster import start_processes
from toolrm_jax.errors import reported
from toolrm_jax.rendering import Renderer
start_processes("on", lost_seconds=60)
index_cache.CHUNK_ROWS, seen = {chunk}, []
call = loader.RowTokenizer.__call__
loader.RowTokenizer.__call__ = lambda self, row: (seen.append(row["id"]), call(self, row))[1]
tokenizer, sound, broken, folder = sys.argv[1:]
tokenize = loader.RowTokenizer(Renderer(AutoTokenizer.from_pretrained(tokenizer)))
cache = index_cache.IndexCache(epath.Path(folder))
with reported():
    for path in (sound, broken):
        rows, shapes = loader.RowFile(path), (loader.RowShape(700, 16),)
        found = loader.build_index(rows, tokenize, shapes, measure=cache.measure)
        print(json.dumps([found.fingerprint(), found.lengths.tokens.tolist(), seen]), flush=True)
"""


def together(*arguments) -> list[tuple[int, str, str]]:
    """What two processes end with: code, output, errors."""
    command = [sys.executable, "-c", TWO.format(chunk=CHUNK), *map(str, arguments)]
    environment = os.environ | without_torch() | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=environment | each, **pipes) for each in joined(2)]
    try:
        ended = [process.communicate(timeout=100) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *said) for process, said in zip(started, ended, strict=True)]


def test_two_processes_share_the_work_and_the_errors(rows, tokenize, tmp_path):
    lines = rows.path.read_text().splitlines()
    lines[CHUNK] = "{}"  # in the second chunk, which is the second process's
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines) + "\n")
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    ended = together(tmp_path / "tokenizer", rows.path, broken, tmp_path / "index")

    told = [json.loads(output) for _, output, _ in ended]
    plain = build_index(rows, tokenize, SHAPES)
    for fingerprint, tokens, _ in told:
        assert fingerprint == plain.fingerprint()
        assert tokens == plain.lengths.tokens.tolist()
    parts = [set(seen) for *_, seen in told]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(plain.ids)
    assert [len(part) for part in parts] == [12, 10]
    for code, _, errors in ended:
        assert code == 1, errors
        assert f"error: {broken}, line {CHUNK + 1}" in errors
