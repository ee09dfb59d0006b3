"""Which versions of what made something."""

import importlib.metadata
import platform


def versions(*packages: str) -> dict[str, str]:
    """Of Python, this package, and others by name."""
    found = {"python": platform.python_version()}
    for name in ("toolrm_jax", *packages):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
