"""Runs as pages that people can look at: one HTML file with all in it, and the same as Markdown.

    runs --html--> curves, bars, reliability, tables, the worst mistakes
         --markdown--> tables

The page needs nothing beside it: styles and SVG are inside, no script, no font, no network. It is
laid out for a phone first. Text from the data is escaped, in both.
"""

import html as escaping
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolrm_jax.evaluate import drawing
from toolrm_jax.evaluate.pair_metrics import Pairs, known_margins, margins_of, pairs_of
from toolrm_jax.evaluate.results import Run
from toolrm_jax.evaluate.tables import facts_of, full_cards, tables_of
from toolrm_jax.synth.show import Style, difference, response_text

SHOWN_MISTAKES = 8


def markdown(runs: Sequence[Run]) -> str:
    """The tables of all runs."""
    return "\n\n".join(_markdown_of(run) for run in runs) + "\n"


def _markdown_of(run: Run) -> str:
    lines = [f"## {run.name}: {run.result['what']}", "", *map(_line, facts_of(run)), ""]
    for title, head, rows in tables_of(run):
        under = "|---" + "|---:" * (len(head) - 1) + "|"
        lines += [f"### {_line(title)}", "", _row(head), under, *map(_row, rows), ""]
    return "\n".join(lines).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table, where a bar would begin the next cell, "<" a tag."""
    text = _line(text).replace("\\", "\\\\")
    return text.replace("|", "\\|").replace("<", "\\<")


def _line(text: str) -> str:
    return " ".join(text.splitlines())


def html(runs: Sequence[Run], title: str = "Reward models") -> str:
    """One page."""
    body = "\n".join(_section(run) for run in runs)
    return _PAGE.format(title=escaping.escape(title), style=_STYLE, body=body)


# The page ----------------------------------------------------------------------------------------


def _section(run: Run) -> str:
    parts = [f"<h2>{_text(run.name)}: {_text(run.result['what'])}</h2>"]
    parts += [f'<p class="fact">{_text(fact)}</p>' for fact in facts_of(run)]
    parts += [_figure(svg, caption + run.mark) for svg, caption in _pictures(run)]
    for title, head, rows in tables_of(run):
        parts.append(f"<h3>{_text(title)}</h3>{_table(head, rows)}")
    for title, head, rows in full_cards(run):
        summary = f"<summary>{_text(title)}</summary>"
        parts.append(f"<details>{summary}{_table(head, rows)}</details>")
    parts += list(_mistakes(run))
    return f"<section>{''.join(parts)}</section>"


def _text(value: Any) -> str:
    return escaping.escape(str(value))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _pictures(run: Run) -> Iterator[tuple[str, str]]:
    """(SVG, caption) of every picture."""
    for draws, found in run.result.get("best of n", {}).items():
        if found["curves"]:
            title = f"Share of right answers among the best of n ({draws} draws)"
            yield drawing.curves(found["curves"]), title
    scorers = run.result.get("scorers", {})
    kinds = {name: found["by"]["error type"] for name, found in scorers.items() if "by" in found}
    if any(kinds.values()):
        yield drawing.bars(kinds), "Accuracy by error type, with 95% intervals"
    pairs = pairs_of(run.cases)
    for name, found in scorers.items():
        if found.get("calibration", {}).get("ranges"):
            picture = drawing.reliability(found["calibration"]["ranges"])
            yield picture, f"{name}: how sure its preference is, and how often right"
            yield _margins(name, pairs, run.scores[name])
    noise = {name: cell.get("noise") or {} for name, cell in run.result.get("filter", {}).items()}
    if found := {name: cell["curve"] for name, cell in noise.items() if cell.get("curve")}:
        chance = next(noise[name]["share before"] for name in found)
        caption = "The rows with the lowest rewards called noise: how many are, of how many found"
        yield drawing.precision_recall(found, chance), caption


def _margins(name: str, pairs: Pairs, scores: Sequence[np.ndarray]) -> tuple[str, str]:
    margins = known_margins(pairs, scores)
    margins = margins[np.isfinite(margins)]
    caption = f"{name}: right minus wrong reward; ties: {(margins == 0).sum():,}"
    if left_out := len(pairs.numbers) - len(margins):
        caption += f"; pairs that are not there, for a side could not be scored: {left_out:,}"
    return drawing.histogram(margins), caption


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


# Marks that no text of the data is likely to hold; they become tags after escaping.
_MARKS = {"\ue000": "<del>", "\ue001": "</del>", "\ue002": "<ins>", "\ue003": "</ins>"}


class _Marked(Style):
    def __init__(self) -> None:
        super().__init__(colour=False)

    def removed(self, text: str) -> str:
        return f"\ue000{text}\ue001"

    def added(self, text: str) -> str:
        return f"\ue002{text}\ue003"


def _mistakes(run: Run) -> Iterator[str]:
    """The pairs that each scorer with a sense of its sureness gets most confidently wrong."""
    pairs = pairs_of(run.cases)
    for name, found in run.result.get("scorers", {}).items():
        if "calibration" not in found:
            continue
        margins = margins_of(pairs, run.scores[name])
        worst = [i for i in np.argsort(margins, kind="stable")[:SHOWN_MISTAKES] if margins[i] < 0]
        if worst:
            yield f"<h3>{_text(name)}: most confidently wrong</h3>"
        for place in worst:
            yield _mistake(run, pairs.numbers[place], margins[place])


def _mistake(run: Run, numbers: tuple[int, int, int], margin: float) -> str:
    case = run.cases[numbers[0]]
    right, wrong = (case.candidates[k] for k in numbers[1:])
    sides = difference(response_text(right.response), response_text(wrong.response), _Marked())
    said = [m for m in case.messages if m.get("role") == "user"]
    request = str(said[-1].get("content")) if said else ""
    about = ", ".join(filter(None, (wrong.error_type, wrong.model, case.category)))
    title = f"{_text(case.task)} ({_text(about)}), margin {margin:+.2f}"
    return (
        f"<details open><summary>{title}</summary>"
        f'<p class="request">{_text(request[:1500])}</p>'
        f'<p class="side"><b>right</b> <code>{_marked(sides[0])}</code></p>'
        f'<p class="side"><b>wrong</b> <code>{_marked(sides[1])}</code></p></details>'
    )


def _marked(text: str) -> str:
    text = _text(text)
    for mark, tag in _MARKS.items():
        text = text.replace(mark, tag)
    return text


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; }
body { padding: 0 1rem 3rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid; padding-top: 1rem; }
.fact { color: GrayText; font-size: .85rem; margin: .2rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figcaption { font-size: .85rem; color: GrayText; }
svg { width: 100%; min-width: 34rem; height: auto; display: block; }
details { border: 1px solid #8884; border-radius: .4rem; padding: .4rem .8rem; margin: .6rem 0; }
summary { font-size: .85rem; overflow-wrap: anywhere; }
.request, .side { margin: .4rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
code { font-size: .85rem; }
del { background: #2a83; text-decoration: none; } ins { background: #c334; text-decoration: none; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
