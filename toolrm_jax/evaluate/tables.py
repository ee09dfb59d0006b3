"""What a run found, as facts and tables: text alone, for any kind of page.

run --facts_of--> where its figures come from, a sentence each
    --tables_of--> (title, head, rows), one after the other
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.evaluate.best_of_n import BUILT, milestones
from toolrm_jax.evaluate.cards import data_counts
from toolrm_jax.evaluate.results import Run

Figures = Mapping[str, Any]
Table = tuple[str, list[str], list[list[str]]]


def facts_of(run: Run) -> list[str]:
    """Where the figures come from, a sentence each."""
    result, data = run.result, run.result["data"]
    facts = [
        f"Data: {data['path']} (SHA-256 {data['sha256'][:16]}), {data['cases']:,} cases of "
        f"{data['tasks']:,} tasks; seed {result['seed']}.",
        f"Made by `{result['command']}` with "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ".",
    ]
    if data["rejected"]:
        facts.append(f"{sum(data['rejected'].values()):,} rows were rejected; see rejects.jsonl.")
    for name, found in result.get("scorers", {}).items():
        if left_out := found.get("unscored pairs"):
            facts.append(f"{name}: left out, as neither side could be scored: {left_out:,} pairs.")
    return facts + list(result.get("notes", ()))


def tables_of(run: Run) -> Iterator[Table]:
    """(title, head, rows) of everything that a run found; titles bear the run's mark."""
    for title, head, rows in _found_tables(run):
        yield title + run.mark, head, rows


def _found_tables(run: Run) -> Iterator[Table]:
    scorers = run.result.get("scorers", {})
    if any("accuracy" in found for found in scorers.values()):
        yield _accuracy_table(scorers)
        for by in ("error type", "category", "model"):
            yield from _by_table(by, scorers)
        yield _length_table(scorers)
    for draws, found in run.result.get("best of n", {}).items():
        yield from _curve_table(draws, found)
    if "pools" in run.result:
        yield _pools_table(run.result["pools"], run.result["best of n"])
    if run.result.get("drift"):
        yield _drift_table(run.result["drift"])
    if "filter" in run.result:
        yield _filter_table(run.result["filter"])
    yield from _cards(run)


# What a model's card shows, and the fields that may hold it: of a training run, a probe, a
# conversion, a judge.
_CARD = {
    "where": ("path", "url"),
    "base": ("config.model.source", "base", "origin", "model"),
    "layers": ("layers",),
    "parameters": ("parameters",),
    "computed in": ("dtype",),
    "steps of training": ("step",),
    "trained on": ("config.data.train", "fitted_on"),
    "tasks trained on": ("train_tasks",),
    "held-out accuracy of its training": ("heldout.accuracy.mean",),
}


def _cards(run: Run) -> Iterator[Table]:
    """What models and data the run was made with; runs of earlier versions know no models."""
    if models := run.result.get("models"):
        rows = [
            [label, *(_field(card, names) for card in models.values())]
            for label, names in _CARD.items()
        ]
        yield "Models", ["model", *models], [row for row in rows if set(row[1:]) != {"-"}]
    counts = data_counts(run.cases, run.result["data"]["rejected"])
    yield "Data", ["kind", "number"], [[kind, f"{count:,}"] for kind, count in counts.items()]


def _field(card: Figures, names: Sequence[str]) -> str:
    value = next((card[name] for name in names if name in card), "-")
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)  # True is an int as well


def full_cards(run: Run) -> Iterator[Table]:
    """All fields of the models' cards, most of them of what their checkpoints say."""
    for name, card in run.result.get("models", {}).items():
        rows = [[field, _field(card, [field])] for field in card]
        yield f"{name}: all that is known of it", ["field", "value"], rows


def _accuracy_table(scorers: Figures) -> Table:
    rows = []
    for name, found in scorers.items():
        calibration = found.get("calibration") or {}
        rows.append(
            [
                name,
                interval(found["accuracy"]),
                f"{found['accuracy']['n']:,}",
                f"{found['ties']:,}",
                f"{found['unscored']:,}",
                # Runs of earlier versions took them for ties.
                count(found.get("unscored pairs")),
                number(found["margin"]["mean"]),
                percent(calibration.get("ece")),
            ]
        )
    head = ["scorer", "accuracy, %", "pairs", "ties", "unscored answers", "unscored pairs"]
    return "Accuracy on pairs", [*head, "mean margin", "ECE, %"], rows


