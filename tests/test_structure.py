"""How the parts of the library depend on each other: read from their imports, those for type checkers included."""

import ast
from pathlib import Path

import pytest

import jaxlift

ROOT = Path(jaxlift.__file__).parent
MODULES = {
    ".".join(("jaxlift", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
# What each part may import of the library, besides itself.
BELOW = {
    "_core": set(),
    "_pointwise": {"_core"},
    "rules": {"_core", "_pointwise"},
    "primitives": {"_core", "_pointwise", "rules"},
    "_moments": {"_core", "_pointwise", "primitives"},
    "_batching": {"_core"},
}


def imports_of(name):
    """The modules of the library that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            found.update((f"{node.module}.{alias.name}" for alias in node.names), {node.module})
    return {module for module in found if module in MODULES and module != name} - {"jaxlift"}


IMPORTS = {name: imports_of(name) for name in MODULES}


def test_there_is_no_circle():
    """Modules can be put in an order in which each imports only those before it. (`__init__` files hand names on.)"""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    waiting = {name: imports - packages for name, imports in IMPORTS.items() if name not in packages}
    while waiting:
        ready = {name for name, imports in waiting.items() if not imports & waiting.keys()}
        assert ready, f"in a circle, or above one: {sorted(waiting)}"
        waiting = {name: imports for name, imports in waiting.items() if name not in ready}


@pytest.mark.parametrize("part", BELOW)
def test_a_part_imports_what_is_below_it(part):
    for name, imports in IMPORTS.items():
        if name.split(".")[1:2] == [part]:
            parts = {module.split(".")[1] for module in imports}
            assert parts <= BELOW[part] | {part}, name


@pytest.mark.parametrize(("part", "above"), [("scoring", {"genomics", "commands"}), ("genomics", {"commands"})])
def test_a_part_imports_nothing_above_it(part, above):
    for name, imports in IMPORTS.items():
        if name.split(".")[1:2] == [part]:
            assert not above & {module.split(".")[1] for module in imports}, name
