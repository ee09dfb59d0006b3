"""Names near a right one: what a model writes that remembers a tool or a parameter wrongly.

>>> near_params("start_date")[:3]
['date', 'start', 'startDate']
>>> near_tools("weather.get_forecast")[:3]
['get_forecast', 'weather.weather_get_forecast', 'weather']
"""

import re

_VERBS = {
    "get": ("fetch", "retrieve", "find"),
    "find": ("search", "get"),
    "calculate": ("compute", "get"),
    "search": ("find", "lookup"),
    "create": ("make", "add"),
    "fetch": ("get",),
    "book": ("reserve",),
    "convert": ("translate",),
    "predict": ("forecast",),
    "update": ("set",),
}
_NOUNS = {
    "amount": ("value", "sum"),
    "category": ("type", "kind"),
    "city": ("location", "town"),
    "content": ("text", "body"),
    "count": ("number", "n"),
    "country": ("nation", "region"),
    "date": ("day", "when"),
    "description": ("text", "details"),
    "destination": ("to", "target"),
    "duration": ("time", "length"),
    "end": ("to", "until", "stop"),
    "format": ("type", "output"),
    "genre": ("category", "type"),
    "id": ("key", "identifier"),
    "input": ("data", "text"),
    "language": ("lang", "locale"),
    "length": ("size", "len"),
    "limit": ("max", "count"),
    "location": ("place", "city", "loc"),
    "message": ("text", "msg", "body"),
    "name": ("title", "id"),
    "number": ("num", "count"),
    "origin": ("from", "source"),
    "person": ("name", "who"),
    "price": ("cost", "amount"),
    "query": ("q", "text", "search"),
    "rate": ("percentage", "ratio"),
    "rating": ("stars", "score"),
    "source": ("from", "origin"),
    "start": ("from", "begin"),
    "target": ("to", "goal"),
    "temperature": ("temp", "t"),
    "text": ("content", "input"),
    "time": ("hour", "when"),
    "title": ("name", "heading"),
    "type": ("kind", "category"),
    "unit": ("units", "measure"),
    "user": ("username", "account"),
    "value": ("amount", "number"),
    "year": ("date", "years"),
}


def camel(parts: list[str]) -> str:
    """["get", "area"] -> "getArea"."""
    return parts[0] + "".join(part.capitalize() for part in parts[1:])


def _snake(name: str) -> list[str]:
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    return [part for part in parts if part] or [name]


def near_tools(name: str) -> list[str]:
    """Names that a model may write for the tool, each once."""
    near = []
    space, dot, last = name.rpartition(".")
    if dot:
        near += [last, f"{space}.{space.rpartition('.')[2]}_{last}", space]
    parts = _snake(last)
    snake = "_".join(parts)
    near += [space + dot + camel(parts) if "_" in last else space + dot + snake]
    for word, others in _VERBS.items():
        if word in parts and "_" in last:
            swapped = ["_".join(other if p == word else p for p in parts) for other in others]
            near += [space + dot + one for one in swapped]
    if len(parts) > 2 and "_" in last:
        near += [space + dot + "_".join(parts[:-1]), space + dot + "_".join(parts[1:])]
    if not dot and len(parts) > 1:
        near += [f"{parts[-1]}.{'_'.join(parts[:-1])}", f"{snake}_info"]
    near += [f"{name}_v2"] if len(near) < 2 else []
    return [n for n in dict.fromkeys(near) if n and n != name]


def near_params(name: str) -> list[str]:
    """Names that a model may write for the parameter, shorter and longer ones, each once."""
    parts = _snake(name)
    near = [parts[-1], parts[0], camel(parts)] if len(parts) > 1 else []
    for i, part in enumerate(parts):
        near += ["_".join([*parts[:i], other, *parts[i + 1 :]]) for other in _NOUNS.get(part, ())]
    if len(parts) == 1 and parts[0] not in _NOUNS:
        near += [f"{name}_name", f"{name}_value", f"{name}s", f"input_{name}"]
        # acceleration -> acc, distance -> dist: cut before a vowel
        near += re.findall(r"^[a-z]{2,4}?[b-df-hj-np-tv-xz](?=[aeiou]\w\w)", name)
    return [n for n in dict.fromkeys(near) if n and n != name]
