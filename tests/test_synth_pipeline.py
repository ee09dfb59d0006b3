"""A whole synthesis: killed and resumed, broken rows, the data set and what reads it."""

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from fake_gcs import FakeGcs
from synth_files import config, contents, finished_run, row, write_rows

from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.loader import (
    ArrayRecordRows,
    Loader,
    LoaderError,
    RowTokenizer,
    build_index,
    open_row_file,
)
from toolrm_jax.rendering import Renderer
from toolrm_jax.row_source import open_rows
from toolrm_jax.synth.judging import MADE_TO_BE
from toolrm_jax.synth.output import dataset_rows
from toolrm_jax.synth.pipeline import Pipeline
from toolrm_jax.synth.selection_report import off_the_mix_lines
from toolrm_jax.synth.shards import read_shard
from toolrm_jax.synth.stage import StageError
from toolrm_jax.synth.synth_config import STAGES, SynthError


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.mktemp("synth"))


def test_a_run_makes_pairs_of_every_turn_type_with_one_right_side(made):
    rows = list(dataset_rows(made / "dataset"))
    assert {r["turn"] for r in rows} == {"single", "multi", "irrelevance"}
    card = json.loads((made / "dataset/card.json").read_text())
    assert card["pairs"] == sum(len(r["rejected"]) for r in rows)
    assert card["pairs_by"]["turn type"]["single"] <= 100
    hidden = [r for r in rows if r["tools"][0]["name"] not in ("find_restaurant",)]
    assert 0 < len(hidden) < len(rows)  # some are obfuscated


def test_the_card_shows_wanted_and_got_by_turn_type_and_error_type(made):
    card = json.loads((made / "dataset/card.json").read_text())
    shown = (made / "dataset/README.md").read_text()
    for turn, found in card["selection"]["turn_types"].items():
        for error, about in found["error_types"].items():
            wanted = "" if about["wanted"] is None else f"{about['wanted']:.1%}"
            got = about["after"]["pairs"] / found["pairs"]
            assert f"| {turn} | {error} | {wanted} | {got:.1%} | " in shown
    assert card["selection"]["turn_types"]["single"]["error_types"]["Parsing error"]["wanted"] > 0


def test_the_card_says_what_went_in_and_by_which_code(made, tmp_path):
    card = json.loads((made / "dataset/card.json").read_text())
    found, source = card["provenance"], made.parent / "rows.jsonl.gz"
    about = {"name": "made", "format": "normalised", "path": str(source)}
    assert found["sources"] == [about | {"digest": open_rows(str(source)).digest()}]
    assert (found["evaluation"], found["answers"]) == ([], [])
    assert found["code"] == {
        stage: json.loads((made / f"{n}-{stage}/summary.json").read_text())["code"]
        for n, stage in enumerate(STAGES[:-1], 1)
    }
    held = write_rows(tmp_path / "eval.jsonl.gz", [row(n) for n in range(3)])
    said = write_rows(tmp_path / "said.jsonl.gz", [])
    settings = config(source)
    settings.overlap.evaluation = ({"name": "held", "format": "normalised", "path": str(held)},)
    settings.answers.pool = ({"kind": "corruption"}, {"kind": "replay", "path": str(said)})
    Pipeline(settings, tmp_path / "run").run()
    found = json.loads((tmp_path / "run/dataset/card.json").read_text())["provenance"]
    digests = [open_rows(str(path)).digest() for path in (held, said)]
    assert [found["evaluation"][0]["digest"], found["answers"][0]["digest"]] == digests
    shown = (tmp_path / "run/dataset/README.md").read_text()
    assert f"| evaluation: held | normalised | {held} | {digests[0]} |" in shown
    assert f"| answers | replay | {said} | {digests[1]} |" in shown


