"""Tools of another purpose, put beside a tool that stands alone in its catalogue.

    catalogue [get_weather(city, date)]   ->   [rent_scooter(city, hours), get_weather(city, date)]

Real catalogues hold several tools, and a model that errs mostly picks one of those. The tools come
from tasks of the same side of the split, so that no name is on both. None may fit the request: a
distractor shares no content word with the request or with the tool it joins, and is no all-rounder
such as a search. Among those, the ones with the same parameters come first.

    tasks = with_distractors(tasks, seed=0)
"""

import dataclasses
import functools
import random
import re
from collections.abc import Iterable, Sequence

from toolrm_jax.examples import Example, Tool
from toolrm_jax.near_values import words_of
from toolrm_jax.task_view import properties

_LOOKED_AT = 150  # tools considered a task; more only costs time
_STEM = 5  # letters: "invest", "investment" and "investing" are one word
# Words that say little of what a tool is for.
_COMMON = frozenset(
    word[:_STEM]
    for word in re.findall(
        r"\w+",
        """
        about accept add added after all also amount and any apply are argument array based before
        being between both boolean build by calculate call can change check choose compute contain
        convert create current data date default defined details determine display each either
        else etc example false fetch field find following for format from function generate get
        give given has have help how identify if in include included including info information
        input integer into is it item its kind like list look make many me more must my name need
        no not now number of on one only option optional or order other output over parameter per
        perform please possible provide provided range require required result retrieve return
        run same search select set should show some specific specified specify start step string
        such support take tell that the them then there these they this those time to true two
        type under update use used user using valid value various want was what when where which
        while who will with within would year years you your
        """,
    )
)
# Tools that could answer almost anything.
_ALL_ROUNDERS = frozenset(
    re.findall(
        r"\w+",
        """
        agent answer ask bing browse chat code command controller execute finish general google
        handover internet knowledge llm online python query question search shell web wiki wikipedia
        """,
    )
)


def with_distractors(tasks: Sequence[Example], *, seed: int, share: float = 0.75) -> list[Example]:
    """The tasks; in a share of those with a single tool, one or two more stand beside it.

    Tasks that call nothing get them too: the size of a catalogue must not tell what is right.
    """
    offers = {source: _offers(tasks, source) for source in {task.source for task in tasks}}
    anywhere = _unique(tool for task in tasks if _is_plain(task) for tool in _called(task))
    return [
        _widened(task, offers[task.source] if not _is_plain(task) else anywhere, seed, share)
        for task in tasks
    ]


def _is_plain(task: Example) -> bool:
    """Are the task's values JSON, rather than source text of a language?"""
    return not any("language" in want for want in task.reference)


def _offers(tasks: Sequence[Example], source: str) -> list[Tool]:
    return _unique(tool for task in tasks if task.source == source for tool in _called(task))


def _called(task: Example) -> list[Tool]:
    wanted = {call["name"] for call in task.gold}
    return [tool for tool in task.tools if tool["name"] in wanted and _is_narrow(tool)]


def _unique(tools: Iterable[Tool]) -> list[Tool]:
    """One tool a name, in the order of the names: the order of the tasks plays no part."""
    found: dict[str, Tool] = {}
    for tool in tools:
        known = found.setdefault(tool["name"], tool)
        if repr(tool) < repr(known):
            found[tool["name"]] = tool
    return [found[name] for name in sorted(found)]


def _is_narrow(tool: Tool) -> bool:
    return bool(tool["parameters"].get("required")) and not words_of(tool["name"]) & _ALL_ROUNDERS


def _widened(task: Example, offers: Sequence[Tool], seed: int, share: float) -> Example:
    rng = random.Random(f"{seed}/distractors/{task.id}")
    if len(task.tools) != 1 or rng.random() >= share:
        return task
    (own,) = task.tools
    looked_at = rng.sample(offers, min(_LOOKED_AT, len(offers)))
    fit = [tool for tool in looked_at if _has_other_purpose(tool, own, task)]
    params = set(properties(own))
    fit.sort(key=lambda tool: -len(params & set(properties(tool))))
    tools = [own, *fit[: rng.choice((1, 1, 2))]]
    rng.shuffle(tools)
    return dataclasses.replace(task, tools=tools)


def _has_other_purpose(tool: Tool, own: Tool, task: Example) -> bool:
    if tool["name"] == own["name"]:
        return False
    asked = _stems(" ".join(str(m.get("content", "")) for m in task.messages))
    purpose = _stems(f"{tool['name']} {tool['description']}")
    return not purpose & (asked | _stems(f"{own['name']} {own['description']}"))


@functools.lru_cache(maxsize=8192)
def _stems(text: str) -> frozenset[str]:
    """The content words of a text, cut to their stems."""
    return frozenset(word[:_STEM] for word in words_of(text) if len(word) > 2) - _COMMON
