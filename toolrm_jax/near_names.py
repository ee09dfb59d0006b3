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
    "a": ("x", "num1", "first"),
    "address": ("addr", "location"),
    "amount": ("value", "sum", "amt"),
    "artist": ("singer", "performer"),
    "average": ("avg", "mean"),
    "b": ("y", "num2", "second"),
    "cast": ("actors", "starring"),
    "category": ("type", "kind", "cat"),
    "city": ("location", "town"),
    "command": ("cmd", "instruction"),
    "company": ("firm", "organization"),
    "content": ("text", "body"),
    "count": ("number", "n"),
    "country": ("nation", "region"),
    "date": ("day", "when"),
    "days": ("period", "num_days", "duration"),
    "department": ("dept", "division"),
    "description": ("text", "details", "desc"),
    "destination": ("to", "target", "dest"),
    "directed": ("director", "made"),
    "distance": ("dist", "length"),
    "duration": ("time", "length"),
    "end": ("to", "until", "stop"),
    "expression": ("expr", "formula"),
    "format": ("type", "output"),
    "frequency": ("freq", "rate"),
    "from": ("source", "origin"),
    "function": ("func", "f", "expression"),
    "genre": ("category", "type"),
    "id": ("key", "identifier"),
    "input": ("data", "text"),
    "language": ("lang", "locale"),
    "length": ("size", "len"),
    "latitude": ("lat", "y"),
    "limit": ("max", "count"),
    "location": ("place", "city", "loc"),
    "longitude": ("lon", "lng"),
    "max": ("maximum", "limit"),
    "maximum": ("max", "limit"),
    "message": ("text", "msg", "body"),
    "min": ("minimum", "least"),
    "minimum": ("min", "least"),
    "n": ("number", "count"),
    "name": ("title", "id"),
    "number": ("num", "count"),
    "origin": ("from", "source"),
    "person": ("name", "who"),
    "population": ("pop", "inhabitants"),
    "price": ("cost", "amount"),
    "quantity": ("qty", "amount"),
    "query": ("q", "text", "search"),
    "rate": ("percentage", "ratio"),
    "rating": ("stars", "score"),
    "source": ("from", "origin", "src"),
    "starring": ("cast", "actor"),
    "start": ("from", "begin"),
    "target": ("to", "goal"),
    "temperature": ("temp", "t"),
    "text": ("content", "input"),
    "time": ("hour", "when"),
    "title": ("name", "heading"),
    "to": ("target", "destination"),
    "type": ("kind", "category"),
    "unit": ("units", "measure"),
    "user": ("username", "account"),
    "value": ("val", "amount", "number"),
    "volume": ("vol", "level"),
    "x": ("a", "x1", "value"),
    "y": ("b", "y1", "value"),
    "year": ("date", "years"),
}


_PARTICLES = {"by", "has", "in", "include", "is", "of", "per"}
_ORDINALS = ("first", "second", "third")


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
    if "_" in last and last != last.lower():  # Media_3_FindMovies
        end = last.rpartition("_")[2]
        near += [end, last[:-1] if last.endswith("s") else f"{last}s", last.replace("_", ".")]
        return [n for n in dict.fromkeys(near) if n and n != name]
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


def near_params(name: str, tool: str = "") -> list[str]:
    """Names that a model may write for the parameter of the tool, shorter and longer, each once."""
    parts = _snake(name)
    ends = [part for part in (parts[-1], parts[0]) if part not in _PARTICLES]
    near = [*ends, camel(parts)] if len(parts) > 1 else []
    for i, part in enumerate(parts):
        near += ["_".join([*parts[:i], other, *parts[i + 1 :]]) for other in _NOUNS.get(part, ())]
    if numbered := re.fullmatch(r"([a-z]+)(_?)([1-3])", name):
        stem, line, digit = numbered.groups()
        near += [f"{stem}{'' if line else '_'}{digit}", f"{_ORDINALS[int(digit) - 1]}_{stem}"]
    elif len(parts) == 1 and parts[0] not in _NOUNS:
        near.append(name[:-1] if name.endswith("s") else f"{name}s")
    if len(parts) == 1:
        # The tool's own words, so that no affix gives the wrong side away.
        words = [word for word in _snake(tool.rpartition(".")[2]) if word not in _VERBS]
        near += [f"{word}_{name}" for word in words if word.isalpha() and word != name]
    return [n for n in dict.fromkeys(near) if n and n != name]
