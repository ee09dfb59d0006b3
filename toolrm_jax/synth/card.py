"""The data card: what the data set holds and how it was made, as Markdown, JSON and plots.

README.md     opens with the header by which `datasets.load_dataset` finds the Parquet files
card.json     the same counts, complete
plots/        mix.png (pairs by error type and turn type), lengths.png, length_signal.png

write_card(folder, card, contents.lengths)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolrm_jax.errors import InputError
from toolrm_jax.synth.output import MARKER, Contents
from toolrm_jax.synth.selection_report import off_the_mix_lines
from toolrm_jax.synth.stage import Summary
from toolrm_jax.versions import versions

Card = dict[str, Any]

_PACKAGES = ("array_record", "datasets", "numpy", "pyarrow", "zstandard")


def make_card(
    config: Mapping[str, Any],
    stages: Sequence[Summary],
    contents: Contents,
    digest: str,
    asked: Mapping[str, Mapping[str, int]],
) -> Card:
    """Everything that is known of a data set, as JSON; `asked`: of each endpoint's model."""
    by_name = {stage.content["stage"]: stage for stage in stages}
    selection = by_name["pairs"].content.get("selection", {})
    return {
        "digest": digest,
        "prompts": contents.rows,
        "pairs": contents.pairs,
        "prompts_by": {name: _sorted(counts) for name, counts in contents.prompts_by.items()},
        "pairs_by": {name: _sorted(counts) for name, counts in contents.pairs_by.items()},
        "characters": {name: quantiles(values) for name, values in contents.lengths.items()},
        "selection": selection,
        "stages": {
            name: {
                "rows": stage.row_count,
                "counts": stage.counts,
                "left_out": stage.left_out,
                "rejected": stage.rejected,
                "left_open": stage.left_open,
            }
            for name, stage in by_name.items()
        },
        "asked": asked,
        "provenance": provenance(config, by_name),
        "seed": config["seed"],
        "config": config,
        "versions": versions(*_PACKAGES),
    }


def provenance(config: Mapping[str, Any], stages: Mapping[str, Summary]) -> dict[str, Any]:
    """What went in, each file by a digest of its content (a hub's by its revision), and a digest of
    each stage's code, which tells two states of one version apart."""
    about = {name: stage.content["settings"] for name, stage in stages.items()}
    pool = zip(config["answers"]["pool"], about["answers"]["pool"], strict=True)
    return {
        "sources": _with_digests(config["sources"], about["examples"]["digests"]),
        "evaluation": _with_digests(
            config["overlap"]["evaluation"], about["obfuscated"]["evaluation_digests"]
        ),
        "answers": [  # of the pool, what is read from files
            {"kind": given["kind"], "path": given["path"], "digest": read["path"]}
            for given, read in pool
            if "path" in given
        ],
        "code": {name: stage.content["code"] for name, stage in stages.items()},
    }


def _with_digests(sources: Sequence[Mapping[str, Any]], digests: Sequence[str]) -> list[Card]:
    told = ("name", "format", "path", "options")
    return [
        {name: source[name] for name in told if name in source} | {"digest": digest}
        for source, digest in zip(sources, digests, strict=True)
    ]


