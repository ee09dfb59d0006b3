"""Whole training runs of a tiny model: what they leave behind, interruption, refusal, variants."""

import contextlib
import copy
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from toolrm_jax import pair_scores, run_inputs
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.checkpoint import Checkpoints
from toolrm_jax.default_config import default_config
from toolrm_jax.huggingface import load_params
from toolrm_jax.loader import Loader, RowFile, RowTokenizer, build_index
from toolrm_jax.model import Compute, Forward
from toolrm_jax.optimizer import OptimizerConfig, make_optimizer
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh
from toolrm_jax.splits import request_key
from toolrm_jax.train import train
from toolrm_jax.train_config import TrainingError, refuse_other_run
from toolrm_jax.train_step import TrainState, new_state

# Of the tiny model: norms, attention and MLP of a layer; embedding, last norm and reward head.
PER_LAYER = 2 * 32 + 32 * (2 * 32 + 2 * 16) + 3 * 32 * 64
PARAMETERS = len(tiny.tokenizer()) * 32 + 2 * PER_LAYER + 2 * 32
STEPS, EVAL_EVERY, CHECKPOINT_EVERY, KILLED_AT = 24, 10, 7, 17
RUN = {
    "train.steps": STEPS,
    "train.eval_every": EVAL_EVERY,
    "train.eval_rows": 4,
    "train.checkpoint_every": CHECKPOINT_EVERY,
}

KILLED = f"""
import os, signal
from toolrm_jax import metrics_log, train
write = metrics_log.MetricsLog.write
def write_and_die(self, step, split, values):
    write(self, step, split, values)
    if step == {KILLED_AT}:
        os.kill(os.getpid(), signal.SIGKILL)
metrics_log.MetricsLog.write = write_and_die
train.run()
"""


@pytest.fixture(scope="module")
def finished(toy):
    """(workdir, report, console) of a run to the end."""
    console = io.StringIO()
    with contextlib.redirect_stderr(console):
        report = train(tiny.run_config(toy, **RUN), toy / "finished")
    return toy / "finished", report, console.getvalue()


@pytest.fixture(scope="module")
def resumed(toy):
    """The workdir of the same run, killed on its way and started again by the same command."""
    workdir = toy / "resumed"
    killed = tiny.start(tiny.command(toy, workdir, **RUN), devices=8, program=KILLED)
    output, _ = killed.communicate(timeout=300)
    assert killed.returncode == -9, output
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "split": "tr')  # as a kill in mid-write would leave it
    # With a worker process this time: it must give the same batches.
    again = tiny.start(tiny.command(toy, workdir, **RUN, **{"data.workers": 1}), devices=8)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    # The last checkpoint was being written when the kill came; it may not have got complete. The
    # one before is of the evaluation, if that was the best so far.
    saved = f"{CHECKPOINT_EVERY}|{EVAL_EVERY}|{2 * CHECKPOINT_EVERY}"
    assert re.search(f"continuing at step ({saved}) from", output)
    return workdir


def last_state(workdir) -> TrainState:
    """What the newest checkpoint holds."""
    source = open_pretrained(str(workdir / "export")).source
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, steps=1))
        like = new_state(load_params(source, mesh), optimizer)
        with contextlib.closing(Checkpoints(workdir)) as checkpoints:
            return checkpoints.restore(like)[0]


def lines_without_rates(workdir) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in tiny.RATES}
        for line in lines
        if line["split"] != "start-up"  # its own for each part of a run
    ]


# --- To the end -----------------------------------------------------------------------------------


def test_a_toy_is_learned(finished):
    _, report, _ = finished
    losses = [line["loss"] for line in tiny.metrics(finished[0])]
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < 0.8 * losses[0]  # which no update came before
    assert report.by_error_type["Missing required parameter"].mean > 0.9


def test_metrics_are_logged_each_step_and_each_evaluation(finished):
    workdir, report, _ = finished
    trained, heldout = tiny.metrics(workdir), tiny.metrics(workdir, "heldout")
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert [line["step"] for line in heldout] == [EVAL_EVERY, 2 * EVAL_EVERY, STEPS]
    needed = {
        "loss",
        "accuracy",
        "margin",
        "reward_mean",
        "reward_std",
        "gradient_norm",
        *tiny.RATES,
    }
    needed |= {"padding_share"}
    assert all(needed <= line.keys() for line in trained)
    assert heldout[-1]["loss"] == report.loss
    assert heldout[-1]["accuracy/Parameter value error"] == (
        report.by_error_type["Parameter value error"].mean
    )
    # Prompts of an epoch, three pairs each.
    per_epoch = len([line for line in trained if line["step"] <= 3])
    assert sum(line["prompts"] for line in trained[:per_epoch]) == 40
    assert sum(line["pairs"] for line in trained[:per_epoch]) == 120


