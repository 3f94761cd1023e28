"""Libraries that scoring and genomics use and the rest of jaxlift doesn't."""

import importlib
from typing import Any

GENOMICS = {"Bio": "biopython", "pyBigWig": "pyBigWig", "pyfaidx": "pyfaidx", "pysam": "pysam"}  # and their packages


def extra(name: str) -> Any:
    """A module of an optional extra, imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        group, package = ("genomics", GENOMICS[name]) if name in GENOMICS else ("scoring", error.name)
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed: pip install 'jaxlift[{group}]'", name=error.name
        ) from error
