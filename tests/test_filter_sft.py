"""examples/filter_sft.py: what it fine-tunes on, what it leaves out, what it says."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tiny
from evaluate_rows import TOOL, call, normal_rows, write, write_reward_model

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.__main__ import main
from toolrm_jax.examples import Example
from toolrm_jax.rendering import Renderer, assistant_turn
from toolrm_jax.synth.sources import open_source

PATH = tiny.ROOT / "examples/filter_sft.py"


@pytest.fixture(scope="module")
def example():
    """The example as a module; PyTorch and TRL it loads where it trains."""
    spec = importlib.util.spec_from_file_location("filter_sft", PATH)
    module = sys.modules["filter_sft"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["filter_sft"]


def row(answer, number=0):
    """A row of a filter's file."""
    asked = {"role": "user", "content": f"High water at Brest, day {number}?"}
    turn = assistant_turn(answer, [TOOL])
    return {"id": f"q{number}", "tools": [TOOL], "messages": [asked, turn], "planted_noise": False}


@pytest.fixture(scope="module")
def smollm2(example, smollm2_model, tmp_path_factory):
    """By SmolLM2's tokenizer as it is published, whose own template shows no tools and no calls."""
    chat = row(call(port="Brest", day=3))
    tools = [{"type": "function", "function": TOOL}]
    text = smollm2_model.tokenizer.apply_chat_template(chat["messages"], tools, tokenize=False)
    assert "tide" not in text
    folder = tmp_path_factory.mktemp("smollm2")
    smollm2_model.tokenizer.save_pretrained(folder)
    return example.open_renderer(str(folder))


def test_smollm2_is_tuned_on_calls_after_a_prompt_with_tools(example, smollm2, smollm2_tokenizer):
    chat = example.chat_of(row(call(port="Brest", day=3)), smollm2)
    prompt, answer = (smollm2.tokenizer.decode(ids) for ids in (chat.prompt, chat.answer))
    assert '{"name":"tide","description":' in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    wanted = '{"name":"tide","arguments":{"port":"Brest","day":3}}'
    assert answer == f"<tool_call>{wanted}</tool_call><|im_end|>\n"
    # The same tokens as are scored.
    renderer = Renderer(smollm2_tokenizer)
    asked, turn = chat.row["messages"]
    assert chat.tokens == renderer.tokens([TOOL], [asked], turn)


def test_a_template_that_loses_tools_or_calls_is_refused(example, smollm2):
    chat, fast = row(call(port="Brest")), smollm2.tokenizer
    own = fast.chat_template
    try:
        # As some do: tools in the place of a system message, or not at all.
        fast.chat_template = "{% if messages[0].role == 'system' %}{% set tools = [] %}{% endif %}"
        fast.chat_template += own
        renderer = Renderer(fast)
        assert example.chat_of(chat, renderer).prompt
        chat["messages"].insert(0, {"role": "system", "content": "Be brief."})
        with pytest.raises(
            InputError, match="q0: the chat template leaves 'tide' out of the prompt"
        ):
            example.chat_of(chat, renderer)
        fast.chat_template = own.replace("call.name | tojson", "'a call'")
        assert fast.chat_template != own
        with pytest.raises(InputError, match="leaves 'tide' out of the answer"):
            example.chat_of(chat, Renderer(fast))
    finally:
        fast.chat_template = own


def test_long_chats_and_tests_that_are_in_the_run_are_left_out_and_counted(
    example, smollm2, tmp_path, capsys
):
    rows = [row(call(port="Brest", day=n), n) for n in range(3)]
    most = len(example.chat_of(rows[0], smollm2).tokens)
    rows[1]["messages"][0]["content"] += " Please."
    left = example.fitting(rows, smollm2, most, "kept")
    assert [chat.row["id"] for chat in left] == ["q0", "q2"]
    assert "kept: 2 of 3 have at most" in capsys.readouterr().out
    given = normal_rows(6)
    given[0]["conversation"][0]["content"] = "Something else that was never asked"  # but its id
    given[2]["id"] = "another"  # but its request
    found = list(open_source("normalised", write(tmp_path / "tests.jsonl", given)))
    tests = example.unseen([one for one in found if isinstance(one, Example)], rows)
    assert [one["id"] for one in tests] == ["q3", "q4", "q5"]
    assert "tests: 3 of 6 are in the run, left out" in capsys.readouterr().out


def test_tests_are_drawn_by_the_seed_and_from_all(example):
    draws = [example.drawn(list(range(100)), 10, seed) for seed in range(20)]
    assert all(len(set(one)) == 10 for one in draws)
    assert len(set(map(tuple, draws))) == 20
    assert max(map(max, draws)) > 90
    assert draws[0] == example.drawn(list(range(100)), 10, 0)
    assert sorted(example.drawn([1, 2], 10, 0)) == [1, 2]


@pytest.mark.slow
@pytest.mark.torch
def test_the_example_fine_tunes_on_what_the_filter_kept(tmp_path):
    pytest.importorskip("trl")
    model = write_reward_model(tmp_path / "rm")
    rows = normal_rows(30)
    rows[7]["conversation"][0]["content"] += " tide" * 1000
    data = write(tmp_path / "rows.jsonl", rows[:20])
    test = write(tmp_path / "t.jsonl", rows[18:])
    command = ["filter", "--model", f"m={model}", "--data", str(data), "--noise", "0.3"]
    main([*command, "--output", str(tmp_path / "run"), "--dtype", "float32"])
    tiny.write_model(tmp_path / "lm")
    command = [sys.executable, str(PATH), "--policy", str(tmp_path / "lm"), "--test", str(test)]
    found = subprocess.run(
        [*command, "--run", str(tmp_path / "run"), "--tasks", "4"],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.splitlines()
    kept = [json.loads(one) for one in (tmp_path / "run/kept.jsonl").read_text().splitlines()]
    long = sum(one["id"] == "q7" for one in kept)
    assert lines[0] == "tests: 2 of 12 are in the run, left out"
    assert lines[1:4] == [
        f"{what}: {fit} of {all_} have at most 1,024 tokens"
        for what, fit, all_ in (
            ("kept", 10 - long, 10), ("dropped", 9 + long, 10), ("tests", 10, 10),
        )
    ]  # fmt: skip
    half = 10 - long
    for name, count, steps in (
        ("random half", half, 3), ("best half", half, 3), ("all", 19, 5),
    ):  # fmt: skip
        (line,) = (line for line in lines if line.startswith(name))
        assert f"{count} rows, {steps} steps" in line
        assert "loss of right answers" in line
        if name == "random half":
            assert line.endswith("(0.000 [0.000, 0.000] more)")
    assert '"all" had more steps' in lines[-1]
