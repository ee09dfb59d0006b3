"""Scores a file of responses: `python -m toolrm_jax.score --model DIR --input IN --output OUT`.

    rows of IN --chunks--> scored --> OUT, in order; what cannot be scored --> OUT.rejects

Rows come in three forms (docs/score.md): {"id", "tools", "messages", "responses"}, as in
FC-RewardBench, and as chosen/rejected preferences. Each gives a line {"id", "rewards", "tokens"}.
The same command run again continues an interrupted job and ends with the same bytes.

    python -m toolrm_jax.score --model runs/quickstart/model/export --input in.jsonl \\
        --output out.jsonl
    python -m toolrm_jax.score ... --shard 0/4        # on each of four machines: 0/4 ... 3/4
    python -m toolrm_jax.score merge --output out.jsonl

exit status: 0 all rows were scored; 1 the job could not be done (the message says why; chunks that
are committed are kept); 2 wrong usage; 3 done, but some rows were rejected (see OUT.rejects.jsonl);
130 and 143 ended by Ctrl-C and SIGTERM (as with 1).
"""

# Worker processes import this module: what needs JAX is imported where it is used.
import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolrm_jax.job_files import Shard
    from toolrm_jax.row_source import Rows
    from toolrm_jax.score_summary import Summary

ALL_SCORED, FAILED, USAGE, SOME_REJECTED = 0, 1, 2, 3
DEFAULT_BATCH_TOKENS = "4096 a CPU device, 16384 any other"  # the scorer's, in words


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    merging = arguments[:1] == ["merge"]
    args = _merge_parser().parse_args(arguments[1:]) if merging else _parser().parse_args(arguments)

    from toolrm_jax.errors import InputError
    from toolrm_jax.score_merge import merge

    # So that workers are ended and what is half-written is removed, as with Ctrl-C.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        summary = merge(args.output) if merging else score(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from what is committed", file=sys.stderr)
        return 128 + signal.SIGINT
    except RuntimeError as error:
        print(f"error: {out_of_memory(error)}", file=sys.stderr)
        return FAILED
    finally:
        signal.signal(signal.SIGTERM, before)
    print(summary.counts.words(), file=sys.stderr)
    return SOME_REJECTED if summary.counts.rejected else ALL_SCORED


def out_of_memory(error: RuntimeError) -> str:
    """What to say of a device without memory; JAX says it in a RuntimeError. Raises any other one
    again."""
    from toolrm_jax.errors import first_line

    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    return (
        f"the device is out of memory ({first_line(error)[:200]}). Try a smaller --batch-tokens "
        f"(default: {DEFAULT_BATCH_TOKENS}), or --max-tokens."
    )


