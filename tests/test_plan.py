"""The planner: the training step compiled for chips that are not there, against what is known."""

import copy
import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import tiny
from ml_collections import ConfigDict

from toolrm_jax import planner
from toolrm_jax.chips import GIB
from toolrm_jax.hlo_costs import count
from toolrm_jax.planner import PlanError, make_plan, sweep, variants
from toolrm_jax.prediction import (
    Bound,
    Memory,
    Plan,
    Workload,
    bound,
    pareto,
    sweep_result,
    table,
    table_head,
    table_row,
)
from toolrm_jax.topology import open_topology, parse_topology

sys.path.insert(0, str(tiny.ROOT / "tools"))

COMMITTED = json.loads((tiny.ROOT / "docs" / "plans.json").read_text())
# Of a plan, what the compiler has no part in.
GIVEN = ("what", "config", "parameters", "topology", "chip", "mesh", "remat", "rows", "workload")


def small(**changes) -> ConfigDict:
    """Two layers of a public shape, in short rows."""
    config = importlib.import_module("configs.qwen3_1_7b").get_config()
    config.model.num_layers = 2
    config.data.row_shapes = ((512, 16),)
    config.data.batch_tokens = 2048
    for field, value in changes.items():
        section, _, name = field.partition("__")
        config[section][name] = value
    return config


@pytest.fixture(scope="module")
def topology():
    pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    return open_topology("v5e:2x2")


@pytest.fixture(scope="module")
def command(topology):
    """The command as a process, at work while `plan` is compiled here: each takes a core."""
    arguments = ["--config", "configs/qwen3_1_7b.py", "--topology", "v5e:2x2", "--json"]
    arguments += ["--config.model.num_layers=2", "--config.data.row_shapes=((512, 16),)"]
    arguments += ["--config.data.batch_tokens=2048", "--price-per-chip-hour", "1.5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "toolrm_jax.plan", *arguments],
        cwd=tiny.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def planned(topology, command):
    """(plan of the small model, costs of its program)"""
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "count", lambda program: kept.append(count(program)) or kept[-1])
        plan = make_plan(small(), topology, name="configs/qwen3_1_7b.py")
    return plan, kept[0]


@pytest.fixture(scope="module")
def plan(planned):
    """Of the small model."""
    return planned[0]


def same(got, expected, path=""):
    """Every figure, but for the time that compiling took and versions."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), path
        for name in expected.keys() - {"compile_seconds", "versions"}:
            same(got[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-6), path
    else:
        assert got == expected, path


def same_plan(got, committed):
    """Every figure; where another version of the compiler made it, memory and seconds to a tenth.

    How it divides both is then its own choice; what it had no part in is the same.
    """
    if got["versions"] == committed["versions"]:
        same(got, committed)
        return
    for name in GIVEN:
        assert got[name] == committed[name], name
    mine, theirs = got["memory"], committed["memory"]
    assert (mine["usable"], mine["fits"]) == (theirs["usable"], theirs["fits"])
    assert mine["peak"] == pytest.approx(theirs["peak"], rel=0.1)
    assert got["seconds"] == pytest.approx(committed["seconds"], rel=0.1)


@pytest.mark.parametrize("part", ["memory", "seconds"])
def test_a_plan_of_another_compiler_is_held_to_a_tenth(part):
    committed = next(iter(COMMITTED.values()))
    other = copy.deepcopy(committed) | {"versions": {"jax": "another"}}
    name = {"memory": "peak", "seconds": "HBM"}[part]
    other[part][name] *= 1.09
    same_plan(other, committed)
    other[part][name] *= 1.03
    with pytest.raises(AssertionError):
        same_plan(other, committed)


def test_the_committed_plan_of_the_small_model_is_made_again(plan):
    from plan_table import ENTRIES

    same_plan(json.loads(json.dumps(plan.to_json())), COMMITTED[ENTRIES[0].key])


def test_state_is_weights_and_moments_split_over_the_chips(plan):
    f32 = 4
    assert plan.memory.parts["weights"] == pytest.approx(plan.parameters * f32 / 4, rel=0.01)
    assert plan.memory.parts["moments"] == pytest.approx(plan.parameters * 2 * f32 / 4, rel=0.01)
    assert sum(plan.memory.parts.values()) == pytest.approx(plan.memory.peak)
    assert plan.memory.fits
    assert "kept activations" in plan.memory.parts


def test_flops_are_those_of_the_model(plan):
    """Every product of two layers, forward and twice backward; of attention the causal half."""
    width, mlp, heads, kv, head, tokens = 2048, 6144, 16, 8, 128, 512
    projections = 2 * (2 * width * head * (heads + kv) + 3 * width * mlp)
    attention = 4 * heads * head * tokens / 2
    forward = 2 * tokens * (projections + attention)
    assert plan.flops["forward"] == pytest.approx(forward, rel=1e-3)
    backward = 2 * tokens * (2 * projections + 2.5 * attention)
    assert plan.flops["backward"] == pytest.approx(backward, rel=1e-3)
    # "projections" keeps all products but those of the outputs of attention and MLP.
    assert plan.flops["recomputed"] < 0.25 * forward


def test_weights_are_gathered_and_gradients_reduced(plan):
    """A chip takes in three quarters of each: of weights for both passes, in bfloat16, of gradients
    once, in float32."""
    layers = 2 * (2 * 2048 * 128 * 24 + 3 * 2048 * 6144)
    gathered = sum(size for name, size in plan.collective_bytes.items() if "all-gather" in name)
    assert gathered == pytest.approx(2 * 2 * layers * 3 / 4, rel=0.01)
    reduced = sum(
        size
        for name, size in plan.collective_bytes.items()
        if "reduce-scatter" in name or "permute" in name
    )
    assert reduced == pytest.approx(4 * layers * 3 / 4, rel=0.01)


def test_weights_are_gathered_while_others_are_multiplied_with(planned):
    """As the compiler has scheduled the step: all but what the first product of a pass waits for.
    The gradients' reductions it leaves alone here."""
    costs = planned[1]

    def moved(counter, kind):
        return sum(x.payload * times for x, times in counter.items() if x.kind == kind)

    share = {
        kind: moved(costs.beside_products, kind) / moved(costs.collectives, kind)
        for kind in ("all-gather", "reduce-scatter")
    }
    assert share["all-gather"] > 0.6
    assert share["reduce-scatter"] == 0


