"""Converts checkpoints to and from Hugging Face, compares them, and says what they are.

    python -m toolrm_jax.convert from-hf --source Qwen/Qwen2.5-1.5B-Instruct --output DIR
    python -m toolrm_jax.convert to-hf --checkpoint runs/mine --output DIR --dtype bfloat16
    python -m toolrm_jax.convert verify A B
    python -m toolrm_jax.convert inspect PATH

Wherever a checkpoint is read it may be of any kind: a Hugging Face directory or hub id, a GGUF
file, a training run's workdir or one of its checkpoints, or what `from-hf` wrote. Training and
scoring read all of these too, so converting first is never needed. Weights pass through memory in
pieces; the output appears under its name only when it is complete and has been read back.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath
from tqdm import tqdm

from toolrm_jax.compare import PROMPTS, TensorReport, compare_tensors, rewards
from toolrm_jax.errors import InputError, first_line
from toolrm_jax.huggingface import (
    CheckpointError,
    RewardTensors,
    is_directory,
    refuse_misfits,
    widest_dtype,
    write_directory,
)
from toolrm_jax.inspection import as_text, inspect
from toolrm_jax.model_card import base_model, model_card
from toolrm_jax.orbax_folder import find_step, write_orbax
from toolrm_jax.output_folder import check_output, is_full_disk, new_folder
from toolrm_jax.paths import absolute, is_remote
from toolrm_jax.pretrained import Pretrained, open_pretrained
from toolrm_jax.safetensors_folder import DEFAULT_SHARD_BYTES
from toolrm_jax.tensors import BFLOAT16, DTYPES, Cast, Tensors, progress

NAMED_DTYPES = {"float32": DTYPES["F32"], "bfloat16": BFLOAT16, "float16": DTYPES["F16"]}

# Exit codes of `verify`; the other commands use 0 and 2.
EQUAL, DIFFERENT, FAILED = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    path: epath.Path
    sha256: dict[str, str]
    notes: list[str]  # what a user should know: a head that was drawn, tensors left out


def from_hf(
    source: str,
    output: str | Path,
    *,
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
    show: bool = False,
) -> Converted:
    """Writes `source` (any checkpoint) as one of ours: Orbax, in the type that it is stored in.

    seed: of the reward head that a causal LM gets. Raises as `open_pretrained` and `new_folder` do.
    """
    check_output(output, is_checkpoint, replace=overwrite)
    model = _opened(source)
    tensors, notes = _tensors(model, seed, dtype)
    about = _about(model, seed)
    with (
        new_folder(
            output, is_checkpoint, replace=overwrite, nbytes=_size(tensors), last="meta/metadata"
        ) as folder,
        _progress(tensors, f"writing {Path(output).name}", show) as bar,
    ):
        meta = {"about": about}
        sha256 = write_orbax(folder, model.source.config, tensors, meta, model.tokenizer, bar)
    return Converted(absolute(output), sha256, notes)


def to_hf(
    checkpoint: str,
    output: str | Path,
    *,
    seed: int = 0,
    dtype: str | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
    show: bool = False,
    name: str | None = None,
) -> Converted:
    """Writes `checkpoint` (any kind) as a Hugging Face sequence classifier with one label.

    dtype: default that of the master weights. name: in the model card; default that of the output.
    """
    check_output(output, is_checkpoint, replace=overwrite)
    model = _opened(checkpoint)
    tensors, notes = _tensors(model, seed, dtype)
    about = _about(model, seed)
    stored = widest_dtype(tensors).name
    card = model_card(name or Path(output).name, model.source.config, about, stored)
    files = {"toolrm.json": json.dumps(about, indent=2) + "\n", "README.md": card}
    if model.source.config.head_bias:
        notes.append(
            "the head has a bias, which transformers' class leaves out when it loads: rewards "
            "there differ by a constant, their order is the same"
        )
    with (
        new_folder(output, is_checkpoint, replace=overwrite, nbytes=_size(tensors)) as folder,
        _progress(tensors, f"writing {Path(output).name}", show) as bar,
    ):
        sha256 = write_directory(
            folder, model.source.config, tensors, model.tokenizer, files, max_shard_bytes, bar
        )
    return Converted(absolute(output), sha256, notes)


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder is a checkpoint of either kind, so that it may be replaced by another. A
    training run's workdir is not: it holds more than a checkpoint."""
    return is_directory(folder) or find_step(folder) == absolute(folder)