def score(args: argparse.Namespace) -> "Summary":
    """Runs the job that the arguments describe, or what is left of it."""
    from toolrm_jax import score_job, score_summary
    from toolrm_jax.job_files import JobFiles
    from toolrm_jax.pretrained import local_path
    from toolrm_jax.row_source import check_store, open_rows
    from toolrm_jax.scorer import Scorer
    from toolrm_jax.sharding import split_cpu

    split_cpu()
    shard = args.shard or _process_shard()
    files = JobFiles(shard.output(args.output))
    check_store(args.output)
    revision = args.revision or score_summary.commit_begun(files, args.input)
    split = args.split or "train"
    rows = open_rows(args.input, split=split, subset=args.subset, revision=revision)
    _refuse_hub_options(args, rows)
    names = ("dtype", "max_tokens", "over_long", "raw", "batch_tokens", "chunk_rows")
    settings = {name: getattr(args, name) for name in names}
    # Found once: what is digested is what is loaded, even where a training run goes on meanwhile.
    path = local_path(args.model)
    job = score_summary.describe(args.model, path, rows, settings)
    done = score_job.finished(files, job)
    if done is not None:
        print(f"{files.output} is complete already.", file=sys.stderr)
        return done
    options = {name: settings[name] for name in names[1:-1]}
    cache = args.cache_dir
    with Scorer.from_pretrained(path, dtype=args.dtype, cache_dir=cache, **options) as scorer:
        return score_job.run(
            scorer,
            rows,
            files,
            job,
            chunk_rows=args.chunk_rows,
            shard=shard,
            workers=_default_workers() if args.workers is None else args.workers,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolrm_jax.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a training workdir, a Hugging Face directory or hub id")
    add(
        "--input",
        required=True,
        help="rows: .jsonl, .jsonl.gz, .jsonl.zst, .parquet, a gs:// path, or a data set's hub id",
    )
    add(
        "--output",
        type=_output,
        required=True,
        help="scores, JSON lines; .rejects and .summary go beside it",
    )
    add(
        "--over-long",
        default="reject",
        choices=("reject", "drop-oldest-turns"),
        help="a row longer than --max-tokens is rejected, or its oldest turns are left out (tools, "
        "system message and last turn stay); either is reported (default: %(default)s)",
    )
    add(
        "--max-tokens",
        type=_positive,
        help="longest prompt and response (default: the model's limit, at most 8192)",
    )
    add(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float32"),
        help="compute type (default: %(default)s)",
    )
    add(
        "--raw",
        action="store_true",
        help="render text responses as they stand (default: calls in them are parsed and written "
        "in the canonical form)",
    )
    _add_job(add)
    return parser


def _add_job(add: Callable[..., Any]) -> None:
    """Options of how the work is cut and where it is done, and of a hub's data set."""
    add(
        "--chunk-rows",
        type=_positive,
        default=512,
        help="rows that are committed together; a kill costs at most one chunk (default: "
        "%(default)s)",
    )
    add(
        "--shard",
        type=_shard,
        help="i/n: score every n-th chunk (default: process index/count, see docs/score.md)",
    )
    add(
        "--batch-tokens",
        type=_positive,
        help=f"tokens of a batch, over all devices (default: {DEFAULT_BATCH_TOKENS})",
    )
    add(
        "--workers",
        type=_not_negative,
        help="processes that tokenise (default: none beside a CPU, up to 8 beside an accelerator)",
    )
    add("--split", help="of a hub's data set (default: train)")
    add("--subset", help="of a hub's data set (default: its only one)")
    add("--revision", help="of a hub's data set: a commit, branch or tag (default: its newest)")
    add(
        "--cache-dir",
        help='folder of compiled programs; "none": keep none (default: '
        "~/.cache/toolrm_jax/compiled)",
    )


def _merge_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m toolrm_jax.score merge",
        description="Joins the outputs of all shards (out.shard-*-of-*.jsonl) in order.",
    )
    parser.add_argument(
        "--output", type=_output, required=True, help="what the shards were given as --output"
    )
    return parser


def _output(text: str) -> str:
    if text.lower().endswith((".gz", ".zst", ".parquet")):
        raise argparse.ArgumentTypeError(
            f"{text!r}: plain JSON lines are written: use a name such as out.jsonl"
        )
    return text


def _positive(text: str) -> int:
    return _whole(text, 1)


def _not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
    return number


def _shard(text: str) -> "Shard":
    from toolrm_jax.job_files import Shard

    index, _, of = text.partition("/")
    try:
        return Shard(int(index), int(of))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected i/n with 0 <= i < n, such as 0/4"
        ) from None


def _refuse_hub_options(args: argparse.Namespace, rows: "Rows") -> None:
    """A file has no parts, and all of it would be scored. (--revision: `open_rows` refuses.)"""
    from toolrm_jax.row_source import HubRows, RowSourceError

    given = [f"--{name}" for name in ("split", "subset") if getattr(args, name) is not None]
    if given and not isinstance(rows, HubRows):
        raise RowSourceError(
            f"{' and '.join(given)} may be given of a hub's data set, and {args.input} is a file, "
            f"which is scored whole: leave it out."
        )


def _process_shard() -> "Shard":
    """This process's share; said, as nobody asked for it in so many words."""
    from toolrm_jax.score_share import process_shard

    shard = process_shard(os.environ)
    if shard.of > 1:
        print(
            f"One of {shard.of} processes: --shard {shard.index}/{shard.of} (0/1: all of it).",
            file=sys.stderr,
        )
    return shard


def _default_workers() -> int:
    """On a CPU machine the device needs the cores itself."""
    import jax

    if jax.local_devices()[0].platform == "cpu":
        return 0
    return max(1, min(8, (os.cpu_count() or 2) - 2))


if __name__ == "__main__":
    sys.exit(main())
