"""Names of functions and parameters as random strings, so that none can be known by heart.

    get_rain(city, unit)  "Use get_rain if ..."   ->   k7_QmZ2(Bx3tq9, vN0_h)  "Use k7_QmZ2 if ..."

As in ToolRM's data (arXiv:2509.11963): names are replaced, the tools and the keys of their schemas
shuffled, alike in the tools, in calls earlier in the conversation, in the reference and in gold.
The same name gets the same string throughout an example. Names of fields within a value stay.

Where names stand in text, one rule: a name that can be no ordinary word (it has an underscore, a
dot, a digit behind a letter, a capital behind a small letter) is replaced wherever it stands as a
whole word; any name is replaced where it stands in `backticks`, and in descriptions also between
quotes. A name that is a value as well (in a call, an enum or a default) stays in text.

Which examples are obfuscated, and how, depends on the seed and the example's id alone. The Names
that come with an example turn its answers into the new names, and everything back:

    obfuscated, names = Obfuscation(seed=0, rates={"xlam": 0.8, "sgd": 0.5})(example)
    reveal(obfuscated, names) == example          # where `names` is not None
"""

import dataclasses
import functools
import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Call, Example, Message, Response, Tool
from toolrm_jax.tool_calls import attempts_call, canonical_calls, parse_calls

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_REST = _LETTERS + "0123456789_"
_NO_WORD = re.compile(r"_|\.|[^\W\d]\d|[^\W\d_A-Z][A-Z]")
# Keywords by which a schema speaks of its properties in ways that are not followed here.
_UNFOLLOWED = ('"$ref"', '"$dynamicRef"', '"patternProperties"', '"propertyNames"', '"dependent')
# Where schemas stand within a schema; what stands elsewhere (enum, default, const) is data.
_SCHEMAS_BY_NAME = ("properties", "$defs", "definitions")
_SCHEMAS = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_LISTS_OF_SCHEMAS = ("anyOf", "allOf", "oneOf", "prefixItems")
_DATA = {"enum", "default", "const", "examples"}
_SAME_OBJECT = ("anyOf", "allOf", "oneOf", "not", "if", "then", "else")

Rename = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Names:
    """What the names of one example became, and the place that each tool had."""

    functions: dict[str, str]
    parameters: dict[str, str]
    places: list[int]  # of each tool as it stands now, in the original list

    def to_json(self) -> dict[str, Any]:
        """For a file beside the examples."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Names":
        """What `to_json` gave."""
        return cls(dict(value["functions"]), dict(value["parameters"]), list(value["places"]))

    def reversed(self) -> "Names":
        """From the new names to the old ones."""
        return Names(
            {new: old for old, new in self.functions.items()},
            {new: old for old, new in self.parameters.items()},
            [self.places.index(i) for i in range(len(self.places))],
        )

    def hide(self, calls: list[Call]) -> list[Call]:
        """Calls by the new names; names that the example does not know stay."""
        return [_renamed_call(call, self) for call in calls]

    def reveal(self, calls: list[Call]) -> list[Call]:
        """Calls by the original names."""
        return self.reversed().hide(calls)

    def with_strangers(self, calls: list[Call], seed: str) -> "Names":
        """These and, for names in the calls that the example does not know, random ones: of answers
        that are compared with each other, two strangers must not get one name."""
        taken = " ".join([*self.functions.values(), *self.parameters.values()])
        return _with_strangers(self, calls, _fresh(random.Random(f"{seed}/answer"), taken))

    def hide_answer(self, response: Response, seed: str) -> Response:
        """What a model said to the original example, by the new names.

        A name that the example does not know gets a random one too, for a natural name among
        random ones would give a wrong answer away. In a text that tries to call, all names are
        replaced as whole words; other text stays. A message's calls and words are treated alike.
        """
        if isinstance(response, dict):
            return self._hide_message(response, seed)
        if isinstance(response, list):
            return self.with_strangers(response, seed).hide(response)
        words = {**self.parameters, **self.functions}
        if isinstance(response, str) and words and _looks_like_call(response, self.functions):
            return _whole_words(words).sub(lambda match: words[match[0]], response)
        return response

    def _hide_message(self, message: Message, seed: str) -> Message:
        calls, words = parse_calls(message.get("tool_calls") or []), message.get("content")
        changed = {"tool_calls": self.hide_answer(calls, seed)} if calls else {}
        if isinstance(words, str):
            changed["content"] = self.hide_answer(words, seed)
        return {**message, **changed}


@dataclasses.dataclass(frozen=True)
class Obfuscation:
    """The seed, and what share of each source's examples is obfuscated.

    A rate belongs to a source by its name ("sgd"), or by the part of it before the first slash;
    `default` holds for the others.
    """

    seed: int = 0
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    default: float = 1.0

    def __post_init__(self) -> None:
        for name, rate in {**self.rates, "default": self.default}.items():
            if not 0 <= rate <= 1:
                raise InputError(
                    f"The obfuscation rate of {name!r} is {rate}; expected a share from 0 to 1."
                )

    def rate(self, source: str) -> float:
        """The share of the source's examples."""
        return self.rates.get(source, self.rates.get(source.partition("/")[0], self.default))

    def __call__(self, example: Example) -> tuple[Example, Names | None]:
        """The example, obfuscated or as it is (then without Names)."""
        rng = random.Random(f"{self.seed}/obfuscation/{example.id}")
        if rng.random() >= self.rate(example.source):
            return example, None
        return obfuscate(example, rng)


