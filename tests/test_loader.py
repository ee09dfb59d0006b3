"""The loader: what is in a batch, what is rejected, where a run goes on, who reads what."""

import copy
import json
import types

import jax
import numpy as np
import pytest
import tiny

from toolrm_jax import batch_plan, loader
from toolrm_jax.batch import RowShape
from toolrm_jax.batch_plan import PlanConfig
from toolrm_jax.loader import (
    Loader,
    LoaderError,
    RowFile,
    RowShare,
    RowTokenizer,
    build_index,
    row_share,
    to_device,
    write_rejects,
)
from toolrm_jax.pairs import PairsError
from toolrm_jax.rendering import Renderer
from toolrm_jax.sharding import make_mesh

SHAPES = (RowShape(300, 4), RowShape(700, 16))
PLAN = PlanConfig(SHAPES, batch_tokens=2800, micro_batches=2, row_multiple=4)


@pytest.fixture(scope="module")
def renderer():
    return Renderer(tiny.tokenizer())


@pytest.fixture
def make(tmp_path, renderer):
    """A function from preference rows to a Loader of them."""

    def build(rows, plan=PLAN, blind=False, max_tokens=0, **options):
        file = RowFile(tiny.write_lines(tmp_path / "rows.jsonl", rows))
        tokenize = RowTokenizer(renderer, blind)
        index = build_index(file, tokenize, plan.shapes, max_tokens=max_tokens)
        return Loader(file, index, tokenize, plan, **options)

    return build


def varied_rows(count: int = 20) -> list[dict]:
    """One to three wrong responses a row, some of them with margins, and texts of any length."""
    rows = tiny.rows("train", count)
    for number, row in enumerate(rows):
        row["messages"][0]["content"] += " Please." * (number * 7 % 30)
        row["rejected"] = row["rejected"][: 1 + number % 3]
        if number % 2:
            row["rejected"][0]["margin"] = number / 4
    return rows


def arrays(batch) -> list[np.ndarray]:
    return jax.tree.leaves(batch)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))


# --- What is in a batch ---------------------------------------------------------------------------


def test_every_response_in_a_batch_is_what_the_chat_template_gives(make, renderer):
    rows = varied_rows()
    made = make(rows)
    seen = []
    for number, batch in enumerate(made.batches(0, len(made.epoch(0)))):
        step = made.locate(number)
        assert batch.tokens.shape == (2, PLAN.rows(step.shape), step.shape.tokens)
        for micro, placed in enumerate(step.micro_batches):
            for at, ids in enumerate(placed):
                one = jax.tree.map(lambda x, m=micro, r=at: x[m, r], batch)
                check_row(one, [rows[i] for i in ids], renderer)
                seen += ids
    assert sorted(seen) == list(range(len(rows)))


def check_row(one, rows, renderer):
    """`one` is a row of a batch; every array of it is rebuilt here from the preference rows."""
    branch = used = 0
    for segment, row in enumerate(rows, start=1):
        prompt = (one.segments == segment) & (one.branches == 0)
        used += prompt.sum()
        wrongs = row["rejected"]
        for number, response in enumerate([row["chosen"], *(w["response"] for w in wrongs)]):
            branch += 1
            own = (one.segments == segment) & (one.branches == branch)
            used += own.sum()
            whole = renderer.tokens(row["tools"], row["messages"], response)
            assert one.tokens[prompt | own].tolist() == list(whole)
            assert one.positions[prompt | own].tolist() == list(range(len(whole)))
            assert one.ends[branch - 1] == np.flatnonzero(own)[-1]
            assert one.answers[branch - 1] == segment
            assert one.right[branch - 1] == (number == 0)
            margin = wrongs[number - 1].get("margin", 0.0) if number else 0.0
            assert one.margins[branch - 1] == np.float32(margin)
    assert not one.answers[branch:].any()
    assert (one.segments > 0).sum() == used
    assert not one.tokens[one.segments == 0].any()