def test_the_bounds_are_in_order_and_what_they_say_belongs_together(plan):
    low, high = plan.overlapped, plan.serial
    assert low.step_seconds == pytest.approx(
        max(plan.seconds["operation by operation"], plan.seconds["collectives"])
    )
    assert high.step_seconds == pytest.approx(
        plan.seconds["operation by operation"] + plan.seconds["collectives"]
    )
    assert plan.seconds["products"] < low.step_seconds
    assert 0 < high.mfu < low.mfu < 1
    assert low.tokens_per_second * low.step_seconds == pytest.approx(0.95 * 4 * 512)


@pytest.mark.slow
def test_remat_trades_memory_for_work(topology, plan):
    full = make_plan(small(model__remat="full"), topology)
    assert full.memory.parts["kept activations"] < plan.memory.parts["kept activations"]
    assert full.flops["recomputed"] > plan.flops["recomputed"]
    assert full.flops["forward"] == plan.flops["forward"]


def test_what_does_not_fit_is_a_verdict_with_the_compilers_figures(topology):
    config = small(model__remat="none", data__row_shapes=((8192, 16),))
    config.data.batch_tokens = 64 * 8192
    plan = make_plan(config, topology)
    assert not plan.memory.fits
    assert plan.memory.peak > plan.memory.usable
    assert "RESOURCE_EXHAUSTED" in plan.memory.refusal
    assert "does not fit: needs" in plan.text()
    assert plan.overlapped is None


@pytest.mark.slow
def test_the_scorers_forward_has_no_gradients_and_bfloat16_weights(topology):
    plan = make_plan(small(), topology, scorer=True)
    assert plan.chips == 4
    assert set(plan.flops) == {"forward"}
    assert plan.mesh["data"] == 4  # a copy of the weights on each chip
    assert plan.memory.parts["weights"] == pytest.approx(2 * plan.parameters, rel=0.01)


def test_the_command_prints_the_plan_and_nothing_else(plan, command):
    found, errors = command.communicate(timeout=200)
    assert (command.returncode, errors) == (0, "")
    printed = json.loads(found)
    assert printed["memory"]["peak"] == plan.memory.peak
    hours = printed["overlapped"]["hours_per_epoch"]
    assert printed["overlapped"]["cost_per_epoch"] == pytest.approx(hours * 4 * 1.5)
    assert printed["left_out"]


# --- Without compiling ----------------------------------------------------------------------------


