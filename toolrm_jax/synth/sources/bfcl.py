"""The tasks of the Berkeley Function Calling Leaderboard, from its wheel or a folder like it.

    path "wheel"    the data of the installed bfcl-eval
    path DIR        a folder with BFCL_v4_*.json and possible_answer/

Evaluation sets are made of these tasks: a model that trains on them cannot be evaluated on them.
What `toolrm_jax.bfcl` drops is a reject here, with its id. A malformed row ends its category.
Licence: Apache-2.0.
"""

import os
from collections.abc import Iterator, Sequence

from toolrm_jax import bfcl
from toolrm_jax.assets import bfcl_data_dir
from toolrm_jax.examples import Example
from toolrm_jax.schema import ToolSchemaError
from toolrm_jax.synth.source import Draft, Reason, Reject


def read(
    path: str | os.PathLike[str] = "wheel", *, categories: Sequence[str] = bfcl.CATEGORIES
) -> Iterator[Example | Reject]:
    """The examples of the categories, in their order."""
    folder = bfcl_data_dir() if os.fspath(path) == "wheel" else path
    for category in categories:
        file = f"{folder}/BFCL_v4_{category}.json"
        try:
            for task, why in bfcl.all_tasks(folder, [category]):
                if why is None:
                    yield task
                else:
                    draft = Draft(task.id, task.tools, task.messages, task.gold)
                    detail = f"{task.id}: {why}"
                    yield Reject("bfcl", file, None, str(Reason.UPSTREAM), detail, draft)
        except (bfcl.BfclError, ToolSchemaError) as error:
            yield Reject("bfcl", file, None, str(Reason.FORM), str(error)[:300])
