"""What the tests of the server share: models, and scorers of them."""

import json

import pytest
import tiny
from app_requests import STATISTICS
from served import scorer_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")
    (folder / "toolrm.json").write_text(json.dumps(STATISTICS))
    return folder


@pytest.fixture(scope="module")
def bos_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bos") / "model"
    return tiny.write_reward_model(folder, tokenizer=tiny.bos_tokenizer())


@pytest.fixture(scope="module", params=["plain", "bos"])
def scorer(request, model, bos_model):
    """With a tokenizer that has no BOS, and one that has."""
    with scorer_of(model if request.param == "plain" else bos_model) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(model):
    with scorer_of(model, max_tokens=512) as opened:
        yield opened
