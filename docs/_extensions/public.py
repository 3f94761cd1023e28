"""Which names of a module are public."""

import inspect
from types import ModuleType


def public_names(module: ModuleType) -> list[str]:
    """Functions and classes that a module lists, or that are its own; those of its parts too, in a package."""
    of = module.__name__.split(".")[0] if hasattr(module, "__path__") else module.__name__
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "").startswith(of)]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return [name for name in names if any(is_kind(getattr(module, name)) for is_kind in KINDS)]


KINDS = {inspect.isroutine: "autofunction", inspect.isclass: "autoclass"}
