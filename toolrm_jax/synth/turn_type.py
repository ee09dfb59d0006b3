"""Single-turn, multi-turn or irrelevance: the paper's three kinds of task (arXiv:2509.11963).

    reference []                                          irrelevance   nothing should be called
    an assistant or tool turn before, or two user turns   multi
    anything else                                         single

>>> from toolrm_jax.examples import Example
>>> turn_type(Example("t/0", "t", "MIT", [], [{"role": "user", "content": "Hi"}], [], []))
'irrelevance'
"""

from typing import Literal

from toolrm_jax.examples import Example

TurnType = Literal["single", "multi", "irrelevance"]
TURN_TYPES: tuple[TurnType, ...] = ("single", "multi", "irrelevance")


def turn_type(example: Example) -> TurnType:
    """The kind of task that the example is."""
    if not example.reference:
        return "irrelevance"
    roles = [message.get("role") for message in example.messages]
    earlier = "assistant" in roles or "tool" in roles
    return "multi" if earlier or roles.count("user") > 1 else "single"