def test_tensorboard_shows_the_same_numbers(finished):
    workdir, _, _ = finished
    shown = tiny.board(workdir)
    for line in tiny.metrics(workdir):
        for name in ("loss", "padding_share", "reward_std", *tiny.RATES):
            assert shown[f"train/{name}", line["step"]] == pytest.approx(line[name])
    for line in tiny.metrics(workdir, "heldout"):
        assert shown["heldout/accuracy", line["step"]] == pytest.approx(line["accuracy"])
        tag = "heldout/accuracy/Parameter_value_error"
        assert (tag, line["step"]) in shown


def test_the_console_says_what_is_trained_and_on_how_much(finished):
    _, report, console = finished
    lines = console.splitlines()
    progress = [line for line in lines if line.startswith(f"step {STEPS}/{STEPS}")]
    assert len(progress) == 1
    words = ("loss", "accuracy", "margin", "reward", "|g|", "pairs/s", "tok/s", "GFLOP/s")
    words += ("padding", "input wait", "memory", "ETA 0:00")
    assert all(word in progress[0] for word in words)
    # 24 steps are eight epochs of 40 prompts with three pairs each.
    assert any(
        line.startswith(f"2 layers, {PARAMETERS:,} parameters, 960 pairs seen") for line in lines
    )
    assert str(report.accuracy) in console


def test_the_summary_is_what_was_found(finished):
    workdir, report, _ = finished
    summary = json.loads((workdir / "evaluation.json").read_text())
    assert summary["heldout"] == report.to_json()
    assert (summary["layers"], summary["parameters"]) == (2, PARAMETERS)
    assert (summary["steps"], summary["prompts_seen"], summary["pairs_seen"]) == (24, 320, 960)
    scores = pair_scores.read_scores(workdir / "heldout_scores.jsonl")
    assert pair_scores.report(scores, eta=0.01).accuracy == report.accuracy
    assert len(scores.tasks) == 36


def test_the_export_remembers_its_run_and_its_split(finished, toy):
    workdir, _, _ = finished
    about = json.loads((workdir / "export" / "toolrm.json").read_text())
    train_ids, heldout_ids = set(about["train_tasks"]), set(about["heldout_tasks"])
    assert train_ids == {f"train/{n}" for n in range(40)}
    assert heldout_ids == {f"heldout/{n}" for n in range(12)}
    assert not train_ids & heldout_ids
    rows = map(json.loads, (toy / "train.jsonl").read_text().splitlines())
    asked = [request_key(row["messages"]) for row in rows]
    assert about["train_requests"] == sorted(set(asked) - {""})
    assert about["config"]["optimizer"]["learning_rate"] == 3e-3
    assert about["step"] == STEPS


def test_the_export_gives_the_rewards_of_the_run(finished, toy, single_device):
    workdir, _, _ = finished
    pretrained = open_pretrained(str(workdir / "export"))
    params = load_params(pretrained.source, single_device)
    trained = last_state(workdir).params
    assert jax.tree.all(jax.tree.map(np.array_equal, params, trained))

    rows = RowFile(toy / "heldout.jsonl")
    tokenize = RowTokenizer(Renderer(pretrained.tokenizer))
    plan = PlanConfig((RowShape(384, 16),), 8 * 384)
    index = build_index(rows, tokenize, plan.shapes)
    loader = Loader(rows, index, tokenize, plan, shuffle=False)
    forward = pair_scores.make_reward_function(
        Forward(pretrained.source.config, Compute("float32"))
    )
    scores = pair_scores.score(forward, params, loader, single_device)
    recorded = pair_scores.read_scores(workdir / "heldout_scores.jsonl")
    assert scores.tasks == recorded.tasks
    np.testing.assert_allclose(scores.right, recorded.right, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.wrong, recorded.wrong, rtol=1e-5, atol=1e-5)


# --- Interrupted ----------------------------------------------------------------------------------


def test_a_killed_run_ends_bit_equal_to_an_uninterrupted_one(finished, resumed):
    whole, parts = last_state(finished[0]), last_state(resumed)
    assert int(parts.step) == STEPS
    assert len(jax.tree.leaves(parts.opt_state)) > 2 * len(jax.tree.leaves(parts.params))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.array_equal(a, b)


