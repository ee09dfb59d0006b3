"""Turns that call nothing: an empty one, or a refusal in words, of varied wording and length.

Right where no tool on offer does what was asked, wrong where one does: the same words in both, so
that they do not tell which. Where something is amiss other than the tools (a city that the user has
not named yet, an answer that was given already, a farewell) such a refusal would be wrong as well.

    turn = calls_nothing(random.Random(0), request="Book me a flight")

What a model says instead of a call may be anything, so it is no refusal before it reads as one:

>>> declines_or_asks("I have no tool for this."), declines_or_asks("Which city?")
(True, True)
>>> declines_or_asks("Done! I've booked it. Anything else?")
False
"""

import random
import re

_OPENINGS = (
    "",
    "Sorry, ",
    "I'm afraid ",
    "Unfortunately, ",
    "Thanks for asking, but ",
    "From what I can see, ",
)
_REASONS = (
    "none of my tools can do that.",
    "I have no tool for this.",
    "that is outside what the available functions cover.",
    "the functions I was given do not fit this request.",
    "nothing in my toolset matches what you are asking for.",
    "I can't do this with the functions on offer here.",
    "there is no function here that would answer this.",
    "this needs a capability that I don't have.",
    "I would need a different tool to help with this.",
    "the tools I can call serve another purpose.",
)
_CLOSINGS = (
    "",
    "",
    "",
    " Is there anything else I can help with?",
    " If you can tell me more about what you need, I can check whether another function applies.",
    " A web search or a specialised service would be a better place to look.",
    " I'd rather not call something that only looks related and give you a wrong answer.",
)
_ABOUT = (' You asked: "{}"', " (Request: {})")


def refusal(rng: random.Random, request: str) -> str:
    """A refusal in words; now and then it repeats the start of the request."""
    text = rng.choice(_OPENINGS) + rng.choice(_REASONS)
    text = text[0].upper() + text[1:] + rng.choice(_CLOSINGS)
    words = " ".join(request.split()[:12])
    if words and rng.random() < 0.15:
        text += rng.choice(_ABOUT).format(words)
    return text


def calls_nothing(rng: random.Random, request: str) -> str:
    """An empty turn or a refusal, one as often as the other."""
    return "" if rng.random() < 0.5 else refusal(rng, request)


_DECLINES = re.compile(
    r"\b(sorry|unfortunately|afraid|unable|cannot|can'?t|can not|not (able|available|possible)|"
    r"(do|does|is|are|would)(n't| not) (have|offer|support|able|fit|match|cover|provide)|"
    r"(have|has|is|are|there's) no|none of|no (tool|function|way)|without|outside)\b",
    re.IGNORECASE,
)
_CLAIMS = re.compile(
    r"\b(done|successfully|confirmed|here (is|are)|(has|have) been|was|were|"
    r"I('ve| have) (\w+ed|set|sent|made|found|put|run))\b",
    re.IGNORECASE,
)


def declines_or_asks(text: str) -> bool:
    """Whether words decline or ask, and claim nothing done or found (English)."""
    plain = text.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return bool(plain.endswith("?") or _DECLINES.search(plain)) and not _CLAIMS.search(plain)
