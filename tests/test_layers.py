"""The layout of the package: what the README's table of modules says is so."""

import ast
import re

import tiny

PACKAGE = tiny.ROOT / "toolrm_jax"


def module_name(path) -> str:
    """toolrm_jax/synth/stage.py -> synth.stage; a package is named for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# An __init__.py that imports nothing, and so cannot be out of order, need not be in the table.
FILES = {
    module_name(path): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or "import" in path.read_text()
}
MODULES = set(FILES)


def listed() -> list[str]:
    """Modules in the order of the README's table."""
    table = re.search(
        r"\| step \| modules \|\n(.*?)\n\n", (tiny.ROOT / "README.md").read_text(), re.S
    )
    return re.findall(r"`([\w.]+)`", table[1])


def imported(module: str) -> set[str]:
    """Modules of the package that this one imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolrm_jax"):
            inner = node.module.removeprefix("toolrm_jax").removeprefix(".")
            for name in node.names:  # a module of the package, or something in the module itself
                inside = f"{inner}.{name.name}".removeprefix(".")
                found.add(inside if inside in MODULES else inner)
    return found & MODULES


def test_every_module_is_in_the_readme_once():
    assert sorted(listed()) == sorted(MODULES)


def test_a_module_imports_only_modules_listed_before_it():
    order = listed()
    wrong = {m: {d for d in imported(m) if order.index(d) >= order.index(m)} for m in order}
    assert {m: later for m, later in wrong.items() if later} == {}
