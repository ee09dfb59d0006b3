"""Shows pairs in the terminal: `python -m toolrm_jax.synth.show DIR [--error-type ...] [--id ...]`.

    sgd-train-64_00044-t11   sgd, CC-BY-SA-4.0, multi
    tools    GetRide(destination, number_of_seats, ride_type)
    user     I need a cab for three.
    right    GetRide(destination="Novato", number_of_seats=3)
    wrong    GetRide(destination="Novato", number_of_seats=2)    Parameter value error, near_number

What differs between the two sides is coloured; without colours (a pipe, NO_COLOR) it stands in
[-brackets-] on the right side and in {+brackets+} on the wrong one. DIR is a workdir or a data set,
which may be gs://. An id may be that of a row of Parquet, which has a number for each wrong answer.
Where names were replaced by random ones, --reveal puts the original ones back, from the workdir; a
name that an answer made up stays.

    python -m toolrm_jax.synth.show runs/synth --error-type "Parameter value error" --limit 3
"""

import argparse
import datetime
import difflib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Message, Response, Tool
from toolrm_jax.paths import as_path, is_remote
from toolrm_jax.synth.obfuscation import Names
from toolrm_jax.synth.output import MARKER, array_record_files, dataset_rows
from toolrm_jax.synth.shards import Row
from toolrm_jax.synth.stage import Summary
from toolrm_jax.tool_calls import ErrorType

