"""A stream that is scored for days takes no more memory than one that is scored for a minute."""

import gc
import itertools
import os
import tracemalloc
from pathlib import Path

import jax
import pytest
import tiny

from toolrm_jax.scorer import Scorer

# Requests before the first look, and from it to the last.
WARM, SCORED, EVERY = 500, 2500, 50
# A single object or number that is kept of each request would be more than this.
BYTES_PER_REQUEST = 64
# Of the process: what Rust and XLA hold too, with the moods of an allocator.
RESIDENT_BYTES = 32 * 2**20


def resident() -> int:
    """The process's memory in bytes; 0 where the system does not say so in this way."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def endless():
    """Requests of which no two are equal, tools included, some of them bad."""
    (row,) = tiny.rows("train", 1)
    for number in itertools.count():
        tool = row["tools"][0] | {"name": f"tool_{number}"}
        calls = [{"name": tool["name"], "arguments": {"city": f"City {number}"}}]
        messages = [{"role": "user", "content": f"Question {number}?"}]
        responses = [] if number % 10 == 0 else [calls, f"No {number}."]
        yield {"tools": [tool], "messages": messages, "responses": responses}


@pytest.mark.slow
def test_a_long_stream_takes_no_more_memory_than_a_short_one(tmp_path):
    """All that Python and NumPy hold, the arrays on the device, and the process. What is in flight
    comes and goes with the windows, so the least of many looks is compared: early and late."""
    path = tiny.write_reward_model(tmp_path / "model")
    options = {"dtype": "float32", "devices": jax.devices()[:1], "batch_tokens": 1024}
    with Scorer.from_pretrained(path, max_tokens=256, **options) as scorer:
        stream = scorer.score(endless(), errors="return")
        scorer.compile()
        gc.freeze()  # what is there already: each look takes milliseconds instead of a second
        tracemalloc.start()
        try:
            held, arrays, process = [], [], []
            for number, _ in enumerate(itertools.islice(stream, WARM + SCORED)):
                if number >= WARM and number % EVERY == 0:
                    gc.collect()
                    held.append(tracemalloc.get_traced_memory()[0])
                    arrays.append(len(jax.live_arrays()))
                    process.append(resident())
        finally:
            tracemalloc.stop()
            gc.unfreeze()
            stream.close()
    assert growth(held) < BYTES_PER_REQUEST * SCORED * 2 / 3
    assert growth(arrays) <= 0
    assert growth(process) < RESIDENT_BYTES


def growth(looks: list[int]) -> int:
    third = len(looks) // 3
    return min(looks[-third:]) - min(looks[:third])