def obfuscate(example: Example, rng: random.Random) -> tuple[Example, Names | None]:
    """The example under new names; as it is, without Names, where a schema refers to its own parts.

    Such references ("$ref", "patternProperties" and their like) would have to be followed.
    """
    schemas = json.dumps([tool["parameters"] for tool in example.tools])
    if any(keyword in schemas for keyword in _UNFOLLOWED):
        return example, None
    names = _new_names(example, rng)
    in_descriptions, in_messages = _text_rules(example, names, schemas)
    tools = [
        _shuffled(_renamed_tool(example.tools[place], names, in_descriptions), rng, schema=False)
        for place in names.places
    ]
    return _renamed(example, tools, names, in_messages), names


def _with_strangers(names: Names, calls: list[Call], fresh: Iterator[str]) -> Names:
    """The names, and new ones for what the calls name beside them."""
    functions, parameters = dict(names.functions), dict(names.parameters)
    for call in calls:
        if call["name"] not in functions:
            functions[call["name"]] = next(fresh)
        for name in call["arguments"]:
            if name not in parameters:
                parameters[name] = next(fresh)
    return Names(functions, parameters, names.places)


def _looks_like_call(text: str, functions: Collection[str]) -> bool:
    return attempts_call(text, []) or any(name in text for name in functions)


def reveal(example: Example, names: Names) -> Example:
    """The example that `obfuscate` was given; the order of keys in schemas and calls may differ."""
    back = names.reversed()
    words = {**back.parameters, **back.functions}
    pattern = _whole_words(words)

    def text(value: str) -> str:
        return pattern.sub(lambda match: words[match[0]], value) if words else value

    tools = [_renamed_tool(example.tools[place], back, text) for place in back.places]
    return _renamed(example, tools, back, text)


# Names -------------------------------------------------------------------------------------------


def _new_names(example: Example, rng: random.Random) -> Names:
    functions = dict.fromkeys(tool["name"] for tool in example.tools)
    parameters = dict.fromkeys(p for tool in example.tools for p in _properties(tool))
    for message in example.messages:
        for call in message.get("tool_calls") or []:
            functions.setdefault(call["name"])
            parameters |= dict.fromkeys(call["arguments"])
        if message["role"] == "tool" and message.get("name"):
            functions.setdefault(message["name"])
    text = [example.tools, example.messages, example.reference, example.words]
    taken = json.dumps(text, ensure_ascii=False)
    fresh = _fresh(rng, taken)
    places = list(range(len(example.tools)))
    rng.shuffle(places)
    return Names(
        {name: next(fresh) for name in functions},
        {name: next(fresh) for name in parameters},
        places,
    )


def _fresh(rng: random.Random, taken: str) -> Iterator[str]:
    """Random names, each once, that stand nowhere in the example's text."""
    given: set[str] = set()
    while True:
        name = rng.choice(_LETTERS) + "".join(rng.choices(_REST, k=rng.randint(5, 11)))
        if name not in given and name not in taken:
            given.add(name)
            yield name


def _properties(tool: Tool) -> dict[str, Any]:
    return tool["parameters"].get("properties") or {}


# Text --------------------------------------------------------------------------------------------


def _text_rules(example: Example, names: Names, schemas: str) -> tuple[Rename, Rename]:
    """What the rule makes of a text in a description, and of one in a message."""
    values = _values(example)
    new = {**names.parameters, **names.functions}
    free = {old: fresh for old, fresh in new.items() if old and old not in values}
    said = "\n".join([*(m["content"] for m in example.messages), example.words or ""])
    described = "\n".join(tool["description"] for tool in example.tools) + schemas
    return _rule(free, described, r"[`'\"“]", r"[`'\"”]"), _rule(free, said, "`", "`")


