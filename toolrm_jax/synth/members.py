"""Who may answer: the members that a config's pool lists, checked.

[{"kind": "endpoint", "model": ..., "license": ..., "url": ...},     see `endpoint_settings`
 {"kind": "replay", "path": "answers.jsonl.gz"},                     see `replay`
 {"kind": "corruption"}]                                             see `corruption_answers`
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.synth.endpoint_settings import EndpointSettings
from toolrm_jax.synth.model_license import is_permissive
from toolrm_jax.synth.replay import ReplaySettings


@dataclasses.dataclass(frozen=True)
class CorruptionSettings:
    """The generator of wrong answers from right ones; it has nothing to set."""


MemberSettings = EndpointSettings | ReplaySettings | CorruptionSettings
KINDS: dict[str, type[MemberSettings]] = {
    "endpoint": EndpointSettings,
    "replay": ReplaySettings,
    "corruption": CorruptionSettings,
}


def member_settings(entry: Mapping[str, Any]) -> MemberSettings:
    """A config's entry, checked. Raises InputError."""
    fields = dict(entry)
    made = KINDS.get(str(fields.pop("kind", None)))
    if made is None:
        raise InputError(
            f"A member of the pool has kind={entry.get('kind')!r}; expected one of "
            f"{', '.join(KINDS)}."
        )
    known = {field.name: field for field in dataclasses.fields(made)}
    needed = {name for name, f in known.items() if _needed(f)}
    if wrong := [*sorted(set(fields) - set(known)), *sorted(needed - set(fields))]:
        raise InputError(
            f"A member of kind {entry['kind']!r} has unknown fields or lacks some: "
            f"{', '.join(wrong)}. It has {', '.join(known) or 'none'}; needed: "
            f"{', '.join(sorted(needed)) or 'none'}."
        )
    return made(**fields)


def _needed(field: "dataclasses.Field[Any]") -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def check_names(models: Sequence[EndpointSettings]) -> None:
    """Raises InputError where two endpoints have one name."""
    twice = [n for n, k in collections.Counter(m.model for m in models).items() if k > 1]
    if twice:
        raise InputError(
            f"Two endpoints of the pool have the name {twice[0]!r}, which tells their answers "
            "apart. Give each its own, and the server's name for the model in served_as."
        )


def permissive(settings: EndpointSettings) -> bool:
    """Whether the model's licence is: as its entry says, or by the list."""
    if settings.permissive is not None:
        return settings.permissive
    return is_permissive(settings.license)


def why_not_permissive(settings: EndpointSettings) -> str:
    """In words, of a model that is not: what decided, and what changes it."""
    if settings.permissive is False:
        return "its entry says permissive=False"
    return (
        f"license={settings.license!r} is not known as permissive; permissive=True in its entry "
        "vouches for it"
    )
