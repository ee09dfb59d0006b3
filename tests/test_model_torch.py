"""Rewards equal transformers': every family, every layer, read and written; the real SmolLM2."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_models import (
    F32,
    alone,
    batch_of,
    forward,
    on_mesh,
    random_params,
    random_prompt,
    rewards_in_order,
    tiny,
    tiny_tokenizer,
)

from toolrm_jax.batch import TokenizedPrompt
from toolrm_jax.bfcl import read_tasks
from toolrm_jax.huggingface import (
    fresh_head,
    load_params,
    open_directory,
    save_directory,
    to_hf_tensors,
)
from toolrm_jax.model import RewardModel, rms_norm
from toolrm_jax.pretrained import open_pretrained
from toolrm_jax.rendering import Renderer

pytestmark = pytest.mark.torch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 96,
    "num_labels": 1,
    # With transformers' 0.02 attention would be all but uniform, and a wrong one pass.
    "initializer_range": 0.15,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "qwen2": ("Qwen2", {}),
    "qwen2, yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3, wide heads": ("Qwen3", {"head_dim": 12}),
    "qwen3, one key head": ("Qwen3", {"head_dim": 8, "num_key_value_heads": 1}),
    "llama": ("Llama", {}),
    "llama, llama3": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 6}),
    "llama, no groups": ("Llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Torch's threads spin while they wait: beside other work, two are three times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [random_prompt(rng, 30, 5, 1, 9), random_prompt(rng, 12, 4), random_prompt(rng, 3, 8, 8)]


def build(name: str, kind: str = "ForSequenceClassification"):
    """A random transformers model in which no weight is at a neutral value."""
    import torch
    import transformers

    family, changes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def sequences(prompts) -> list[np.ndarray]:
    """prompt + response of every response, in order."""
    return [np.concatenate([p.prompt, response]) for p in prompts for response in p.responses]


def their_rewards(model, tokens: list[np.ndarray]) -> np.ndarray:
    """Each sequence alone, without padding."""
    import torch

    with torch.no_grad():
        logits = [model(torch.from_numpy(x)[None]).logits for x in tokens]
    return torch.cat(logits)[:, 0].numpy()


def our_rewards(config, params, prompts, mesh, tokens: int = 96) -> np.ndarray:
    batch = batch_of([prompts, []], tokens, 8)
    return rewards_in_order(forward(config)(params, on_mesh(batch, mesh)), batch)


@pytest.mark.parametrize("name", MODELS)
def test_rewards_equal_transformers(name, prompts, tmp_path, single_device):
    model = build(name)
    model.save_pretrained(tmp_path)
    source = open_directory(tmp_path)
    params = load_params(source, single_device)
    theirs = their_rewards(model, sequences(prompts))
    assert np.ptp(theirs) > 0.5
    ours = our_rewards(source.config, params, prompts, single_device)
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["qwen2, yarn", "qwen3, wide heads", "llama, llama3"])
def test_every_layer_equals_transformers(name, prompts, tmp_path, single_device):
    import torch

    model = build(name)
    model.save_pretrained(tmp_path)
    source = open_directory(tmp_path)
    params = load_params(source, single_device)
    (whole,) = alone(TokenizedPrompt(prompts[0].prompt, prompts[0].responses[:1]))
    batch = on_mesh(batch_of([[whole]], whole.tokens, 1), single_device)
    tokens = sequences([whole])[0]
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens)[None], output_hidden_states=True).hidden_states
    for layers in (1, 2, 3):
        ours = first_layers(source.config, params, layers)(batch)
        if layers == 3:  # transformers' last state is behind the final norm
            ours = rms_norm(ours, params["final_norm"], source.config.norm_eps)
        np.testing.assert_allclose(ours, theirs[layers].numpy(), atol=1e-5, rtol=1e-5)


def first_layers(config, params, layers: int):
    """The model cut to its first layers, as a function from batch to hidden states."""
    cut = dataclasses.replace(config, num_layers=layers)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: RewardModel(cut, nnx.Rngs(0), F32)))
    blocks = {name: x[:layers] for name, x in params["blocks"].items()}
    return jax.jit(nnx.merge(graphdef, params | {"blocks": blocks}).hidden_states)


@pytest.mark.parametrize("name", ["qwen2", "qwen2, tied"])
def test_a_causal_model_gives_its_decoder_and_a_fresh_head(name, prompts, tmp_path, single_device):
    causal = build(name, "ForCausalLM")
    causal.save_pretrained(tmp_path)
    source = open_directory(tmp_path)
    params = load_params(source, single_device, seed=5)
    np.testing.assert_array_equal(params["head"], fresh_head(source.config, 5))
    tensors = dict(to_hf_tensors(source.config, params))
    weights = causal.state_dict()
    for tensor_name in set(tensors) - {"score.weight"}:
        np.testing.assert_array_equal(tensors[tensor_name], weights[tensor_name].numpy())


def test_an_export_loads_in_transformers_bit_for_bit(prompts, tmp_path, single_device):
    from transformers import AutoModelForSequenceClassification

    config = tiny("qwen2", vocab_size=97)
    params = random_params(config)
    folder = save_directory(tmp_path / "out", config, params, tiny_tokenizer())
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    assert model.config.num_labels == 1
    weights, tensors = model.state_dict(), dict(to_hf_tensors(config, params))
    assert set(weights) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(weights[name].numpy(), tensor, err_msg=name)
    small = [TokenizedPrompt(p.prompt % 64, [r % 64 for r in p.responses]) for p in prompts]
    np.testing.assert_allclose(
        our_rewards(config, params, small, single_device),
        their_rewards(model.eval(), sequences(small)),
        atol=1e-4,
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_model_survives_our_reading_and_writing(name, tmp_path, single_device):
    """Theirs, read by us, written by us, read by them: the same weights, the same rewards."""
    from transformers import AutoModelForSequenceClassification

    model = build(name)
    model.save_pretrained(tmp_path / "theirs")
    source = open_directory(tmp_path / "theirs")
    params = load_params(source, single_device)
    folder = save_directory(tmp_path / "ours", source.config, params, tiny_tokenizer())
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    before, after = model.state_dict(), again.state_dict()
    assert set(before) == set(after)
    assert all(bool((before[name] == after[name]).all()) for name in before)
    tokens = sequences([random_prompt(np.random.default_rng(1), 20, 5)])
    # Not bit for bit: torch's products differ in the last bit with where a tensor is in memory.
    np.testing.assert_allclose(
        their_rewards(again.eval(), tokens), their_rewards(model, tokens), atol=1e-6
    )


def test_pipelines_and_padded_batches_return_the_raw_reward(tmp_path, single_device):
    """Pad is eos, as in SmolLM2, and eos stands within the texts; the last token is a newline."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    config = tiny("llama", vocab_size=97, head_dim=4)
    params = random_params(config)
    folder = save_directory(tmp_path / "out", config, params, tiny_tokenizer())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    user = {"role": "user", "content": "Rain?"}
    answers = [[{"role": "assistant", "content": text}] for text in ("No.", "Yes, in Oslo.", "")]
    texts = [tokenizer.apply_chat_template([user, *a], tokenize=False) for a in answers]
    assert all(text.endswith("</s>\n") for text in texts)
    ids = [np.array(tokenizer(text)["input_ids"]) for text in texts]
    whole = [TokenizedPrompt(x[:-1], [x[-1:]]) for x in ids]
    ours = our_rewards(config, params, whole, single_device, tokens=192)
    assert np.abs(ours).max() > 1  # a sigmoid would show

    classify = pipeline("text-classification", model=str(folder))
    results = classify(texts)
    assert [result["label"] for result in results] == ["reward"] * 3
    np.testing.assert_allclose([result["score"] for result in results], ours, atol=1e-4)

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    padded = tokenizer(texts, padding=True, return_tensors="pt", padding_side="right")
    with torch.no_grad():
        np.testing.assert_allclose(model(**padded).logits[:, 0].numpy(), ours, atol=1e-4)


