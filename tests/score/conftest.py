"""What the tests of the scoring command share: a model, rows, a finished job."""

import json

import pytest
import tiny
from scoring_jobs import own_rows, run

from toolrm_jax import score


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_reward_model(tmp_path_factory.mktemp("reward") / "model")


@pytest.fixture(scope="module")
def rows():
    return own_rows(60)


@pytest.fixture(scope="module")
def data(tmp_path_factory, rows):
    """A file of good rows, blank lines and bad rows."""
    lines = [json.dumps(row).encode() for row in rows]
    lines[5] = b"{bad"
    lines[6] = b""
    lines[20] = json.dumps(rows[20] | {"responses": ["word " * 3000]}).encode()
    lines[30] = b'{"id": "caf\xe9"}'
    lines[59] = json.dumps(rows[59] | {"messages": []}).encode()
    path = tmp_path_factory.mktemp("data") / "in.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module")
def finished(model, data, tmp_path_factory):
    """The folder of an uninterrupted job."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(model, data, folder / "out.jsonl") == score.SOME_REJECTED
    return folder
