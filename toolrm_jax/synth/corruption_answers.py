"""Corruptions as answers: one more member of the pool, for runs with no endpoint at all.

    Example --corruptions.corrupt, by seed and the example's id--> Answer(model="corruption", kind)

None of an example that is right by its outcome: what changes nothing there need not be wrong.
Unjudged, as every answer: what turns out to be right, or of another error type, the judge finds.
What a corruption holds comes from the example, so the example's licence is the answer's.

    for answer in corruption_answers(example, seed=0): print(answer.kind, answer.response)
"""

from collections.abc import Iterator

from toolrm_jax.corruptions import corrupt
from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import CORRUPTION, Answer


def corruption_answers(example: Example, *, seed: int) -> Iterator[Answer]:
    """Every wrong response that can be made of the example."""
    if example.by_outcome:
        return
    for wrong in corrupt(example, seed=seed):
        yield Answer(
            example_id=example.id,
            model=CORRUPTION,
            license=example.license,
            permissive=True,
            response=wrong.response,
            kind=wrong.kind,
        )