def test_the_card_and_the_log_say_what_is_off_the_mix(made, tmp_path, capsys):
    mix = (("Parameter value error", 0.05), ("Incorrect number of function calls", 0.95))
    source = made.parent / "rows.jsonl.gz"
    Pipeline(config(source, **{"selection.mix": mix}), tmp_path / "run").run()
    card = json.loads((tmp_path / "run/dataset/card.json").read_text())
    (line,) = [line for line in off_the_mix_lines(card["selection"]) if line.startswith("single")]
    assert "Parameter value error 1" in line
    assert "(5.0% wanted)" in line
    assert f"pairs: off the mix by more than a tenth, {line}" in capsys.readouterr().out
    shown = (tmp_path / "run/dataset/README.md").read_text()
    assert f"**Off the mix by more than a tenth**, {line}" in shown
    assert "- irrelevance, Incorrect number of function calls: both sides call in 0 of " in shown


def test_the_loader_reads_the_array_records(made):
    rows = open_row_file(made / "dataset/array_record")
    assert isinstance(rows, ArrayRecordRows)
    assert [rows[i]["id"] for i in range(len(rows))] == [
        r["id"] for r in dataset_rows(made / "dataset")
    ]
    assert rows.sha256 == ArrayRecordRows(made / "dataset/array_record").sha256
    assert pickle.loads(pickle.dumps(rows))[3] == rows[3]  # as the loader's workers get it


def test_batches_are_made_of_array_records(made):
    rows = open_row_file(made / "dataset/array_record")
    tokenize = RowTokenizer(Renderer(tiny.tokenizer()))
    plan = PlanConfig((RowShape(8192, 16),), 8192)
    index = build_index(rows, tokenize, plan.shapes)
    assert index.usable.all()
    loader = Loader(rows, index, tokenize, plan)
    (batch,) = loader.batches(0, 1)
    answered, right = batch.answers > 0, batch.right
    assert (answered & right).sum() > 2  # prompts
    assert (answered & ~right).sum() > (answered & right).sum()  # K-way


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(LoaderError, match=r"has no file \*\.array_record"):
        open_row_file(tmp_path)


def test_datasets_loads_the_folder_as_it_is(made, tmp_path):
    import datasets

    found = datasets.load_dataset(
        str(made / "dataset"), split="train", cache_dir=str(tmp_path / "cache")
    )
    card = json.loads((made / "dataset/card.json").read_text())
    assert len(found) == card["pairs"]
    first = found[0]
    assert first["chosen"][:-1] == first["rejected"][:-1]
    assert first["chosen"][-1] != first["rejected"][-1]
    assert json.loads(first["tools"])[0]["type"] == "function"
    by = card["pairs_by"]
    assert set(found["rejected_model"]) == set(by["model"])
    assert set(found["rejected_license"]) == set(by["model's licence"])
    assert {model or "gold" for model in found["chosen_model"]} == set(by["right side by"])
    for model, license in zip(found["chosen_model"], found["chosen_license"], strict=True):
        assert (model is None) == (license is None)


def test_a_run_done_again_changes_nothing(made, tmp_path, capsys):
    before = contents(made)
    settings = made / "1-examples" / "settings.json"
    written = settings.stat().st_mtime_ns
    source = made.parent / "rows.jsonl.gz"
    Pipeline(config(source), made).run()
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(", ")[0] for line in said] == [f"{s}: complete already" for s in STAGES]
    assert contents(made) == before
    assert settings.stat().st_mtime_ns == written


def test_other_settings_redo_only_what_depends_on_them(made, tmp_path, capsys):
    source = made.parent / "rows.jsonl.gz"
    changed = {"output.form": "pairs", "output.folder": str(tmp_path / "pairs")}
    Pipeline(config(source, **changed), made).run()
    said = capsys.readouterr().out
    assert "judged: complete already" in said
    assert "pairs: complete already" not in said
    rows = list(dataset_rows(tmp_path / "pairs"))
    assert {len(r["rejected"]) for r in rows} == {1}
    assert len({r["id"] for r in rows}) == len(rows)
    Pipeline(config(source), made).run()  # as it was, for the other tests


def test_two_processes_make_the_same_bytes_as_one(made, tmp_path):
    source = made.parent / "rows.jsonl.gz"
    Pipeline(config(source, workers=2), tmp_path / "run").run()
    mine, theirs = contents(tmp_path / "run"), contents(made)
    for name in ("dataset/card.json", "dataset/README.md"):  # say with how many workers
        assert mine.pop(name) != theirs.pop(name)
    assert mine == theirs


