"""What the processes of a run tell each other besides arrays, so that all of them decide alike.

    process 0  gather("ok")         --\
    process 1  gather("disk full")  ---> ["ok", "disk full"] on both

Not a collective of the devices: it goes through the service that `jax.distributed` runs, so that a
thread may use it while the devices train. Each thread of use has a channel of its own.

    answers = Exchange("save").gather(json.dumps(error))
"""

import collections

import jax

# The service has no public name for anything but barriers; jax is pinned to one minor version.
from jax._src import distributed

from toolrm_jax.errors import InputError

# A lost process ends the others long before this (see train.lost_seconds); it bounds the rest.
_PATIENCE_SECONDS = 3 * 3600
_opened: collections.Counter[str] = collections.Counter()


class LostProcessError(InputError, RuntimeError):
    """Another process of the run did not answer."""


class Exchange:
    """A channel among all processes, which must open channels of a name, and gather, in step."""

    def __init__(self, name: str):
        _opened[name] += 1
        self._prefix = f"toolrm_jax/{name}/{_opened[name]}"
        self._round = 0

    def gather(self, value: str) -> list[str]:
        """Every process's value, by the process's number; returns when all have given theirs."""
        client = distributed.global_state.client
        if client is None or jax.process_count() == 1:
            return [value]
        self._round += 1
        here = f"{self._prefix}/{self._round}"
        try:
            client.key_value_set(f"{here}/{jax.process_index():08d}", value)
            client.wait_at_barrier(f"{here}/told", _PATIENCE_SECONDS * 1000)
            told = client.key_value_dir_get(f"{here}/")
        except jax.errors.JaxRuntimeError as error:
            raise LostProcessError(
                f"Process {jax.process_index()} of {jax.process_count()} waited for the others in "
                f"vain: {error}"
            ) from error
        if jax.process_index() == 0 and self._round > 1:  # which everyone has read
            client.key_value_delete(f"{self._prefix}/{self._round - 1}/")
        return [value for _, value in sorted(told)]

    def from_first(self, value: str) -> str:
        """The value of process 0, on every process."""
        return self.gather(value if jax.process_index() == 0 else "")[0]


def keeps_service() -> bool:
    """Whether the others can no longer tell each other anything once this process has ended."""
    return distributed.global_state.service is not None
