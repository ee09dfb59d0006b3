"""A linear probe: a reward head fitted on hidden states of a frozen language model.

    pairs --forward, frozen--> hidden state at each answer's end [D] --logistic regression--> head

What the model knows about right and wrong calls without any training of its own, as few-shot
"activation reward models" use it. The result is a reward model in Hugging Face's form, which every
command takes, so it is compared on the same rows as a trained one.

The regression is on the difference of the two sides, without an intercept; prompts weigh the same.
Each feature is divided by its spread. The strength of the penalty is the one of `PENALTIES` with
the least loss on the left-out fifth, over five folds of tasks; where all tasks are in one fold, as
a single one is, nothing chooses, and it is the strongest.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from flax import nnx
from tqdm import tqdm

from toolrm_jax.batch import RowShape, TokenizedPrompt, empty_batch, place
from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.cases import Case, Cases, Seen
from toolrm_jax.evaluate.results import made_by
from toolrm_jax.huggingface import (
    RewardTensors,
    Source,
    is_directory,
    load_params,
    save_directory,
    truncate,
)
from toolrm_jax.loader import to_device
from toolrm_jax.model import Compute, RewardModel, rms_norm
from toolrm_jax.output_folder import check_output
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.rendering import Renderer, RenderError
from toolrm_jax.sharding import make_mesh
from toolrm_jax.splits import digest

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
FOLDS = 5
_STEP = 256  # rows are as long as a multiple of it: a compilation each
_SLOTS = 8


def fit_probe(
    name: str,
    data: Cases,
    folder: str | os.PathLike[str],
    *,
    num_layers: int = 0,
    dtype: str = "bfloat16",
    max_tokens: int = 4096,
    seed: int = 0,
) -> dict[str, Any]:
    """Fits a probe on the pairs, and writes the reward model; gives what there is to say of it.

    Args:
      name: the frozen model, as `open_pretrained` takes it.
      num_layers: its first layers alone; 0: all.
      max_tokens: longer prompts and answers are left out, and counted; so are those that the
        model's template refuses, and cases without a right or without a wrong answer.

    Raises FileExistsError at once where `folder` holds something that is no model, and InputError
    where the model has not so many layers, or there is nothing to fit on.
    """
    check_output(folder, is_directory, replace=True)
    model = open_pretrained(name)
    most = model.source.config.num_layers
    if not 0 <= num_layers <= most:
        raise InputError(f"--layers {num_layers}: {name} has {most}; expected 1 to {most}, 0: all")
    source = truncate(model.source, num_layers)
    two_sided = [case for case in data.cases if len({c.right for c in case.candidates}) == 2]
    if not two_sided:
        raise InputError(f"{data.name}: no case has both a right and a wrong answer")
    cases, states, left_out = _states(model, source, two_sided, dtype, max_tokens)
    if not cases:
        words = ", ".join(f"{reason}: {number:,}" for reason, number in left_out.items())
        raise InputError(f"{data.name}: nothing to fit on within {max_tokens} tokens ({words})")
    differences_ND, share_N, tasks = _pairs(cases, states)
    penalty, loss = choose_penalty(differences_ND, share_N, tasks, seed)
    head_D = fit(differences_ND, share_N, penalty)
    about = {
        "kind": "linear probe",
        "base": name,
        "layers": source.config.num_layers,
        "fitted_on": data.name,
        "fitted_on_sha256": data.digest,
        "pairs": len(tasks),
        "rejected": len(data.rejects),
        "one_sided": len(data.cases) - len(two_sided),
        **left_out,
        "penalty": penalty,
        "left_out_loss": loss,
        **made_by(seed),
    }
    tensors = RewardTensors(source, head=head_D.astype(np.float32))
    seen = Seen.of(cases)
    listed = {**about, "train_tasks": seen.ids, "train_requests": seen.requests}
    files = {"toolrm.json": json.dumps(listed, indent=1) + "\n"}
    save_directory(folder, source.config, tensors, model.tokenizer, files)
    return about


# Hidden states -----------------------------------------------------------------------------------


class _HiddenStates(RewardModel):
    """Gives what the reward head would see: after the final norm, float32 [B, M, D]."""

    def reward(self, last_BMD: jax.Array) -> jax.Array:
        """The state itself."""
        return rms_norm(last_BMD.astype(jnp.float32), self.final_norm[...], self.config.norm_eps)


def _states(
    model: Pretrained, source: Source, cases: Sequence[Case], dtype: str, max_tokens: int
) -> tuple[list[Case], list[np.ndarray], dict[str, int]]:
    """(the cases that fit, the states [candidates, D] of each, how many do not, by reason)."""
    renderer = Renderer(model.tokenizer)
    left_out = {"over_long": 0, "not_rendered": 0}
    compute = Compute(dtype, remat="none")
    mesh = make_mesh(devices=jax.devices()[:1])
    kept, states = [], []
    with jax.set_mesh(mesh):
        graph = nnx.split(
            nnx.eval_shape(lambda: _HiddenStates(source.config, nnx.Rngs(0), compute))
        )[0]
        forward = jax.jit(lambda params, batch: nnx.merge(graph, params)(batch))
        params = load_params(source, mesh, dtype=dtype)
        for case in tqdm(cases, "hidden states", unit="case", disable=None):
            try:
                found = renderer.render(case.tools, case.messages, case.request().responses)
            except RenderError:
                left_out["not_rendered"] += 1
                continue
            item = TokenizedPrompt(found.prompt, list(found.responses))
            if item.tokens > max_tokens:
                left_out["over_long"] += 1
                continue
            slots = -(-len(item.responses) // _SLOTS) * _SLOTS
            shape = RowShape(-(-item.tokens // _STEP) * _STEP, slots)
            batch = empty_batch(1, shape)
            place(batch, 0, [item])
            on_mesh = jax.tree.map(
                lambda x: x[0], to_device(jax.tree.map(lambda x: x[None], batch), mesh)
            )
            kept.append(case)
            states.append(np.asarray(forward(params, on_mesh))[0, : len(item.responses)])
    return kept, states, left_out


def _pairs(
    cases: Sequence[Case], states: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(right minus wrong state [n, D], the share of each pair in the loss [n], its task)."""
    differences, share, tasks = [], [], []
    for case, states_CD in zip(cases, states, strict=True):
        right = np.array([c.right for c in case.candidates])
        found = states_CD[right][:, None] - states_CD[~right][None]
        found = found.reshape(-1, states_CD.shape[1]).astype(np.float64)
        differences.append(found)
        share += [1.0 / len(found)] * len(found)
        tasks += [case.task] * len(found)
    share_N = np.array(share)
    return np.concatenate(differences), share_N / share_N.sum(), tasks


