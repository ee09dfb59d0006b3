"""Plans a run on chips that are not there: does it fit, how fast can it be, what will it cost?

    python -m toolrm_jax.plan --config configs/14b.py --topology v5p:2x2x4
    python -m toolrm_jax.plan --config configs/14b.py --topology v6e:4x4 --sweep
    python -m toolrm_jax.plan --config configs/7b.py --topology h100:8 --json
    python -m toolrm_jax.plan ... --price-per-chip-hour 2 --scorer

It compiles the very function that trains (`planner.py`) on a machine without an accelerator.
`--scorer` plans the scorer's forward pass. How to read a plan, what it leaves out: docs/plan.md.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from toolrm_jax.command_line import run_command
from toolrm_jax.errors import reported
from toolrm_jax.planner import PlanError, make_plan, sweep
from toolrm_jax.prediction import Plan, Workload, pareto, sweep_result, table_head
from toolrm_jax.topology import EXAMPLES, Topology, open_topology

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Training config, for example configs/14b.py.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string("topology", None, f"What to compile for, such as {EXAMPLES}.")
_JSON = flags.DEFINE_bool("json", False, "Print the plan as JSON.")
_SCORER = flags.DEFINE_bool("scorer", False, "Plan the scorer's forward pass, not training.")
_SWEEP = flags.DEFINE_bool(
    "sweep",
    False,
    "Try meshes and remat policies (config.mesh and config.model.remat are set by it, whatever is "
    "given) and print the best: 15 or so programs to compile, one after the other.",
)
_PRICE = flags.DEFINE_float("price-per-chip-hour", None, "For the cost of an epoch.")
_DEFAULT = Workload()
_TOKENS = flags.DEFINE_float(
    "tokens-per-pair", _DEFAULT.tokens_per_pair, "Distinct tokens: the prompt, both responses."
)
_KEYS = flags.DEFINE_float(
    "keys-per-token", _DEFAULT.keys_per_token, "Keys that a token attends to, on average."
)
_PADDING = flags.DEFINE_float(
    "padding-share", _DEFAULT.padding_share, "Padding among the computed tokens."
)
_PAIRS = flags.DEFINE_integer("pairs", _DEFAULT.pairs, "Pairs of an epoch.")


def main(argv: list[str]) -> None:
    """Command line."""
    if len(argv) > 1:
        raise app.UsageError(
            f"Unexpected arguments {argv[1:]}; fields are set as --config.model.remat=full."
        )
    # Planning needs no device, and must not take one that is in use.
    jax.config.update("jax_platforms", "cpu")
    logging.set_verbosity(logging.WARNING)
    with reported():
        print(_answer())


def _answer() -> str:
    try:
        workload = Workload(_TOKENS.value, _KEYS.value, _PADDING.value, _PAIRS.value)
    except ValueError as error:
        raise PlanError(str(error)) from error
    topology = open_topology(str(_TOPOLOGY.value))
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    assumed: dict[str, Any] = {"workload": workload, "price": _PRICE.value, "name": name}
    if _SWEEP.value:
        return _swept(topology, assumed)
    plan = make_plan(_CONFIG.value, topology, scorer=_SCORER.value, **assumed)
    return _json(plan.to_json()) if _JSON.value else plan.text()


def _swept(topology: Topology, assumed: dict[str, Any]) -> str:
    if _SCORER.value:
        raise PlanError("--sweep is of training: leave out --scorer.")
    # Each plan takes minutes: its row is shown once it is made.
    say = partial(print, file=sys.stderr if _JSON.value else sys.stdout, flush=True)
    say(table_head())
    plans = sweep(_CONFIG.value, topology, **assumed, say=say)
    if _JSON.value:
        return _json({"plans": _all(plans), "pareto": _all(pareto(plans))})
    return f"\n{sweep_result(plans)}"


def _all(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    return [plan.to_json() for plan in plans]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2)


def run() -> None:
    """Parses flags and plans."""
    run_command(main, _CONFIG, required=("config", "topology"))


if __name__ == "__main__":
    run()
