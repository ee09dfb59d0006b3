"""The layout of the package: what the README's table of modules says is so."""

import ast
import re

import tiny

PACKAGE = tiny.ROOT / "toolrm_jax"
MODULES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def listed() -> list[str]:
    """Modules in the order of the README's table."""
    table = re.search(
        r"\| step \| modules \|\n(.*?)\n\n", (tiny.ROOT / "README.md").read_text(), re.S
    )
    return re.findall(r"`(\w+)`", table[1])


def imported(module: str) -> set[str]:
    """Modules of the package that this one imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "toolrm_jax":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolrm_jax."):
            found.add(node.module.split(".")[1])
    return found & MODULES


def test_every_module_is_in_the_readme_once():
    assert sorted(listed()) == sorted(MODULES)


def test_a_module_imports_only_modules_listed_before_it():
    order = listed()
    wrong = {m: {d for d in imported(m) if order.index(d) >= order.index(m)} for m in order}
    assert {m: later for m, later in wrong.items() if later} == {}
