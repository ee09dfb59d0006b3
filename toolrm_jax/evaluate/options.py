"""What the evaluating commands share: which scorers, on which rows of the data.

--model NAME=DIR --likelihood DIR --judge URL --fit ROWS   --scorers-->  [CaseScorer, ...]
cases, models that list what they were trained on          --usable-->   cases that none has seen
"""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolrm_jax.errors import InputError
from toolrm_jax.evaluate.best_of_n import LINES
from toolrm_jax.evaluate.cases import Cases, read_pairs
from toolrm_jax.evaluate.likelihood import MOST_TOKENS, LikelihoodScorer
from toolrm_jax.evaluate.llm_judge import REPLY_TOKENS, JudgeScorer
from toolrm_jax.evaluate.results import OVERLAP, check_run
from toolrm_jax.evaluate.scorers import CaseScorer, FittedRules, ModelScorer, rule_scorers
from toolrm_jax.literals import read_json
from toolrm_jax.paths import is_remote
from toolrm_jax.sharding import split_cpu
from toolrm_jax.synth.reading import Source
from toolrm_jax.synth.sources import SOURCES, check_options

_PART = ("split", "subset")
_TAKEN = {"cases", "pools", *LINES}


def add_scoring(
    parser: argparse.ArgumentParser, data: str | None, *, baselines: bool = True
) -> None:
    """The options of a command that scores a data set."""
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a reward model: a training workdir, a Hugging Face folder or hub id; may be "
        "repeated. NAME ends at the first '=' and holds no '/'; a path that exists is no NAME=DIR",
    )
    parser.set_defaults(
        baselines=baselines, likelihood=[], judge="", fit="", no_rules=not baselines
    )
    if baselines:
        _add_baselines(parser)
    add("--data", default=data, required=data is None, help="JSON lines, Parquet or a hub id")
    # No default, so that what was given is known.
    add("--split", default=argparse.SUPPRESS, help="of a hub's data set (default: train)")
    add("--subset", default=argparse.SUPPRESS, help="of a hub's data set")
    add("--output", required=True, help="folder of the run; an earlier run's is replaced")
    add("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="compute type")
    add("--max-tokens", type=int, help="longest prompt and answer; the model's limit, if not given")
    add("--cache-dir", help="of compiled programs")
    add("--limit", type=int, help="so many cases, drawn by the seed")
    add("--seed", type=int, default=0, help="of bootstrap, subsets and draws")
    add(
        "--allow-overlap",
        action="store_true",
        help="also score tasks that a model was trained on; the report says so",
    )


def _add_baselines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--likelihood",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a causal model whose log-probability of the answer ranks (needs PyTorch); its "
        f"limit, if --max-tokens gives none, is {MOST_TOKENS:,}",
    )
    add(
        "--judge",
        metavar="URL",
        help="an OpenAI-compatible server that picks one of two answers; pools, and cases with "
        "several wrong answers (as of --levels), are refused",
    )
    add("--judge-model", default="", help="the judge's name there")
    add("--judge-key", default="", help="the environment's variable that holds its key")
    add(
        "--judge-max-tokens",
        type=int,
        default=REPLY_TOKENS,
        help="of a reply of the judge; one that thinks before it answers needs more",
    )
    add("--fit", default="", help="pairs on which the best combination of rules is fitted")
    add("--no-rules", action="store_true", help="leave out the rules that cost nothing")


def add_source(parser: argparse.ArgumentParser, format: str | None) -> None:
    """The options of a command whose --data are a source of synthesis."""
    add = parser.add_argument
    add(
        "--format",
        default=format,
        required=format is None,
        choices=sorted(SOURCES),
        help="of --data, as in docs/synth-sources.md",
    )
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of that format, such as functions=FILE or license=MIT; may be repeated. VALUE is "
        "JSON, or else text",
    )


def source(args: argparse.Namespace, part: dict[str, str]) -> Source:
    """--data as a source of synthesis."""
    given: dict[str, Any] = {"license": "unknown"} if args.format == "openai" else {}
    for one in args.option:
        name, equals, value = one.partition("=")
        if not equals:
            raise InputError(f"--option {one}: expected NAME=VALUE")
        try:
            given[name] = read_json(value)
        except ValueError:
            given[name] = value
    check_options(args.format, args.data, part | given)
    return {"format": args.format, "path": args.data, "options": part | given}


def named(given: str) -> tuple[str, str]:
    """[NAME=]DIR as (name, path); the name is "" where there is none.

    >>> named("mine=runs/lr=3"), named("runs/lr=3")
    (('mine', 'runs/lr=3'), ('', 'runs/lr=3'))
    """
    name, equals, path = given.partition("=")
    is_path = not equals or "/" in name or os.path.exists(given)
    return ("", given) if is_path else (name, path)


