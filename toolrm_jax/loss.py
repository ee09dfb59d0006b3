"""The Bradley-Terry loss with reward centering, over every (right, wrong) pair of a prompt.

For a prompt with right responses i and wrong responses j, margin m_j and centering eta,

    loss = mean over its pairs of  -log sigmoid(r_i - r_j - m_j) + eta * (r_i + r_j)^2

(Bradley-Terry: arXiv:2509.11963 eq. 1; centering: arXiv:2312.09244). Prompts weigh the same,
however many responses they have, and a step's loss is the sum over prompts divided by their number,
across micro-batches and devices. So this module returns sums, and `train_step.py` divides once.
"""

import dataclasses

import jax
import jax.numpy as jnp

from toolrm_jax.batch import Batch

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairSums:
    """Sums over prompts (each the mean over its pairs) and over slots; all float32 scalars."""

    loss: Array
    prompts: Array  # how many there are
    pairs: Array  # how many there are
    correct: Array  # r_right > r_wrong
    ties: Array  # r_right == r_wrong
    margin: Array  # r_right - r_wrong
    reward: Array  # over responses
    reward_squared: Array
    responses: Array  # how many there are


def pair_sums(rewards_BM: Array, batch: Batch, eta: float) -> PairSums:
    """Loss and statistics of a micro-batch, from the float32 rewards [B, M] of its slots."""
    filled_BM = batch.answers > 0
    # An empty slot's reward is any number. It is taken out here, not after: 0 * inf would be NaN in
    # the backward pass, whatever is masked later.
    rewards_BM = jnp.where(filled_BM, rewards_BM, 0.0)
    pairs_BMM, weights_BMM = pair_weights(batch)
    right, wrong = rewards_BM[:, :, None], rewards_BM[:, None, :]
    gap = right - wrong
    losses_BMM = jax.nn.softplus(batch.margins[:, None, :] - gap) + eta * jnp.square(right + wrong)

    def over_prompts(x_BMM):
        return jnp.sum(x_BMM * weights_BMM)

    return PairSums(
        loss=over_prompts(losses_BMM),
        prompts=jnp.sum(weights_BMM),
        pairs=jnp.sum(pairs_BMM, dtype=jnp.float32),
        correct=over_prompts((gap > 0).astype(jnp.float32)),
        ties=over_prompts((gap == 0).astype(jnp.float32)),
        margin=over_prompts(gap),
        reward=jnp.sum(rewards_BM),
        reward_squared=jnp.sum(jnp.square(rewards_BM)),
        responses=jnp.sum(filled_BM, dtype=jnp.float32),
    )


def pair_weights(batch: Batch) -> tuple[Array, Array]:
    """Which slots (i, j) are a right and a wrong answer to one prompt, bool [B, M, M]; and one over
    the number of that prompt's pairs, float32 [B, M, M] (0 where (i, j) is no pair)."""
    filled_BM = batch.answers > 0
    same_BMM = batch.answers[:, :, None] == batch.answers[:, None, :]
    right_BM, wrong_BM = filled_BM & batch.right, filled_BM & ~batch.right
    pairs_BMM = same_BMM & right_BM[:, :, None] & wrong_BM[:, None, :]
    # Pairs of a slot's prompt: its right answers times its wrong ones.
    rights_BM = jnp.sum(same_BMM & right_BM[:, None, :], axis=-1)
    wrongs_BM = jnp.sum(same_BMM & wrong_BM[:, None, :], axis=-1)
    per_prompt_BM = (rights_BM * wrongs_BM).astype(jnp.float32)
    return pairs_BMM, jnp.where(pairs_BMM, 1.0 / jnp.maximum(per_prompt_BM, 1.0)[:, :, None], 0.0)


def describe(sums: PairSums) -> dict[str, Array]:
    """The metrics of a step from its sums: means, accuracy (a tie is half right), reward spread."""
    prompts, responses = jnp.maximum(sums.prompts, 1e-9), jnp.maximum(sums.responses, 1.0)
    mean = sums.reward / responses
    variance = jnp.maximum(sums.reward_squared / responses - jnp.square(mean), 0.0)
    return {
        "loss": sums.loss / prompts,
        "accuracy": (sums.correct + 0.5 * sums.ties) / prompts,
        "ties": sums.ties / prompts,
        "margin": sums.margin / prompts,
        "reward_mean": mean,
        "reward_std": jnp.sqrt(variance),
        "prompts": sums.prompts,
        "pairs": sums.pairs,
    }
