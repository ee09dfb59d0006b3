"""Makes the table of plans in docs/plan.md, docs/plans.json and the lines in the configs'
docstrings, from the configs. What the headers of launch/ say of the 14B is changed by hand; a test
compares.

    python tools/plan_table.py              # all: 48 minutes of compiling, on 2 busy cores
    python tools/plan_table.py 14b v5p      # those whose key has all of these words

A plan is kept under its key, "14b v5p:2x2x4"; the others stay as they are.
"""

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import jax

from toolrm_jax.files import write_text
from toolrm_jax.planner import make_plan
from toolrm_jax.prediction import table_head, table_row
from toolrm_jax.topology import open_topology

ROOT = Path(__file__).resolve().parents[1]
PLANS, DOCS = ROOT / "docs" / "plans.json", ROOT / "docs" / "plan.md"
START, END = "<!-- plans: tools/plan_table.py -->", "<!-- end of plans -->"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of the table."""

    config: str
    topology: str
    scorer: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Its name in plans.json."""
        changes = [f"{name}={value}" for name, value in self.changes]
        return " ".join([self.config, self.topology, *(["scorer"] * self.scorer), *changes])

    def plan(self) -> dict[str, Any]:
        """Compiles it."""
        file = f"configs/{self.config}.py"
        config = runpy.run_path(str(ROOT / file))["get_config"]()
        for name, value in self.changes:
            section, _, field = name.rpartition(".")
            config[section][field] = value
        topology = open_topology(self.topology)
        return make_plan(config, topology, scorer=self.scorer, name=file).to_json()


FULL = (("model.remat", "full"),)
SMALL = (
    ("model.num_layers", 2),
    ("data.row_shapes", ((512, 16),)),
    ("data.batch_tokens", 2048),
)
ENTRIES = (
    # Small, and compiled by the default tests.
    Entry("qwen3_1_7b", "v5e:2x2", changes=SMALL),
    Entry("1_5b", "v5e:2x4", changes=FULL),
    Entry("1_5b", "v6e:2x2", changes=FULL),
    Entry("7b", "v5p:2x2x1"),
    Entry("7b", "v6e:2x4", changes=FULL),
    Entry("7b", "v5e:4x4", changes=FULL),
    Entry("14b", "v5p:2x2x4"),
    Entry("14b", "v6e:4x4", changes=FULL),
    Entry("14b", "v5e:4x8", changes=FULL),
    Entry("qwen3_1_7b", "v6e:2x2", changes=FULL),
    Entry("qwen3_4b", "v6e:2x4", changes=FULL),
    Entry("qwen3_8b", "v5p:2x2x2"),
    Entry("qwen3_14b", "v5p:2x2x4"),
    Entry("14b", "v5p:2x2x1", scorer=True),
    # These need the CUDA plugin.
    Entry("7b", "h100:8"),
    Entry("14b", "h100:2x8"),
)


def write(plans: dict[str, Any]) -> None:
    """Both files; the table in the order of the entries. And the lines of the docstrings."""
    order = {entry.key: number for number, entry in enumerate(ENTRIES)}
    plans = {key: plans[key] for key in order if key in plans}
    write_text(PLANS, json.dumps(plans, indent=1) + "\n")
    shown = [plan for key, plan in plans.items() if "num_layers" not in key]  # not a whole model
    table = "\n".join([table_head(), *map(table_row, shown)])
    text = DOCS.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    write_text(DOCS, f"{before}{START}\n{table}\n{END}{after}")
    for plan in shown:
        if plan["what"] == "training step":
            write_line(ROOT / plan["config"], line(plan))


def write_line(file: Path, new: str) -> None:
    """Puts it in the place of the one about the same topology."""
    topology = new[: new.index("  ")]
    old = re.compile(rf"^    {re.escape(topology)}  .*$", re.MULTILINE)
    write_text(file, old.sub(lambda _: f"    {new}", file.read_text()))


def line(plan: dict[str, Any]) -> str:
    """What the docstring of a config says about a topology."""
    low, high, memory = plan["overlapped"], plan["serial"], plan["memory"]
    remat = f", model.remat={plan['remat']}" if plan["remat"] != "projections" else ""
    return (
        f"{plan['topology'] + remat:<28} {memory['peak'] / 2**30:.1f} of "
        f"{memory['usable'] / 2**30:.1f} GiB, {high['tokens_per_second'] / 1000:.0f}-"
        f"{low['tokens_per_second'] / 1000:.0f}k tokens/s, {_hours(low)}-{_hours(high)} h"
    )


def _hours(bound: dict[str, Any]) -> str:
    hours = bound["hours_per_epoch"]
    return f"{hours:.2f}" if hours < 1 else f"{hours:.1f}"


def main(words: list[str]) -> None:
    """Command line."""
    jax.config.update("jax_platforms", "cpu")
    for entry in ENTRIES:
        if all(word in entry.key for word in words):
            plan = entry.plan()
            print(f"{entry.key}: {plan['memory']['verdict']}", flush=True)
            plans = json.loads(PLANS.read_text()) if PLANS.exists() else {}
            write(plans | {entry.key: plan})


if __name__ == "__main__":
    main(sys.argv[1:])