def test_a_killed_run_leaves_the_same_metrics_scores_and_export(finished, resumed):
    assert lines_without_rates(resumed) == lines_without_rates(finished[0])
    for name in ("heldout_scores.jsonl", "export/model.safetensors", "export/config.json"):
        assert (resumed / name).read_bytes() == (finished[0] / name).read_bytes()
    mine, theirs = (
        json.loads((workdir / "evaluation.json").read_text()) for workdir in (resumed, finished[0])
    )
    assert mine["config"]["data"].pop("workers") == 1
    assert theirs["config"]["data"].pop("workers") == 0
    assert mine == theirs


def test_a_finished_run_started_again_evaluates_and_changes_nothing(toy, finished):
    workdir = toy / "twice"
    shutil.copytree(finished[0], workdir)
    checkpoints = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    # What training does not depend on may change.
    changes = RUN | {"train.log_every": 5, "train.checkpoint_every": 2, "train.eval_every": 0}
    report = train(tiny.run_config(toy, **changes), workdir)
    assert report == finished[1]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == checkpoints
    assert lines_without_rates(workdir) == lines_without_rates(finished[0])
    weights = "export/model.safetensors"
    assert (workdir / weights).read_bytes() == (finished[0] / weights).read_bytes()


def test_a_run_is_not_continued_under_another_config(toy, finished):
    changes = {"optimizer.learning_rate": 1e-3, "loss.eta": 0.5, "train.log_every": 3}
    with pytest.raises(TrainingError) as error:
        train(tiny.run_config(toy, **RUN | changes), finished[0])
    message = str(error.value)
    assert "loss.eta: 0.01 -> 0.5; optimizer.learning_rate: 0.003 -> 0.001" in message
    assert "log_every" not in message
    assert "another --workdir" in message


# Whatever is not named here changes what training computes.
MAY_CHANGE = {
    "model.remat",
    "model.attention",
    "train.log_every",
    "train.eval_every",
    "train.eval_rows",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.checksums",
    "train.hang_minutes",
    "train.patient_minutes",
    "train.lost_seconds",
    "train.export",
    "train.compilation_cache",
    "profile_steps",
    "data.workers",
    "data.train",
    "data.heldout",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
    "mesh.tensor",
}


@pytest.mark.parametrize("part", ["", "model", "mesh", "data", "loss", "optimizer", "train"])
def test_each_field_may_change_between_parts_of_a_run_or_is_refused_by_name(tmp_path, part):
    saved = {"config": default_config().to_dict(), "rows": {}, "model": {}, "data": {}}
    fields = saved["config"][part] if part else {"seed": 0}
    for name in fields:
        field = f"{part}.{name}" if part else name
        config = copy.deepcopy(saved["config"])
        (config[part] if part else config)[name] = "other"
        if field in MAY_CHANGE:
            refuse_other_run(saved, saved | {"config": config}, tmp_path)
        else:
            with pytest.raises(TrainingError, match=rf"\({re.escape(field)}: .* -> 'other'\)"):
                refuse_other_run(saved, saved | {"config": config}, tmp_path)


def test_a_run_is_not_continued_on_other_rows(toy, finished):
    path = toy / "train.jsonl"
    before = path.read_text()
    rows = tiny.rows("train", 40)
    rows[5]["messages"][0]["content"] += " Now."
    try:
        tiny.write_lines(path, rows)
        with pytest.raises(TrainingError, match=r"data\.train: other rows, or tokens, than before"):
            train(tiny.run_config(toy, **RUN), finished[0])
    finally:
        path.write_text(before)


def test_a_mesh_that_would_change_the_batches_is_refused(tmp_path):
    same = {"config": {"mesh": {"fsdp": 4}}, "model": {}, "data": {}}
    refuse_other_run(same | {"rows": {"384": 8}}, same | {"rows": {"384": 8}}, tmp_path)
    other = same | {"config": {"mesh": {"fsdp": 8}}, "rows": {"384": 16}}
    with pytest.raises(TrainingError, match="mesh: micro-batches of 8 rows of 384 tokens -> 16"):
        refuse_other_run(same | {"rows": {"384": 8}}, other, tmp_path)


