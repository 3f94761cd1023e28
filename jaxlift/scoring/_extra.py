"""Libraries that scoring and genomics use and the rest of jaxlift doesn't."""

import importlib
from typing import Any

# Groups and packages of modules, where these have other names than the module or the group is not ``scoring``.
OF_GROUPS = {
    "Bio": ("genomics", "biopython"),
    "pyBigWig": ("genomics", "pyBigWig"),
    "pyfaidx": ("genomics", "pyfaidx"),
    "pysam": ("genomics", "pysam"),
    "upath": ("cloud", "universal-pathlib"),
}


def extra(name: str) -> Any:
    """A module of an optional extra, imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        group, package = OF_GROUPS.get(name, ("scoring", error.name))
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed: pip install 'jaxlift[{group}]'", name=error.name
        ) from error
