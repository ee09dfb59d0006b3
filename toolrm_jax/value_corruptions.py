"""Right calls with one wrong value: the error that real models make most.

    "... radius 4 and height 7"   {"radius": 4, "height": 7}
      near_number          {"radius": 4, "height": 8}
      conversation_value   {"radius": 7, "height": 7}
      extra_optional       {"radius": 4, "height": 7, "round_off": 2}    nobody asked for it

Each generator takes a TaskView and yields Corruption("...", ErrorType.VALUE, calls). It leaves out
what the reference accepts, and what a reader could defend: names that contain one another, swapped
factors, a value that is the tool's default anyway.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from toolrm_jax.near_values import (
    TIME,
    is_number,
    like_number,
    near_dates,
    near_time,
    value_kind,
    words_of,
)
from toolrm_jax.near_values import (
    near_number as beside,
)
from toolrm_jax.schema import value_is_valid
from toolrm_jax.task_view import Corruption, TaskView, has_type, named_examples, properties
from toolrm_jax.tool_calls import ErrorType, standard_text


def _wrong(view: TaskView, kind: str, index: int, param: str, value: Any) -> Iterator[Corruption]:
    """The corruption. The judge says later whether the value is wrong, and nothing but wrong."""
    yield Corruption(kind, ErrorType.VALUE, view.with_argument(index, param, value))


def near_number(view: TaskView) -> Iterator[Corruption]:
    """A number beside the right one."""
    for index, param, value in view.arguments():
        if is_number(value) and view.says(value):
            near = beside(value, view.rng, param)
            yield from _wrong(view, "near_number", index, param, near)


def number_in_text(view: TaskView) -> Iterator[Corruption]:
    """A text or a list of numbers in which one number is off: an address, a time, an id."""
    for index, param, value in view.arguments():
        if isinstance(value, str) and not re.search(r"\d{4}-\d{2}-\d{2}", value):
            # "Maroon 5" is one name.
            text = None if value_kind(value) == "name" else _other_number(view, value)
            if text is not None:
                yield from _wrong(view, "number_in_text", index, param, text)
        elif isinstance(value, list) and value and all(map(is_number, value)):
            at = view.rng.randrange(len(value))
            items = [*value[:at], beside(value[at], view.rng), *value[at + 1 :]]
            yield from _wrong(view, "number_in_text", index, param, items)


def _other_number(view: TaskView, text: str) -> str | None:
    """The text with one of its numbers off; times of day stay times, days and months such."""
    if TIME.search(text):
        return near_time(text, view.rng)
    found = list(re.finditer(r"(?<![\d.])\d{1,12}(?![\d.]*\d)", text))
    if not found:
        return None
    at = view.rng.choice(found)
    in_date = re.fullmatch(r"\d{1,2}/\d{1,2}/\d{2,4}", text) and len(at[0]) <= 2
    name = "" if not in_date else "month" if int(at[0]) <= 12 else "day"
    near = str(int(beside(int(at[0]), view.rng, name)))
    near = near.zfill(len(at[0])) if at[0][0] == "0" else near
    return text[: at.start()] + near + text[at.end() :]


def near_date(view: TaskView) -> Iterator[Corruption]:
    """A date a few days, a month or a year off, or with day and month confused."""
    for index, param, value in view.arguments():
        # Where nobody named a year, another one may be right.
        named = isinstance(value, str) and value[:4] in view.text
        near = near_dates(value, other_years=named) if isinstance(value, str) else []
        if near:
            yield from _wrong(view, "near_date", index, param, view.rng.choice(near))


def conversation_value(view: TaskView) -> Iterator[Corruption]:
    """Another number, date or name of the conversation in the place of the right one."""
    for index, param, value in view.arguments():
        if view.schema_of(index, param).get("enum"):
            continue
        found = [v for v in _said(view, value) if v not in view.accepted(index, param)]
        if isinstance(value, str) and not view.is_words(index, param, value):
            continue  # another kind of value would be an error of type
        if isinstance(value, str):
            taken = [value, *view.accepted(index, param)]
            found = [v for v in found if _unlike(v, taken)]
        if found:
            yield from _wrong(view, "conversation_value", index, param, view.rng.choice(found))


def _said(view: TaskView, value: Any) -> list[Any]:
    """What the conversation holds of the value's kind and magnitude."""
    if is_number(value):
        whole = isinstance(value, int)
        numbers = [n for n in view.numbers if isinstance(n, int) or not whole]
        return [n for n in numbers if n != value and like_number(n, value)]
    if not isinstance(value, str):
        return []
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}.*", value):
        return [day + value[10:] for day in view.dates if day != value[:10]]
    place = view.is_place(value)
    found = [p for p in view.phrases if _same_form(p, value) and view.is_place(p) == place]
    # Beside the name of a person or a work, a single capitalised word is mostly a genre.
    return found if place or " " not in value else [p for p in found if " " in p]


