"""What a corruption may draw on: the task's right calls, and the values found around them.

    conversation "Book 2 rooms at 'The Plaza' in New York on 2024-03-02"
      numbers [2]   phrases ["The Plaza", "New York"]   dates ["2024-03-02"]

`fill_arguments` fills another tool of the catalogue from these, as a model that picked the wrong
tool would. Every random choice comes from the view's own generator, seeded by seed and task id.

    view = TaskView(example, seed=0)
    view.fill_arguments(view.siblings[0])
"""

import dataclasses
import datetime
import functools
import json
import random
import re
from collections.abc import Iterator
from typing import Any

from toolrm_jax.examples import Call, Example, Response, Tool
from toolrm_jax.near_values import value_kind
from toolrm_jax.tool_calls import PYTHON_TYPES, ErrorType, judge_value, listed, standard_text

# Not a key of JSON, as tool results have them.
_QUOTED = re.compile(r"""(?<!\w)(['"`“])([^'"`“”\n]{1,80})['"`”](?!\w|\s*:)""")
_PHRASE = re.compile(
    r"\b[A-Z][\w&'-]*(?:[ ](?:(?:of|the|de|and)[ ])?[A-Z][\w&'-]*)*(?:, [A-Z]{2}\b)?"
)
_NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\w)")
_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")
_EXAMPLE = re.compile(r"(?<!\w)['\"]([^'\"]{1,40})['\"](?!\w)")
# Words with a capital that are no names: those that open a request, days and months.
_OPENERS = frozenset(
    re.findall(
        r"\w+",
        """
    a add after also am an and any are as at book but buy calculate can check compute convert
    could create describe determine did do does dont fetch find for from generate get give given
    has have hello help hey hi how i id identify if ill im imagine in invest is it its ive
    kindly let lets list locate look looking make may me my need next no not now of on or please
    play plot predict provide retrieve search send set should show solve so strictly suppose
    tell thanks that the then there these they this to today track translate update use using
    want was we were what whats when where which who whos why will with would yes you your
    monday tuesday wednesday thursday friday saturday sunday january february march april june july
    august september october november december
    """,
    )
)
# Words before a name that are none by themselves.
_TITLES = frozenset(("mr", "mrs", "ms", "miss", "dr", "prof", "professor", "sir", "madam", "st"))
_PREPOSITION = re.compile(
    r"\b(?:[Ii]n|[Ff]rom|[Tt]o|[Nn]ear|[Aa]t|[Aa]round|[Ww]ithin) (?=(the )?)"
)
_BORDER = re.compile(r"\b")


@dataclasses.dataclass(frozen=True)
class Corruption:
    """A wrong response: how it was made, and the error that it was made to have."""

    kind: str
    error_type: ErrorType
    response: Response