def push_to_hub(folder: os.PathLike[str], repo: str, *, public: bool = False) -> str:
    """Uploads a written directory to the hub (private unless `public`); returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repo, private=not public, exist_ok=True)
    api.upload_folder(
        folder_path=os.fspath(folder), repo_id=repo, commit_message="Upload reward model"
    )
    return str(url)


def _opened(name: str) -> Pretrained:
    """Opens a checkpoint, and refuses one whose tensors do not fit, with everything that is
    amiss."""
    model = open_pretrained(name)
    refuse_misfits(model.source)
    return model


def _tensors(model: Pretrained, seed: int, dtype: str | None) -> tuple[Tensors, list[str]]:
    tensors: Tensors = RewardTensors(model.source, seed)
    notes = []
    if not model.source.has_head:
        notes.append(f"a causal LM: its reward head is new, drawn with seed {seed}; train it")
        if "lm_head.weight" in model.source.tensors:
            notes.append("lm_head.weight is left out: a reward model has no use for it")
    if dtype is not None:
        tensors = Cast(tensors, NAMED_DTYPES[dtype])
    if widest_dtype(tensors) != DTYPES["F32"]:
        notes.append(
            f"stored in {widest_dtype(tensors).name}: load in float32 for ranking, as rewards in "
            f"half precision tie"
        )
    return tensors, notes


def _about(model: Pretrained, seed: int) -> dict[str, Any]:
    about = dict(model.about)
    if base_model(about) is None:
        about["origin"] = model.source.origin
    if not model.source.has_head:
        about["fresh_head_seed"] = seed
    return about


def _size(tensors: Tensors) -> int:
    return sum(tensors.spec(name).nbytes for name in tensors)


def _progress(tensors: Tensors, what: str, show: bool) -> tqdm:
    bar = progress(tensors, f"{what}, then checking", show=show)
    bar.total = 2 * (bar.total or 0)  # every byte is written, and read back
    return bar


# --- commands -------------------------------------------------------------------------------------


def _run_from_hf(args: argparse.Namespace) -> int:
    done = from_hf(
        args.source,
        args.output,
        seed=args.seed,
        dtype=args.dtype,
        overwrite=args.overwrite,
        show=not args.quiet,
    )
    _report(done)
    print(f"Use it as --config.model.source={done.path} in training, or with `to-hf`.")
    return EQUAL


def _run_to_hf(args: argparse.Namespace) -> int:
    if args.push_to_hub and is_remote(args.output):
        raise InputError(
            f"--push-to-hub uploads files of this machine: choose an --output here, not "
            f"{args.output}."
        )
    done = to_hf(
        args.checkpoint,
        args.output,
        seed=args.seed,
        dtype=args.dtype,
        max_shard_bytes=args.max_shard_size,
        overwrite=args.overwrite,
        show=not args.quiet,
        name=args.push_to_hub,
    )
    _report(done)
    if args.push_to_hub:
        print(f"Uploaded to {_pushed(done.path, args.push_to_hub, args.public)}")
    return EQUAL


def _pushed(folder: epath.Path, repo: str, public: bool) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return push_to_hub(folder, repo, public=public)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"{repo!r} could not be uploaded: {first_line(error)} The directory "
            f"is complete at {folder}: log in with `hf auth login`, and upload it with "
            f"`hf upload {repo} {folder}`."
        ) from error


def _report(done: Converted) -> None:
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.path}: {len(done.sha256)} tensors, written and read back.")


def _run_verify(args: argparse.Namespace) -> int:
    a, b = open_pretrained(args.a), open_pretrained(args.b)
    report = compare_tensors(a, b, args.seed)
    different = bool(report.above(args.tolerance))
    _print_tensors(report, args.tolerance)
    if args.rewards:
        different |= _rewards_differ(a, b, args)
    print("DIFFERENT" if different else "EQUAL within the stated tolerances")
    return DIFFERENT if different else EQUAL


def _print_tensors(report: TensorReport, tolerance: float) -> None:
    print(f"{report.equal_bytes} of {report.tensors} tensors have equal bytes.")
    for name in report.other_types:
        print(f"  {name}")
    for found in report.differences:
        above = found in report.above(tolerance)
        print(f"  {found}{'' if above else f' (within {tolerance:g})'}")


def _rewards_differ(a: Pretrained, b: Pretrained, args: argparse.Namespace) -> bool:
    prompts = _read_prompts(args.prompts) if args.prompts else PROMPTS
    first = rewards(a, prompts, args.seed)
    second = rewards(b, prompts, args.seed)
    gap = float(abs(first - second).max())
    print(
        f"Rewards of {len(first)} responses: largest difference {gap:.3g} (tolerance "
        f"{args.reward_tolerance:g}), in float32."
    )
    return not gap <= args.reward_tolerance


def _read_prompts(path: str) -> list[dict[str, Any]]:
    rows, problems = [], []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            row["messages"], row["responses"]
            rows.append(row)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(f"line {number} ({type(error).__name__}: {error})")
    if problems or not rows:
        raise CheckpointError(
            f'{path}: expected lines of {{"tools", "messages", "responses"}}; wrong: '
            f"{', '.join(problems) or 'no lines'}."
        )
    return rows


def _run_inspect(args: argparse.Namespace) -> int:
    found = inspect(args.path)
    print(json.dumps(found, indent=2) if args.json else as_text(found, args.tensors))
    return EQUAL


# --- the command line -----------------------------------------------------------------------------


def shard_size(text: str) -> int:
    """ "5GB", "200MB", "1GiB" or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size like 5GB, 200MB or 1GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="convert_checkpoints",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_from_hf(commands)
    _add_to_hf(commands)
    _add_verify(commands)
    command = _add(commands, "inspect", _run_inspect, "say what a checkpoint is; reads no weights")
    command.add_argument("path", help="a checkpoint of any kind")
    command.add_argument("--tensors", action="store_true", help="every tensor's shape and type too")
    command.add_argument("--json", action="store_true", help="everything, as JSON")
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    command.set_defaults(run=run)
    return command


