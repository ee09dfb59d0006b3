"""Replayed answers and corruptions: what is read, what is left out and why, all of it counted."""

import collections
import gzip
import json

import pytest
import tiny

from toolrm_jax.corruptions import corrupt
from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.generators import Pool
from toolrm_jax.tool_calls import exact_reference, judge

CALL = [{"name": "get_time", "arguments": {"city": "Rome"}}]


def example(name: str) -> Example:
    row = tiny.rows("train", 1)[0]
    gold = row["chosen"]
    return Example(name, "t", "MIT", row["tools"], row["messages"], exact_reference(gold), gold)


def replayed(folder, rows, names, *, permissive_only=True, rejected=None, **options):
    path = tiny.write_lines(folder / "replay.jsonl", rows)
    report = (lambda *why: rejected.append(why)) if rejected is not None else None
    members = [{"kind": "replay", "path": str(path), **options}]
    with Pool(members, seed=0, permissive_only=permissive_only, reject=report) as pool:
        return list(pool.answers(map(example, names))), pool.counts()


def given(calls=CALL, right=False, model="m", permissive=True, **fields):
    made = {"model": model, "permissive": permissive, "calls": calls, "raw": "", "right": right}
    return made | fields


def row(name, *answers, **meta):
    return {"id": name, "gold_calls": CALL, "tools": [], "meta": meta, "answers": list(answers)}


def test_plain_rows_are_read_in_every_form(tmp_path):
    text = '[get_time(city="Rome")]'
    rows = [
        {"id": "a", "model": "m", "licence": "Apache-2.0", "calls": CALL, "right": True},
        {"id": "a", "model": "n", "license": "MIT", "text": text, "count": 3},
        {"id": "b", "model": "m", "license": "MIT", "raw": "None of my tools fits."},
    ]
    answers, counts = replayed(tmp_path, rows, ["b", "a", "c"])
    assert answers == [
        Answer("b", "m", "MIT", True, "None of my tools fits."),
        Answer("a", "m", "Apache-2.0", True, CALL, right=True),
        Answer("a", "n", "MIT", True, CALL, count=3),
    ]
    assert counts == {"m: answers": 2, "n: answers": 3, "replay: read": 3}


def test_answers_without_a_permissive_licence_are_left_out_and_counted(tmp_path):
    rows = [
        row("a", given(), given(model="closed", permissive=False)),
        {"id": "a", "model": "l", "license": "llama2", "calls": CALL},
        {"id": "a", "model": "u", "calls": CALL},
    ]
    answers, counts = replayed(tmp_path, rows, ["a"])
    assert [answer.model for answer in answers] == ["m"]
    left = {name: n for name, n in counts.items() if "left out" in name}
    assert left == {f"{model}: left out: not permissive": 1 for model in ("closed", "l", "u")}
    answers, _ = replayed(tmp_path, rows, ["a"], permissive_only=False)
    assert [answer.model for answer in answers] == ["m", "closed", "l", "u"]
    assert {answer.permissive for answer in answers} == {True, False}
    assert [answer.license for answer in answers] == [
        "not named (marked as permissive)",
        "not named (marked as not permissive)",
        "llama2",
        "unknown",
    ]


@pytest.mark.parametrize(
    ("meta", "option"),
    [
        ({"gold_args_not_in_query": ["city"]}, {"sound_gold": False}),
        ({"right_rate": 0.4}, {"min_right_rate": 0.4}),
        ({"after_first_error": True}, {"before_first_error": False}),
    ],
)
def test_doubtful_rows_are_left_out_unless_wanted(tmp_path, meta, option):
    sound = {"gold_args_not_in_query": [], "right_rate": 0.5, "after_first_error": False}
    rows = [row("a", given(), **meta), row("b", given(), **sound)]
    answers, counts = replayed(tmp_path, rows, ["a", "b"])
    assert [answer.example_id for answer in answers] == ["b"]
    assert sum(n for name, n in counts.items() if "rows left out" in name) == 1
    assert sum(n for name, n in counts.items() if "left out: with its row" in name) == 1
    assert counts["replay: read"] == 2
    answers, _ = replayed(tmp_path, rows, ["a", "b"], **option)
    assert [answer.example_id for answer in answers] == ["a", "b"]