class TaskView:
    """One task, and the values around its right calls that a wrong call may take."""

    def __init__(self, example: Example, *, seed: int):
        self.example = example
        self.gold = example.gold
        self.rng = random.Random(f"{seed}/{example.id}")  # a string seed is hashed by SHA-512
        self.tools = {tool["name"]: tool for tool in example.tools}
        wanted = {call["name"] for call in example.gold}
        self.siblings = [tool for tool in example.tools if tool["name"] not in wanted]
        spoken = [m["content"] for m in example.messages if isinstance(m.get("content"), str)]
        self.text = "\n".join(spoken)
        users = [m for m in example.messages if m.get("role") == "user"]
        self.request = str(users[-1].get("content", "")) if users else ""
        self._places: dict[str, bool] = {}
        self._fitting_by: dict[tuple[bool, bool], list[str]] = {}

    @functools.cached_property
    def numbers(self) -> list[int | float]:
        """The numbers of the conversation, each once."""
        found = (match.replace(",", "") for match in _NUMBER.findall(self.text))
        return list(dict.fromkeys(float(n) if "." in n else int(n) for n in found))

    @functools.cached_property
    def dates(self) -> list[str]:
        """The dates of the conversation, year first."""
        return list(dict.fromkeys(_DATE.findall(self.text)))

    @functools.cached_property
    def phrases(self) -> list[str]:
        """Quoted texts and capitalised names of the conversation, and the right calls' own."""
        found = [match[1] for match in _QUOTED.findall(self.text)]
        found += [
            _without_opener(match[0])
            for match in _PHRASE.finditer(self.request)
            # A single word that opens a sentence has its capital from there.
            if " " in match[0] or _inside_sentence(self.request[: match.start()])
        ]
        found += [v for i, p, v in self._given() if _is_phrase(v) and not self._is_choice(i, p)]
        # "Ann Lee and Bob Ray" may be one name ("Tom and Jerry") or two.
        found += [part for phrase in found for part in phrase.split(" and ")]
        plain = (re.sub(r"'s?$", "", phrase.strip()) for phrase in found)
        return [p for p in dict.fromkeys(plain) if len(p) > 1 and p.lower() not in _TITLES]

    @functools.cached_property
    def topics(self) -> list[str]:
        """Runs of one to three words of the request that are no function words: what it is of."""
        runs: list[list[str]] = [[]]
        for word in re.findall(r"[\w'-]+|[^\w\s]", self.request[-400:]):
            if word.lower() in _OPENERS or not re.match(r"\w{2}", word):
                runs.append([])
            else:
                runs[-1].append(word)
        return list(dict.fromkeys(" ".join(run[-3:]) for run in runs if run))

    def is_place(self, phrase: str) -> bool:
        """Does the conversation speak of it as of a place: in it, from it, near it?"""
        if phrase not in self._places:
            self._places[phrase] = any(
                self.text.startswith(phrase, at) and _BORDER.match(self.text, at + len(phrase))
                for at in self._after_prepositions
            )
        return self._places[phrase]

    @functools.cached_property
    def _after_prepositions(self) -> list[int]:
        """Where in the text a place may stand. Found once: a long conversation has hundreds of
        phrases, and a search of all of it for each of them takes minutes."""
        found = [(match.end(), match[1]) for match in _PREPOSITION.finditer(self.text)]
        return [
            at for start, the in found for at in ((start, start + len(the)) if the else (start,))
        ]

    # The right calls -----------------------------------------------------------------------------

    def schema_of(self, index: int, param: str) -> dict[str, Any]:
        """The schema of a parameter of the right call at the index."""
        return properties(self.tools[self.gold[index]["name"]]).get(param) or {}

    def required(self, index: int) -> list[str]:
        """The required parameters of the right call at the index."""
        return self.tools[self.gold[index]["name"]]["parameters"].get("required") or []

    def language(self, index: int) -> str | None:
        """The language of the tool's values; None: plain JSON."""
        return self.example.reference[index].get("language")

    def is_words(self, index: int, param: str, value: Any) -> bool:
        """Is the value a text, rather than source text that stands for something else?"""
        if not isinstance(value, str):
            return False
        meant = [want for want in self.accepted(index, param) if want != ""]
        return self.language(index) is None or any(isinstance(want, str) for want in meant)

    def arguments(self) -> Iterator[tuple[int, str, Any]]:
        """Every argument of the right calls: index, parameter, value; in random order."""
        found = self._given()
        self.rng.shuffle(found)
        yield from found

    def _given(self) -> list[tuple[int, str, Any]]:
        calls = enumerate(self.gold)
        return [(i, p, v) for i, call in calls for p, v in call["arguments"].items()]

    def _is_choice(self, index: int, param: str) -> bool:
        return bool(self.schema_of(index, param).get("enum")) or "" in self.accepted(index, param)

    def accepted(self, index: int, param: str) -> list[Any]:
        """The values that the reference accepts for a parameter of the call at the index."""
        return self.example.reference[index]["arguments"].get(param) or []

    def replaced(self, index: int, call: Call) -> list[Call]:
        """The right calls with the one at the index replaced."""
        return [*self.gold[:index], call, *self.gold[index + 1 :]]

    def with_argument(self, index: int, param: str, value: Any) -> list[Call]:
        """The right calls with one argument set to the value."""
        call = self.gold[index]
        return self.replaced(index, {**call, "arguments": {**call["arguments"], param: value}})

    def says(self, value: Any) -> bool:
        """Does the number, or any longer word of the text, stand in the conversation?"""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value in self.numbers
        words = re.findall(r"\w{3,}", str(value)) or [str(value)]
        return any(standard_text(word) in self._spoken for word in words)

    @functools.cached_property
    def _spoken(self) -> str:
        return standard_text(self.text)

    # Filling another tool ------------------------------------------------------------------------

    def fill_arguments(self, tool: Tool) -> dict[str, Any]:
        """Arguments for the tool: all it requires, and what the right calls know by name."""
        known = self._known
        needed = tool["parameters"].get("required") or []
        filled: dict[str, Any] = {}
        for param, schema in properties(tool).items():
            if param in known and has_type(known[param], schema):
                filled[param] = known[param]
            elif param in needed or self.rng.random() < 0.1:
                filled[param] = self._unused(param, schema, filled)
        return {p: v for p, v in filled.items() if v is not None}

    def _unused(self, param: str, schema: dict[str, Any], filled: dict[str, Any]) -> Any:
        """A plausible value that no other parameter has, if that can be had."""
        for _ in range(4):
            value = self.plausible(param, schema)
            if isinstance(value, bool) or value not in filled.values():
                break
        return value

    def plausible(self, param: str, schema: dict[str, Any], depth: int = 0) -> Any:
        """A value that fits the schema, from the conversation where it has one; None if stuck."""
        if schema.get("enum"):
            said = [v for v in schema["enum"] if isinstance(v, str) and v and v in self.text]
            return self.rng.choice(said or schema["enum"])
        kind = schema.get("type", "string")
        if kind in ("integer", "number"):
            return self._number(param, schema, kind)
        if kind == "boolean":
            return self.rng.random() < 0.7
        if kind == "array":
            item = (
                self.plausible(param, schema.get("items") or {}, depth + 1) if depth < 3 else None
            )
            return [] if item is None else [item]
        if kind == "object":
            nested = properties({"parameters": schema}) if depth < 3 else {}
            return {p: self.plausible(p, s, depth + 1) for p, s in nested.items()}
        return self._text(param, schema)

    def _number(self, param: str, schema: dict[str, Any], kind: str) -> int | float:
        found = [n for n in self.numbers if kind == "number" or isinstance(n, int)]
        if "year" not in param.lower():
            found = [n for n in found if not 1900 <= n <= 2100]
        default = schema.get("default")
        if found and self.rng.random() < 0.8:
            return self.rng.choice(found)
        if isinstance(default, int | float) and not isinstance(default, bool):
            return default
        return self.rng.choice((1, 1, 2, 2, 3, 5, 10))

    def _text(self, param: str, schema: dict[str, Any]) -> str:
        words = set(re.findall(r"[a-z]+", param.lower()))
        if words & _FREE_TEXT:
            return self.request.strip()[:200]
        described = schema.get("description") or ""
        if "date" in words or ({"start", "end"} & words and "date" in described):
            return self.rng.choice(self.dates) if self.dates else self._some_date()
        akin = [v for p, v in self._known.items() if isinstance(v, str) and words & _words_of(p)]
        named, default = named_examples(schema), schema.get("default")
        usual = named + ([default] if isinstance(default, str) and default else [])
        # Nobody takes a name from the conversation for a URL or a unit.
        first = usual if words & _FORMS or self.rng.random() < 0.6 else []
        options = [akin, first, self._fitting(words), usual]
        found = next((values for values in options if values), [])
        return self.rng.choice(found or self.topics or [self.request.strip()[:60] or param])

    def _fitting(self, words: set[str]) -> list[str]:
        """The phrases that a parameter of these words may take: places, ids, or mere names."""
        asked = bool(words & _IDS), bool(words & _PLACES)
        if asked not in self._fitting_by:
            kinds = ("digits", "code") if asked[0] else ("name", "text")
            found = [phrase for phrase in self.phrases if value_kind(phrase) in kinds]
            places = [phrase for phrase in found if self.is_place(phrase)] if asked[1] else []
            self._fitting_by[asked] = places or found
        return self._fitting_by[asked]

    @functools.cached_property
    def _known(self) -> dict[str, Any]:
        return {p: v for call in self.gold for p, v in call["arguments"].items()}

    def _some_date(self) -> str:
        day = datetime.date(2022, 1, 1) + datetime.timedelta(days=self.rng.randrange(1400))
        return str(day)


