"""When a row of tasks and answers says itself that its gold or its verdicts are not to be trusted.

    meta {"gold_args_not_in_query": ["city"], "right_rate": 0.3, "after_first_error": true}

>>> Doubts().about({"right_rate": 0.3})
'most answers are wrong'
>>> Doubts(min_right_rate=0.2).about({"right_rate": 0.3}) is None
True
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Doubts:
    """Which of these signs count.

    Args:
      sound_gold: anything under meta.gold_args_not_in_query: the gold holds what nobody asked for.
      min_right_rate: a lower meta.right_rate: where most answers are wrong, the verdict often is.
      before_first_error: meta.after_first_error: the conversation is off its course already.
    """

    sound_gold: bool = True
    min_right_rate: float = 0.5
    before_first_error: bool = True

    def about(self, meta: Mapping[str, Any]) -> str | None:
        """Why the row is not to be trusted; None where nothing speaks against it."""
        if self.sound_gold and meta.get("gold_args_not_in_query"):
            return "gold holds what was not asked for"
        rate = meta.get("right_rate")
        if isinstance(rate, int | float) and rate < self.min_right_rate:
            return "most answers are wrong"
        if self.before_first_error and meta.get("after_first_error"):
            return "after the first error"
        return None
