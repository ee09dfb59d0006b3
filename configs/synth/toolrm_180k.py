"""The paper's training set (arXiv:2509.11963): 85K single-turn, 85K multi-turn, 10K irrelevance.

    python -m toolrm_jax.synth --config configs/synth/toolrm_180k.py --workdir runs/toolrm_180k
    python -m toolrm_jax.synth --config configs/synth/toolrm_180k.py:DATA ...

DATA is a folder with the sources as files: xlam.json, xlam-irrelevance.json, sgd/ (dialogues and
schema of the training split) and, if there is one, fc-reward-bench.json. Without it, they come from
the hub, but for Schema-Guided Dialogue, which is read from a clone.

The sources are the paper's, by hub id. The models are eleven of its kind (open weights, 0.5B to
32B, permissive licences), not its own list. Licences are written from memory: check each page. The
endpoints are yours: serve each model (vLLM, SGLang, llama.cpp, Ollama or hosted) and put its
address under "url"; a model that you do not serve, leave out. To make the same set again later, pin
what comes from the hub: "options": {"revision": "COMMIT"} in its source. This was never run as it
stands: it needs the hub and eleven models. `configs/synth/local.py` needs neither.
"""

from pathlib import Path

from ml_collections import ConfigDict

from toolrm_jax.synth.synth_config import synth_config

# (hub id, licence).
MODELS = (
    ("Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0"),
    ("Qwen/Qwen2.5-1.5B-Instruct", "apache-2.0"),
    ("Qwen/Qwen2.5-7B-Instruct", "apache-2.0"),
    ("Qwen/Qwen2.5-14B-Instruct", "apache-2.0"),
    ("Qwen/Qwen2.5-32B-Instruct", "apache-2.0"),
    ("ibm-granite/granite-3.2-2b-instruct", "apache-2.0"),
    ("ibm-granite/granite-3.3-8b-instruct", "apache-2.0"),
    ("ibm-granite/granite-20b-functioncalling", "apache-2.0"),
    ("mistralai/Mistral-7B-Instruct-v0.3", "apache-2.0"),
    ("mistralai/Mistral-Nemo-Instruct-2407", "apache-2.0"),
    ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "apache-2.0"),
)


def get_config(data: str = "") -> ConfigDict:
    """The paper's mix, from the hub or from a folder."""
    config = synth_config()
    config.workers = 8
    config.sources = (
        {
            "name": "xlam",  # CC-BY-4.0; its page asks for an agreement first
            "format": "xlam",
            "path": f"{data}/xlam.json" if data else "Salesforce/xlam-function-calling-60k",
            "obfuscate": 1.0,
        },
        {
            "name": "xlam-irrelevance",  # CC-BY-4.0
            "format": "xlam_irrelevance",
            "path": f"{data}/xlam-irrelevance.json" if data else "MadeAgents/xlam-irrelevance-7.5k",
            "obfuscate": 1.0,
        },
        {
            "name": "sgd",  # CC-BY-SA-4.0
            "format": "sgd",
            "path": f"{data}/sgd" if data else "data/dstc8-schema-guided-dialogue/train",
            "obfuscate": 1.0,
        },
    )
    # What a model trained on this is to be evaluated on; BFCL and what is made of it.
    config.overlap.evaluation = ({"name": "bfcl", "format": "bfcl", "path": "wheel"},)
    bench = f"{data}/fc-reward-bench.json" if data else "ibm-research/fc-reward-bench"
    if not data or Path(bench).exists():
        found = {"name": "fc-reward-bench", "format": "fc_reward_bench", "path": bench}
        config.overlap.evaluation = (*config.overlap.evaluation, found)
    config.answers.pool = tuple(
        {
            "kind": "endpoint",
            "model": model,
            "license": license,
            "url": f"http://127.0.0.1:{8000 + port}/v1",
            "samples": 1,
            "temperature": 0.7,
            "concurrency": 32,
        }
        for port, (model, license) in enumerate(MODELS)
    )
    config.selection.quotas = ConfigDict({"single": 85_000, "multi": 85_000, "irrelevance": 10_000})
    config.selection.wrong_per_prompt = 3
    config.selection.mix = ()  # as the models err
    config.selection.model_cap = 0.2
    return config
