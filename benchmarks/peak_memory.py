"""Peak anonymous memory of a process: what it holds itself, without files mapped or cached.

    seconds, peak, output = measure([sys.executable, "-m", "toolrm_jax.convert", ...])

Sampled every 10 ms from /proc/PID/status (RssAnon), so Linux alone; a peak shorter than that may be
missed.
"""

import re
import subprocess
import threading
import time
from pathlib import Path


def measure(command: list[str], **options) -> tuple[float, int, str]:
    """Runs a command: seconds, peak bytes, and what it printed. Raises where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    peak = 0
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, anonymous_bytes(process.pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    output, _ = process.communicate()
    ended.set()
    sampler.join()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}:\n{output}")
    return seconds, peak, output


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process now; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