_FORMS = {"url", "uri", "unit", "units", "format", "language", "lang", "currency", "mode", "type"}
_PLACES = {"city", "location", "place", "where", "address", "origin", "destination", "country"}
_IDS = {"id", "ids", "number", "code", "key", "uuid"}
_FREE_TEXT = {"query", "question", "text", "message", "prompt", "statement", "input", "content"}


def _words_of(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower())) - {"id", "name", "type"}


def properties(tool: Tool) -> dict[str, Any]:
    """The schemas of a tool's parameters, by name."""
    return tool["parameters"].get("properties") or {}


def named_examples(schema: dict[str, Any]) -> list[str]:
    """The values that a parameter's description quotes, its format strings left out."""
    quoted = _EXAMPLE.findall(schema.get("description") or "")
    return [text for text in quoted if not re.search(r"YYYY|HH|City|[%{}<>]", text)]


def has_type(value: Any, schema: dict[str, Any]) -> bool:
    """Is the value of (one of) the declared types, and one of the enum where there is one?"""
    if schema.get("enum") and value not in schema["enum"]:
        return False
    declared = [PYTHON_TYPES.get(kind, (type(value),)) for kind in listed(schema.get("type") or "")]
    shallow = {**schema, "items": {}}
    return any(type(value) in types for types in declared) and (
        judge_value(value, [value], shallow) is None
    )


def response_length(response: Response) -> int:
    """The characters of a response: of its words, or of its calls as JSON."""
    if isinstance(response, str):
        return len(response)
    return len(json.dumps(response, ensure_ascii=False))


def argument_count(response: Response) -> int:
    """The arguments of all its calls together; 0 for words."""
    if not isinstance(response, list):
        return 0
    return sum(len(call["arguments"]) for call in response)


def _without_opener(phrase: str) -> str:
    words = phrase.split()
    while words and words[0].lower().replace("'", "") in _OPENERS:
        words = words[1:]
    return " ".join(words)


def _inside_sentence(before: str) -> bool:
    return bool(before.strip(" '\"([")) and before.rstrip(" '\"([")[-1] not in ".!?:\n"


def _is_phrase(value: Any) -> bool:
    if not isinstance(value, str) or value.lower() in ("true", "false", "default", "dontcare"):
        return False
    return 1 < len(value) <= 60
