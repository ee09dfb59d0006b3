"""Compiles a config's step for chips that are not there, and weighs the program.

    config -> the training step of train.py --ahead of time--> program for the topology
                  memory: the compiler's own figures      work: counted in the program's text
                                                           --roofline--> two bounds of speed

It is the very function that trains, for the config's largest row shape, state donated; no weights
are read. To compile those of docs/plans.json took 86 to 811 s for TPUs and 3 s for GPUs, on 2 busy
cores. `plan.py` is the command; how to read a plan, and what it leaves out: docs/plan.md.

    plan = make_plan(config, open_topology("v5p:2x2x4"))
    print(plan.text())
"""

import dataclasses
import importlib.metadata
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from toolrm_jax.architectures import architecture
from toolrm_jax.batch import Batch, RowShape, empty_batch
from toolrm_jax.chips import GIB
from toolrm_jax.compilation_cache import compilation_cache_off
from toolrm_jax.errors import InputError
from toolrm_jax.hlo import parse
from toolrm_jax.hlo_costs import Costs, count
from toolrm_jax.model import REMAT, Forward, abstract_params
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.optimizer import make_optimizer
from toolrm_jax.prediction import Memory, Plan, Workload, bound, table
from toolrm_jax.roofline import collective_bytes, roofline
from toolrm_jax.scorer import make_score_batch, plan_for
from toolrm_jax.sharding import (
    MESH_AXES,
    MeshError,
    logical_to_spec,
    make_inference_mesh,
)
from toolrm_jax.topology import Topology
from toolrm_jax.train_config import section, unpack
from toolrm_jax.train_step import TrainState, abstract_state, make_train_step


class PlanError(InputError, ValueError):
    """A plan that cannot be made; the message says why."""


TRAINING, SCORING = "training step", "scoring batch"


@dataclasses.dataclass(frozen=True)
class _Program:
    """What is to be compiled, and what its arguments are in memory."""

    lowered: jax.stages.Lowered
    mesh: jax.sharding.Mesh
    rows: dict[str, int]
    parts: dict[str, float]  # bytes of a chip
    what: str  # TRAINING or SCORING

    @property
    def tokens(self) -> int:
        """Computed by one execution, on all chips."""
        return self.rows["micro_batches"] * self.rows["rows"] * self.rows["tokens"]


def make_plan(
    config: ConfigDict,
    topology: Topology,
    *,
    scorer: bool = False,
    workload: Workload | None = None,
    price: float | None = None,
    name: str = "",
) -> Plan:
    """Compiles a config's training step for a topology, and predicts it; or the scorer's forward
    pass, on the meshes that `Scorer` makes.

    Raises:
      InputError: the config, the mesh or the model do not go together.
    """
    model = _model(config)
    workload = workload or Workload()
    program = (_scoring_program if scorer else _training_program)(config, topology, model)
    began = time.perf_counter()
    compiled, refusal = _compile(program.lowered)
    plan = Plan(
        what=program.what,
        config=name,
        source=config.model.source,
        parameters=model.num_parameters,
        topology=topology.name,
        chip=topology.chip.name,
        chips=program.mesh.devices.size,
        mesh=dict(program.mesh.shape),
        remat=config.model.remat,
        rows=program.rows,
        memory=_refused(refusal, program, topology),
        workload=workload,
        compile_seconds=time.perf_counter() - began,
        versions=_versions(topology),
    )
    if compiled is None:
        return plan
    costs = count(parse(compiled.as_text() or ""))
    devices = list(program.mesh.devices.flat)
    line = roofline(costs, topology, devices)

    def speed(seconds: float):
        passes = 3 if program.what == TRAINING else 1  # backward counts for two
        useful = passes * model.flops_per_token(workload.keys_per_token)
        peak = topology.chip.peak_flops
        return bound(seconds, program.tokens, useful, peak, plan.chips, workload, price)

    return dataclasses.replace(
        plan,
        memory=_memory(compiled, costs, program, topology),
        flops=costs.flops,
        hbm_bytes=costs.hbm_bytes,
        collective_bytes=collective_bytes(costs, len(devices)),
        seconds={
            "products": line.compute,
            "HBM": line.memory,
            "operation by operation": line.chip,
            "collectives": line.exchanging,
        },
        collective_seconds=line.collectives,
        binding=line.binding,
        overlapped=speed(line.overlapped),
        serial=speed(line.serial),
        warnings=tuple(sorted(set(costs.warnings))),
    )


def _model(config: ConfigDict) -> ModelConfig:
    model = architecture(config.model.source)
    layers = config.model.num_layers
    if layers > model.num_layers:
        raise PlanError(
            f"config.model.num_layers={layers}: {config.model.source} has {model.num_layers}."
        )
    return dataclasses.replace(model, num_layers=layers or model.num_layers)


def _training_program(config: ConfigDict, topology: Topology, model: ModelConfig) -> _Program:
    mesh, batches, optimizer_config, compute = unpack(config, topology.devices)
    shape = max(batches.shapes)
    steps = max(config.train.steps, 1000)  # a number that the schedule is made of, no more
    optimizer = make_optimizer(dataclasses.replace(optimizer_config, steps=steps))
    with jax.set_mesh(mesh), section("mesh"):
        step = make_train_step(Forward(model, compute), optimizer, config.loss.eta)
        state = abstract_state(abstract_params(model, mesh), optimizer, mesh)
        batch = _abstract_batch(batches.micro_batches, batches.rows(shape), shape, mesh)
        lowered = step.lower(state, batch)
    rows = _rows(shape, batches.rows(shape), batches.micro_batches)
    return _Program(lowered, mesh, rows, _state_bytes(state), TRAINING)