def _add_writing(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--output", required=True, metavar="DIR", help="where to write it")
    command.add_argument(
        "--dtype", choices=NAMED_DTYPES, help=f"of the weights (default: {default})"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of the reward head that a causal LM gets (default 0)"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint that is there, whole"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_from_hf(commands: Any) -> None:
    text = "write a Hugging Face checkpoint (or any other) as one of ours, in Orbax's format"
    command = _add(commands, "from-hf", _run_from_hf, text)
    command.add_argument(
        "--source",
        required=True,
        metavar="DIR_OR_HUB_ID",
        help="Qwen2/2.5, Qwen3 or Llama: a causal LM, or a reward model with one label; .gguf too",
    )
    _add_writing(command, "as they are stored")


def _add_to_hf(commands: Any) -> None:
    text = "write a checkpoint as a Hugging Face sequence classifier with one label"
    command = _add(commands, "to-hf", _run_to_hf, text)
    command.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a training run's workdir (its newest checkpoint), one of its checkpoints, or any "
        "other checkpoint",
    )
    _add_writing(command, "that of the master weights")
    command.add_argument(
        "--max-shard-size",
        type=shard_size,
        default=DEFAULT_SHARD_BYTES,
        metavar="SIZE",
        help="of a safetensors file, such as 5GB (the default), 200MB, 1GiB",
    )
    command.add_argument(
        "--push-to-hub", metavar="ID", help="upload it, when written, to this repository"
    )
    command.add_argument(
        "--public", action="store_true", help="a repository made by --push-to-hub is public"
    )


def _add_verify(commands: Any) -> None:
    text = "compare two checkpoints of any kind, tensor by tensor and by rewards"
    epilog = (
        "exit code: 0 equal within the tolerances, 1 different, 2 a checkpoint cannot be read\n"
        "memory: rewards take the whole model in float32; --no-rewards compares piece by piece"
    )
    command = _add(commands, "verify", _run_verify, text, epilog=epilog)
    command.add_argument("a", metavar="A", help="a checkpoint of any kind")
    command.add_argument("b", metavar="B", help="another")
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest absolute difference of a weight that is no difference (default 0: equal "
        "values; after --dtype bfloat16, 2**-9 of the largest weight)",
    )
    command.add_argument(
        "--reward-tolerance",
        type=float,
        default=1e-4,
        help="largest difference of rewards, computed in float32 (default 1e-4)",
    )
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help='JSON lines of {"tools", "messages", "responses"} (default: two built-in prompts)',
    )
    command.add_argument(
        "--no-rewards", dest="rewards", action="store_false", help="compare tensors alone"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="of the reward head that a causal LM gets (default 0)"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    args = make_parser().parse_args(argv)
    # So that what is half-written is removed, as with Ctrl-C.
    logging.set_verbosity(logging.ERROR)  # Orbax warns of what it need not do here
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return args.run(args)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    except ValueError as error:
        if not is_full_disk(error):
            raise
        print(f"error: {error}", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
