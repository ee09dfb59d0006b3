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

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from toolrm_jax.accepted_forms import bare_form, full_form, some_form
from toolrm_jax.examples import Call, Example, Tool
from toolrm_jax.near_names import near_params, near_tools
from toolrm_jax.near_values import words_of
from toolrm_jax.refusals import calls_nothing
from toolrm_jax.task_view import Corruption, TaskView, properties
from toolrm_jax.tool_calls import ErrorType
from toolrm_jax.value_corruptions import VALUE_KINDS

Generator = Callable[[TaskView], Iterator[Corruption]]


def corrupt(example: Example, *, seed: int) -> Iterator[Corruption]:
    """Every wrong response that the generators can make of the task, unjudged."""
    view = TaskView(example, seed=seed)
    if not example.gold:
        for wrong in invented_call(view):
            if not _gives_itself_away(view, wrong):
                yield wrong
        return
    for generators in GENERATORS.values():
        for generate in generators:
            if view.rng.random() < _often(generate, view):
                made = [wrong for wrong in generate(view) if not _gives_itself_away(view, wrong)]
                for wrong in view.rng.sample(made, min(_AT_MOST, len(made))):
                    yield wrong
                    yield from _other_forms(view, wrong)


def _gives_itself_away(view: TaskView, wrong: Corruption) -> bool:
    """Has one of its calls the same value twice, which the right one has not?

    Right calls have so in one of hundred; a model must not learn that such calls are wrong.
    """
    if not isinstance(wrong.response, list):
        return False
    usual = max((_repeats(call) for call in view.gold), default=0)
    return any(_repeats(call) > usual for call in wrong.response)


def _repeats(call: Call) -> int:
    """How many of a call's values, truth values aside, stand in it before."""
    values = [json.dumps(v) for v in call["arguments"].values() if not isinstance(v, bool)]
    return len(values) - len(set(values))


_AT_MOST = 4  # of one kind a task; a response has three wrong ones in all


def _often(generate: Generator, view: TaskView) -> float:
    """In what share of the tasks a generator is used: silence and inventions stay rare."""
    if generate is renamed_tool:
        return 0.03 if view.siblings else 0.2
    rare: dict[Generator, float] = {no_call: 0.4, added_call: 0.02}
    return rare.get(generate, 1.0)


# Error types of which a wrong response is longer or shorter than the right one by nature: the
# longest and the shortest accepted form of the rest let the pairs balance.
_LOPSIDED = (ErrorType.MISSING_OPTIONAL, ErrorType.MISSING_REQUIRED, ErrorType.UNEXPECTED)


def _other_forms(view: TaskView, wrong: Corruption) -> Iterator[Corruption]:
    """The same error, with the arguments that are right in other words that are accepted."""
    if not isinstance(wrong.response, list):
        return
    forms: list[Callable[..., Call]] = [bare_form]
    if wrong.error_type in _LOPSIDED:
        forms.append(full_form)
    else:
        forms.append(functools.partial(some_form, rng=view.rng))
    for form in forms:
        response = [
            call if at is None else form(call, *_right(view, at))
            for call, at in _matched(view, wrong.response)
        ]
        if response != wrong.response:
            yield dataclasses.replace(wrong, response=response)


def _right(view: TaskView, index: int) -> tuple[Call, Call, list[str]]:
    return view.gold[index], view.example.reference[index], view.required(index)


def _matched(view: TaskView, calls: list[Call]) -> Iterator[tuple[Call, int | None]]:
    """Each call with the index of the right call that it stems from."""
    for at, call in enumerate(calls):
        # Where a call was dropped, those after it have moved.
        same = [at] if len(calls) == len(view.gold) else _places(call, view.gold)
        found = bool(same) and view.gold[same[0]]["name"] == call["name"]
        yield call, same[0] if found else None


def _places(call: Call, calls: list[Call]) -> list[int]:
    return [i for i, other in enumerate(calls) if other == call]


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
    asked = words_of(view.request)
    tools.sort(key=lambda tool: -len(asked & words_of(tool["name"] + tool["description"])))
    # The same tool with other arguments is another wrong answer.
    for tool in (tools * 3)[: max(3, min(len(tools), 5))]:
        call = {"name": tool["name"], "arguments": view.fill_arguments(tool)}
        yield Corruption("invented_call", ErrorType.CALL_COUNT, [call])


# Function name -----------------------------------------------------------------------------------


def _nearest(view: TaskView, name: str) -> list[Tool]:
    """The tools not called for that look most like the named one, three at most."""
    words, params = words_of(name), set(properties(view.tools[name]))
    asked = words_of(view.request)

    def likeness(tool: Tool) -> float:
        shared = len(words & words_of(tool["name"])) * 2 + len(params & set(properties(tool)))
        return shared + 0.3 * len(asked & words_of(tool["description"]))

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
    names = [name for name in near_tools(call["name"]) if name not in view.tools]
    view.rng.shuffle(names)
    for name in names[:3]:
        wrong = view.replaced(index, {**call, "name": name})
        yield Corruption("renamed_tool", ErrorType.FUNCTION_NAME, wrong)


# Parameters left out, unknown, of the wrong type -------------------------------------------------


def _without(view: TaskView, index: int, *params: str) -> list[Call]:
    call = view.gold[index]
    kept = {p: v for p, v in call["arguments"].items() if p not in params}
    return view.replaced(index, {**call, "arguments": kept})


def _renamed(view: TaskView, index: int, param: str, name: str) -> list[Call]:
    call = view.gold[index]
    renamed = {(name if p == param else p): v for p, v in call["arguments"].items()}
    return view.replaced(index, {**call, "arguments": renamed})


