"""A reward model of this project as verl's custom reward function.

    python -m toolrm_jax.serve --model runs/quickstart/model/export --port 8000
    python -m verl.trainer.main_ppo ... \
        reward.custom_reward_function.path=examples/verl_reward.py \
        reward.custom_reward_function.name=compute_score \
        +reward.custom_reward_function.reward_kwargs.url=http://127.0.0.1:8000

An older verl spells these without the leading `reward.`, which a newer one still reads. With
`reward_kwargs.model=DIR` in place of `url` the process of each reward worker opens a reward model
of its own (`reward.num_workers` of them): with more than a few, serve one. With verl's batch reward
manager name `compute_scores`: one call, full batches. The data's `extra_info` carries {"messages":
[...], "tools": [...]} (or JSON text).

By itself, this file scores one solution:  python examples/verl_reward.py http://127.0.0.1:8000
"""

import functools
import sys
import threading
from typing import Any

from toolrm_jax.reward_client import RewardClient
from toolrm_jax.reward_functions import RewardSource, ScorerRewards, UnscoredRule, VerlReward

# verl calls from several threads, and functools.cache lets all that come at first open one each.
_opening = threading.Lock()


def reward_of(url: str | None, model: str | None, unscored: float) -> VerlReward:
    """One a process, opened at the first call; `.counts` has what was not simply scored."""
    with _opening:
        return _opened(url, model, unscored)


@functools.cache
def _opened(url: str | None, model: str | None, unscored: float) -> VerlReward:
    source: RewardSource
    if url:
        source = RewardClient(url)
    elif model:
        from toolrm_jax.scorer import Scorer

        source = ScorerRewards(Scorer.from_pretrained(model))
    else:
        raise ValueError("Set reward_kwargs.url (a server's) or reward_kwargs.model (a directory).")
    return VerlReward(source, rule=UnscoredRule.number(unscored))


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    url: str | None = None,
    model: str | None = None,
    unscored: float = -10.0,
    **_: Any,
) -> float:
    """One solution's reward."""
    return reward_of(url, model, unscored)(data_source, solution_str, ground_truth, extra_info)


def compute_scores(
    data_sources: Any,
    solution_strs: list[str],
    ground_truths: Any,
    extra_infos: Any = None,
    url: str | None = None,
    model: str | None = None,
    unscored: float = -10.0,
    **_: Any,
) -> list[float]:
    """The rewards of a batch."""
    reward = reward_of(url, model, unscored)
    return reward.compute_scores(data_sources, solution_strs, ground_truths, extra_infos)


if __name__ == "__main__":
    where = {"url" if sys.argv[1].startswith("http") else "model": sys.argv[1]}
    asked = {"messages": [{"role": "user", "content": "Rain in Rome?"}], "tools": []}
    print(compute_score("demo", "I cannot look that up.", "", asked, **where))
