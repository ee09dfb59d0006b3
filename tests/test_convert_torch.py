"""What is exported works for PyTorch users as it is: transformers, pipelines, TRL, the README."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from tiny_models import random_params
from tiny_models import tiny as tiny_config

from toolrm_jax.bfcl import read_tasks
from toolrm_jax.compare import PROMPTS, rewards
from toolrm_jax.convert import from_hf, to_hf
from toolrm_jax.huggingface import load_params, save_directory, truncate
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Torch's threads spin while they wait: beside other work, two are three times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODELS = {
    "qwen2": {},
    "qwen3, tied": {"tied_embeddings": True},
    "llama": {"head_dim": 4},
}


@pytest.fixture(params=MODELS)
def exported(request, tmp_path, single_device):
    """A random model through both conversions: Hugging Face -> Orbax -> Hugging Face."""
    changes = {"vocab_size": len(tiny.tokenizer())} | MODELS[request.param]
    config = tiny_config(request.param.split(",")[0], **changes)
    save_directory(tmp_path / "hf", config, random_params(config), tiny.tokenizer())
    from_hf(str(tmp_path / "hf"), tmp_path / "ours")
    return to_hf(str(tmp_path / "ours"), tmp_path / "out").path


def texts_of(folder) -> list[str]:
    """The built-in prompts of `verify`, rendered whole."""
    renderer = Renderer(open_pretrained(str(folder)).tokenizer)
    return [
        renderer.text(row["tools"], row["messages"], response)
        for row in PROMPTS
        for response in row["responses"]
    ]


def their_rewards(folder, texts, dtype) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=dtype, output_loading_info=True
    )
    assert not any(report.values()), report
    inputs = [tokenizer(t, return_tensors="pt", add_special_tokens=False) for t in texts]
    with torch.no_grad():
        logits = [model.eval()(**one).logits for one in inputs]
    return torch.cat(logits)[:, 0].float().numpy()


def test_rewards_equal_transformers_in_float32(exported):
    theirs = their_rewards(exported, texts_of(exported), "float32")
    ours = rewards(open_pretrained(str(exported)))
    assert np.ptp(ours) > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_rewards_equal_transformers_on_bfloat16_weights(exported, tmp_path):
    """The same bf16 weights: in float32 to 1e-4, computed in bf16 to bf16's resolution.

    A number rounded to bf16 is off by at most 2**-9 of itself. Some 15 roundings follow each other
    in a layer, and 3 in the head; to first order they shift a reward, which is the sum of the D
    products of hidden state and head, by at most (15 L + 3) 2**-9 of the sum of their magnitudes.
    """
    half = to_hf(str(exported), tmp_path / "half", dtype="bfloat16").path
    texts, ours = texts_of(half), rewards(open_pretrained(str(half)))
    np.testing.assert_allclose(ours, their_rewards(half, texts, "float32"), atol=1e-4, rtol=0)
    bounds = bfloat16_bounds(half, texts)
    assert np.all(np.abs(ours - their_rewards(half, texts, "bfloat16")) <= bounds)


def bfloat16_bounds(folder, texts) -> np.ndarray:
    """(15 L + 3) 2**-9 sum |hidden * head|, by transformers in float32."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32").eval()
    bounds = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            last = model.model(**inputs).last_hidden_state[0, -1]
        bounds.append((last * model.score.weight[0]).abs().sum().item())
    return (15 * model.config.num_hidden_layers + 3) * 2**-9 * np.array(bounds)


def test_the_pipeline_returns_the_raw_reward_with_its_defaults(exported):
    from transformers import pipeline

    texts, ours = texts_of(exported), rewards(open_pretrained(str(exported)))
    results = pipeline("text-classification", model=str(exported))(texts)
    assert {result["label"] for result in results} == {"reward"}
    np.testing.assert_allclose([result["score"] for result in results], ours, atol=1e-4)