def quantiles(values: np.ndarray) -> dict[str, int]:
    """5, 50, 95 and 100% of the lengths."""
    if not len(values):
        return {}
    at = np.quantile(values, (0.05, 0.5, 0.95, 1.0), method="nearest")
    return dict(zip(("5%", "median", "95%", "longest"), map(int, at), strict=True))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def write_card(folder: Path, card: Card, lengths: Mapping[str, np.ndarray]) -> None:
    """Writes plots, README.md and, last, card.json."""
    plot(folder / "plots", card, lengths)
    (folder / "README.md").write_text(markdown(card), encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")


# Markdown ----------------------------------------------------------------------------------------

_HEADER = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: parquet/train-*.parquet
tags:
- reward-model
- tool-calling
license: other
---
"""


def markdown(card: Card) -> str:
    """The card as a person reads it."""
    parts = [
        _HEADER,
        f"# {card['pairs']:,} preference pairs for tool-calling reward models\n",
        f"{card['prompts']:,} prompts; made by toolrm_jax {card['versions']['toolrm_jax']} with "
        f"seed {card['seed']}. `parquet/` is for TRL's RewardTrainer and `datasets.load_dataset`, "
        "`array_record/` for toolrm_jax's loader. Each row keeps its source and licence, which "
        "differ: check those in the table before you pass the data on.\n",
        "![pairs by error type and turn type](plots/mix.png)\n",
        *(_table(name, counts, card["pairs"]) for name, counts in card["pairs_by"].items()),
        _lengths(card),
        _signal(card),
        _removed(card),
        _rejects(card),
        *([_asked(card)] if card["asked"] else []),
        _made_of(card),
        _made_with(card),
    ]
    return "\n".join(parts)


def _table(name: str, counts: Mapping[str, int], total: int) -> str:
    rows = "\n".join(
        f"| {_cell(key)} | {n:,} | {n / max(1, total):.1%} |" for key, n in counts.items()
    )
    return f"## Pairs by {name}\n\n| {name} | pairs | share |\n|---|---:|---:|\n{rows}\n"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


def _lengths(card: Card) -> str:
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{values[q]:,}" for q in values) + " |"
        for name, values in card["characters"].items()
        if values
    )
    return (
        "## Lengths in characters\n\n![lengths](plots/lengths.png)\n\n"
        f"| | 5% | median | 95% | longest |\n|---|---:|---:|---:|---:|\n{rows}\n"
    )


def _signal(card: Card) -> str:
    """What was wanted and had of each turn type and error type, and how often the right side is the
    longer one, of all candidates and of the chosen pairs."""
    lines = [
        "## The mix, and what length gives away\n",
        "Of each turn type: what share of its pairs was to be of an error type, and what share is. "
        "In what share of the pairs the right side is the longer one (equal lengths count half), "
        "and what share the best rule tells that knows by about how much it is (1 or 2 characters, "
        "3 to 8, 9 to 24, more), among all wrong answers and among those chosen. 50% tells "
        "nothing. Where one side calls nothing, it is the shorter one: such pairs are not balanced "
        "by length, but an empty turn is wrong at most as often as it is right, over all turn "
        "types.\n",
        "![right side longer](plots/length_signal.png)\n",
        "| turn type | error type | wanted | got | wrong answers | right is longer | told | pairs "
        "| right is longer | told |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for turn, error, about in _by_turn(card):
        pairs = card["selection"]["turn_types"][turn]["pairs"]
        cells = [turn, error, _share(about["wanted"])]
        cells.append(_share(about["after"]["pairs"] / pairs if pairs else None))
        for found in (about["before"], about["after"]):
            shares = (found["right_longer"], found["told_by_length"])
            cells += [f"{found['pairs']:,}", *map(_share, shares)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *filter(None, (_both_call(*found) for found in _by_turn(card)))]
    off = off_the_mix_lines(card["selection"])
    lines += [f"\n**Off the mix by more than a tenth**, {line}" for line in off]
    lacking = card["selection"].get("lacking") or {}
    lines += [f"\n{what}: {n:,}" for what, n in lacking.items()]
    return "\n".join(lines) + "\n"


def _both_call(turn: str, error: str, about: Mapping[str, Any]) -> str:
    """What length tells where a side that calls nothing is left aside; "" where there is none."""
    pairs, both = about["after"]["pairs"], about["after"]["both_call"]
    if pairs == both["pairs"]:
        return ""
    told = f"the right side is longer in {_share(both['right_longer'])} of these, the best rule "
    told += f"tells {_share(both['told_by_length'])}."
    return (
        f"- {turn}, {error}: both sides call in {both['pairs']:,} of {pairs:,} pairs"
        f"{f'; {told}' if both['pairs'] else '.'}"
    )


def _by_turn(card: Card) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(turn type, error type, what was wanted, before and after), in their order."""
    for turn, found in card["selection"].get("turn_types", {}).items():
        for error, about in found["error_types"].items():
            yield turn, error, about


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _removed(card: Card) -> str:
    """Sound examples and answers that were left out, by stage."""
    lines = ["## Left out\n", "| stage | what | how many |", "|---|---|---:|"]
    for name, stage in card["stages"].items():
        lines += [f"| {name} | {_cell(what)} | {n:,} |" for what, n in stage["left_out"].items()]
    return "\n".join(lines) + "\n"


def _rejects(card: Card) -> str:
    lines = [
        "## Rejected\n",
        "Each is in `rejects.jsonl.zst`, with file and line.\n",
        "| stage | reason | how many |",
        "|---|---|---:|",
    ]
    for name, stage in card["stages"].items():
        found = stage["rejected"] | {f"left open: {w}": n for w, n in stage["left_open"].items()}
        lines += [f"| {name} | {_cell(why)} | {n:,} |" for why, n in found.items()]
    return "\n".join(lines) + "\n"


def _asked(card: Card) -> str:
    lines = ["## Asked\n", "Over all runs with the same cache.\n"]
    lines += ["| model | what | how many |", "|---|---|---:|"]
    for model, counts in card["asked"].items():
        lines += [f"| {_cell(model)} | {_cell(what)} | {n:,} |" for what, n in counts.items()]
    return "\n".join(lines) + "\n"


def _made_of(card: Card) -> str:
    found = card["provenance"]
    lines = ["## Made of\n", "| what | format | path | digest |", "|---|---|---|---|"]
    for what in ("sources", "evaluation", "answers"):
        for of in found[what]:
            name = f"{what}: {of['name']}" if "name" in of else what
            cells = (name, of.get("format", of.get("kind")), of["path"], of["digest"])
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    code = ", ".join(f"{stage} {digest}" for stage, digest in found["code"].items())
    return "\n".join(lines) + f"\n\nThe code of each stage, by its digest: {code}.\n"


def _made_with(card: Card) -> str:
    found = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    config = json.dumps(card["config"], indent=1, ensure_ascii=False)
    return f"## Made with\n\n{found}\n\n```json\n{config}\n```\n"


# Plots -------------------------------------------------------------------------------------------


def plot(folder: Path, card: Card, lengths: Mapping[str, np.ndarray]) -> None:
    """Writes the PNGs."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            "The data card's plots need matplotlib. Run: pip install 'toolrm_jax[synth]'"
        ) from None
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    for name, height, draw in (("mix", 4.5, _plot_mix), ("length_signal", 7, _plot_signal)):
        figure = Figure(figsize=(8, height), layout="constrained")
        draw(figure.subplots(), card)
        figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    _plot_lengths(figure.subplots(), lengths)
    figure.savefig(folder / "lengths.png", dpi=100, metadata={"Software": None})


def _plot_mix(axes: Any, card: Card) -> None:
    """A bar for each error type, in parts by turn type."""
    turns = card["selection"].get("turn_types", {})
    errors = list(card["selection"].get("error_types", {}))[::-1]
    left = np.zeros(len(errors))
    for turn, about in turns.items():
        found = about["error_types"]
        counts = [found[e]["after"]["pairs"] if e in found else 0 for e in errors]
        axes.barh(errors, counts, left=left, label=turn)
        left += counts
    axes.set_xlabel("pairs")
    axes.legend()


def _plot_signal(axes: Any, card: Card) -> None:
    """Before and after by turn type and error type, beside the line at 50%."""
    found = list(_by_turn(card))[::-1]
    for offset, when in ((0.2, "before"), (-0.2, "after")):
        shares = [100 * (about[when]["right_longer"] or 0) for _, _, about in found]
        label = "all wrong answers" if when == "before" else "chosen"
        axes.barh(np.arange(len(found)) + offset, shares, height=0.4, label=label)
    axes.set_yticks(np.arange(len(found)), [f"{turn}: {error}" for turn, error, _ in found])
    axes.axvline(50, color="black", linewidth=1)
    axes.set_xlabel("right side is longer, %")
    axes.legend()


def _plot_lengths(axes: Any, lengths: Mapping[str, np.ndarray]) -> None:
    """Shares of prompts, right and wrong answers by length, on a logarithmic axis."""
    bins = np.geomspace(1, max([10, *(int(v.max()) for v in lengths.values() if len(v))]), 60)
    for name, values in lengths.items():
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            axes.hist(np.maximum(values, 1), bins, weights=weights, histtype="step", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("characters")
    axes.set_ylabel("share")
    axes.legend()