def dropped_optional(view: TaskView) -> Iterator[Corruption]:
    """An optional argument left out though the request asked for it."""
    for index, param, value in view.arguments():
        asked = view.says(value) or (isinstance(value, bool) and view.says(param.replace("_", " ")))
        if param in view.required(index) or "" in view.accepted(index, param) or not asked:
            continue
        wrong = _without(view, index, param)
        yield Corruption("dropped_optional", ErrorType.MISSING_OPTIONAL, wrong)


def dropped_required(view: TaskView) -> Iterator[Corruption]:
    """A required argument left out, or all of them."""
    for index, param, _ in view.arguments():
        if param in view.required(index):
            wrong = _without(view, index, param)
            yield Corruption("dropped_required", ErrorType.MISSING_REQUIRED, wrong)
    if view.required(0) and len(view.gold[0]["arguments"]) > 1:
        wrong = _without(view, 0, *view.gold[0]["arguments"])
        yield Corruption("dropped_required", ErrorType.MISSING_REQUIRED, wrong)


def _unknown_names(view: TaskView, index: int, param: str) -> list[str]:
    """Names near the parameter's that its tool does not have."""
    tool = view.tools[view.gold[index]["name"]]
    return [name for name in near_params(param, tool["name"]) if name not in properties(tool)]


def renamed_required(view: TaskView) -> Iterator[Corruption]:
    """A required argument under a name that the tool does not have."""
    for index, param, _ in view.arguments():
        names = _unknown_names(view, index, param)
        if param in view.required(index) and names:
            wrong = _renamed(view, index, param, view.rng.choice(names))
            yield Corruption("renamed_required", ErrorType.MISSING_REQUIRED, wrong)


def unknown_parameter(view: TaskView) -> Iterator[Corruption]:
    """An argument that the tool does not have, beside the right ones.

    A parameter of another tool of the catalogue, or one that is called nearly as one of its own.
    """
    for index in view.rng.sample(range(len(view.gold)), min(2, len(view.gold))):
        call = view.gold[index]
        known = properties(view.tools[call["name"]])
        found = [*_of_other_tools(view, known), *_nearly_known(view, call, known)]
        if not known:
            found += [("", ""), ("", {})]  # what models write for a tool without parameters
        view.rng.shuffle(found)
        for param, value in found[:3]:
            wrong = view.with_argument(index, param, value)
            yield Corruption("unknown_parameter", ErrorType.UNEXPECTED, wrong)


def _of_other_tools(view: TaskView, known: dict[str, Any]) -> list[tuple[str, Any]]:
    spare = {
        param: schema
        for tool in view.example.tools
        for param, schema in properties(tool).items()
        if param not in known
    }
    chosen = view.rng.sample(sorted(spare), min(3, len(spare)))
    made = [(param, view.plausible(param, spare[param])) for param in chosen]
    return [(param, value) for param, value in made if value is not None]


def _nearly_known(view: TaskView, call: Call, known: dict[str, Any]) -> list[tuple[str, Any]]:
    made = []
    for param in call["arguments"]:
        names = [name for name in near_params(param, call["name"]) if name not in known]
        value = view.plausible(param, known.get(param) or {}) if names else None
        if value is not None and not isinstance(value, dict):
            made.append((view.rng.choice(names), value))
    return made


def renamed_optional(view: TaskView) -> Iterator[Corruption]:
    """An optional argument under a name that the tool does not have."""
    for index, param, _ in view.arguments():
        names = _unknown_names(view, index, param)
        if param not in view.required(index) and names:
            # One shorter and one longer, where there are both.
            for name in {min(names, key=len): 1, view.rng.choice(names): 1}:
                wrong = _renamed(view, index, param, name)
                yield Corruption("renamed_optional", ErrorType.UNEXPECTED, wrong)


def wrong_type(view: TaskView) -> Iterator[Corruption]:
    """ "3" for 3, 3 for "3", a bare item for a list of one, a list for a bare item."""
    for index, param, value in view.arguments():
        for made in _other_types(value, view.language(index)):
            wrong = view.with_argument(index, param, made)
            yield Corruption("wrong_type", ErrorType.VALUE_TYPE, wrong)


def _other_types(value: Any, language: str | None) -> list[Any]:
    if isinstance(value, bool):
        return [str(value).lower(), int(value)]
    if isinstance(value, int | float):
        return [str(value), [value]]
    if isinstance(value, list) and value:
        return [value[0], ", ".join(map(str, value))]
    if isinstance(value, dict):
        return [json.dumps(value, ensure_ascii=False), list(value.values())]
    if language is not None and value in ("true", "false"):
        return [value == "true", value.capitalize()]
    if isinstance(value, str) and re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d+)?", value):
        return [json.loads(value)]
    return [[value]] if isinstance(value, str) else []


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
    ErrorType.FUNCTION_NAME: {sibling_tool: 12.0, renamed_tool: 1.0},
    ErrorType.CALL_COUNT: {dropped_call: 8.0, added_call: 0.7, no_call: 8.0},
    ErrorType.MISSING_OPTIONAL: {dropped_optional: 2.0},
    ErrorType.MISSING_REQUIRED: {dropped_required: 2.0, renamed_required: 1.0},
    ErrorType.VALUE_TYPE: {wrong_type: 1.0},
    ErrorType.UNEXPECTED: {
        unknown_parameter: 1.0,
        renamed_optional: 1.0,
    },
    ErrorType.PARSING: {broken_format: 1.0},
}
KIND_WEIGHTS = {
    generate.__name__: weight
    for generators in GENERATORS.values()
    for generate, weight in generators.items()
} | {"invented_call": 8.0}
