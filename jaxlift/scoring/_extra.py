"""Libraries that scoring and genomics use and the rest of jaxlift doesn't."""

import importlib
from typing import Any

GENOMICS = ("pyBigWig", "pyfaidx", "pysam")


def extra(name: str) -> Any:
    """A module of an optional extra, imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        group = "genomics" if error.name in GENOMICS else "scoring"
        raise ModuleNotFoundError(
            f"this needs {error.name}, which is not installed: pip install 'jaxlift[{group}]'", name=error.name
        ) from error