def answer(*arguments, program=""):
    """(exit code, stdout, stderr) of the command, or of a program that calls it."""
    call = ["-c", program] if program else ["-m", "toolrm_jax.plan"]
    done = subprocess.run(
        [sys.executable, *call, "--config", "configs/14b.py", *arguments],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_mistyped_field_is_one_line_with_a_suggestion():
    code, output, errors = answer("--topology", "v5e:2x2", "--config.model.rematt=full")
    (line,) = errors.splitlines()
    assert line.startswith("error: --config: no field 'rematt' Did you mean \"remat\"")
    assert (code, output) == (1, "")


def read(key) -> Plan:
    """A committed plan, as it was made."""
    made = {field.name: COMMITTED[key][field.name] for field in dataclasses.fields(Plan)}
    memory = {name: made["memory"][name] for name in ("peak", "usable", "parts", "refusal")}
    made |= {"memory": Memory(**memory), "workload": Workload(**made["workload"])}
    made |= {name: Bound(**made[name]) for name in ("overlapped", "serial")}
    return Plan(**made)


@pytest.mark.parametrize("key", COMMITTED)
def test_a_committed_plan_says_what_plans_say_now(key):
    assert json.loads(json.dumps(read(key).to_json())) == COMMITTED[key]


def test_a_plan_says_so_where_the_network_between_its_nodes_is_assumed():
    assumed = "your own network between nodes (50 GB/s a chip, the usual one, is assumed)"
    assert assumed in read("14b h100:2x8").text()
    for one_node_or_published in ("7b h100:8", "14b v5p:2x2x4"):
        assert "network" not in read(one_node_or_published).text()
    slices = dataclasses.replace(read("14b v5p:2x2x4"), topology="v4:2x2x4:2", chip="v4", chips=32)
    assert "between slices (6.25 GB/s a chip" in slices.text()
    assert "network" not in dataclasses.replace(slices, chips=4).text()  # a scorer's host


def test_the_text_says_what_is_assumed_and_what_is_left_out(plan):
    text = plan.text()
    for words in ("1,000 distinct tokens a pair", "650 keys", "5% padding", "left out:", "usable"):
        assert words in text


def test_weights_that_a_scorer_cannot_hold_are_an_error_with_the_figures_of_the_topology():
    config = small(model__source="Qwen/Qwen2.5-32B-Instruct", model__num_layers=0)
    topology = dataclasses.replace(parse_topology("v5e:4x8"), devices=[None] * 32)
    with pytest.raises(PlanError) as error:
        make_plan(config, topology, scorer=True)
    said = str(error.value)
    assert "does not fit v5e:4x8: the weights take 59.6 GiB in bfloat16" in said
    assert "half of the memory of 4 v5e chips, a host's, is 31.5 GiB" in said


def test_useful_work_leaves_out_padding():
    found = bound(2.0, 1000, 3e9, 1e12, 4, Workload(100, 50, 0.2, 3600), price_per_chip_hour=10)
    assert found.tokens_per_second == 400
    assert found.pairs_per_second == 4
    assert found.mfu == pytest.approx(800 * 3e9 / (2 * 4 * 1e12))
    assert found.hours_per_epoch == pytest.approx(0.25)
    assert found.cost_per_epoch == pytest.approx(10)


def test_a_pareto_table_drops_what_is_beaten_in_both(plan):
    def like(peak, seconds):
        found = bound(seconds, 1000, 1, 1, 1, Workload(), None)
        memory = Memory(peak * GIB, 16 * GIB, {})
        return dataclasses.replace(plan, memory=memory, overlapped=found, serial=found)

    fast, lean, beaten, too_large = like(10, 1), like(5, 2), like(10, 3), like(20, 0.5)
    assert pareto([beaten, lean, too_large, fast]) == [fast, lean]


def test_a_sweep_in_which_nothing_fits_says_what_needs_least():
    made = read("14b v5e:4x8 model.remat=full")

    def needing(gib, remat):
        memory = dataclasses.replace(made.memory, peak=gib * GIB, usable=15.75 * GIB)
        return dataclasses.replace(made, memory=memory, remat=remat)

    said = sweep_result([needing(31, "none"), needing(18.04, "full"), needing(20, "projections")])
    assert said == (
        "Nothing fits. Mesh fsdp 32, remat 'full' needs least: 18.0 GiB of 15.8 usable."
    )
    assert sweep_result([needing(31, "none"), made]).endswith(table([made]))
    assert "none of these meshes" in sweep_result([])


# Every variant is left out.
SWEEP = """
from toolrm_jax import plan, topology
plan.open_topology = topology.parse_topology
plan.sweep = lambda *_, say, **__: say("left out: ...") or []
plan.run()
"""


@pytest.mark.parametrize("json_wanted", [False, True])
def test_the_progress_of_a_sweep_is_a_table_beside_the_answer(json_wanted):
    flags = ["--json"] * json_wanted
    code, output, errors = answer("--topology", "v5e:2x2", "--sweep", *flags, program=SWEEP)
    progress = f"{table_head()}\nleft out: ...\n"
    if json_wanted:
        assert (errors, json.loads(output)) == (progress, {"plans": [], "pareto": []})
    else:
        assert (errors, output.startswith(progress)) == ("", True)
    assert code == 0


def test_help_says_what_a_sweep_sets_and_takes():
    _, output, _ = answer("--helpshort")
    assert "config.mesh and config.model.remat are set by it" in " ".join(output.split())


def test_a_sweep_has_every_mesh_with_every_policy(topology):
    tried = list(variants(small(), topology))
    meshes = {(v.mesh.data, v.mesh.fsdp, v.mesh.tensor) for v in tried}
    assert meshes == {(1, -1, 1), (2, -1, 1), (1, -1, 2), (2, -1, 2), (1, -1, 4)}
    assert len(tried) == 3 * len(meshes)


@pytest.mark.slow
def test_a_sweep_ends_in_plans_that_nothing_beats(topology):
    said = []
    config = small(model__num_layers=1, data__row_shapes=((256, 8),))
    plans = sweep(config, topology, say=said.append)
    assert len(plans) == len(said) == 15
    best = pareto(plans)
    assert 1 <= len(best) < len(plans)
    assert min(plans, key=lambda plan: plan.memory.peak) in best


@pytest.mark.parametrize(
    ("key", "free", "overlapped", "serial"),
    [
        ("14b v5p:2x2x4", 0.25, 0.70, 0.45),
        ("14b v6e:4x4 model.remat=full", 0.25, 0, 0),
        ("14b v5e:4x8 model.remat=full", 0, 0, 0),
    ],
)
def test_the_14b_model_fits_with_room(key, free, overlapped, serial):
    """Of the committed plans; `test_a_committed_plan_is_made_again` compiles them."""
    plan = COMMITTED[key]
    assert plan["rows"]["tokens"] == 4096
    assert plan["rows"]["rows"] == plan["chips"]
    assert plan["memory"]["fits"]
    assert plan["memory"]["free_share"] >= free
    assert plan["overlapped"]["mfu"] >= overlapped
    assert plan["serial"]["mfu"] >= serial


def test_every_config_of_the_paper_has_a_plan_that_fits():
    for name in ("1_5b", "7b", "14b", "qwen3_1_7b", "qwen3_4b", "qwen3_8b", "qwen3_14b"):
        plans = [p for key, p in COMMITTED.items() if key.split()[0] == name]
        assert any(p["memory"]["fits"] and p["rows"]["tokens"] == 4096 for p in plans), name


def test_the_docstrings_of_configs_say_what_is_planned():
    from plan_table import line

    for key, plan in COMMITTED.items():
        if plan["rows"]["tokens"] == 4096 and plan["what"] == "training step":
            module = importlib.import_module(f"configs.{key.split()[0]}")
            assert line(plan) in module.__doc__, key


def test_an_epoch_of_less_than_an_hour_has_two_digits():
    from plan_table import line

    assert line(COMMITTED["1_5b v6e:2x2 model.remat=full"]).endswith(" 0.26-0.31 h")
    assert line(COMMITTED["14b v5p:2x2x4"]).endswith(" 0.76-1.2 h")


def test_how_long_compiling_takes_is_said_as_the_committed_plans_have_it():
    import plan_table

    seconds = {key: plan["compile_seconds"] for key, plan in COMMITTED.items()}
    steps = {key: taken for key, taken in seconds.items() if "scorer" not in key}
    gpus = [taken for key, taken in steps.items() if " h100:" in key]
    tpus = [taken for key, taken in steps.items() if " v" in key]
    of_14b = [taken for key, taken in steps.items() if key.startswith("14b v")]
    docs, planners = (
        " ".join(text.split()) for text in (plan_table.DOCS.read_text(), planner.__doc__)
    )
    for text in (docs, planners):
        assert f"{min(tpus):.0f} to {max(tpus):.0f} s for TPUs" in text
        assert f"and {max(gpus):.0f} s for GPUs" in text
    assert f"(the 14B of Qwen2.5 {min(of_14b):.0f} to {max(of_14b):.0f} s)" in docs
    assert f"all: {sum(seconds.values()) / 60:.0f} minutes of compiling" in plan_table.__doc__


def test_the_table_in_the_docs_is_that_of_the_committed_plans():
    from plan_table import DOCS, END, START

    rows = [table_row(plan) for key, plan in COMMITTED.items() if "num_layers" not in key]
    text = DOCS.read_text().split(START)[1].split(END)[0]
    assert text.strip().splitlines() == [*table_head().splitlines(), *rows]


@pytest.mark.slow
@pytest.mark.parametrize("key", COMMITTED)
def test_a_committed_plan_is_made_again(key):
    from plan_table import ENTRIES

    if COMMITTED[key]["chip"].startswith("h"):
        pytest.importorskip("jax_plugins.xla_cuda12", reason="the CUDA plugin (extra: cuda)")
    else:
        pytest.importorskip("libtpu", reason="libtpu, the TPU's compiler (extra: plan)")
    (entry,) = [entry for entry in ENTRIES if entry.key == key]
    same_plan(json.loads(json.dumps(entry.plan())), COMMITTED[key])