def test_blind_batches_show_neither_tools_nor_conversation(make):
    rows = tiny.rows("train", 6)
    texts = {}
    for blind in (False, True):
        made = make(rows, blind=blind)
        batches = made.batches(0, len(made.epoch(0)))
        tokens = [b.tokens[b.segments > 0] for b in batches]
        texts[blind] = tiny.tokenizer().decode(np.concatenate(tokens))
    assert "Question 3: get_weather of Cairo" in texts[False]
    assert "For a city." in texts[False]
    assert "Question" not in texts[True]
    assert "For a city." not in texts[True]
    assert '"arguments":{"city":"Cairo"}' in texts[True].replace(" ", "")


def test_a_batch_on_the_mesh_is_the_batch_on_the_host(make):
    made = make(varied_rows())
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        for batch in made.batches(0, 2):
            placed = to_device(batch, mesh)
            assert same(batch, placed)
            assert placed.tokens.sharding.spec == jax.P(None, ("data", "fsdp"))


# --- What is rejected -----------------------------------------------------------------------------


def test_wrong_responses_that_render_alike_are_rejected_with_a_count(make, tmp_path):
    rows = tiny.rows("train", 4)
    two = [{"name": "both", "arguments": {"a": 1, "b": 2}}]
    rows[1]["tools"].append(
        {"name": "both", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}}
    )
    rows[1]["chosen"] = two
    # Another order of the arguments is no other call.
    twin = [{"name": "both", "arguments": {"b": 2, "a": 1}}]
    rows[1]["rejected"] = [{"response": twin}, *rows[1]["rejected"][:1]]
    rows[2]["rejected"] = [rows[2]["rejected"][0], *rows[2]["rejected"]]
    rows[3]["rejected"] = [{"response": rows[3]["chosen"]}]
    made = make(rows)

    assert made.index.counts() == {
        "both sides render alike": 2,
        "the same wrong response twice": 1,
    }
    assert made.index.kept == [(0, 1, 2), (1,), (0, 2, 3), ()]
    assert made.index.used_ids() == ["train/0", "train/1", "train/2"]
    write_rejects(tmp_path / "rejects.jsonl", made.index)
    written = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert written == [
        {"id": "train/1", "reason": "both sides render alike", "detail": "rejected[0]"},
        {
            "id": "train/2",
            "reason": "the same wrong response twice",
            "detail": "rejected[1] is rejected[0]",
        },
        {"id": "train/3", "reason": "both sides render alike", "detail": "rejected[0]"},
    ]


def test_responses_that_are_kept_are_the_ones_in_the_batch(make, renderer):
    rows = tiny.rows("train", 1)
    rows[0]["rejected"].insert(0, {"response": rows[0]["chosen"], "margin": 9.0})
    rows[0]["rejected"][2]["margin"] = 0.5
    (batch,) = make(rows).batches(0, 1)
    kept = rows[0] | {"rejected": rows[0]["rejected"][1:]}
    at = np.argwhere(batch.answers.any(axis=-1))[0]
    check_row(jax.tree.map(lambda x: x[tuple(at)], batch), [kept], renderer)


@pytest.mark.parametrize("limit", ["tokens", "responses", "max_tokens"])
def test_over_long_rows_are_reported_by_name_and_never_cut(make, limit):
    rows = tiny.rows("train", 5)
    max_tokens = 0
    if limit == "responses":
        city = {"name": "get_time", "arguments": {}}
        rows[3]["rejected"] = [
            {"response": [city | {"arguments": {"city": f"{n}"}}]} for n in range(16)
        ]
    else:
        rows[3]["messages"][0]["content"] += " Please." * (400 if limit == "tokens" else 100)
        max_tokens = 450 if limit == "max_tokens" else 0
    made = make(rows, max_tokens=max_tokens)

    (reject,) = made.index.rejects
    assert (reject["id"], reject["reason"]) == ("train/3", "over-long")
    assert str(made.index.lengths.tokens[3]) in reject["detail"]
    assert {i for step in made.epoch(0) for i in step.examples()} == {0, 1, 2, 4}