def python_block(text: str, heading: str) -> str:
    """The first Python block below a heading of a markdown text."""
    match = re.search(rf"^#+ {heading}$.*?```python\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert match, heading
    return match[1]


def test_the_cards_python_runs_as_it_stands(exported, monkeypatch):
    monkeypatch.chdir(exported)
    names: dict = {}
    exec(python_block((exported / "README.md").read_text(), "transformers"), names)
    model = open_pretrained(".")
    row = {key: names[key] for key in ("tools", "messages")} | {"responses": [names["answer"]]}
    assert names["reward"] == pytest.approx(rewards(model, [row])[0], abs=1e-4)


# TRL's own use of a field that transformers is renaming.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_trains_on_an_export_as_it_is(exported, tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is not installed (extra: test)")
    from datasets import Dataset

    renderer = Renderer(open_pretrained(str(exported)).tokenizer)
    pairs = [
        {side: renderer.text(row["tools"], row["messages"], row["responses"][i])}
        | {other: renderer.text(row["tools"], row["messages"], row["responses"][1])}
        for row in PROMPTS
        for i, side, other in ((0, "chosen", "rejected"),)
    ]
    config = trl.RewardConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        max_length=None,
        disable_tqdm=True,
    )
    trainer = trl.RewardTrainer(
        model=str(exported), args=config, train_dataset=Dataset.from_list(pairs)
    )
    assert trainer.model.config.num_labels == 1
    assert np.isfinite(trainer.train().training_loss)


# --- the README -----------------------------------------------------------------------------------


def test_the_readmes_snippet_scores_an_export_as_we_do(exported):
    ours = rewards(open_pretrained(str(exported)))
    assert np.ptp(ours) > 0.5
    np.testing.assert_allclose(ours, readme_rewards(exported, PROMPTS), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_readmes_snippet_scores_the_exported_smollm2_as_we_do(
    bfcl_dir, smollm2_path, tmp_path, single_device
):
    """The quickstart's model (SmolLM2, its first 10 layers) on 50 rendered pairs: the README's own
    lines, run as they stand."""
    from configs import quickstart

    layers = quickstart.get_config().model.num_layers
    pretrained = open_pretrained(str(smollm2_path))
    source = truncate(pretrained.source, layers)
    params = load_params(source, single_device, seed=0)
    folder = save_directory(tmp_path / "export", source.config, params, pretrained.tokenizer)
    del params
    rows = fifty_pairs(bfcl_dir)
    ours = rewards(open_pretrained(str(folder)), rows)
    theirs = readme_rewards(folder, rows)
    assert len(theirs) == 100
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    shutil.rmtree(folder)


def fifty_pairs(bfcl_dir) -> list[dict]:
    """50 BFCL tasks with the right call and the same call of another name."""
    tasks, _ = read_tasks(bfcl_dir, ["simple_python"])
    tasks = sorted(tasks, key=lambda task: len(json.dumps(task.tools)))[:50]
    return [
        {
            "tools": task.tools,
            "messages": task.messages,
            "responses": [task.gold, [call | {"name": call["name"] + "_v2"} for call in task.gold]],
        }
        for task in tasks
    ]


def readme_rewards(folder, rows) -> np.ndarray:
    """The README's snippet: its first lines once, its last two for every response."""
    snippet = python_block((tiny.ROOT / "README.md").read_text(), "Use the exported model.*?")
    assert "runs/quickstart/model/export" in snippet
    head, text, reward = re.fullmatch(
        r"(.*?)(text = .*?)(reward = .*)", snippet, re.DOTALL
    ).groups()
    names: dict = {}
    exec(head.replace("runs/quickstart/model/export", str(folder)), names)
    renderer = Renderer(open_pretrained(str(folder)).tokenizer)
    found = []
    for row in rows:
        for response in row["responses"]:
            given = renderer.conversation(row["tools"], row["messages"], response)
            *messages, answer = given["conversation"]
            names |= {"messages": messages, "answer": answer, "tools": given["tools"]}
            exec(text + reward, names)
            found.append(names["reward"])
    return np.array(found)


@pytest.mark.slow
def test_a_trained_export_of_the_quickstart_gives_equal_rewards(bfcl_dir, smollm2_path, tmp_path):
    """Two steps of the quickstart's own config, its export, and the checkpoint beside it."""
    from configs import quickstart
    from toolrm_jax.train import train

    config = quickstart.get_config()
    config.train.steps = 2
    config.data.heldout = str(short_rows(tmp_path, config))
    train(config, tmp_path / "run")
    rows = fifty_pairs(bfcl_dir)
    export = tmp_path / "run" / "export"
    ours = rewards(open_pretrained(str(tmp_path / "run")), rows)
    np.testing.assert_allclose(ours, readme_rewards(export, rows), atol=1e-4, rtol=0)


def short_rows(folder, config):
    """Eight held-out rows: the evaluation is not what is tested."""
    from toolrm_jax.bfcl_pairs import ensure_pairs

    files = ensure_pairs(
        folder / "run" / "pairs", seed=config.seed, wrong_per_task=config.data.wrong_per_task
    )
    short = folder / "heldout.jsonl"
    lines = files.heldout.read_text().splitlines()[:8]
    short.write_text("".join(f"{line}\n" for line in lines))
    return short