def _scoring_program(config: ConfigDict, topology: Topology, model: ModelConfig) -> _Program:
    mesh = _scoring_mesh(topology, model)
    longest = max(shape[0] for shape in config.data.row_shapes)
    plan = plan_for(model, mesh, longest, None, 256)
    shape = plan.shapes[-1]
    rows = plan.heights(shape)[0]
    with jax.set_mesh(mesh):
        score = make_score_batch(model, config.model.dtype)
        params = abstract_params(model, mesh)
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, config.model.dtype, sharding=x.sharding), params
        )
        layout = jax.sharding.NamedSharding(mesh, logical_to_spec(("rows",)))
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout),
            empty_batch(rows, shape),
        )
        lowered = score.lower(params, batch)
    return _Program(lowered, mesh, _rows(shape, rows, 1), {"weights": _bytes(params)}, SCORING)


def _scoring_mesh(topology: Topology, model: ModelConfig) -> jax.sharding.Mesh:
    """Of the chips of one host: what is planned is one scorer."""
    chip, weights = topology.chip, 2 * model.num_parameters
    host = topology.devices[: chip.chips_per_node or 4]
    try:
        return make_inference_mesh(model.width, weights, host, chip.usable_bytes)
    except MeshError as error:
        held = len(host) * chip.usable_bytes / 2
        raise PlanError(
            f"--scorer does not fit {topology.name}: the weights take {weights / GIB:.1f} GiB in "
            f"bfloat16, and half of the memory of {len(host)} {chip.name} chips, a host's, is "
            f"{held / GIB:.1f} GiB; the other half is for activations. Plan it for larger chips, "
            f"or for more of them a host."
        ) from error


def _rows(shape: RowShape, rows: int, micro_batches: int) -> dict[str, int]:
    return {
        "tokens": shape.tokens,
        "responses": shape.responses,
        "rows": rows,
        "micro_batches": micro_batches,
    }


def _abstract_batch(
    micro_batches: int, rows: int, shape: RowShape, mesh: jax.sharding.Mesh
) -> Batch:
    """Micro-batches as the loader puts them on devices."""
    layout = jax.sharding.NamedSharding(mesh, logical_to_spec(("micro", "rows")))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((micro_batches, *x.shape), x.dtype, sharding=layout),
        empty_batch(rows, shape),
    )


def _state_bytes(state: TrainState) -> dict[str, float]:
    weights = _bytes(state.params)
    return {"weights": weights, "moments": _bytes(state.opt_state), "gradients": weights}


def _bytes(tree: Any) -> float:
    """Of the arrays' parts on one device."""
    total = 0
    for x in jax.tree.leaves(tree):
        shard = jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
        total += shard.size * shard.dtype.itemsize
    return float(total)


# --- From a program to a plan -----------------------------------------------------------------


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, str]:
    """The program; or none, and why the compiler refuses it for its memory."""
    try:
        with compilation_cache_off():
            return lowered.compile(), ""
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        return None, " ".join(text.split("\n\n")[0].split())


# "Used 123.4G of 95.74G hbm", or "memory required ... (838.28G) exceeds available HBM (15.75G)"
_FIGURES = re.compile(
    r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT])|"
    r"\(([\d.]+)([KMGT])\) exceeds[^(]*\(([\d.]+)([KMGT])\)"
)
_UNITS = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def _refused(refusal: str, program: _Program, topology: Topology) -> Memory:
    """The compiler's error, as a verdict."""
    found = _FIGURES.search(refusal)
    figures = [part for part in found.groups() if part] if found else []
    usable = topology.chip.usable_bytes
    # Where it gives no figures, it is more than there is.
    least = max(usable, sum(program.parts.values()))
    peak = float(figures[0]) * _UNITS[figures[1]] if figures else least
    return Memory(peak, usable, program.parts, refusal)


def _memory(
    compiled: jax.stages.Compiled, costs: Costs, program: _Program, topology: Topology
) -> Memory:
    """What the compiler allocates; what is neither state nor stored for the backward pass is the
    layers' own working memory."""
    stats: Any = compiled.memory_analysis()
    peak = (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes
    )
    parts = dict(program.parts)
    if program.what == TRAINING:
        parts["kept activations"] = costs.kept_bytes
    parts["other"] = peak - sum(parts.values())
    return Memory(float(peak), topology.chip.usable_bytes, parts)


def _versions(topology: Topology) -> dict[str, str]:
    packages = ("jax", "libtpu" if topology.chip.platform == "tpu" else "jax-cuda12-plugin")
    return {name: importlib.metadata.version(name) for name in packages}


# --- Sweep --------------------------------------------------------------------------------------


def variants(config: ConfigDict, topology: Topology) -> Iterator[ConfigDict]:
    """The config on other meshes, with each remat policy; memory per chip decides what is left."""
    chips = topology.chips
    for tensor in (1, 2, 4):
        for data in sorted({1, topology.parts, 2 * topology.parts}):
            if chips % (tensor * data):
                continue
            for remat in REMAT:
                changed = ConfigDict(config.to_dict())
                changed.mesh = ConfigDict(dict.fromkeys(MESH_AXES, 1))
                changed.mesh.update(data=data, fsdp=-1, tensor=tensor)
                changed.model.remat = remat
                yield changed


def sweep(
    config: ConfigDict,
    topology: Topology,
    workload: Workload | None = None,
    price: float | None = None,
    name: str = "",
    say: Any = print,
) -> list[Plan]:
    """A plan of every variant that the model can be split for."""
    plans = []
    for variant in variants(config, topology):
        try:
            plan = make_plan(variant, topology, workload=workload, price=price, name=name)
        except InputError as error:
            if not isinstance(error.__cause__, MeshError):
                raise
            say(f"left out: {error}")
            continue
        plans.append(plan)
        say(table([plan]).splitlines()[-1])
    return plans