# The regression ----------------------------------------------------------------------------------


def fit(differences_ND: np.ndarray, share_N: np.ndarray, penalty: float) -> np.ndarray:
    """The head [D] that minimises the loss and the penalty on its scaled weights."""
    scale_D = np.sqrt(np.square(differences_ND).mean(0))
    scale_D = np.where(scale_D > 0, scale_D, 1.0)
    x_ND = differences_ND / scale_D

    def loss(w_D: np.ndarray) -> tuple[float, np.ndarray]:
        margin_N = x_ND @ w_D
        value = share_N @ np.logaddexp(0.0, -margin_N) + 0.5 * penalty * w_D @ w_D
        slope_N = -share_N * scipy.special.expit(-margin_N)
        return float(value), x_ND.T @ slope_N + penalty * w_D

    found = scipy.optimize.minimize(loss, np.zeros(x_ND.shape[1]), jac=True, method="L-BFGS-B")
    return found.x / scale_D


def choose_penalty(
    differences_ND: np.ndarray, share_N: np.ndarray, tasks: Sequence[str], seed: int = 0
) -> tuple[float, float | None]:
    """(the penalty with the least loss on left-out tasks, that loss); the strongest and None where
    no task can be left out."""
    fold_N = np.array([int(digest(seed, "fold", task)[:8], 16) % FOLDS for task in tasks])
    if len(set(fold_N)) == 1:
        return max(PENALTIES), None
    losses = {}
    for penalty in PENALTIES:
        total = 0.0
        for fold in range(FOLDS):
            out = fold_N == fold
            if out.any():
                rest = share_N[~out] / share_N[~out].sum()
                head_D = fit(differences_ND[~out], rest, penalty)
                total += share_N[out] @ np.logaddexp(0.0, -differences_ND[out] @ head_D)
        losses[penalty] = float(total)
    best = min(losses, key=losses.__getitem__)
    return best, losses[best]
