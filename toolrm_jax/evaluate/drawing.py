"""The pictures of a report, as SVG text: curves, bars, reliability, histograms.

They scale to the page's width, need no font, and are drawn in a grey that can be read by day and by
night. The same figures give the same bytes. Needs matplotlib (extra: evaluate).
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolrm_jax.errors import InputError

_GREY = "#808080"
_LOOK: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "toolrm_jax",
    "font.size": 11,
    "text.parse_math": False,  # names may hold "$"
    "text.color": _GREY,
    "axes.labelcolor": _GREY,
    "axes.edgecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "legend.frameon": False,
}
# Ten colours, each by itself and then with other lines (of bars, hatched).
_STYLES = (("-", ""), ("--", "//"), (":", ".."))
_BINS = 20  # of a histogram, on each side of 0
Cell = Mapping[str, Any]  # {"mean", "low", "high"}, shares from 0 to 1


def _drawn(draw: Callable[[Any], None], width: float, height: float) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError(
            f"The report's pictures need {error.name}: pip install 'toolrm_jax[evaluate]'."
        ) from None
    with matplotlib.rc_context(_LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def curves(lines: Mapping[str, Sequence[Cell]]) -> str:
    """A line with its interval for each name; points {"n", "mean", "low", "high"}."""

    def draw(axes: Any) -> None:
        for place, (name, line) in enumerate(lines.items()):
            n = [point["n"] for point in line]
            look = {"color": f"C{place % 10}", "linestyle": _style(place)[0]}
            axes.plot(n, [100 * p["mean"] for p in line], marker=".", label=name, **look)
            low, high = ([100 * p[end] for p in line] for end in ("low", "high"))
            axes.fill_between(n, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("n")
        axes.set_ylabel("right, %")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return _drawn(draw, 7.5, 4)


def bars(groups: Mapping[str, Mapping[str, Cell]]) -> str:
    """For each label a bar of every name, with its interval; a line at a half."""
    labels = list(dict.fromkeys(label for found in groups.values() for label in found))
    thick = 0.8 / max(len(groups), 1)

    def draw(axes: Any) -> None:
        for place, (name, found) in enumerate(groups.items()):
            known = [i for i, label in enumerate(labels) if _mean(found, label) is not None]
            cells = [found[labels[i]] for i in known]
            means = np.array([cell["mean"] for cell in cells])
            ends = [[c["mean"] - c["low"] for c in cells], [c["high"] - c["mean"] for c in cells]]
            # By rounding, an end may lie on the mean's other side.
            whiskers = 100 * np.maximum(ends, 0)
            axes.barh(
                np.array(known) + (place + 0.5) * thick - 0.4,
                100 * means,
                thick,
                xerr=whiskers,
                label=name,
                color=f"C{place % 10}",
                hatch=_style(place)[1],
                edgecolor="white",
                linewidth=0,
                error_kw={"ecolor": _GREY, "elinewidth": 1},
            )
        axes.axvline(50, color=_GREY, linewidth=1)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlim(0, 100)
        axes.set_xlabel("accuracy, %")
        axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.3, -0.12), ncols=2)

    return _drawn(draw, 7.5, 1.6 + len(labels) * (0.25 + 0.13 * len(groups)))


def _style(place: int) -> tuple[str, str]:
    return _STYLES[place // 10 % len(_STYLES)]


def _mean(found: Mapping[str, Cell], label: str) -> float | None:
    return found[label]["mean"] if label in found else None


def reliability(ranges: Sequence[Mapping[str, float]]) -> str:
    """How sure against how often right; a dot's area is its number of pairs."""

    def draw(axes: Any) -> None:
        most = max(found["pairs"] for found in ranges)
        axes.plot([50, 100], [50, 100], color=_GREY, linewidth=1)
        axes.scatter(
            [100 * found["sure"] for found in ranges],
            [100 * found["right"] for found in ranges],
            [20 + 200 * found["pairs"] / most for found in ranges],
            alpha=0.7,
        )
        axes.set_xlim(49, 101)
        axes.set_ylim(0, 104)
        axes.set_xlabel("sure, %")
        axes.set_ylabel("right, %")

    return _drawn(draw, 5, 4)


def histogram(values: np.ndarray) -> str:
    """Counts of the values on both sides of 0, and of those at 0, which are ties."""

    def draw(axes: Any) -> None:
        edge = float(np.abs(values).max()) or 1.0 if len(values) else 1.0
        bins = np.linspace(0, edge, _BINS + 1)
        axes.hist(values[values > 0], bins, label="right side preferred")
        axes.hist(values[values < 0], -bins[::-1], label="wrong side preferred")
        if ties := int((values == 0).sum()):
            axes.bar(0, ties, edge / _BINS / 2, color=_GREY, label="tie")
        axes.set_xlabel("difference of rewards")
        axes.set_ylabel("pairs")
        axes.legend()

    return _drawn(draw, 7, 3)


def precision_recall(lines: Mapping[str, Sequence[Mapping[str, float]]], chance: float) -> str:
    """A line for each name; points {"recall", "precision"}; and what chance would reach."""

    def draw(axes: Any) -> None:
        for name, line in lines.items():
            recall, precision = ([100 * p[what] for p in line] for what in ("recall", "precision"))
            axes.step(recall, precision, where="pre", label=name)
        axes.axhline(100 * chance, color=_GREY, linewidth=1, label="by chance")
        axes.set_xlim(0, 101)
        axes.set_ylim(0, 104)
        axes.set_xlabel("recall, %")
        axes.set_ylabel("precision, %")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return _drawn(draw, 7.5, 4)