def _unlike(text: str, others: list[Any]) -> bool:
    """Shares no word with any of the texts, so that nobody could take one for the other."""
    words = set(re.findall(r"\w+", text.lower()))
    shared = [
        o for o in others if isinstance(o, str) and words & set(re.findall(r"\w+", o.lower()))
    ]
    plain = standard_text(text)
    inside = [o for o in others if isinstance(o, str) and o and standard_text(o) in plain]
    return not shared and not inside


def _same_form(text: str, value: str) -> bool:
    """Of one kind (both names, both codes, ...), and neither much longer than the other."""
    like = len(text) < 4 * len(value) + 10 and len(value) < 4 * len(text) + 10
    return value_kind(text) == value_kind(value) and like


def enum_neighbour(view: TaskView) -> Iterator[Corruption]:
    """Another value of the parameter's enum, or the other truth value."""
    for index, param, value in view.arguments():
        allowed = view.schema_of(index, param).get("enum") or []
        others = [v for v in allowed if type(v) is type(value) and v not in ("", value)]
        if isinstance(value, bool):
            others = [not value] if view.says(param.replace("_", " ")) else []
        elif view.language(index) and value in ("true", "false"):
            others = ["false" if value == "true" else "true"]
        elif isinstance(value, list):
            allowed = (view.schema_of(index, param).get("items") or {}).get("enum") or []
            spare = [v for v in allowed if v not in value]
            others = [[view.rng.choice(spare), *value[1:]]] if spare and value else []
        if others:
            yield from _wrong(view, "enum_neighbour", index, param, view.rng.choice(others))


def default_instead(view: TaskView) -> Iterator[Corruption]:
    """The parameter's default where the request asked for something else.

    Catalogues give "10" or false as the default of an integer: that would be an error of type.
    """
    for index, param, value in view.arguments():
        schema = view.schema_of(index, param)
        default = schema.get("default")
        fits = has_type(default, schema) and value_is_valid(default, schema)
        if default not in (None, "", value) and fits and view.says(value):
            yield from _wrong(view, "default_instead", index, param, default)


def swapped_values(view: TaskView) -> Iterator[Corruption]:
    """Two values of one kind in each other's place, where their order matters."""
    for index, param, value in view.arguments():
        call = view.gold[index]
        name = call["name"]
        for other, theirs in call["arguments"].items():
            if other == param or not _swappable(view, index, (param, value), (other, theirs)):
                continue
            if _interchangeable(param, other) or words_of(name) & _SYMMETRIC:
                continue
            swapped = {**call["arguments"], param: theirs, other: value}
            wrong = view.replaced(index, {**call, "arguments": swapped})
            yield Corruption("swapped_values", ErrorType.VALUE, wrong)
            break


