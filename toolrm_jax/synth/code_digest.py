"""What a stage's code is, so that shards which other code made are told from its own.

A number that is raised by hand is forgotten. So the digest is that of the source: of the module
that makes the rows, and of all modules of this package that it imports, whatever they import in
turn. An edited comment changes it too; that costs a stage done again, for what endpoints answered
is in the cache. Versions of other packages are no part of it.

>>> code_digest("toolrm_jax.synth.reading") == code_digest("toolrm_jax.synth.pairing")
False
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_digest(module: str) -> str:
    """Of the source of a module of this package and of those of it that it imports: 16 digits."""
    found: dict[str, str] = {}
    left = [module]
    while left:
        name = left.pop()
        file = _file(name)
        if file is not None and name not in found:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            left += _imported(file)
    assert found, module
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file(name: str) -> Path | None:
    """A module's file; None where it is another package's, or no module but something in one."""
    package, *parts = name.split(".")
    if package != _PACKAGE.name:
        return None
    path = _PACKAGE.joinpath(*parts)
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


@functools.cache
def _imported(file: Path) -> tuple[str, ...]:
    """All that a file imports anywhere in it, as it would be named if it were a module."""
    return tuple(_names(ast.parse(file.read_bytes())))


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