# --- Not finite -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_step(toy, tmp_path):
    """One character has an embedding of inf, and one row, read in the third step, has it."""
    model = tiny.write_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    *_, umbrella = tiny.tokenizer()("☂")["input_ids"]
    *_, snow = tiny.tokenizer()("☃")["input_ids"]
    assert snow != umbrella
    tensors["model.embed_tokens.weight"][snow] = np.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    changes = {
        "model.source": str(model),
        "data.train": str(tmp_path / "train.jsonl"),
        "train.steps": STEPS,  # as in the runs above, so that nothing is compiled anew
        "train.log_every": 5,
        "train.checkpoint_every": 2,
    }
    rows = tiny.rows("train", 40)
    for row in rows:
        row["messages"][0]["content"] += "☂"
    tiny.write_lines(tmp_path / "train.jsonl", rows)
    third = rows_of_step(tmp_path / "train.jsonl", 2)
    rows[third[0]]["messages"][0]["content"] = rows[third[0]]["messages"][0]["content"][:-1] + "☃"
    tiny.write_lines(tmp_path / "train.jsonl", rows)
    with pytest.raises(TrainingError, match=r"Step 3: loss nan.*not finite.*learning_rate"):
        train(tiny.run_config(toy, **changes), tmp_path / "run")

    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [2]
    with contextlib.closing(Checkpoints(tmp_path / "run")) as checkpoints:
        assert checkpoints.latest() == 2
        assert checkpoints.meta()["loader"] == {"next_step": 2}
    assert not (tmp_path / "run" / "evaluation.json").exists()


def rows_of_step(path, step: int) -> list[int]:
    """The rows that a run on eight devices reads in a step, without the run."""
    rows, tokenize = RowFile(path), RowTokenizer(Renderer(tiny.tokenizer()))
    plan = PlanConfig((RowShape(384, 16),), 8 * 384, row_multiple=8)
    index = build_index(rows, tokenize, plan.shapes)
    return Loader(rows, index, tokenize, plan).locate(step).examples()


def test_too_little_room_for_the_export_is_said_before_the_first_step(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(run_inputs, "free_bytes", lambda path: (1000, path.parent))
    console = io.StringIO()
    with contextlib.redirect_stderr(console):
        train(tiny.run_config(toy, **{"train.steps": 1}), tmp_path / "run")
    note, step = (console.getvalue().find(word) for word in ("note: the export will", "step 1/1"))
    assert 0 < note < step
    assert f"0.0 GB are free in {tmp_path / 'run'}" in console.getvalue()


# --- Variants -------------------------------------------------------------------------------------


@pytest.mark.slow  # test_train_step has it for the step alone
def test_accumulated_micro_batches_train_as_one_large_batch(toy):
    shared = {"train.steps": 3, "train.export": False, "train.checkpoint_every": 3}
    large = {"data.batch_tokens": 16 * 384}
    train(tiny.run_config(toy, **shared, **large), toy / "large")
    train(tiny.run_config(toy, **shared, **{"data.micro_batches": 2}), toy / "accumulated")
    lines = [tiny.metrics(toy / name) for name in ("large", "accumulated")]
    assert [line["prompts"] for line in lines[0]] != [lines[0][0]["prompts"]] * 3  # uneven steps
    for one, other in zip(*lines, strict=True):
        for name in ("prompts", "loss", "gradient_norm", "accuracy", "reward_mean"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-5)
    assert not (toy / "large" / "export").exists()


def test_margins_and_first_layers_alone(toy, tmp_path):
    """A margin of 50 on every pair makes the first loss 50 minus the mean gap of rewards."""
    rows = tiny.rows("train", 40)
    for row in rows:
        for wrong in row["rejected"]:
            wrong["margin"] = 50
    path = tiny.write_lines(tmp_path / "train.jsonl", rows)
    changes = {"data.train": str(path), "loss.eta": 0.0, "train.steps": 1, "model.num_layers": 1}
    train(tiny.run_config(toy, **changes), tmp_path / "run")

    (line,) = tiny.metrics(tmp_path / "run")
    assert line["loss"] == pytest.approx(50 - line["margin"], abs=1e-4)
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert summary["layers"] == 1
    assert summary["parameters"] == PARAMETERS - PER_LAYER
    assert summary["pairs_seen"] == line["pairs"]
    exported = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert exported["num_hidden_layers"] == 1


def test_a_trace_of_the_steps_asked_for(toy, tmp_path):
    # All steps of the runs above, so that nothing is compiled anew.
    shared = {"train.steps": STEPS, "train.export": False, "train.checkpoint_every": STEPS}
    train(tiny.run_config(toy, **shared, profile_steps=(1, 1)), tmp_path / "run")
    (trace,) = (tmp_path / "run" / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert b"step_num" in trace.read_bytes()
