"""Wrong responses made from right ones: one set of generators for each error type.

    [{"name": "a", ...}, {"name": "b", ...}]    the right calls
      dropped_call       [{"name": "a", ...}]                         Incorrect number of ... calls
      sibling_tool       [{"name": "c", ...}, {"name": "b", ...}]     Incorrect function name
      dropped_optional   an argument that the request asked for is left out
      invented_call      a call where none was wanted

Hard rather than silly: arguments come from the conversation, tools from the catalogue. What models
do (FC-RewardBench, arXiv:2509.11963) sets the kinds and their weights: calls are dropped and seldom
added. `corrupt` yields what the generators make; the judge of `tool_calls` has the last word.

    for wrong in corrupt(example, seed=0): print(wrong.kind, wrong.error_type, wrong.response)
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from toolrm_jax.examples import Call, Example, Tool
from toolrm_jax.refusals import calls_nothing
from toolrm_jax.task_view import Corruption, TaskView, properties
from toolrm_jax.tool_calls import ErrorType
from toolrm_jax.value_corruptions import VALUE_KINDS

Generator = Callable[[TaskView], Iterator[Corruption]]


def corrupt(example: Example, *, seed: int) -> Iterator[Corruption]:
    """Every wrong response that the generators can make of the task, unjudged."""
    view = TaskView(example, seed=seed)
    if not example.gold:
        yield from invented_call(view)
        return
    for generators in GENERATORS.values():
        for generate in generators:
            if view.rng.random() < _often(generate, view):
                yield from generate(view)


def _often(generate: Generator, view: TaskView) -> float:
    """In what share of the tasks a generator is used: silence and inventions stay rare."""
    if generate is renamed_tool:
        return 0.1 if view.siblings else 0.4
    rare: dict[Generator, float] = {no_call: 0.03, added_call: 0.02}
    return rare.get(generate, 1.0)


# Number of calls ---------------------------------------------------------------------------------


def dropped_call(view: TaskView) -> Iterator[Corruption]:
    """One of several parallel calls left out, or all but the first."""
    count = len(view.gold)
    if count < 2:
        return
    gone = view.rng.randrange(count)
    kept = [call for i, call in enumerate(view.gold) if i != gone]
    yield Corruption("dropped_call", ErrorType.CALL_COUNT, kept)
    if count > 2:
        yield Corruption("dropped_call", ErrorType.CALL_COUNT, view.gold[:1])


def added_call(view: TaskView) -> Iterator[Corruption]:
    """A call that nobody asked for beside the right ones; models do so seldom."""
    if view.siblings:
        tool = view.rng.choice(_nearest(view, view.gold[0]["name"]))
        extra = {"name": tool["name"], "arguments": view.fill_arguments(tool)}
        yield Corruption("added_call", ErrorType.CALL_COUNT, [*view.gold, extra])


def no_call(view: TaskView) -> Iterator[Corruption]:
    """A turn that calls nothing though a tool fits."""
    yield Corruption("no_call", ErrorType.CALL_COUNT, calls_nothing(view.rng, view.request))


def invented_call(view: TaskView) -> Iterator[Corruption]:
    """A call where no tool fits, its arguments filled from the conversation."""
    tools = list(view.example.tools)
    view.rng.shuffle(tools)
    asked = _words(view.request)
    tools.sort(key=lambda tool: -len(asked & _words(tool["name"] + tool["description"])))
    # The same tool with other arguments is another wrong answer.
    for tool in (tools * 3)[: max(3, min(len(tools), 5))]:
        call = {"name": tool["name"], "arguments": view.fill_arguments(tool)}
        yield Corruption("invented_call", ErrorType.CALL_COUNT, [call])


# Function name -----------------------------------------------------------------------------------


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))


def _nearest(view: TaskView, name: str) -> list[Tool]:
    """The tools not called for that look most like the named one, three at most."""
    words, params = _words(name), set(properties(view.tools[name]))
    asked = _words(view.request)

    def likeness(tool: Tool) -> float:
        shared = len(words & _words(tool["name"])) * 2 + len(params & set(properties(tool)))
        return shared + 0.3 * len(asked & _words(tool["description"]))

    return sorted(view.siblings, key=lambda tool: (-likeness(tool), tool["name"]))[:3]


def sibling_tool(view: TaskView) -> Iterator[Corruption]:
    """Another tool of the catalogue in the place of the right one."""
    if not view.siblings:
        return
    for index, call in enumerate(view.gold[:3]):
        for tool in _nearest(view, call["name"])[:2]:
            made = {"name": tool["name"], "arguments": view.fill_arguments(tool)}
            yield Corruption("sibling_tool", ErrorType.FUNCTION_NAME, view.replaced(index, made))


def renamed_tool(view: TaskView) -> Iterator[Corruption]:
    """A tool that does not exist under a name near the right one."""
    index = view.rng.randrange(len(view.gold))
    call = view.gold[index]
    names = [name for name in _near_names(call["name"]) if name not in view.tools]
    view.rng.shuffle(names)
    for name in names[:3]:
        wrong = view.replaced(index, {**call, "name": name})
        yield Corruption("renamed_tool", ErrorType.FUNCTION_NAME, wrong)


_SYNONYMS = {
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


def _near_names(name: str) -> list[str]:
    near = []
    space, dot, last = name.rpartition(".")
    if dot:
        near += [last, f"{space}.{space.rpartition('.')[2]}_{last}", space]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    parts = snake.split("_")
    near += [space + dot + _camel(parts) if "_" in last else space + dot + snake]
    for word, others in _SYNONYMS.items():
        if word in parts and "_" in last:
            swapped = ["_".join(other if p == word else p for p in parts) for other in others]
            near += [space + dot + one for one in swapped]
    if len(parts) > 2 and "_" in last:
        near += [space + dot + "_".join(parts[:-1]), space + dot + "_".join(parts[1:])]
    if not dot and len(parts) > 1:
        near += [f"{parts[-1]}.{'_'.join(parts[:-1])}", f"{snake}_info"]
    near += [f"{name}_v2"] if len(near) < 2 else []
    return [n for n in dict.fromkeys(near) if n and n != name]


def _camel(parts: list[str]) -> str:
    return parts[0] + "".join(part.capitalize() for part in parts[1:])


# Parameters left out, unknown, of the wrong type -------------------------------------------------


def _without(view: TaskView, index: int, *params: str) -> list[Call]:
    call = view.gold[index]
    kept = {p: v for p, v in call["arguments"].items() if p not in params}
    return view.replaced(index, {**call, "arguments": kept})


def _renamed(view: TaskView, index: int, param: str, name: str) -> list[Call]:
    call = view.gold[index]
    renamed = {(name if p == param else p): v for p, v in call["arguments"].items()}
    return view.replaced(index, {**call, "arguments": renamed})


def _padded(view: TaskView, calls: list[Call]) -> list[Call]:
    """The calls in accepted but longer words, optional arguments spelled out."""
    out = []
    for call, want in zip(calls, view.example.reference, strict=True):
        spelled = {}
        for param, accepted in want["arguments"].items():
            plain = [v for v in accepted if v != "" and isinstance(v, str | int | float)]
            texts = [v for v in plain if isinstance(v, str)]
            if "language" in want or not plain:
                continue
            if "" in accepted and param not in call["arguments"]:
                spelled[param] = plain[0]
            elif isinstance(call["arguments"].get(param), str) and texts:
                spelled[param] = max(texts, key=len)
        out.append({**call, "arguments": {**call["arguments"], **spelled}})
    return out


def dropped_optional(view: TaskView) -> Iterator[Corruption]:
    """An optional argument left out though the request asked for it."""
    for index, param, value in view.arguments():
        asked = view.says(value) or (isinstance(value, bool) and view.says(param.replace("_", " ")))
        if param in view.required(index) or "" in view.accepted(index, param) or not asked:
            continue
        wrong = _without(view, index, param)
        yield Corruption("dropped_optional", ErrorType.MISSING_OPTIONAL, wrong)
        padded = _padded(view, wrong)
        if padded != wrong:
            yield Corruption("dropped_optional_padded", ErrorType.MISSING_OPTIONAL, padded)


def dropped_required(view: TaskView) -> Iterator[Corruption]:
    """A required argument left out, or all of them."""
    for index, param, _ in view.arguments():
        if param in view.required(index):
            wrong = _without(view, index, param)
            yield Corruption("dropped_required", ErrorType.MISSING_REQUIRED, wrong)
    if view.required(0) and len(view.gold[0]["arguments"]) > 1:
        wrong = _without(view, 0, *view.gold[0]["arguments"])
        yield Corruption("dropped_required", ErrorType.MISSING_REQUIRED, wrong)


def renamed_required(view: TaskView) -> Iterator[Corruption]:
    """A required argument under a name that the tool does not have."""
    for index, param, _ in view.arguments():
        known = properties(view.tools[view.gold[index]["name"]])
        names = [name for name in _near_params(param) if name not in known]
        if param in view.required(index) and names:
            wrong = _renamed(view, index, param, view.rng.choice(names))
            yield Corruption("renamed_required", ErrorType.MISSING_REQUIRED, wrong)


def _near_params(param: str) -> list[str]:
    parts = [part for part in param.split("_") if part]
    suffixes = [f"{param}_name", f"{param}_value", f"{param}s", f"input_{param}"]
    near = [parts[-1], parts[0], _camel(parts)] if len(parts) > 1 else suffixes
    return [name for name in dict.fromkeys(near) if name != param]


_COMMON_EXTRAS: tuple[tuple[str, Any], ...] = (
    ("language", "en"),
    ("format", "json"),
    ("limit", 10),
    ("unit", "metric"),
    ("include_details", True),
    ("verbose", False),
    ("sort_by", "relevance"),
    ("type", "default"),
)


def unknown_parameter(view: TaskView) -> Iterator[Corruption]:
    """An argument that the tool does not have, from a sibling tool or from habit."""
    index = view.rng.randrange(len(view.gold))
    known = properties(view.tools[view.gold[index]["name"]])
    spare = [
        (param, schema)
        for tool in view.siblings
        for param, schema in properties(tool).items()
        if param not in known
    ]
    extras = [extra for extra in _COMMON_EXTRAS if extra[0] not in known]
    if not known:
        extras.append(("", ""))  # what models write for a tool without parameters
    elif spare:
        param, schema = view.rng.choice(spare)
        value = view.plausible(param, schema)
        extras = extras if value is None else [(param, value)]
    if extras:
        name, extra = view.rng.choice(extras)
        wrong = view.with_argument(index, name, extra)
        yield Corruption("unknown_parameter", ErrorType.UNEXPECTED, wrong)


def renamed_optional(view: TaskView) -> Iterator[Corruption]:
    """An optional argument under a name that the tool does not have."""
    for index, param, _ in view.arguments():
        known = properties(view.tools[view.gold[index]["name"]])
        names = [name for name in _near_params(param) if name not in known]
        if param not in view.required(index) and names:
            wrong = _renamed(view, index, param, view.rng.choice(names))
            yield Corruption("renamed_optional", ErrorType.UNEXPECTED, wrong)


def wrong_type(view: TaskView) -> Iterator[Corruption]:
    """ "3" for 3, 3 for "3", a bare item for a list of one, a list for a bare item."""
    for index, param, value in view.arguments():
        for made in _other_types(value, view.language(index)):
            if view.error_of(index, param, made) == ErrorType.VALUE_TYPE:
                wrong = view.with_argument(index, param, made)
                yield Corruption("wrong_type", ErrorType.VALUE_TYPE, wrong)


def _other_types(value: Any, language: str | None) -> list[Any]:
    if isinstance(value, bool):
        return [str(value).lower(), int(value), None]
    if isinstance(value, int | float):
        return [str(value), str(value), None if abs(value) > 999 else [value]]
    if isinstance(value, list) and value:
        return [value[0], ", ".join(map(str, value))]
    if isinstance(value, dict):
        return [json.dumps(value, ensure_ascii=False), list(value.values())]
    if language is not None and value in ("true", "false"):
        return [value == "true", value.capitalize()]
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d+)?", value):
        return [json.loads(value)]
    return [[value], None] if isinstance(value, str) else []


# Output format -----------------------------------------------------------------------------------


def broken_format(view: TaskView) -> Iterator[Corruption]:
    """The right calls in a form that does not parse: other keys, broken JSON, Python."""
    text = json.dumps(view.gold, ensure_ascii=False)
    other_keys = [
        [{"name": c["name"], key: c["arguments"]} for c in view.gold]
        for key in ("parameters", "args")
    ]
    forms = [
        json.dumps(view.rng.choice(other_keys), ensure_ascii=False),
        json.dumps([{c["name"]: c["arguments"]} for c in view.gold], ensure_ascii=False),
        text.replace('"', "'"),
        text[: -view.rng.choice((1, 2, 3))],
        "[" + ", ".join(map(_python_call, view.gold)) + "]",
        "<tool_call>\n" + json.dumps(view.gold[0], ensure_ascii=False),
    ]
    for form in forms:
        yield Corruption("broken_format", ErrorType.PARSING, form)


def _python_call(call: Call) -> str:
    given = ", ".join(f"{p}={v!r}" for p, v in call["arguments"].items())
    return f"{call['name']}({given})"


# Each error type's generators, with the weight that each kind should have within the type.
GENERATORS: dict[ErrorType, dict[Generator, float]] = {
    ErrorType.VALUE: VALUE_KINDS,
    ErrorType.FUNCTION_NAME: {sibling_tool: 4.0, renamed_tool: 1.0},
    ErrorType.CALL_COUNT: {dropped_call: 8.0, added_call: 0.7, no_call: 0.7},
    ErrorType.MISSING_OPTIONAL: {dropped_optional: 2.0},
    ErrorType.MISSING_REQUIRED: {dropped_required: 2.0, renamed_required: 1.0},
    ErrorType.VALUE_TYPE: {wrong_type: 1.0},
    ErrorType.UNEXPECTED: {unknown_parameter: 1.0, renamed_optional: 1.0},
    ErrorType.PARSING: {broken_format: 1.0},
}
KIND_WEIGHTS = {
    generate.__name__: weight
    for generators in GENERATORS.values()
    for generate, weight in generators.items()
} | {"dropped_optional_padded": 2.0, "invented_call": 8.0}