RUN = """
import sys
from pathlib import Path
from synth_files import config
from toolrm_jax.synth.pipeline import Pipeline
Pipeline(config(Path(sys.argv[1])), sys.argv[2]).run()
"""


def test_a_run_that_is_killed_anywhere_ends_with_the_same_files(made, tmp_path):
    """SIGKILL after a random while, again and again until it is done."""
    source = made.parent / "rows.jsonl.gz"
    path = os.pathsep.join((str(tiny.ROOT), str(tiny.ROOT / "tests")))
    kills = 0
    for attempt in range(40):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(source), str(tmp_path / "run")],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )
        until = _next_stage(tmp_path / "run", attempt)
        while process.poll() is None and not until():
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    else:
        pytest.fail("the run never ended")
    assert kills >= 5
    assert contents(tmp_path / "run") == contents(made)


def test_sources_and_the_data_set_may_lie_in_a_bucket(made, tmp_path, toolrm_data, monkeypatch):
    monkeypatch.setenv("TOOLRM_CACHE_DIR", str(tmp_path / "cache"))
    source = made.parent / "rows.jsonl.gz"
    with FakeGcs() as store, store.reached():
        store.put("rows.jsonl.gz", source.read_bytes())
        store.put_folder(toolrm_data / "data/raw/sgd/dev", "sgd")
        settings = config(Path("rows"), **{"output.folder": "gs://bucket/sets/first"})
        settings.sources = (
            {"name": "made", "format": "normalised", "path": "gs://bucket/rows.jsonl.gz"},
            {"name": "sgd", "format": "sgd", "path": "gs://bucket/sgd"},
        )
        Pipeline(settings, tmp_path / "run").run()
        card = json.loads(store.objects["sets/first/card.json"])
        assert set(card["pairs_by"]["source"]) == {"made", "sgd"}
        stored = {name.removeprefix("sets/first/").split("/")[0] for name in store.objects}
        assert {"array_record", "parquet", "plots", "README.md", "rejects.jsonl.zst"} <= stored
        before = store.objects.copy()
        Pipeline(settings, tmp_path / "run").run()  # complete already
        assert store.objects == before


def _next_stage(run: Path, attempt: int):
    """Whether the next stage has begun, or (every other time) has a first unit."""
    stages = ("1-examples", "2-obfuscated", "3-answers", "4-judged", "5-pairs", "dataset.partial")
    if attempt >= 2 * len(stages):
        return lambda: False
    at = run / stages[attempt // 2]
    wanted = "settings.json" if attempt % 2 == 0 else "*0*.jsonl.zst"
    return lambda: (at.name == "dataset.partial" and at.exists()) or any(at.glob(wanted))


def broken_rows() -> list:
    """One of each way in which a row may be no example."""
    looped = row(0)
    looped["tools"][0]["parameters"]["properties"]["city"] = {"$ref": "#"}
    looped["gold_calls"] = []
    unknown = row(0)
    unknown["tools"][0]["parameters"]["properties"]["city"]["type"] = "strnig"
    absent = row(0) | {"gold_calls": [{"name": "no_such_tool", "arguments": {}}]}
    unnamed = row(0)
    unnamed["tools"][1]["name"] = 7
    circle = row(0)
    circle["tools"][0]["parameters"] |= {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "properties": {"city": {"$ref": "#/$defs/a"}},
    }
    large = row(0)
    large["gold_calls"][0]["arguments"]["dish"] = "x" * (1 << 20)
    return [
        '{"id": "cut',
        b'{"id": "\xff\xfe"}',
        "[1, 2]",
        {"id": "no fields"},
        looped,
        unknown,
        absent,
        unnamed,
        circle,
        large,
    ]


def test_broken_rows_end_in_the_rejects_with_reason_and_line(tmp_path):
    broken = broken_rows()
    sound = [row(n) for n in range(30)]
    source = write_rows(tmp_path / "rows.jsonl.gz", [*broken, *sound])
    Pipeline(config(source, most_rejects=0.5), tmp_path / "run").run(("examples",))
    rejects = list(read_shard(tmp_path / "run/rejects-examples.jsonl.zst"))
    lines = [int(reject["at"].rpartition("line ")[2]) for reject in rejects]
    assert all(reject["reason"] and str(source) in reject["at"] for reject in rejects)
    assert set(range(1, len(broken) + 1)) - set(lines) <= {5}  # a schema may refer to itself
    assert {line for line in lines if line > len(broken)} == set()
    Pipeline(config(source, most_rejects=0.5), tmp_path / "run").run()
    listed = list(read_shard(tmp_path / "run/dataset/rejects.jsonl.zst"))
    assert [r for r in listed if r.get("at")] == rejects


def test_too_many_rejects_fail_at_the_end_and_keep_what_is_sound(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [*broken_rows(), *map(row, range(10))])
    pipeline = Pipeline(config(source, most_rejects=0.2), tmp_path / "run")
    with pytest.raises(StageError, match=r"9 of 20 that were read.*at most 20\.0%"):
        pipeline.run()
    assert (tmp_path / "run/1-examples/summary.json").exists()
    with pytest.raises(StageError, match=r"9 of 20 that were read"):  # nor does the next take it
        Pipeline(config(source, most_rejects=0.2), tmp_path / "run").run(("obfuscated",))
    Pipeline(config(source, most_rejects=0.5), tmp_path / "run").run(("examples",))


def test_a_source_read_in_the_wrong_format_is_told_with_a_row_and_what_it_lacks(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(20)])
    settings = config(source)
    settings.sources = ({"name": "made", "format": "xlam", "path": str(source)},)
    said = rf"20 x not in the source's form\. For example {source}, line 1: not in .* \(.*query"
    with pytest.raises(StageError, match=said):
        Pipeline(settings, tmp_path / "run").run()
    fine = {"name": "fine", "format": "normalised", "path": str(source)}
    settings.sources = (*settings.sources, fine)
    settings.most_rejects = 0.9
    with pytest.raises(SynthError, match=rf"'made' has no example.*For example {source}, line 1: "):
        Pipeline(settings, tmp_path / "other").run()