def test_rows_that_cannot_be_rendered_are_rejected_with_the_reason(make):
    rows = tiny.rows("train", 3)
    rows[1]["messages"][0]["role"] = "oracle"
    made = make(rows)
    (reject,) = made.index.rejects
    assert (reject["id"], reject["reason"]) == ("train/1", "cannot be rendered")
    assert "oracle" in reject["detail"]
    assert made.index.used_ids() == ["train/0", "train/2"]


def test_a_file_without_a_usable_row_says_what_was_wrong(make):
    rows = tiny.rows("train", 3)
    for row in rows[:2]:
        row["rejected"] = [{"response": row["chosen"]}]
    rows[2]["messages"][0]["role"] = "oracle"
    with pytest.raises(LoaderError, match="2 x both sides render alike, 1 x cannot be rendered"):
        make(rows)


# --- Where a run goes on, and who reads what ------------------------------------------------------


def test_going_on_at_a_step_gives_the_batches_that_were_left(make):
    made = make(varied_rows())
    per_epoch = len(made.epoch(0))
    total = 3 * per_epoch + 1
    assert per_epoch > 1
    whole = list(made.batches(0, total))
    for start in (1, per_epoch, per_epoch + 1, total - 1, total):
        rest = list(make(varied_rows()).batches(start, total))  # a new loader, as after a restart
        assert len(rest) == total - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(make):
    made = make(varied_rows(60))
    orders = [[i for step in made.epoch(n) for i in step.examples()] for n in range(3)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    sets = [[set(step.examples()) for step in made.epoch(n)] for n in range(2)]
    assert any(step not in sets[0] for step in sets[1])  # other company, not only another order
    again = make(varied_rows(60), seed=1)
    assert [i for step in again.epoch(0) for i in step.examples()] != orders[0]


def test_each_epoch_is_planned_once_in_a_long_run(make, monkeypatch):
    made = make(tiny.rows("train", 8))
    planned = []
    plan = batch_plan.plan_epoch

    def counted(lengths, config, seed, epoch, shuffle):
        planned.append(epoch)
        return plan(lengths, config, seed, epoch, shuffle)

    monkeypatch.setattr(loader.batch_plan, "plan_epoch", counted)
    steps = sum(1 for step in range(40) if made.locate(step))
    assert steps == 40
    assert len(planned) > 10
    assert len(planned) == len(set(planned))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_read_disjoint_rows_that_make_up_the_batch(make, processes):
    whole = list(make(varied_rows()).batches(0, 5))
    shares = [
        list(make(varied_rows(), share=RowShare((p,), processes)).batches(0, 5))
        for p in range(processes)
    ]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert same(batch, jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts))


def fake_mesh(processes: list[list[list[int]]]):
    """Something with a mesh's shape and devices; each device is given by its process."""
    devices = np.vectorize(lambda p: types.SimpleNamespace(process_index=p))(processes)
    shape = dict(zip(("data", "fsdp", "tensor"), devices.shape, strict=True))
    return types.SimpleNamespace(devices=devices, shape=shape)


@pytest.mark.parametrize(
    ("processes", "shares"),
    [
        ([[[0], [0]], [[1], [1]]], [RowShare((0, 1), 4), RowShare((2, 3), 4)]),
        ([[[0, 1], [0, 1]]], [RowShare((0, 1), 2), RowShare((0, 1), 2)]),
        # The order of a TPU's wiring: a process's blocks are no neighbours.
        ([[[0], [1], [1], [0]]], [RowShare((0, 3), 4), RowShare((1, 2), 4)]),
    ],
    ids=["rows apart", "tensor across processes", "wired otherwise"],
)
def test_a_process_reads_the_rows_of_its_devices(processes, shares):
    mesh = fake_mesh(processes)
    assert [row_share(mesh, p) for p in (0, 1)] == shares
    assert [s.take("abcdefgh"[: 2 * s.of]) for s in shares] == [
        [row for shard in s.shards for row in "abcdefgh"[2 * shard : 2 * shard + 2]] for s in shares
    ]