def _by_table(by: str, scorers: Figures) -> Iterator[Table]:
    names = list(dict.fromkeys(n for found in scorers.values() for n in found["by"][by]))
    if not names:
        return
    rows = []
    for name in names:
        cells = [found["by"][by].get(name) for found in scorers.values()]
        counts = sorted({cell["n"] for cell in cells if cell})  # two, where one scored fewer
        pairs = " to ".join(f"{n:,}" for n in (counts[0], counts[-1])[: len(counts)])
        rows.append([name, pairs, *(interval(cell) for cell in cells)])
    yield f"Accuracy by {by}, %", [by, "pairs", *scorers], rows


def _length_table(scorers: Figures) -> Table:
    rows = [
        [
            name,
            *(
                interval(found["length"][k])
                for k in ("right is longer", "right is shorter", "as long")
            ),
            number(found["length"]["correlation"]),
            number(found["length"]["correlation within a prompt"]),
        ]
        for name, found in scorers.items()
    ]
    head = ["scorer", "right is longer, %", "right is shorter, %", "as long, %"]
    return "Length", [*head, "rank correlation", "within a prompt"], rows


def _curve_table(draws: str, found: Figures) -> Iterator[Table]:
    if not found["curves"]:
        return
    last = max(point["n"] for line in found["curves"].values() for point in line)
    shown = milestones(last)
    rows = []
    for name, line in found["curves"].items():
        points = {point["n"]: point for point in line}
        rows.append([name, *(interval(points[n]) + _give_or_take(points[n]) for n in shown)])
    title = f"Best of n, {draws} draws, {found['pools']:,} pools"
    yield title, ["scorer", *(f"n = {n}, %" for n in shown)], rows
    if found.get("by category"):
        names = list(next(iter(found["by category"].values())))[1:]
        rows = [
            [category, f"{cell['pools']:,}", *(interval(cell[name]) for name in names)]
            for category, cell in found["by category"].items()
        ]
        yield f"Best of {last} by category, {draws} draws, %", ["category", "pools", *names], rows


def _give_or_take(point: Figures) -> str:
    """The Monte-Carlo error of what was found by drawing, in points."""
    return f" ± {100 * point['error']:.1f}" if "error" in point else ""


def _pools_table(found: Figures, curves: Figures) -> Table:
    greedy = found["greedy"]
    rows = [
        [what, f"{found[what]:,}"] for what in ("pools", "candidates", "all right", "all wrong")
    ]
    rows += [
        ["candidates of a pool", f"{found['fewest']:,} to {found['most']:,}"],
        [BUILT, "yes" if found.get(BUILT) else "no"],
        ["pools that mark a greedy answer", f"{greedy['pools']:,}" if greedy else "none"],
        ["greedy answers that are right, %", interval(greedy)],
    ]
    for draws, made in curves.items():
        rows.append([f"too small for the curves of {draws} draws", f"{made['too small']:,}"])
    return "Pools", ["kind", "number"], rows


def _drift_table(found: Figures) -> Table:
    rows = [
        [
            way,
            name,
            f"{cell['cases']:,}",
            percent(cell[name]["accuracy before"]),
            percent(cell[name]["accuracy"]),
            percent(cell[name]["turned"]),
            number(cell[name]["drift"]),
        ]
        for way, cell in found.items()
        for name in list(cell)[1:]
    ]
    head = ["changed", "scorer", "cases", "accuracy before, %", "after, %", "pairs turned, %"]
    return "The same, said otherwise", [*head, "drift of the right answer"], rows


def _filter_table(found: Figures) -> Table:
    rows = []
    for name, cell in found.items():
        noise = cell.get("noise") or {}
        keys = ("dropped", "share before", "share after", "average precision")
        kept = f"{cell['kept']:,} of {cell['rows']:,}"
        rows.append([name, kept, *(percent(noise.get(key)) for key in keys)])
    head = ["scorer", "kept", "planted noise dropped, %", "noise before, %", "noise after, %"]
    return "Filtering", [*head, "average precision, %"], rows


def interval(found: Figures | None) -> str:
    """A share in percent with its interval."""
    if not found or found["mean"] is None:
        return "-"
    return f"{100 * found['mean']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
