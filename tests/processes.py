"""What tests of several processes on this machine share."""

import os
import socket
from pathlib import Path

HERE = Path(__file__).parent


def free_port() -> int:
    """A port that nothing listens at just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def joined(count: int) -> list[dict[str, str]]:
    """The environment of each process of a run of so many, on this machine."""
    address = f"127.0.0.1:{free_port()}"
    return [
        {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(number),
        }
        for number in range(count)
    ]


def without_torch() -> dict[str, str]:
    """Variables of a process that finds the package, and no torch: that is of tests alone, users
    need not have it, and where it is there it takes nearly half of a command's start."""
    path = [str(HERE / "without_torch"), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",  # that torch is not there
    }