def test_what_an_evaluation_set_holds_is_left_out_and_listed(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(60)])
    held = write_rows(tmp_path / "eval.jsonl.gz", [row(n) for n in range(30)])
    evaluation = ({"name": "held", "format": "normalised", "path": str(held)},)
    settings = config(source, **{"overlap.evaluation": evaluation})
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
    left = {r["id"] for r in read_shard(tmp_path / "run/rejects-obfuscated.jsonl.zst")}
    assert {f"made/{n}" for n in range(30)} <= left
    kept = {
        r["id"]
        for s in (tmp_path / "run/2-obfuscated").glob("00-made-0000?.jsonl.zst")
        for r in read_shard(s)
    }
    assert left | kept == {f"made/{n}" for n in range(60)}


def test_a_row_of_an_evaluation_set_that_is_no_sound_example_is_kept_out_all_the_same(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(n) for n in range(6)])
    several = row(0) | {"meta": {"gold_alternatives": [1, 2]}}
    misfit = row(1) | {"gold_calls": [{"name": "book_table", "arguments": {"city": 3}}]}
    held = write_rows(tmp_path / "eval.jsonl.gz", [row(5), several, misfit, "no JSON"])
    turns = [*row(2)["conversation"], {"role": "assistant", "content": "Where?"}]
    chats = [{"messages": turns, "tools": tools} for tools in ("3", "[3]")]
    chatted = write_rows(tmp_path / "chats.jsonl.gz", chats)
    evaluation = (
        {"name": "held", "format": "normalised", "path": str(held)},
        {
            "name": "chatted",
            "format": "openai",
            "path": str(chatted),
            "options": {"license": "MIT"},
        },
    )
    settings = config(source, **{"overlap.evaluation": evaluation})
    Pipeline(settings, tmp_path / "run").run(("examples", "obfuscated"))
    left = {r["id"] for r in read_shard(tmp_path / "run/rejects-obfuscated.jsonl.zst")}
    assert left == {"made/0", "made/1", "made/2", "made/5"}
    summary = json.loads((tmp_path / "run/2-obfuscated/summary.json").read_text())
    assert summary["counts"]["rows that could not be compared: of held"] == 1


