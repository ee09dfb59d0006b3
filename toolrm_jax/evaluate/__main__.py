"""Is a reward model any good for tool calling, and what does it buy?

    python -m toolrm_jax.evaluate fc-reward-bench --model DIR --data FILE --output runs/fcrb
    python -m toolrm_jax.evaluate best-of-n       --model DIR --data POOLS --output runs/pools
    python -m toolrm_jax.evaluate report runs/fcrb runs/pools --output report.html
    python -m toolrm_jax.evaluate compare runs/fcrb runs/fcrb --a "my model" --b "schema-valid wins"

Each evaluation writes a folder (result.json, scores.jsonl), which `compare` and `report` read.
Every command has its own --help; what the figures mean: docs/evaluate.md.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from toolrm_jax.errors import InputError, reported
from toolrm_jax.evaluate import (
    best_of_n,
    filtering,
    options,
    pair_metrics,
    paired,
    report,
    robustness,
)
from toolrm_jax.evaluate.cases import Case, Cases, Reject, read_pairs, read_pools
from toolrm_jax.evaluate.pool_making import write_pools
from toolrm_jax.evaluate.probe import fit_probe
from toolrm_jax.evaluate.results import made_by, read_run, write_run
from toolrm_jax.evaluate.scorers import CaseScorer, cards_of
from toolrm_jax.examples import Example
from toolrm_jax.files import write_text
from toolrm_jax.synth.reading import open_found, source_digest

FC_REWARD_BENCH = "ibm-research/fc-reward-bench"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    args = _parser().parse_args(arguments)
    with reported():
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolrm_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bench = _command(commands, "fc-reward-bench", _pairs, "pairs of FC-RewardBench, or in its form")
    options.add_scoring(bench, FC_REWARD_BENCH)
    bench.set_defaults(what="FC-RewardBench")
    pairs = _command(commands, "pairs", _pairs, "any chosen/rejected data set, RewardBench's too")
    options.add_scoring(pairs, None)
    pairs.set_defaults(what="pairs")
    pools = _command(
        commands, "best-of-n", _best_of_n, "pools of candidates: what is best of n worth"
    )
    options.add_scoring(pools, None)
    pools.add_argument(
        "--n",
        type=int,
        default=8,
        help="up to which n (default: %(default)s; smaller pools stay out)",
    )
    _add_data_commands(commands)
    _add_reading_commands(commands)
    return parser


def _add_data_commands(commands: Any) -> None:
    robust = _command(
        commands, "robustness", _robustness, "the same said otherwise; levels of noise"
    )
    options.add_scoring(robust, None)
    robust.add_argument(
        "--levels",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="tasks with levels of noise, such as RoTBench's; may be repeated",
    )
    robust.add_argument(
        "--levels-format",
        default=robustness.FORMS[0],
        choices=robustness.FORMS,
        help="of --levels: normalised rows with a level under meta.kind, or RoTBench's own files, "
        "whose stem is the level (clean, slight, medium, heavy, union)",
    )
    sift = _command(commands, "filter", _filter, "keep the best part of fine-tuning data")
    options.add_scoring(sift, None, baselines=False)
    options.add_source(sift, "normalised")
    how = sift.add_mutually_exclusive_group()
    how.add_argument("--keep", type=float, default=0.5, help="the best fraction of the rows")
    how.add_argument("--threshold", type=float, help="instead: the least reward that is kept")
    sift.add_argument(
        "--per-source", action="store_true", help="that fraction of each source, one row at least"
    )
    sift.add_argument("--noise", type=float, default=0.0, help="corrupt this share of the answers")
    made = _command(commands, "pools", _make_pools, "let a model answer: pools for best-of-n")
    made.add_argument("--data", required=True, help="the tasks")
    options.add_source(made, None)
    made.add_argument("--url", required=True, help="of an OpenAI-compatible server, with its /v1")
    made.add_argument("--model", required=True, help="its name there")
    made.add_argument("--key", default="", help="the environment's variable that holds the key")
    made.add_argument("--samples", type=int, default=8, help="answers a task")
    made.add_argument("--temperature", type=float, default=0.8)
    made.add_argument("--seed", type=int, default=0, help="of the questions")
    made.add_argument("--output", required=True, type=Path, help="such as pools.jsonl")
    probe = _command(commands, "probe", _probe, "fit a linear probe: a baseline that is a model")
    probe.add_argument("--model", required=True, help="the frozen model, such as embedded:smollm2")
    probe.add_argument("--layers", type=int, default=0, help="its first layers alone; 0: all")
    probe.add_argument("--fit", required=True, help="pairs to fit it on")
    probe.add_argument("--output", required=True, help="folder of the reward model that it becomes")
    probe.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    probe.add_argument("--max-tokens", type=int, default=4096, help="longer cases are left out")
    probe.add_argument("--seed", type=int, default=0, help="of the folds")


def _add_reading_commands(commands: Any) -> None:
    both = _command(commands, "compare", _compare, "two scorers on the same pairs or pools")
    both.add_argument("runs", nargs=2, metavar="RUN", help="folders that evaluations wrote")
    both.add_argument("--a", help="scorer of the first run (default: its first)")
    both.add_argument(
        "--b", help="scorer of the second (default: its first, or its second if same)"
    )
    both.add_argument("--seed", type=int, default=0, help="of bootstrap and permutations")
    both.add_argument("--json", action="store_true", help="print all figures as JSON")
    page = _command(commands, "report", _report, "one HTML page of runs; .md and .json beside it")
    page.add_argument("runs", nargs="+", metavar="RUN")
    page.add_argument("--output", required=True, type=Path, help="such as report.html")
    page.add_argument("--title", default="Reward models")


def _command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.set_defaults(run=run)
    return made


# Scoring -----------------------------------------------------------------------------------------


def _scored(
    args: argparse.Namespace, data: Cases, check: Callable[[Cases], None] = lambda _: None
) -> tuple[Cases, list[CaseScorer], dict[str, list[np.ndarray]], list[str]]:
    """(the cases that may be used, the scorers, their scores by name, what is to be said).

    check: raises, before anything is scored, where those cases are of no use.
    """
    with options.scorers(args) as scorers:
        data, notes = options.usable(args, data, scorers)
        check(data)
        scores = _all_scores(scorers, data.cases)
        notes += options.said_of(scorers)
    return data, scorers, scores, notes


def _all_scores(
    scorers: Sequence[CaseScorer], cases: Sequence[Case]
) -> dict[str, list[np.ndarray]]:
    # Begun together: what one of them cannot score is said before hours with the others.
    begun = {scorer.name: scorer.score(cases) for scorer in scorers}
    return {
        name: list(tqdm(found, name, len(cases), unit="case", disable=None))
        for name, found in begun.items()
    }


def _described(
    data: Cases,
    scorers: Sequence[CaseScorer],
    scores: dict[str, list[np.ndarray]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """The figures of every scorer on the pairs of the cases."""
    pairs = pair_metrics.pairs_of(data.cases)
    if not pairs.tasks:
        raise InputError(f"{data.name}: no case has both a right and a wrong answer.")
    return {
        scorer.name: pair_metrics.describe(
            data.cases,
            pairs,
            scores[scorer.name],
            is_log_odds=scorer.is_log_odds,
            seed=args.seed,
        )
        for scorer in scorers
    }


def _pairs(args: argparse.Namespace) -> None:
    data = read_pairs(args.data, **options.part(args))
    data, scorers, scores, notes = _scored(args, data)
    figures = {"notes": notes, "scorers": _described(data, scorers, scores, args)}
    models = cards_of(scorers)
    write_run(args.output, args.what, data, scores, figures, args.seed, models=models)
    _say(args.output)


def _best_of_n(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise InputError(f"--n {args.n}: expected a number from 1")
    if args.judge:
        raise InputError("--judge: a judge compares two answers, and a pool has more; leave it out")
    whole = read_pools(args.data, **options.part(args))
    data, scorers, scores, notes = _scored(args, whole, lambda data: _check_n(args, data))
    found = {
        draws: best_of_n.curves(data.cases, scores, most=args.n, draws=draws, seed=args.seed)
        for draws in best_of_n.DRAWS
    }
    pools = best_of_n.about(data.cases, args.seed)
    pools[best_of_n.BUILT] = best_of_n.hold_both(whole.cases)
    if pools[best_of_n.BUILT]:
        notes.append(
            f"All {len(whole.cases):,} pools of the file have a right and a wrong candidate, as if "
            f"chosen so: what random and oracle reach says nothing about a model's own answers."
        )
    figures = {"notes": notes, "pools": pools, "best of n": found}
    models = cards_of(scorers)
    write_run(args.output, "best of n", data, scores, figures, args.seed, models=models)
    _say(args.output)


def _check_n(args: argparse.Namespace, data: Cases) -> None:
    largest = max(sum(best_of_n.counts_of(case, "sampled")) for case in data.cases)
    if largest < args.n:
        raise InputError(
            f"--n {args.n}: the largest pool that may be scored of {args.data} has {largest:,} "
            f"sampled candidates; choose no larger --n."
        )


def _robustness(args: argparse.Namespace) -> None:
    data = read_pairs(args.data, **options.part(args))
    files = [
        robustness.read_levels(path, args.seed, args.levels_format) for path in args.levels or ()
    ]
    with options.scorers(args) as scorers:
        data, notes = options.usable(args, data, scorers)
        cases, origins = robustness.changed_cases(data.cases, args.seed)
        plain = robustness.as_they_are(data)
        beside = {"changed": dataclasses.replace(data, cases=cases, rejects=[])}
        if files:
            beside["levels"], more = options.usable(args, robustness.joined(files), scorers)
            notes += [f"Levels of noise: {note}" for note in more]
        everything = [
            *plain.cases,
            *(case for part in beside.values() for case in part.cases),
        ]
        scores = _all_scores(scorers, everything)
        notes += options.said_of(scorers)
    first, second = len(plain.cases), len(plain.cases) + len(cases)
    before = {name: values[:first] for name, values in scores.items()}
    after = {name: values[first:second] for name, values in scores.items()}
    drift = robustness.drift(data.cases, origins, before, after)
    described = _described(plain, scorers, before, args)
    for name, found in described.items():
        found["by"]["category"] = robustness.by_category(everything, scores[name], args.seed)
    notes.append(f"All figures but those by category are of the {first:,} cases as they are.")
    notes += robustness.said_of_beside(beside["changed"], files, beside.get("levels"))
    notes += robustness.left_out(origins, first)
    figures = {
        "notes": notes,
        "category": robustness.PLAIN,
        "drift": drift,
        "scorers": described,
    }
    models = cards_of(scorers)
    write_run(
        args.output,
        "robustness",
        plain,
        scores,
        figures,
        args.seed,
        models=models,
        beside=beside,
    )
    _say(args.output)


def _check_filter(args: argparse.Namespace) -> None:
    if not 0 < args.keep <= 1 or not 0 <= args.noise < 1:
        raise InputError(f"--keep {args.keep} --noise {args.noise}: expected shares of 1.")
    if args.threshold is not None and args.per_source:
        raise InputError("--per-source is of --keep; a --threshold is the same for all sources")
    if args.threshold is not None and math.isnan(args.threshold):
        raise InputError("--threshold nan: expected a number")


def _filter(args: argparse.Namespace) -> None:
    _check_filter(args)
    source = options.source(args, options.part(args))
    found = list(open_found(source))
    examples = [one for one in found if isinstance(one, Example)]
    rejects = [
        Reject(one.line or 0, f"{one.reason}: {one.detail}"[:300])
        for one in found
        if not isinstance(one, Example)
    ]
    cases = list(filtering.answered(examples, args.noise, args.seed))
    if not cases:
        raise InputError(f"{args.data}: no row can be scored")
    data = Cases(args.data, source_digest(source), cases, rejects)
    data, scorers, scores, notes = _scored(args, data)
    if len(scorers) > 1:
        notes.append(
            f"kept.jsonl and dropped.jsonl are by {scorers[0].name}, the first --model; of the "
            f"others there are figures."
        )
    noisy = np.array([not case.candidates[0].right for case in data.cases])
    figures: dict[str, Any] = {"notes": notes, "filter": {}}
    rows = {}
    for place, scorer in enumerate(scorers):
        rewards = np.array([values[0] for values in scores[scorer.name]])
        kept = filtering.keep(
            rewards,
            [case.category for case in data.cases],
            fraction=args.keep,
            threshold=args.threshold,
            per_source=args.per_source,
        )
        figures["filter"][scorer.name] = filtering.describe(rewards, noisy, kept)
        if not place:
            for name, wanted in (("kept.jsonl", kept), ("dropped.jsonl", ~kept)):
                chosen = [data.cases[number] for number in np.flatnonzero(wanted)]
                rows[name] = filtering.sft_rows(chosen, rewards[wanted])
    scored = {id(case) for case in data.cases}
    others = [case for case in cases if id(case) not in scored]
    rows["left_out.jsonl"] = filtering.sft_rows(others, np.full(len(others), np.nan))
    models = cards_of(scorers)
    write_run(args.output, "filter", data, scores, figures, args.seed, rows, models=models)
    _say(args.output)


def _make_pools(args: argparse.Namespace) -> None:
    if args.output.suffix != ".jsonl":
        raise InputError(f"--output {args.output}: expected a name that ends in .jsonl")
    entry = {
        "kind": "endpoint",
        "model": args.model,
        "license": "unknown",
        "url": args.url,
        "samples": args.samples,
        "temperature": args.temperature,
        "key_variable": args.key,
    }
    left_out = write_pools(args.output, options.source(args, {}), entry, args.seed)["rejected"]
    print(args.output, *(f"left out, {reason}: {n:,}" for reason, n in left_out.items()), sep="\n")


def _probe(args: argparse.Namespace) -> None:
    data = read_pairs(args.fit)
    about = fit_probe(
        args.model,
        data,
        args.output,
        num_layers=args.layers,
        dtype=args.dtype,
        max_tokens=args.max_tokens,
        seed=args.seed,
    )
    print(json.dumps(about, indent=1))


def _say(folder: str) -> None:
    print(report.markdown([read_run(folder)]))


# Reading runs ------------------------------------------------------------------------------------


def _compare(args: argparse.Namespace) -> None:
    a, b = map(read_run, args.runs)
    first = args.a or next(iter(a.scores))
    others = [name for name in b.scores if a.path != b.path or name != first]
    second = args.b or next(iter(others), first)
    found = {**made_by(args.seed), **paired.compare(a, first, b, second, args.seed)}
    print(json.dumps(found, indent=1) if args.json else paired.words(found))


def _report(args: argparse.Namespace) -> None:
    if args.output.suffix != ".html":
        raise InputError(f"--output {args.output}: expected a name that ends in .html")
    runs = [read_run(path) for path in args.runs]
    write_text(args.output, report.html(runs, args.title))
    write_text(args.output.with_suffix(".md"), report.markdown(runs))
    results = {run.path: run.result for run in runs}
    write_text(args.output.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    print(args.output)


if __name__ == "__main__":
    main()