_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
_LABEL = 10  # columns
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Style:
    """How the difference is marked: with colours, or with brackets."""

    def __init__(self, colour: bool):
        self.colour = colour

    def removed(self, text: str) -> str:
        return f"\x1b[1;32m{text}\x1b[0m" if self.colour else f"[-{text}-]"

    def added(self, text: str) -> str:
        return f"\x1b[1;31m{text}\x1b[0m" if self.colour else f"{{+{text}+}}"

    def faint(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.colour else text


def response_text(response: Response) -> str:
    """A response as a person reads it: calls as f(a=1), one a line; words as they are."""
    if isinstance(response, list):
        return "\n".join(map(_call_text, response)) or "(calls nothing)"
    if isinstance(response, dict):
        return json.dumps(response, ensure_ascii=False)
    return _plain(response) or "(says nothing)"


def _call_text(call: dict[str, Any]) -> str:
    given = ", ".join(
        f"{p}={json.dumps(v, ensure_ascii=False)}" for p, v in call["arguments"].items()
    )
    return _plain(f"{call['name']}({given})")


def _plain(text: str) -> str:
    """The text without what a terminal would obey."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def difference(right: str, wrong: str, style: Style) -> tuple[str, str]:
    """Both texts, what is in one alone marked."""
    a, b = _TOKEN.findall(right), _TOKEN.findall(wrong)
    out: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for kind, i, j, k, m in matcher.get_opcodes():
        before, after = "".join(a[i:j]), "".join(b[k:m])
        out[0].append(before if kind == "equal" or not before else style.removed(before))
        out[1].append(after if kind == "equal" or not after else style.added(after))
    return "".join(out[0]), "".join(out[1])


def pair_text(row: Row, style: Style, turns: int = 4, most_lines: int = 12) -> str:
    """A row with all its wrong responses; of the conversation, the last turns (0: all).

    Of the list of tools and of a message, at most so many lines are shown (0: all).
    """
    lines = [f"{_plain(row['id'])}   {row.get('source')}, {row.get('license')}, {row.get('turn')}"]
    tools = "\n".join(map(_tool_text, row["tools"])) or "(none)"
    lines += _labelled("tools", _shortened(tools, most_lines), style)
    skipped = max(0, len(row["messages"]) - turns) if turns else 0
    if skipped:
        lines += _labelled("", f"... {skipped} earlier turns", style)
    for message in row["messages"][skipped:]:
        said = _shortened(_message_text(message), most_lines)
        lines += _labelled(str(message["role"]), said, style)
    right = response_text(row["chosen"])
    by = row.get("chosen_by")
    whose = style.faint(f"    of {by['model']}") if by else ""
    for wrong in row["rejected"]:
        sides = difference(right, response_text(wrong["response"]), style)
        about = ", ".join(str(wrong[k]) for k in ("error_type", "kind", "model") if k in wrong)
        lines += _labelled("right", sides[0] + whose, style)
        lines += _labelled("wrong", sides[1] + style.faint(f"    {about}"), style)
    return "\n".join(lines)


def _shortened(text: str, most_lines: int) -> str:
    lines = text.split("\n")
    if not most_lines or len(lines) <= most_lines:
        return text
    return "\n".join([*lines[: most_lines - 1], f"... {len(lines) - most_lines + 1} more lines"])


def _labelled(label: str, text: str, style: Style) -> list[str]:
    """Lines of a text beside its label."""
    first, *rest = text.split("\n") or [""]
    blank = " " * _LABEL
    return [style.faint(f"{label:<{_LABEL}}") + first, *(blank + line for line in rest)]


def _tool_text(tool: Tool) -> str:
    parameters = tool["parameters"].get("properties") or {}
    required = tool["parameters"].get("required") or []
    names = [name if name in required else f"{name}?" for name in parameters]
    return _plain(f"{tool['name']}({', '.join(names)})")


def _message_text(message: Message) -> str:
    parts = [_plain(str(message.get("content") or ""))]
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (*parts, *map(_call_text, calls)) if part)


# Choosing ----------------------------------------------------------------------------------------


class Filter:
    """Which pairs were asked for; it notes what there is, to say it where there is none."""

    def __init__(self, args: argparse.Namespace):
        self._ids = set(args.id or ())
        self._row = {"source": args.source, "turn": args.turn}
        self._wrong = {"error_type": args.error_type, "kind": args.kind, "model": args.model}
        self._found: dict[str, set[str]] = {name: set() for name in (*self._row, *self._wrong)}

    def matching(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows that were asked for, with the wrong responses that were."""
        for row in rows:
            self._note(row, self._row)
            asked = self._numbered(row)
            if not asked or not _has(row, self._row):
                continue
            wrongs = [wrong for wrong in asked if _has(wrong, self._wrong)]
            if wrongs:
                yield {**row, "rejected": wrongs}

    def _numbered(self, row: Row) -> list[Row]:
        """The wrong responses that the ids ask for: Parquet numbers those of one row."""
        for wrong in row["rejected"]:
            self._note(wrong, self._wrong)
        if not self._ids or row["id"] in self._ids:
            return row["rejected"]
        wrongs = enumerate(row["rejected"])
        return [wrong for number, wrong in wrongs if f"{row['id']}#{number}" in self._ids]

    def _note(self, of: Row, names: Iterable[str]) -> None:
        for name in names:
            if of.get(name) is not None:
                self._found[name].add(of[name])

    def why_nothing(self) -> str:
        """Which of what was asked for is nowhere in the rows that were read, and what is."""
        wanted = {name: value for name, value in (self._row | self._wrong).items() if value}
        for name, value in wanted.items():
            if value not in self._found[name]:
                option = name.replace("_", "-")
                return f"No pair matches. {_no_such(option, value, sorted(self._found[name]))}"
        if self._ids:
            ids = ", ".join(map(repr, sorted(self._ids)))
            wanted["id"] = ids
            if len(wanted) == 1:
                return f"No pair matches. --id: no row has the id {ids}."
        asked = ", ".join(f"--{name.replace('_', '-')}" for name in wanted)
        return f"No pair matches all of {asked}." if asked else "The data set has no pair."


def _has(row: Row, wanted: Mapping[str, str | None]) -> bool:
    return all(value is None or row.get(name) == value for name, value in wanted.items())


def _no_such(option: str, wanted: str, known: Sequence[str]) -> str:
    """That there is no such value of an option, what may have been meant, and what there is."""
    near = [name for name in known if wanted.lower() in name.lower()]
    near = near or difflib.get_close_matches(wanted, known, 1)
    meant = f" Did you mean {' or '.join(map(repr, near[:3]))}?" if near else ""
    listed = ", ".join(map(repr, known))
    return f"--{option}: there is no {wanted!r}.{meant} There are: {listed}."


def check_error_type(wanted: str | None) -> None:
    """Raises InputError for what is no type of error; the message has those that there are."""
    if wanted is not None and wanted not in set(ErrorType):
        raise InputError(_no_such("error-type", wanted, list(map(str, ErrorType))))


def find_dataset(folder: str) -> epath.Path:
    """The data set in a workdir, or the folder itself. Raises InputError."""
    given = as_path(folder)
    for at in (given / "dataset", given):
        if array_record_files(at):
            return at
    raise InputError(
        f"No data set at {folder}: expected a folder with array_record/*.array_record, or the "
        f"workdir of a finished `python -m toolrm_jax.synth`. A data set that went elsewhere, by "
        f"config.output.folder, is shown by that folder's name."
    )


def which_dataset(folder: str, found: epath.Path) -> str:
    """Which of a workdir's data sets is shown, in words; "" where it was named itself."""
    if is_remote(found) or found == as_path(folder):
        return ""
    marker, pairs = Path(found) / MARKER, Path(found).parent / "5-pairs" / "summary.json"
    if not marker.exists():
        return ""
    made = datetime.datetime.fromtimestamp(marker.stat().st_mtime)
    text = f"Shown: {found}, made {made:%Y-%m-%d %H:%M}."
    if pairs.exists() and pairs.stat().st_mtime > marker.stat().st_mtime:
        text += (
            f" A later run made {pairs.parent} anew: its data set is not this one where it was not "
            "finished, or where config.output.folder was set; name that folder to see it."
        )
    return text


# Original names ----------------------------------------------------------------------------------


def revealed(rows: Sequence[Row], workdir: Path) -> Iterator[Row]:
    """The rows under their original names, which the workdir has. Raises InputError."""
    wanted = {id_ for row in rows for id_ in _ids(row)}
    folder = workdir / "2-obfuscated"
    try:
        stage = Summary(folder, json.loads((folder / "summary.json").read_text()))
        found = {row["id"]: row for row in stage.rows() if row["id"] in wanted}
    except OSError as error:
        raise InputError(
            f"--reveal: the original names are in the workdir, and {folder} cannot be read "
            f"({error.strerror}). Name the workdir: --workdir=DIR."
        ) from None
    for row in rows:
        example = next((found[id_] for id_ in _ids(row) if id_ in found), None)
        if example is None or example["tools"] != row["tools"]:
            raise InputError(
                f"--reveal: {folder} and the data set are of different runs: {row['id']} differs. "
                "Name the workdir that the data set was made in (--workdir=DIR), or run it again."
            )
        yield _renamed(row, _original(example["names"])) if "names" in example else row


def _ids(row: Row) -> tuple[str, str]:
    """What the row's example may be called: a row of one pair of several has a number more."""
    return row["id"], row["id"].rpartition("#")[0]


def _original(names: Mapping[str, Any]) -> Callable[[str], str]:
    """What puts original names in the place of random ones, also within names made of them."""
    back = Names.from_json(names).reversed()
    words = {**back.parameters, **back.functions}
    pattern = re.compile("|".join(sorted(words, key=len, reverse=True)) or r"(?!)")
    return lambda text: pattern.sub(lambda match: words[match[0]], text)


def _renamed(value: Any, original: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return original(value)
    if isinstance(value, list):
        return [_renamed(item, original) for item in value]
    if isinstance(value, dict):
        return {original(name): _renamed(item, original) for name, item in value.items()}
    return value


# The command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(arguments)
    coloured = sys.stdout.isatty() and not args.no_colour and "NO_COLOR" not in os.environ
    style, shown, asked = Style(coloured), 0, Filter(args)
    rows: Iterator[Row]
    try:
        check_error_type(args.error_type)
        found = find_dataset(args.folder)
        if which := which_dataset(args.folder, found):
            print(which, file=sys.stderr)
        rows = itertools.islice(asked.matching(dataset_rows(found)), args.limit or None)
        if args.reveal:
            rows = revealed(list(rows), _workdir(args.workdir, found))
        for row in rows:
            print(("\n" if shown else "") + pair_text(row, style, args.turns, args.lines))
            shown += 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not shown:
        print(asked.why_nothing(), file=sys.stderr)
    return 0 if shown else 1


def _workdir(given: str | None, found: epath.Path) -> Path:
    """Where the original names are. Raises InputError for a data set in a bucket by itself."""
    if given is None and is_remote(found):
        raise InputError(
            f"--reveal: the original names are in the workdir that {found} was made in. Name it: "
            "--workdir=DIR."
        )
    return Path(given) if given is not None else Path(found).resolve().parent


def _count(text: str) -> int:
    """A number of rows, turns or lines."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more (0: all)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolrm_jax.synth.show",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folder", help="a workdir of toolrm_jax.synth, or a data set; may be gs://")
    add(
        "--id",
        action="append",
        help="of a row, or of a pair in Parquet (ROW#2); may be given often",
    )
    add("--error-type", help='as "Parameter value error"')
    add("--kind", help="of corruption, as near_number; answers of models have the kind: answer")
    add("--model", help="whose wrong answers")
    add("--source", help="of the examples")
    add("--turn", choices=("single", "multi", "irrelevance"), help="turn type")
    add("--limit", type=_count, default=10, help="rows to show; 0: all (default: %(default)s)")
    add("--turns", type=_count, default=4, help="last turns; 0: all (default: %(default)s)")
    add("--lines", type=_count, default=12, help="of a message; 0: all (default: %(default)s)")
    add("--reveal", action="store_true", help="obfuscated rows under their original names")
    add("--workdir", help="for --reveal, where the data set does not lie in its workdir")
    add("--no-colour", "--no-color", action="store_true", help="mark differences with brackets")
    return parser


if __name__ == "__main__":
    sys.exit(main())
