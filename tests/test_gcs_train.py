"""A whole run with model, data and workdir in an object store: a fake one, the clients are real."""

import contextlib
import io
import json
import pickle

import pytest
import tiny
from fake_gcs import FakeGcs
from processes import joined

from toolrm_jax.assets import AssetError
from toolrm_jax.convert import from_hf, to_hf
from toolrm_jax.loader import RowFile
from toolrm_jax.metrics_log import MetricsLog
from toolrm_jax.output_folder import new_folder
from toolrm_jax.pair_scores import read_scores
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.train import train
from toolrm_jax.train_config import TrainingError

RUN = {"train.steps": 6, "train.checkpoint_every": 2, "train.keep_checkpoints": 3}
AT_GCS = RUN | {
    "model.source": "gs://bucket/model",
    "data.train": "gs://bucket/data/train.jsonl",
    "data.heldout": "gs://bucket/data/heldout.jsonl",
}
WEIGHTS = "export/model.safetensors"


@pytest.fixture(scope="module")
def toy(toy):
    """With the workdir `here` of a run on this machine."""
    train(tiny.run_config(toy, **RUN), toy / "here")
    return toy


@pytest.fixture
def store(toy, monkeypatch, tmp_path):
    monkeypatch.setenv("TOOLRM_CACHE_DIR", str(tmp_path / "cache"))
    with FakeGcs() as store, store.reached():
        store.put_folder(toy / "model", "model")
        for side in ("train", "heldout"):
            store.put(f"data/{side}.jsonl", (toy / f"{side}.jsonl").read_bytes())
        yield store


def lines(text: str) -> list[dict]:
    """Without what depends on the clock."""
    found = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in line.items() if k not in tiny.RATES}
        for line in found
        if line["split"] != "start-up"
    ]


def run(toy, workdir: str, **changes) -> str:
    """Trains; what the console showed."""
    console = io.StringIO()
    with contextlib.redirect_stderr(console):
        train(tiny.run_config(toy, **AT_GCS | changes), workdir)
    return console.getvalue()


def test_a_run_at_a_store_is_the_run_here(toy, store):
    console = run(toy, "gs://bucket/runs/1")
    here = toy / "here"
    assert store.objects[f"runs/1/{WEIGHTS}"] == (here / WEIGHTS).read_bytes()
    stored = store.objects["runs/1/metrics.jsonl"].decode()
    assert lines(stored) == lines((here / "metrics.jsonl").read_text())
    assert "start-up" in stored
    assert "start-up" in console
    assert any("runs/1/tensorboard/events" in name for name in store.objects)
    summary = json.loads(store.objects["runs/1/evaluation.json"])
    assert summary["heldout"] == json.loads((here / "evaluation.json").read_text())["heldout"]
    scores = read_scores("gs://bucket/runs/1/heldout_scores.jsonl")
    assert len(scores.right) == 36

    # What makes an export, and a checkpoint, complete came last; nothing lies in this folder.
    exported = [name for name in store.uploads if name.startswith("runs/1/export/")]
    assert exported[-1] == "runs/1/export/config.json"
    saved = [name for name in store.uploads if name.startswith("runs/1/checkpoints/6/")]
    assert saved[-1] == "runs/1/checkpoints/6/files.json"
    assert not (tiny.ROOT / "gs:").exists()

    # The run is opened from there as it is from a disk.
    for name in ("runs/1", "runs/1/export"):
        opened = open_pretrained(f"gs://bucket/{name}").source
        local = open_pretrained(str(here / name.removeprefix("runs/1").strip("/"))).source
        for tensor in local.tensors:
            assert (opened.tensors[tensor] == local.tensors[tensor]).all(), tensor


def test_what_is_without_its_marker_is_not_there(toy, store):
    # A store that refuses the weights of the export, and a run that is killed while it saves.
    store.forbidden.add(f"runs/1/{WEIGHTS}")
    with pytest.raises(OSError, match="Forbidden"):
        run(toy, "gs://bucket/runs/1")
    assert "runs/1/export/README.md" in store.objects
    assert "runs/1/export/config.json" not in store.objects
    with pytest.raises(AssetError, match=r"no config\.json"):
        open_pretrained("gs://bucket/runs/1/export")
    del store.objects["runs/1/checkpoints/6/files.json"]
    store.forbidden.clear()

    console = run(toy, "gs://bucket/runs/1")
    assert "continuing at step 4 from gs://bucket/runs/1" in console
    here = toy / "here"
    assert store.objects[f"runs/1/{WEIGHTS}"] == (here / WEIGHTS).read_bytes()
    stored = store.objects["runs/1/metrics.jsonl"].decode()
    assert lines(stored) == lines((here / "metrics.jsonl").read_text())


@pytest.mark.slow
def test_two_processes_share_a_workdir_at_a_store(toy, store):
    command = tiny.command(toy, "gs://bucket/runs/2", **AT_GCS)
    started = [tiny.start(command, devices=2, **each) for each in joined(2)]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n\n".join(outputs)
    stored, local = (
        [line for line in lines(text) if line["split"] == "train"]
        for text in (
            store.objects["runs/2/metrics.jsonl"].decode(),
            (toy / "here" / "metrics.jsonl").read_text(),
        )
    )
    assert [a["loss"] for a in stored] == pytest.approx([a["loss"] for a in local], rel=1e-5)
    assert "runs/2/checkpoints/6/files.json" in store.objects
    assert "runs/2/export/config.json" in store.objects


def test_a_folder_that_fails_on_its_way_is_not_stored(store):
    store.put("out/config.json", b"before")
    before = dict(store.objects)

    def write():
        with new_folder("gs://bucket/out", lambda _: True) as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write()
    assert store.objects == before


def test_a_store_holds_converted_checkpoints_of_both_kinds(toy, store):
    ours = from_hf("gs://bucket/model", "gs://bucket/ours")
    assert str(ours.path) == "gs://bucket/ours"
    assert [n for n in store.uploads if n.startswith("ours/")][-1] == "ours/meta/metadata"
    theirs = to_hf("gs://bucket/ours", "gs://bucket/theirs")
    assert [n for n in store.uploads if n.startswith("theirs/")][-1] == "theirs/config.json"
    assert ours.sha256 == theirs.sha256
    with pytest.raises(FileExistsError, match="is a checkpoint already"):
        from_hf("gs://bucket/model", "gs://bucket/ours")


def test_metrics_outlive_a_store_that_fails_for_a_while(store, caplog):
    log = MetricsLog("gs://bucket/runs/3", start=0, steps=2)
    store.forbidden.add("runs/3/metrics.jsonl")
    log.write(1, "train", {"loss": 0.5})
    log.share()
    assert "metrics could not be stored now" in caplog.text
    store.forbidden.clear()
    log.close()
    assert json.loads(store.objects["runs/3/metrics.jsonl"])["loss"] == 0.5


def test_rows_of_a_store_reach_other_processes(toy, store):
    rows = pickle.loads(pickle.dumps(RowFile("gs://bucket/data/train.jsonl")))
    local = RowFile(toy / "train.jsonl")
    assert [rows[i] for i in range(len(rows))] == [local[i] for i in range(len(local))]
    assert rows.sha256 == local.sha256


@pytest.mark.parametrize("workdir", ["s3://bucket/run", "gs:/bucket/run"])
def test_another_kind_of_store_is_refused_before_anything_is_made(toy, workdir):
    with pytest.raises(TrainingError, match=r"--workdir=.*gs://bucket/folder"):
        train(tiny.run_config(toy, **RUN), workdir)
