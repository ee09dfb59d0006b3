"""Every field of a synthesis, its meaning, and the value it has where a config says nothing.

A config (`configs/synth/*.py`) starts from this and changes what it needs; the command line changes
any field, as `--config.selection.wrong_per_prompt=1`. Sources, replayed files and endpoints are
lists of plain objects, which a config file writes down.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ml_collections import ConfigDict

from toolrm_jax.errors import InputError
from toolrm_jax.paths import as_path, is_remote
from toolrm_jax.synth.answer import CORRUPTION
from toolrm_jax.synth.endpoint_settings import EndpointSettings
from toolrm_jax.synth.members import check_names, member_settings
from toolrm_jax.synth.selection import PAPER_QUOTAS, SelectionSettings
from toolrm_jax.synth.sources import check_options

STAGES = ("examples", "obfuscated", "answers", "judged", "pairs", "dataset")


class SynthError(InputError):
    """A synthesis that cannot start or go on; the message says why."""


def synth_config() -> ConfigDict:
    """The fields; where they are checked: `unpack`."""
    config = ConfigDict()
    config.seed = 0
    config.workers = 2  # processes
    config.shard_rows = 1000  # examples a shard, the unit of work that a kill may cost
    config.longest_prompt = 0  # characters of an example's tools and messages; 0: any
    # A stage fails at its end if more than this share of what it read, be it of one source, had to
    # be rejected.
    config.most_rejects = 0.2

    # {"name", "format": one of synth/sources, "path": file, folder, gs:// or hub id; and, if
    #  wanted, "options" of the format, as {"split": "train", "revision": "COMMIT"} of a hub's data
    #  set; "obfuscate": share of its examples whose names are replaced; "keep": share of them to
    #  use}
    config.sources = ()

    config.overlap = ConfigDict()
    # What training must not hold: {"name", "format", "path", ...} as for sources.
    config.overlap.evaluation = ()
    config.overlap.near_duplicates = True
    config.overlap.similarity = 0.9  # of words and pairs of words, estimated (Jaccard)
    config.overlap.drop_shared_tools = False  # also what shares no more than a tool's name

    config.answers = ConfigDict()
    # Who answers: {"kind": "corruption"}, {"kind": "replay", "path"} (see replay.py), {"kind":
    # "endpoint", "model", "license", "url"} (see endpoint_settings.py).
    config.answers.pool = ({"kind": "corruption"},)
    config.answers.permissive_only = True  # leave out models without a permissive licence
    # Share of the questions that may stay without an answer (a server was down, a budget is used
    # up); with more of them the stage is not complete, and the next run asks them again.
    config.answers.most_open = 0.0
    config.answers.cache = ""  # of endpoints' answers; "": WORKDIR/answers.sqlite

    settings = SelectionSettings()
    config.selection = ConfigDict()
    # Pairs by turn type. Counts of pairs, not of prompts.
    config.selection.quotas = ConfigDict(dict(PAPER_QUOTAS))
    # Wrong answers of a prompt: up to answers_per_prompt of what models said, for that is scarce;
    # corruptions are added while there are fewer than wrong_per_prompt. So 1 and 1 is one pair.
    config.selection.wrong_per_prompt = settings.wrong_per_prompt
    config.selection.answers_per_prompt = settings.answers_per_prompt
    # Share of each error type, by name; (): as they come. Dots and blanks: a tuple, not an object.
    config.selection.mix = tuple(settings.mix.items())
    # Where an error type is short, take more of the others, up to twice their share. False: the mix
    # as it is, and as many pairs as the scarcest of its error types allows.
    config.selection.fill = settings.fill
    # Largest shares of the pairs that are got, also where that is less than the quotas. Of the
    # single-turn and of the multi-turn pairs, (error type, share):
    config.selection.error_caps = ()
    config.selection.answers_cap = settings.answers_cap  # of a turn type's, from what models said
    config.selection.model_cap = settings.model_cap  # of all, from one model
    config.selection.model_caps = ()  # (model, its own share), as ("corruption", 0.5)
    config.selection.length_tolerance = settings.length_tolerance
    config.selection.any_length = tuple(settings.any_length)

    config.output = ConfigDict()
    config.output.folder = ""  # "": WORKDIR/dataset; may be gs://
    config.output.form = "k-way"  # one row a prompt, or "pairs": one row a pair
    config.output.rows_per_file = 5000
    return config


@contextmanager
def _section(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, InputError) as error:
        raise SynthError(f"config.{name}: {error}") from error


def selection_settings(config: ConfigDict) -> SelectionSettings:
    """What `select` takes. Raises SynthError."""
    fields = config.selection.to_dict()
    for name in ("mix", "error_caps", "model_caps"):
        fields[name] = _shares(f"config.selection.{name}", fields[name])
    with _section("selection"):
        return SelectionSettings(**fields, seed=config.seed)


def _shares(at: str, given: Sequence[Any]) -> dict[str, float]:
    """Shares by name, from pairs. Raises SynthError."""
    found: dict[str, float] = {}
    for index, pair in enumerate(given):
        match pair:
            case [str(name), int() | float() as share]:
                found[name] = share
            case _:
                raise SynthError(
                    f"{at}[{index}]={pair!r}: expected a name and a share, as ('Parsing error', "
                    f"0.1). One pair alone is written with a comma after it: ((..., 0.1),)."
                )
    return found


_SOURCE_FIELDS = {"name", "format", "path", "options", "obfuscate", "keep"}


def _source(given: Any, at: str) -> dict[str, Any]:
    """One source, with defaults filled in. Raises SynthError."""
    if not isinstance(given, Mapping):
        raise SynthError(f"{at}: expected an object with name, format and path, found {given!r}.")
    unknown = sorted(set(given) - _SOURCE_FIELDS)
    if unknown or not {"name", "format", "path"} <= set(given):
        raise SynthError(
            f"{at}: expected name, format and path, and of {sorted(_SOURCE_FIELDS)} what is "
            f"wanted; found {sorted(given)}."
        )
    whole = {"options": {}, "obfuscate": 0.0, "keep": 1.0, **given}
    for share in ("obfuscate", "keep"):
        value = whole[share]
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise SynthError(f"{at}.{share}={value!r}: it must be a number from 0 to 1.")
    for field, kind in (("name", str), ("format", str), ("path", str), ("options", Mapping)):
        if not isinstance(whole[field], kind):
            words = "an object" if kind is Mapping else "text"
            raise SynthError(f"{at}.{field}={whole[field]!r}: it must be {words}.")
    try:
        check_options(whole["format"], whole["path"], whole["options"])
    except InputError as error:
        raise SynthError(f"{at}: {error}") from None
    return whole


def source_list(config: ConfigDict, name: str) -> list[dict[str, Any]]:
    """The sources, or evaluation sets, with defaults filled in. Raises SynthError."""
    found = [
        _source(source, f"config.{name}[{index}]")
        for index, source in enumerate(_field(config, name))
    ]
    names = [source["name"] for source in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise SynthError(f"config.{name}: two are named {twice[0]!r}; names must differ.")
    return found


def check(config: ConfigDict) -> None:
    """Everything that can be checked before anything is read. Raises SynthError."""
    _check_numbers(config)
    if config.output.form not in ("k-way", "pairs"):
        raise SynthError(f"config.output.form={config.output.form!r}: use 'k-way' or 'pairs'.")
    if not 0 < config.overlap.similarity <= 1:
        raise SynthError(f"config.overlap.similarity={config.overlap.similarity}: from 0 to 1.")
    if not source_list(config, "sources"):
        raise SynthError(
            "config.sources is empty: a config names at least one, as configs/synth/local.py does."
        )
    source_list(config, "overlap.evaluation")
    if not config.answers.pool:
        raise SynthError("config.answers.pool is empty: name at least {'kind': 'corruption'}.")
    for index, entry in enumerate(config.answers.pool):
        if not isinstance(entry, Mapping):
            raise SynthError(f"config.answers.pool[{index}]: expected an object, found {entry!r}.")
    _check_pool(config)


def _check_numbers(config: ConfigDict) -> None:
    least = {"workers": 0, "shard_rows": 1, "longest_prompt": 0, "output.rows_per_file": 1}
    for name, low in least.items():
        value = _field(config, name)
        if value < low:
            raise SynthError(f"config.{name}={value}: it must be {low} or more.")
    for name in ("most_rejects", "answers.most_open"):
        value = _field(config, name)
        if not 0 <= value <= 1:
            raise SynthError(f"config.{name}={value}: it is a share, from 0 to 1.")


def _field(config: ConfigDict, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _check_pool(config: ConfigDict) -> None:
    members = [member_settings(entry) for entry in config.answers.pool]
    with _section("answers"):
        check_names([member for member in members if isinstance(member, EndpointSettings)])
        cache = config.answers.cache
        if is_remote(cache):
            raise ValueError(
                f"cache={cache} is in a bucket: SQLite needs a local disk. Name a file of this "
                "machine; it may be copied to the bucket afterwards."
            )
        as_path(cache)  # "gs:/..." would be a folder of that name
    _check_models(config.answers.pool, selection_settings(config))


def _check_models(pool: Sequence[Mapping[str, Any]], selection: SelectionSettings) -> None:
    """Raises SynthError for a cap of a model that no member has, and for caps that leave pairs to
    nobody; whose a replayed file's answers are is known when it is read."""
    kinds = {entry["kind"] for entry in pool}
    known = {entry["model"] for entry in pool if entry["kind"] == "endpoint"}
    known |= {CORRUPTION} & kinds
    if "replay" in kinds:
        return
    unknown = sorted(set(selection.model_caps) - known)
    if unknown:
        raise SynthError(
            f"config.selection.model_caps has {unknown[0]!r}, which no member of the pool is; "
            f"expected of: {', '.join(sorted(known))}."
        )
    together = sum(selection.model_caps.get(name, selection.model_cap) for name in known)
    if together < 1 - 1e-9:
        raise SynthError(
            f"config.selection.model_cap={selection.model_cap:g}: the largest shares of the "
            f"{len(known)} members of the pool add up to {together:.0%} of the pairs. Raise it, or "
            f"give one its own share in model_caps."
        )
