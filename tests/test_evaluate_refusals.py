"""What the commands of evaluation refuse, and that they do so before anything is scored."""

import pytest
from evaluate_rows import normal_rows, pair_row, pool_row, write

from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.evaluate.scorers import RuleScorer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with pairs, pools, and a folder that is nobody's run."""
    folder = tmp_path_factory.mktemp("files")
    write(folder / "pairs.jsonl", [pair_row(n) for n in range(4)])
    write(folder / "rows.jsonl", normal_rows(4))
    write(folder / "pools.jsonl", [pool_row(n) for n in range(4)])  # of six samples each
    (folder / "taken").mkdir()
    (folder / "taken/notes.txt").write_text("mine")
    return folder


@pytest.fixture
def unscored(files, monkeypatch):
    """Fails a test in which a rule is asked for a score."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(RuleScorer, "score", lambda *_: pytest.fail("something was scored"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("best-of-n --data pools.jsonl --n 7 --output x", "--n 7: the largest pool .* has 6 sam"),
        ("best-of-n --data pools.jsonl --n 3 --output taken", "taken holds files but no result.js"),
        ("pairs --data pairs.jsonl --output taken", "taken holds files but no result.json"),
        ("fc-reward-bench --data pairs.jsonl --output taken", "taken holds files but no result"),
        ("robustness --data pairs.jsonl --output taken", "taken holds files but no result.json"),
        ("filter --data rows.jsonl --model m --output taken", "taken holds files but no result"),
        ("probe --model no/model --fit pairs.jsonl --output taken", "taken holds files but no con"),
    ],
)
@pytest.mark.usefixtures("unscored")
def test_what_is_known_beforehand_is_said_before_anything_is_scored(files, command, said):
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        main(command.split())
    assert (files / "taken/notes.txt").read_text() == "mine"
    assert not (files / "x").exists()