def _swappable(view: TaskView, index: int, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
    """Numbers of one magnitude; dates; or texts of one kind whose parameters go together."""
    (param, value), (other, theirs) = one, two
    if any(view.schema_of(index, p).get("enum") for p in (param, other)):
        return False
    if type(value) is not type(theirs) or value == theirs:
        return False
    if is_number(value):
        return like_number(value, theirs)
    if not isinstance(value, str) or value_kind(value) != value_kind(theirs):
        return False
    if value_kind(value) in ("date", "time"):
        return True
    return value_kind(value) != "text" and _go_together(param, other) and _unlike(value, [theirs])


# Parameters that mirror each other, and those whose product is the same in either order.
_OPPOSITES = (
    {"from", "to"},
    {"start", "end"},
    {"begin", "end"},
    {"source", "target"},
    {"source", "destination"},
    {"origin", "destination"},
    {"departure", "arrival"},
    {"departure", "destination"},
    {"base", "target"},
    {"sender", "receiver"},
    {"sender", "recipient"},
    {"buyer", "seller"},
    {"home", "away"},
    {"min", "max"},
    {"old", "new"},
    {"input", "output"},
)
_FACTORS = {"length", "width", "height", "breadth", "depth", "base", "side"}
_ORDINALS = {"first", "second", "third", "one", "two", "three", "a", "b", "c", "x", "y", "z"}
# Tools that give the same whichever way round.
_SYMMETRIC = frozenset(
    re.findall(
        r"\w+",
        """
        add sum multiply product gcd hcf lcm distance compare comparison similarity average mean
        hypot hypotenuse pythagoras pythagorean between closest common intersection union
        """,
    )
)


def _go_together(param: str, other: str) -> bool:
    """source_language and target_language, from and to."""
    words, others = words_of(param), words_of(other)
    return bool(words & others) or any(
        pair & words and pair & others and pair <= words | others for pair in _OPPOSITES
    )


def _interchangeable(param: str, other: str) -> bool:
    """num1 and num2, first_number and second_number, length and width: a swap may be right."""
    words, others = words_of(param), words_of(other)
    if words & _FACTORS and others & _FACTORS:
        return True
    return words - _ORDINALS == others - _ORDINALS or min(len(param), len(other)) == 1


def extra_optional(view: TaskView) -> Iterator[Corruption]:
    """An optional argument that nobody asked for, with a plausible value of the model's own.

    Where the right call spells such an argument out, its value is the one that changes.
    """
    for index, call in enumerate(view.gold):
        spare = [
            p
            for p in properties(view.tools[call["name"]])
            # What the reference does not know at all would be unexpected, not a wrong value.
            if "" in view.accepted(index, p)
        ]
        view.rng.shuffle(spare)
        for param in spare[:3]:
            value = _invented(view, index, param)
            if value is not None and not _is_default(view.schema_of(index, param), value):
                yield from _wrong(view, "extra_optional", index, param, value)


def _invented(view: TaskView, index: int, param: str) -> Any:
    schema = view.schema_of(index, param)
    default, allowed = schema.get("default"), schema.get("enum") or []
    kind = schema.get("type")
    if kind == "boolean":
        return (not default) if isinstance(default, bool) else view.rng.random() < 0.7
    usual = [v for v in view.accepted(index, param) if v != ""]
    options = [v for v in allowed if v not in ("", default, *usual)]
    if allowed:
        return view.rng.choice(options) if options else None
    if kind in ("integer", "number"):
        numbers = [v for v in [default, *usual] if has_type(v, {"type": kind})]
        base = numbers[0] if numbers else None
        near = [base * 2, base / 2] if base and kind == "number" else [2, 5, 10, 20, 50, 100]
        near = [base * 2, base + 5, base + 10] if base and kind == "integer" else near
        return view.rng.choice(near)
    if kind == "string":
        named = [text for text in named_examples(schema) if _unlike(text, [default, *usual])]
        taken = [default, *usual, *view.gold[index]["arguments"].values()]
        phrases = [text for text in view.phrases if _unlike(text, taken)]
        fits = set(re.findall(r"[a-z]+", param.lower())) & _NAMES
        options = named if named and (not fits or view.rng.random() < 0.6) else phrases
        return view.rng.choice(options) if options and (named or fits) else None
    if kind == "array" and view.language(index) is None:
        item = view.plausible(param, schema.get("items") or {})
        return None if item is None else [item]
    return None


# Words of parameters that take names, such as a conversation holds.
_NAMES = frozenset(
    re.findall(
        r"\w+",
        """
    name title location city country place region area district address artist author director
    directed cast starring team player brand topic keyword query person company
    """,
    )
)


def _is_default(schema: dict[str, Any], value: Any) -> bool:
    """Is the value what the tool would take anyway, by its schema or by its description?"""
    described = (schema.get("description") or "").lower()
    said = re.search(r"default[^.;]*", described)
    named = said is not None and re.search(rf"\b{re.escape(str(value).lower())}\b", said[0])
    return value == schema.get("default") or bool(named)


def scale(view: TaskView) -> Iterator[Corruption]:
    """5 for 0.05 or the reverse, where the tool says which of the two it takes."""
    hint = r"percent|%|decimal|fraction|between 0 and 1|\b0\.\d"
    for index, param, value in view.arguments():
        described = view.schema_of(index, param).get("description") or ""
        if not is_number(value) or not value or not re.search(hint, described.lower()):
            continue
        if (
            re.search(r"%|percent", view.text)
            and view.schema_of(index, param).get("type") == "number"
        ):
            other = round(value * 100, 6) if abs(value) < 1 else round(value / 100, 6)
            whole = int(other) if other == int(other) else other
            yield from _wrong(view, "scale", index, param, whole)


def cross_call_value(view: TaskView) -> Iterator[Corruption]:
    """A value of one parallel call in another."""
    for index, param, value in view.arguments():
        theirs = [
            c["arguments"].get(param) for c in view.gold if c["name"] == view.gold[index]["name"]
        ]
        others = [v for v in theirs if v is not None and v != value]
        if others:
            yield from _wrong(view, "cross_call_value", index, param, view.rng.choice(others))


def list_item(view: TaskView) -> Iterator[Corruption]:
    """A list that lacks one of the items asked for, or an object that lacks a key."""
    for index, param, value in view.arguments():
        if isinstance(value, list) and len(value) > 1:
            gone = view.rng.randrange(len(value))
            yield from _wrong(view, "list_item", index, param, value[:gone] + value[gone + 1 :])
        elif isinstance(value, dict) and len(value) > 1:
            gone_key = view.rng.choice(list(value))
            less = {k: v for k, v in value.items() if k != gone_key}
            yield from _wrong(view, "list_item", index, param, less)


def cut_text(view: TaskView) -> Iterator[Corruption]:
    """A long text cut short, or an id, address or path with a character lost."""
    for index, param, value in view.arguments():
        if not view.is_words(index, param, value) or re.search(r"\d{1,4}-\d{1,2}-\d", value):
            continue
        words = value.split(" ")
        if len(words) >= 6:
            cut = " ".join(words[: view.rng.randrange(len(words) // 2, len(words) - 1)])
            yield from _wrong(view, "cut_text", index, param, cut)
        elif len(words) == 1 and len(value) >= 6 and re.search(r"\d|[@/]", value):
            sure = [i for i, char in enumerate(value) if char.isalnum() and i]
            if sure:
                at = view.rng.choice(sure)
                yield from _wrong(view, "cut_text", index, param, value[:at] + value[at + 1 :])


def object_value(view: TaskView) -> Iterator[Corruption]:
    """An object with one of its values off."""
    for index, param, value in view.arguments():
        if not isinstance(value, dict) or not value:
            continue
        key = view.rng.choice(list(value))
        inner = value[key]
        wrong: Any = None
        if isinstance(inner, bool):
            wrong = not inner
        elif is_number(inner):
            wrong = beside(inner, view.rng, key)
        elif isinstance(inner, str):
            others = [p for p in view.phrases if _unlike(p, [inner])]
            wrong = view.rng.choice(others) if others else None
        if wrong is not None:
            yield from _wrong(view, "object_value", index, param, {**value, key: wrong})


def placeholder(view: TaskView) -> Iterator[Corruption]:
    """The parameter's name or a stand-in for its value, where the request gave the value."""
    for index, param, value in view.arguments():
        schema = view.schema_of(index, param)
        if view.is_words(index, param, value) and len(value) > 2 and not schema.get("enum"):
            code = view.language(index) is not None
            if view.rng.random() < (0.8 if code else 0.97):
                continue  # easy to see through in plain JSON, where models seldom do it
            form = param if code else view.rng.choice((f"{{{param}}}", f"your_{param}"))
            if any(
                standard_text(form) == standard_text(str(v)) for v in view.accepted(index, param)
            ):
                continue
            yield from _wrong(view, "placeholder", index, param, form)


# Generators with the weight that each kind should have among wrong values.
VALUE_KINDS: dict[Callable[[TaskView], Iterator[Corruption]], float] = {
    near_number: 2.5,
    number_in_text: 1.5,
    near_date: 2.0,
    conversation_value: 4.0,
    enum_neighbour: 3.0,
    default_instead: 3.0,
    swapped_values: 2.0,
    extra_optional: 5.0,
    scale: 2.0,
    cross_call_value: 3.0,
    list_item: 2.0,
    cut_text: 1.5,
    object_value: 1.5,
    placeholder: 0.25,
}