def _rule(new: dict[str, str], texts: str, opening: str, closing: str) -> Rename:
    # Most names stand in no text, and a search for each is far cheaper than a pattern of all. One
    # after the other is safe: no fresh name is, or holds, another name as a whole word.
    present = [
        (old, new[old], _mention(old, opening, closing))
        for old in sorted(new, key=len, reverse=True)
        if old in texts
    ]

    def rename(text: str) -> str:
        for old, fresh, pattern in present:
            if old in text:
                text = pattern.sub(fresh, text)
        return text

    return rename


@functools.lru_cache(maxsize=65536)
def _mention(name: str, opening: str, closing: str) -> re.Pattern[str]:
    """Where a text speaks of the name: as a word, or between quotes if it is an ordinary one."""
    if _NO_WORD.search(name):
        return _whole_words([name])
    return re.compile(rf"(?<={opening}){re.escape(name)}(?={closing})")


def _whole_words(names: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")


def _values(example: Example) -> set[str]:
    """The texts that are values: of calls, of enums, defaults."""
    found: set[str] = set()
    for call in example.reference + example.gold:
        found |= set(_texts(call["arguments"]))
    for message in example.messages:
        for call in message.get("tool_calls") or []:
            found |= set(_texts(list(call["arguments"].values())))
    for tool in example.tools:
        for node in _nodes(tool["parameters"]):
            for key in _DATA & node.keys():
                found.update(_texts(node[key]))
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


# Schemas -----------------------------------------------------------------------------------------


def _parts(node: dict[str, Any]) -> Iterator[Any]:
    """The schemas right within a schema."""
    for key, value in node.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            yield from value.values()
        elif key in _SCHEMAS:
            yield value
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            yield from value


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for part in _parts(node):
            yield from _nodes(part)


def _map_parts(node: dict[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The schema with every schema right within it changed by `change(keyword, schema)`."""
    out = dict(node)
    for key, value in node.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            out[key] = {name: change(key, part) for name, part in value.items()}
        elif key in _SCHEMAS:
            out[key] = change(key, value)
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            out[key] = [change(key, part) for part in value]
    return out


def _renamed_tool(tool: Tool, names: Names, text: Rename) -> Tool:
    return {
        **tool,
        "name": names.functions.get(tool["name"], tool["name"]),
        "description": text(tool["description"]),
        "parameters": _renamed_schema(tool["parameters"], names.parameters, text, own=True),
    }


def _renamed_schema(node: Any, new: dict[str, str], text: Rename, *, own: bool) -> Any:
    """The schema with its texts changed and, where it speaks of the parameters, their names."""
    if not isinstance(node, dict):
        return node
    out = _map_parts(
        node,
        lambda key, part: _renamed_schema(part, new, text, own=own and key in _SAME_OBJECT),
    )
    for key in ("description", "title"):
        if isinstance(out.get(key), str):
            out[key] = text(out[key])
    if own and isinstance(out.get("properties"), dict):
        out["properties"] = {new.get(p, p): part for p, part in out["properties"].items()}
    if own and isinstance(out.get("required"), list):
        out["required"] = [new.get(p, p) for p in out["required"]]
    return out


def _shuffled(node: Any, rng: random.Random, *, schema: bool = True) -> Any:
    """The tool or schema with its keys, and the names of its properties, in random order."""
    if not isinstance(node, dict):
        return node
    if schema:
        node = _map_parts(node, lambda _, part: _shuffled(part, rng))
        if isinstance(node.get("properties"), dict):
            node["properties"] = _in_random_order(node["properties"], rng)
    else:
        node = {**node, "parameters": _shuffled(node["parameters"], rng)}
    return _in_random_order(node, rng)


def _in_random_order(value: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    items = list(value.items())
    rng.shuffle(items)
    return dict(items)


# Calls and messages ------------------------------------------------------------------------------


def _renamed_call(call: Call, names: Names) -> Call:
    arguments = {names.parameters.get(p, p): value for p, value in call["arguments"].items()}
    return {
        **call,
        "name": names.functions.get(call["name"], call["name"]),
        "arguments": arguments,
    }


def _renamed_message(message: Message, names: Names, text: Rename) -> Message:
    out = {**message, "content": text(message["content"])}
    if message.get("tool_calls"):
        out["tool_calls"] = names.hide(message["tool_calls"])
    if message["role"] == "tool" and message.get("name"):
        out["name"] = names.functions.get(message["name"], message["name"])
    return out


def _renamed(example: Example, tools: list[Tool], names: Names, text: Rename) -> Example:
    return dataclasses.replace(
        example,
        tools=tools,
        messages=[_renamed_message(message, names, text) for message in example.messages],
        reference=names.hide(example.reference),
        gold=canonical_calls(names.hide(example.gold), tools),
        words=text(example.words) if example.words else example.words,
    )
