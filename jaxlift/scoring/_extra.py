"""Libraries that scoring uses and the rest of jaxlift doesn't."""

import importlib
from typing import Any


def extra(name: str) -> Any:
    """A module of the extra ``scoring``, imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"this needs {error.name}, which is not installed: pip install 'jaxlift[scoring]'", name=error.name
        ) from error
