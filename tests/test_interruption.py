"""Exit codes, and which errors mean that another process was lost: the same command may go on."""

import re
import signal

import jax
import pytest
import tiny

from toolrm_jax import train
from toolrm_jax.interruption import BROKEN_OFF, STOPPED, is_loss
from toolrm_jax.processes import LostProcessError


@pytest.mark.parametrize(
    "text",
    [
        "INTERNAL: NCCL operation async_err failed: remote process exited or there was a network "
        "error",
        "INTERNAL: Core halted unexpectedly: No error message available",
        "FAILED_PRECONDITION: Buffer Definition Event: Gloo all-reduce failed: Connection closed "
        "by peer",
        "UNAVAILABLE: Socket closed",
        "DEADLINE_EXCEEDED: Barrier timed out",
    ],
)
def test_an_error_of_the_network_or_a_peer_is_a_loss(text):
    assert is_loss(jax.errors.JaxRuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        "INTERNAL: Mosaic failed to compile TPU kernel: Bad lhs type",
        "INTERNAL: ptxas exited with non-zero error code 65280",
        "INTERNAL: Failed to execute XLA Runtime executable: custom call 'cudnn' failed",
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes",
        "INVALID_ARGUMENT: connection of shapes",
    ],
)
def test_an_error_that_would_come_again_is_none(text):
    assert not is_loss(jax.errors.JaxRuntimeError(text))


def test_other_errors_are_losses_only_where_a_process_did_not_answer():
    assert is_loss(LostProcessError("waited in vain"))
    assert not is_loss(RuntimeError("UNAVAILABLE: Socket closed"))


def test_the_docstring_and_the_table_list_every_exit_code():
    codes = [0, 1, STOPPED, BROKEN_OFF, 128 + signal.SIGABRT, 128 + signal.SIGTERM]
    said = train.__doc__.split("Exit codes")[1].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"[:;]\s(\d+)[, ]?", said)] == codes
    page = (tiny.ROOT / "docs" / "train.md").read_text()
    table = page.split("| exit code |")[1].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+)", table, re.M)] == codes
