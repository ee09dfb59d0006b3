"""Pools of candidates made now: a model behind an endpoint answers the tasks of an evaluation set.

    examples --endpoint, n samples each--> answers --judge, by the set's reference--> pool rows

Every answer is judged by the reference of its source: the full sequence of calls, with the values
that the set accepts. Equal answers are one candidate with their count.

    for row in pool_rows(examples, entry, cache="answers.sqlite"): ...
"""

import collections
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolrm_jax.errors import InputError
from toolrm_jax.examples import Example
from toolrm_jax.synth.answer import Answer
from toolrm_jax.synth.generators import Pool
from toolrm_jax.synth.judging import same_key
from toolrm_jax.tool_calls import judge, parse_calls, words_of

Row = dict[str, Any]


def pool_rows(
    examples: Sequence[Example], entry: Mapping[str, Any], cache: str | os.PathLike[str]
) -> Iterator[Row]:
    """A row for each example that got answers, in order.

    Raises InputError where a question got none: what was answered is in the cache, and the same
    call asks for the rest.
    """
    missing: collections.Counter[str] = collections.Counter()

    def note(reason: str, *_: object) -> None:
        missing[reason] += 1

    known = {example.id: example for example in examples}
    with Pool([entry], seed=0, cache=cache, permissive_only=False, reject=note) as pool:
        answers = pool.answers(examples)
        for name, group in itertools.groupby(answers, key=lambda answer: answer.example_id):
            yield _row(known[name], list(group))
    if missing:
        words = ", ".join(f"{number:,} x {reason}" for reason, number in missing.items())
        raise InputError(
            f"Questions without an answer: {words}. Those that were answered are in {cache}; the "
            f"same command asks for the rest."
        )


def _row(example: Example, answers: Sequence[Answer]) -> Row:
    merged: dict[str, Row] = {}
    for answer in answers:
        calls = parse_calls(answer.response)
        words = words_of(answer.response)
        key = same_key(calls, words)
        if key not in merged:
            verdict = judge(answer.response, example.reference, example.tools)
            merged[key] = {
                "model_name": answer.model,
                "calls": calls,
                "raw": words,
                "correct": verdict.right,
                "error_type": None if verdict.right else str(verdict.error_type),
                "n_samples": 0,
            }
        merged[key]["n_samples"] += answer.count
    return {
        "id": example.id,
        "source": example.source,
        "license": example.license,
        "tools": example.tools,
        "messages": example.messages,
        "gold": example.gold,
        "candidates": list(merged.values()),
    }