def test_of_a_group_some_rows_are_kept_whatever_their_order(tmp_path):
    rows = [row(f"r{i}", given(), group=f"g{i % 2}") for i in range(20)]
    names = [f"r{i}" for i in range(20)]
    answers, counts = replayed(tmp_path, rows, names, rows_a_group=3)
    kept = {answer.example_id for answer in answers}
    assert sum(int(name[1:]) % 2 for name in kept) == 3
    assert len(kept) == 6
    assert counts["replay: rows left out: beyond those of their group"] == 14
    answers, _ = replayed(tmp_path, rows[::-1], names, rows_a_group=3)
    assert {answer.example_id for answer in answers} == kept
    assert len(replayed(tmp_path, rows, names, rows_a_group=None)[0]) == 20


def test_wrong_silence_is_capped_and_right_silence_is_not(tmp_path):
    silent = [row(f"r{i}", given([], raw="Done."), given()) for i in range(200)]
    right = [{**row(f"s{i}", given([], True)), "gold_calls": []} for i in range(10)]
    names = [f"r{i}" for i in range(200)] + [f"s{i}" for i in range(10)]
    answers, counts = replayed(tmp_path, silent + right, names)
    wrong = [answer for answer in answers if answer.response == "Done."]
    assert 30 <= len(wrong) <= 70
    assert counts["replay: left out: calls nothing, beyond the share"] == 200 - len(wrong)
    assert sum(answer.response == "" for answer in answers) == 10
    answers, _ = replayed(tmp_path, silent, names, no_call_share=0)
    assert len(answers) == 200


def test_unparsable_answers_keep_their_text(tmp_path):
    rows = [row("a", given(None, raw="Action: get_time"), given([], raw="Action: None"))]
    answers, _ = replayed(tmp_path, rows, ["a"], no_call_share=1, own_form=True)
    assert [answer.response for answer in answers] == ["Action: get_time", "Action: None"]
    answers, counts = replayed(tmp_path, rows, ["a"], no_call_share=1)
    assert not answers
    assert counts["replay: left out: a call in a form of the upstream's own"] == 2


def test_what_the_upstream_found_no_calls_in_is_read_again(tmp_path):
    record = {"input": "q", "output": "I'm unable to do that.", "intermediate_steps": []}
    acted = {"input": "q", "output": "Action:\n```json\n{}```"}
    raws = {
        'get_time(city="Rome")': CALL,
        '<tool_call>{"name": "get_time", "arguments": {"city": "Rome"}}</tool_call>': CALL,
        'get_time({"city": "Rome"})': 'get_time({"city": "Rome"})',  # broken
        '{"tool": "none", "params": {}}': "",
        str(record): "I'm unable to do that.",
        "Which city?": "Which city?",
    }
    rows = [row("a", *(given([], raw=raw) for raw in (*raws, str(acted), str(record)[:40])))]
    answers, counts = replayed(tmp_path, rows, ["a"], no_call_share=1)
    assert [answer.response for answer in answers] == list(raws.values())
    assert counts["replay: left out: a call in a form of the upstream's own"] == 2
    assert counts["replay: read"] == len(raws) + 2


def test_rejected_sides_of_published_pairs_are_wrong_answers(tmp_path):
    task = {"tools": tiny.rows("train", 1)[0]["tools"], "test_id": "t", "model_name": "m"}
    task |= {"conversation": [{"role": "user", "content": "Time in Rome?"}]}
    wrong = [{"name": "get_time", "arguments": {"city": "Oslo"}}]
    pairs = [task | {"chosen_output": CALL, "rejected_output": wrong}, {"tools": []}]
    rejected = []
    options = {"format": "fc_reward_bench", "license": "apache-2.0", "rejected": rejected}
    (answer,), counts = replayed(tmp_path, pairs, ["fc_reward_bench/t/1"], **options)
    assert answer == Answer("fc_reward_bench/t/1", "m", "apache-2.0", True, wrong, right=False)
    assert counts == {"m: answers": 1, "replay: read": 1, "replay: rejected": 1}
    assert len(rejected) == 1
    # Without a licence they are of none that is known, and not let in.
    assert not replayed(tmp_path, pairs, ["fc_reward_bench/t/1"], format="fc_reward_bench")[0]
    with pytest.raises(InputError, match="expected one of answers, toolrm_pairs, fc_reward_bench"):
        replayed(tmp_path, pairs, [], format="pairs")


