"""What tests of several processes on this machine share."""

import socket


def free_port() -> int:
    """A port that nothing listens at just now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