def test_the_first_rows_alone_for_a_quick_evaluation(make):
    rows = tiny.rows("train", 6)
    rows[1]["rejected"] = [{"response": rows[1]["chosen"]}]
    part = make(rows).first(3)
    assert {i for step in part.epoch(0) for i in step.examples()} == {0, 2, 3}


def test_the_fingerprint_changes_with_the_rows_but_not_with_the_run(make):
    rows = tiny.rows("train", 4)
    before = make(rows).index.fingerprint()
    assert make(rows, seed=1).index.fingerprint() == before
    rows[2]["messages"][0]["content"] += " Now."
    assert make(rows).index.fingerprint() != before


def test_the_fingerprint_tells_words_of_equal_length_and_margins_apart(make):
    rows = tiny.rows("train", 4)
    before = make(rows).index
    other = copy.deepcopy(rows)
    other[1]["messages"][0]["content"] = other[1]["messages"][0]["content"].swapcase()
    swapped = make(other).index
    assert swapped.fingerprint() != before.fingerprint()
    rows[1]["rejected"][0]["margin"] = 0.5
    assert make(rows).index.fingerprint() != before.fingerprint()


def test_a_blind_loader_leaves_out_the_same_over_long_rows(make):
    rows = tiny.rows("train", 8)
    rows[3]["messages"][0]["content"] += " Please." * 50
    limit = int(make(rows).index.lengths.tokens[3]) - 1
    seeing, blind = (make(rows, max_tokens=limit, blind=blind).index for blind in (False, True))
    assert seeing.usable.tolist() == [i != 3 for i in range(8)]
    assert blind.usable.tolist() == seeing.usable.tolist()
    assert (blind.lengths.tokens < seeing.lengths.tokens).all()


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "\n", "\n\n", "\r\n"])
def test_blank_lines_and_a_missing_last_newline_are_no_rows(tmp_path, ending):
    lines = [json.dumps(row) for row in tiny.rows("train", 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\n{lines[0]}\n   \n\n{lines[1]}\n{lines[2]}{ending}")
    rows = RowFile(path)
    assert [rows[i]["id"] for i in range(len(rows))] == ["train/0", "train/1", "train/2"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_named(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(LoaderError, match=r"rows\.jsonl is empty: expected one row"):
        RowFile(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="not found: expected a preference file"):
            RowFile(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", ', r"line 4: expected one JSON object a line"),
        (b'["x"]', r"line 4: expected an object, found list"),
        (b'{"id": "x", "tools": [], "messages": []}', r"line 4: .* under 'chosen'"),
        (b'{"id": "\xff"}', r"line 4: expected UTF-8"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, renderer, line, message):
    first, last = (json.dumps(row).encode() for row in tiny.rows("train", 2))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([first, b"", last, line, last]))
    with pytest.raises((PairsError, LoaderError), match=rf"rows\.jsonl, {message}"):
        build_index(RowFile(path), RowTokenizer(renderer), SHAPES)


@pytest.mark.parametrize("margin", ["0.5", None, True, float("nan"), float("inf")])
def test_a_margin_that_is_no_number_is_named(tmp_path, margin):
    rows = tiny.rows("train", 2)
    rows[1]["rejected"][2]["margin"] = margin
    file = RowFile(tiny.write_lines(tmp_path / "rows.jsonl", rows))
    said = r"line 2: (rejected\[2\] has the margin|.* found (NaN|Infinity) is not JSON)"
    with pytest.raises((LoaderError, PairsError), match=said):
        file[1]