def test_shards_that_transformers_wrote_are_read(tmp_path, single_device):
    model = build("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    source = open_directory(tmp_path)
    tensors = dict(to_hf_tensors(source.config, load_params(source, single_device)))
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(tensors[name], weights.numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_read_exactly(dtype, tmp_path, single_device):
    import torch

    model = build("qwen2").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    source = open_directory(tmp_path)
    tensors = dict(to_hf_tensors(source.config, load_params(source, single_device)))
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(tensors[name], weights.float().numpy(), err_msg=name)


def real_pairs(folder, renderer: Renderer, count: int) -> list[TokenizedPrompt]:
    """Real BFCL tasks, each with the right call and the same call with a wrong name."""
    tasks, _ = read_tasks(folder, ["simple_python"])
    pairs = []
    for task in tasks[:: len(tasks) // (2 * count)]:
        wrong = [call | {"name": call["name"] + "_v2"} for call in task.gold]
        rendered = renderer.render(task.tools, task.messages, [task.gold, wrong])
        pairs.append(TokenizedPrompt(rendered.prompt, rendered.responses))
    return sorted(pairs, key=lambda pair: pair.tokens)[:count]  # the shorter ones, for time


@pytest.mark.slow
def test_smollm2_equals_transformers_on_real_pairs(bfcl_dir, smollm2_path, tmp_path, single_device):
    """The whole model from its GGUF file, a fixed random head, eight pairs; through our export."""
    from transformers import AutoModelForSequenceClassification

    pretrained = open_pretrained(str(smollm2_path))
    config = pretrained.source.config
    assert (config.num_layers, pretrained.source.has_head) == (30, False)
    params = load_params(pretrained.source, single_device, seed=0)
    pairs = real_pairs(bfcl_dir, Renderer(pretrained.tokenizer), 8)
    longest = max(pair.tokens for pair in pairs)
    batch = batch_of([[pair] for pair in pairs], longest, 2)
    ours = rewards_in_order(forward(config)(params, on_mesh(batch, single_device)), batch)

    save_directory(tmp_path / "out", config, params, pretrained.tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    theirs = their_rewards(model, sequences(pairs))
    assert len(theirs) == 16
    assert np.ptp(theirs) > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=0)
    shutil.rmtree(tmp_path / "out")  # half a gigabyte