def part(args: argparse.Namespace) -> dict[str, str]:
    """The split and the subset that were asked for, of --data; InputError where it has none."""
    asked = {name: getattr(args, name) for name in _PART if hasattr(args, name)}
    if asked and (is_remote(args.data) or os.path.isfile(args.data)):
        raise InputError(
            f"--{next(iter(asked))} is of a hub's data set, and {args.data} is a file: leave it out"
        )
    return asked


@contextlib.contextmanager
def scorers(args: argparse.Namespace) -> Iterator[list[CaseScorer]]:
    """The scorers that were asked for, open. Raises first where --output cannot become a run's."""
    check_run(args.output)
    _check_given(args)
    split_cpu()
    with contextlib.ExitStack() as stack:
        found: list[CaseScorer] = []
        for given in args.model:
            name, path = named(given)
            model = ModelScorer(
                path, name, dtype=args.dtype, max_tokens=args.max_tokens, cache_dir=args.cache_dir
            )
            stack.callback(model.close)
            found.append(model)
        for given in args.likelihood:
            name, path = named(given)
            found.append(LikelihoodScorer(path, name, max_tokens=args.max_tokens))
        if args.judge:
            cache = f"{args.output.rstrip('/')}.judge.sqlite"
            found.append(
                JudgeScorer(
                    args.judge,
                    args.judge_model,
                    cache,
                    key_variable=args.judge_key,
                    max_tokens=args.judge_max_tokens,
                )
            )
        if not args.no_rules:
            found += rule_scorers()
            if args.fit:
                found.append(FittedRules(read_pairs(args.fit)))
        if not found:
            more = ", or leave out --no-rules" if args.baselines else ""
            raise InputError(f"nothing to evaluate: give --model{more}")
        names = [scorer.name for scorer in found]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"two scorers are called {twice[0]!r}: name them, as NAME=DIR")
        if taken := _TAKEN & set(names):
            raise InputError(
                f"a scorer is called {min(taken)!r}, which is a row of its own in tables: name it "
                f"otherwise, as NAME=DIR"
            )
        yield found


def _check_given(args: argparse.Namespace) -> None:
    """Raises InputError of numbers that are none, and of options that would do nothing."""
    for name in ("limit", "max_tokens", "judge_max_tokens"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            raise InputError(f"{_spelt(name)} {value}: expected a number from 1")
    if args.judge and not args.judge_model:
        raise InputError("--judge needs --judge-model, the name that its server knows")
    judges = ("judge_model", "judge_key", "judge_max_tokens")
    given = [name for name in judges if getattr(args, name, "") not in ("", REPLY_TOKENS)]
    if given and not args.judge:
        raise InputError(f"{_spelt(given[0])} is of a judge: give --judge URL, or leave it out")
    if args.fit and args.no_rules:
        raise InputError("--fit is of a combination of rules, and --no-rules leaves them out")


def _spelt(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def usable(
    args: argparse.Namespace, data: Cases, scorers: Sequence[CaseScorer]
) -> tuple[Cases, list[str]]:
    """(the cases that no model was trained on, what is to be said about it)."""
    notes = []
    seen: set[str] = set()
    for scorer in scorers:
        if isinstance(scorer, ModelScorer):
            mine = scorer.trained.tasks(data.cases)
            seen |= mine
            if mine:
                notes.append(f"{scorer.name} was trained on {len(mine):,} of the tasks.")
            elif not scorer.trained:
                notes.append(f"{scorer.name} does not say what it was trained on.")
    if seen and args.allow_overlap:
        notes.append(f"{OVERLAP} those tasks are scored as well, as --allow-overlap asks.")
    elif seen:
        before = len(data.cases)
        data = data.only(lambda case: case.task not in seen)
        notes.append(f"Scored on the others: {len(data.cases):,} of {before:,} cases.")
        if not data.cases:
            raise InputError(
                f"every task of {data.name} was trained on; --allow-overlap scores them all the "
                f"same, and says so"
            )
    if args.limit and args.limit < len(data.cases):
        chosen = np.random.default_rng(args.seed).permutation(len(data.cases))[: args.limit]
        data = dataclasses.replace(data, cases=[data.cases[i] for i in sorted(chosen)])
        notes.append(f"{args.limit:,} cases, drawn by the seed (--limit).")
    return data, notes


def said_of(scorers: Sequence[CaseScorer]) -> list[str]:
    """What there is to say after scoring: what could not be scored, how a judge chose."""
    notes = []
    for scorer in scorers:
        counts = {}
        if isinstance(scorer, ModelScorer | LikelihoodScorer):
            counts = {f"not scored, {reason}": n for reason, n in scorer.rejected.items()}
        elif isinstance(scorer, JudgeScorer):
            counts = dict(scorer.counts)
        elif isinstance(scorer, FittedRules):
            notes.append(scorer.note)
        if counts:
            words = ", ".join(f"{what}: {number:,}" for what, number in counts.items())
            notes.append(f"{scorer.name}: {words}.")
    return notes
