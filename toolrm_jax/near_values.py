"""What a text stands for, and values beside a right one: numbers, times of day, dates.

    "2024-03-02" date    "12:30" time    "a@b.de" address    "EUR" code    "New York" name
    "3.5" digits         "Where are you?" text

>>> value_kind("New York"), value_kind("12:30"), value_kind("Hello, how are you?")
('name', 'time', 'text')
>>> near_dates("from 9999-12-31", other_years=False)
['from 9999-12-24', 'from 9999-12-30']
"""

import datetime
import math
import random
import re
from typing import Any

_KINDS = (
    ("date", r"\d{4}-\d{2}-\d{2}.*|\d{1,2}/\d{1,2}/\d{2,4}"),
    ("time", r"\d{1,2}:\d{2}(:\d{2})?\s*([ap]\.?m\.?)?|\d{1,2}\s*[ap]\.?m\.?"),
    ("address", r"\S*[@/\\]\S*|https?:\S+"),
    ("digits", r"[-+]?[\d.,]*\d[\d.,]*\s?[%°]?"),
    ("code", r"[A-Z0-9]{1,5}|[A-Z]*\d[A-Z\d-]*"),
    ("name", r"[A-Z][\w.&'-]*,?( (of|the|de|and|for|in|van|der|la|&|[A-Z0-9][\w.&'-]*),?)*"),
)
TIME = re.compile(
    r"(?<![\d:])([01]?\d|2[0-3]):([0-5]\d)(?!\d)|(?<![\d:])(1[0-2]|[1-9])(?=\s*[ap]m)"
)
_DAY = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
# The largest value that a parameter of this word may take.
_LIMITS = {
    "hour": 23,
    "hours": 23,
    "minute": 59,
    "minutes": 59,
    "second": 59,
    "month": 12,
    "day": 31,
    "latitude": 90,
    "lat": 90,
    "longitude": 180,
    "lon": 180,
    "lng": 180,
}


def is_number(value: Any) -> bool:
    """A number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_kind(text: str) -> str:
    """What sort of thing a text is: see the top."""
    return next((kind for kind, form in _KINDS if re.fullmatch(form, text)), "text")


def words_of(name: str) -> set[str]:
    """The words of a name in snake_case or camelCase."""
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def _is_year(number: int | float) -> bool:
    return isinstance(number, int) and 1800 <= number <= 2100


def like_number(number: int | float, value: int | float) -> bool:
    """Of one kind and one magnitude, so that a reader might take one for the other?"""
    if _is_year(number) != _is_year(value) or (number < 0) != (value < 0):
        return False
    small, large = sorted((abs(number), abs(value)))
    return large <= 20 or large <= 10 * small


def near_number(value: int | float, rng: random.Random, name: str = "") -> int | float:
    """A number beside the value, of its sign, and within what a parameter of this name takes."""
    if isinstance(value, float) and not value.is_integer():
        digits = len(repr(value).partition(".")[2])
        near = [round(value * factor, digits + 1) for factor in (0.5, 0.9, 1.1, 2, 10, 0.1)]
    else:
        near = _near_integers(value, rng)
    limit = next((_LIMITS[word] for word in words_of(name) if word in _LIMITS), math.inf)
    if value > limit:
        limit = math.inf
    least = 1 if words_of(name) & {"month", "day"} else -math.inf
    fit = [n for n in near if (n >= 0) == (value >= 0) and least <= n <= limit and n != value]
    return rng.choice(fit or [value + 1 if value < limit else value - 1])


def _near_integers(value: int | float, rng: random.Random) -> list[int | float]:
    if abs(value) < 200:
        near = [value + step for step in ((-1, 1) if abs(value) < 20 else (-10, -5, -1, 1, 5, 10))]
    elif _is_year(int(value)):
        near = [value + step for step in (-10, -2, -1, 1, 2, 10)]
    else:
        step = 10 ** (len(str(int(abs(value)))) - 2)
        near = [value - step, value + step, value * 10, value * 2]
        near += [value // 10] if value % 10 == 0 else []
    text = str(int(abs(value)))
    if value >= 20 and text[-1] != text[-2]:
        near.append(type(value)(text[:-2] + text[-1] + text[-2]))  # the last two digits swapped
    return near


def near_time(text: str, rng: random.Random) -> str:
    """The text with its first time of day off by an hour or two, or by some minutes."""
    found = TIME.search(text)
    assert found is not None, text
    if found[3]:  # 3pm
        hour = (int(found[3]) - 1 + rng.choice((-1, 1, 2))) % 12 + 1
        return text[: found.start()] + str(hour) + text[found.end() :]
    hour, minute = int(found[1]), int(found[2])
    half = re.match(r"(:\d{2})?\s*[ap]\.?m", text[found.end() :].lower()) is not None
    if rng.random() < 0.6:
        step = rng.choice((-1, 1, 2))
        hour = (hour - 1 + step) % 12 + 1 if half else (hour + step) % 24
    else:
        minute = (minute + rng.choice((15, 30, 45))) % 60
    width = len(found[1])
    return f"{text[: found.start()]}{hour:0{width}d}:{minute:02d}{text[found.end() :]}"


def near_dates(text: str, *, other_years: bool) -> list[str]:
    """The text with its first date a few days or a year off, or with day and month confused."""
    found = _DAY.search(text)
    if found is None:
        return []
    year, month, day = map(int, found.groups())
    near = [_shifted(year, month, day, days) for days in (-7, -1, 1, 7)]
    if other_years:
        near += [_date(year + step, month, min(day, 28)) for step in (-1, 1)]
    if day <= 12 and day != month:
        near += [_date(year, day, month)] * 2
    return [text[: found.start()] + str(d) + text[found.end() :] for d in near if d is not None]


def _date(year: int, month: int, day: int) -> datetime.date | None:
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return None


def _shifted(year: int, month: int, day: int, days: int) -> datetime.date | None:
    start = _date(year, month, day)
    try:
        return None if start is None else start + datetime.timedelta(days=days)
    except OverflowError:  # the calendar ends with 9999-12-31
        return None