def test_a_stage_whose_input_is_missing_says_which_to_run_first(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl.gz", [row(0)])
    with pytest.raises(SynthError, match="Stage 'examples' is not complete"):
        Pipeline(config(source), tmp_path / "run").run(("obfuscated",))
    with pytest.raises(SynthError, match="no stage 'exmaples'"):
        Pipeline(config(source), tmp_path / "run").run(("exmaples",))


def test_calls_in_the_parquet_are_what_qwens_template_makes_of_tool_calls(qwen_tokenizer, made):
    from toolrm_jax.synth.output import preference_rows

    for name in ("qwen2.5", "qwen3"):
        tokenizer = qwen_tokenizer(name)
        for found in list(dataset_rows(made / "dataset"))[:20]:
            if not isinstance(found["chosen"], list) or not found["chosen"]:
                continue
            calls = [{"type": "function", "function": c} for c in found["chosen"]]
            turn = {"role": "assistant", "content": "", "tool_calls": calls}
            question = [m for m in found["messages"] if m["role"] == "user"][-1:]
            pair = next(preference_rows(found | {"messages": question}))
            there = tokenizer.apply_chat_template(pair["chosen"], tokenize=False)
            here = tokenizer.apply_chat_template([*question, turn], tokenize=False)
            assert there == here


@pytest.mark.torch
@pytest.mark.slow
def test_trl_trains_on_the_folder_as_it_is(made, tmp_path):
    import datasets
    from transformers import Qwen2Config, Qwen2ForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "<|endoftext|>"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = Qwen2ForSequenceClassification(
        Qwen2Config(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            num_key_value_heads=2,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
    )
    data = datasets.load_dataset(
        str(made / "dataset"), split="train", cache_dir=str(tmp_path / "cache")
    )
    arguments = RewardConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=2,
        per_device_train_batch_size=2,
        max_length=None,
        report_to=[],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
    )
    trainer = RewardTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=tokenizer
    )
    assert trainer.train().global_step == 2
    text = tokenizer.decode(trainer.train_dataset[0]["chosen_ids"])
    assert json.loads(data[0]["tools"])[0]["function"]["name"] in text


@pytest.mark.slow
def test_real_examples_with_corruptions_and_replay_give_100_000_pairs(toolrm_data, tmp_path):
    """Minutes on 2 cores; the figures are in docs/synth.md."""
    found = importlib.import_module("configs.synth.local").get_config(str(toolrm_data / "data"))
    Pipeline(found, tmp_path / "run").run()
    card = json.loads((tmp_path / "run/dataset/card.json").read_text())
    assert card["pairs"] >= 100_000
    assert len(card["pairs_by"]["model"]) > 5
    counts = card["stages"]["judged"]["counts"]
    for kind in MADE_TO_BE:
        kept, lost = (counts.get(f"corruptions {w}: {kind}", 0) for w in ("kept", "discarded"))
        assert lost <= 0.05 * (kept + lost), kind
    exempt = found.selection.any_length  # shorter by nature, and held to their share of the mix
    mix = dict(found.selection.mix)
    for turn in ("single", "multi"):
        there_are = card["selection"]["turn_types"][turn]
        for error, about in there_are["error_types"].items():
            pairs, both = about["after"]["pairs"], about["after"]["both_call"]
            if error in exempt:
                assert pairs <= mix[error] / sum(mix.values()) * there_are["pairs"]
                continue
            # A side that calls nothing is the shorter one: that can be balanced over turn types.
            # What a model says that does not parse may, seldom, have no sign of a call, too.
            least = 0.99 * pairs if error == "Parsing error" else pairs
            assert both["pairs"] >= least or error == "Incorrect number of function calls"
            assert both["pairs"] > 100
            assert both["right_longer"] == pytest.approx(0.5, abs=0.02), (turn, error)
            assert both["told_by_length"] <= 0.53, (turn, error)
    (about,) = card["selection"]["turn_types"]["irrelevance"]["error_types"].values()
    assert about["after"]["both_call"]["pairs"] == 0
    about = card["selection"]["error_types"]["Incorrect number of function calls"]
    assert about["after"]["right_longer"] == pytest.approx(0.5, abs=0.02)