def test_malformed_rows_are_rejected_with_their_line(tmp_path):
    rows = [
        [1],
        {"model": "m", "calls": CALL},
        {"id": "a", "calls": CALL},
        {"id": "a", "model": "m"},
        {"id": "a", "model": "m", "calls": [{"name": 3, "arguments": {}}]},
        {"id": "a", "model": "m", "calls": CALL, "right": "yes"},
        {"id": "a", "model": "m", "calls": CALL, "count": 0},
        {"id": "a", "model": "m", "calls": CALL, "permissive": "false"},
        row("a", 3),
        {"id": "a", "answers": 3},
        {"id": "a", "meta": 3, "answers": []},
        {"id": "a", "model": "m", "license": "MIT", "calls": CALL},
    ]
    rejected = []
    answers, counts = replayed(tmp_path, rows, ["a"], rejected=rejected)
    assert len(answers) == 1
    assert counts["replay: rejected"] == 11
    path = tmp_path / "replay.jsonl"
    assert [where for _, _, where in rejected] == [f"{path}:{line}" for line in range(1, 12)]
    path.write_bytes(b'{"id": \n\xff\xfe\n{"id": "a", "model": "m", "text": "\\ud800"}\n')
    with Pool([{"kind": "replay", "path": str(path)}], seed=0) as pool:
        assert pool.counts()["replay: rejected"] == 2


def test_a_share_outside_zero_to_one_is_explained(tmp_path):
    with pytest.raises(InputError, match="expected 0 to 1"):
        replayed(tmp_path, [], [], no_call_share=2)


def test_replayed_calls_are_translated_to_the_names_of_the_example(tmp_path):
    path = tiny.write_lines(
        tmp_path / "r.jsonl", [{"id": "a", "model": "m", "license": "MIT", "calls": CALL}]
    )

    def translate(example, response):
        return [{**call, "name": f"x_{call['name']}"} for call in response]

    members = [{"kind": "replay", "path": str(path)}]
    with Pool(members, seed=0, translate=translate) as pool:
        (answer,) = pool.answers([example("a")])
    assert answer.response[0]["name"] == "x_get_time"


def test_corruptions_are_a_member_like_others(tmp_path):
    with Pool([{"kind": "corruption"}], seed=3) as pool:
        answers = list(pool.answers([example("a")]))
    wanted = list(corrupt(example("a"), seed=3))
    assert [(a.kind, a.response) for a in answers] == [(w.kind, w.response) for w in wanted]
    assert {(a.model, a.license, a.permissive) for a in answers} == {("corruption", "MIT", True)}


def test_members_answer_in_the_order_of_the_config_kinds_and_examples(tmp_path):
    rows = [{"id": n, "model": "m", "license": "MIT", "calls": CALL} for n in ("b", "a")]
    path = tiny.write_lines(tmp_path / "r.jsonl", rows)
    members = [{"kind": "corruption"}, {"kind": "replay", "path": str(path)}]
    with Pool(members, seed=0) as pool:
        answers = list(pool.answers(map(example, "abc")))
    ids = [answer.example_id for answer in answers]
    assert ids == sorted(ids)
    assert [a.model for a in answers if a.example_id == "a"][:2] == ["m", "corruption"]


# What is known of the shared files: rows, and right and wrong answers.
KNOWN = {
    "ste": (695, 4866, 5559),
    "ha_assist": (444, 13481, 3117),
    "ha_assist_mini": (196, 6451, 480),
    "workbench": (1564, 1066, 853),
    "wowogua_zh": (110, 591, 125),
    "toolalpaca": (70, 80, 57),
    "tau_bench_writes": (1012, 844, 168),
}


# What the program that asked the models said when it failed.
FAILED = {"ha_assist": 56, "ha_assist_mini": 1}


@pytest.mark.parametrize("name", KNOWN)
def test_every_answer_of_the_replay_data_is_read(toolrm_data, name):
    path = toolrm_data / "data" / "replay" / f"{name}.jsonl.gz"
    with gzip.open(path) as lines:
        rows = [json.loads(line) for line in lines]
    everything = {"sound_gold": False, "min_right_rate": 0, "before_first_error": False}
    everything |= {"rows_a_group": None, "no_call_share": 1, "own_form": True}
    members = [{"kind": "replay", "path": str(path), **everything}]
    with Pool(members, seed=0, permissive_only=False) as pool:
        answers = [a for row in rows for a in pool.answers([_example_of(row)])]
        counts = pool.counts()
        assert "replay: rejected" not in counts
    failed = counts.get("replay: left out: an error of the upstream's own program", 0)
    assert failed == FAILED.get(name, 0)
    right = sum(answer.right is True for answer in answers)
    assert (len(rows), right, len(answers) + failed - right) == KNOWN[name]
    by_id = {row["id"]: row for row in rows}
    # The upstream's verdict may be the more lenient one, and is hardly ever the stricter.
    stricter = sum(
        answer.right is False and judge(answer.response, *_gold_of(by_id[answer.example_id])).right
        for answer in answers
    )
    assert stricter <= 2


def _example_of(row) -> Example:
    return Example(row["id"], "t", "t", row["tools"], [], [], [])


def _gold_of(row):
    return exact_reference(row["gold_calls"]), row["tools"]


OTHERWISE_CALLED = {  # the file's names of two errors, as the judge's
    "Called when irrelevant": "Incorrect number of function calls",
    "No call (text reply)": "Incorrect number of function calls",
}


def _pools(toolrm_data):
    with gzip.open(toolrm_data / "data" / "eval" / "pools_dev.jsonl.gz") as lines:
        return [json.loads(line) for line in lines]


def _as_replay(pool):
    """A pool of candidates as a row of the replay reader's."""
    fields = {"model": "model_name", "permissive": "license_permissive", "right": "correct"}
    fields |= {"license": "license", "calls": "calls", "raw": "raw", "count": "n_samples"}
    answers = [{mine: made[its] for mine, its in fields.items()} for made in pool["candidates"]]
    about = {"tools": pool["tools"], "gold_calls": pool["gold"], "meta": {}}
    return about | {"id": pool["test_id"], "answers": answers}


def test_the_replay_reader_reads_pools_of_candidates_with_their_counts_and_verdicts(
    toolrm_data, tmp_path
):
    pools = _pools(toolrm_data)
    path = tiny.write_lines(tmp_path / "pools.jsonl", map(_as_replay, pools))
    member = {"kind": "replay", "path": str(path), "no_call_share": 1, "own_form": True}
    with Pool([member], seed=0, permissive_only=False) as pool:
        found = [list(pool.answers([example(p["test_id"])])) for p in pools]
        counts = pool.counts()
    assert counts["replay: read"] == 5411
    assert sum(n for name, n in counts.items() if name.endswith(": answers")) == 83_498
    verdicts: collections.Counter[str] = collections.Counter()
    for p, answers in zip(pools, found, strict=True):
        reference = exact_reference(p["gold"])
        for made, answer in zip(p["candidates"], answers, strict=True):
            about = (answer.model, answer.license, answer.permissive, answer.count)
            names = ("model_name", "license", "license_permissive", "n_samples")
            assert about == tuple(made[name] for name in names)
            if answer.right is None:  # calls where the file has a turn without any: a verdict less
                assert made["calls"] == []
                assert isinstance(answer.response, list)
                verdicts["none"] += 1
                continue
            assert answer.right == made["correct"]
            verdicts["right" if answer.right else "wrong"] += 1
            judged = judge(answer.response, reference, p["tools"])
            if not answer.right:
                named = OTHERWISE_CALLED.get(made["error_type"], made["error_type"])
                verdicts["judged right"] += judged.right
                verdicts["named otherwise"] += not judged.right and judged.error_type != named
    assert (verdicts["right"], verdicts["wrong"], verdicts["none"]) == (966, 4429, 16)
    assert verdicts["judged right"] <= 8
    # What does not parse, or is unexpected beside one gold of several, has two names.
    assert verdicts["named otherwise"] <= 0.16 * verdicts["wrong"]


def test_by_default_the_replay_data_gives_permissive_answers_alone(toolrm_data):
    path = toolrm_data / "data" / "replay" / "ha_assist.jsonl.gz"
    with gzip.open(path) as lines:
        rows = [json.loads(line) for line in lines]
    with Pool([{"kind": "replay", "path": str(path)}], seed=0) as pool:
        answers = list(pool.answers(map(_example_of, rows)))
        counts = pool.counts()
    permissive = {a["model"] for row in rows for a in row["answers"] if a["permissive"]}
    assert {answer.model for answer in answers} <= permissive
    assert counts["replay: rows left out: beyond those of their group"] > 0
    assert sum(answer.right is False for answer in answers) > 100
