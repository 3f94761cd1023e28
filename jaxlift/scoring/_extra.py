"""Libraries that scoring and genomics use and the rest of jaxlift doesn't."""

import importlib
from typing import Any

# Groups and packages of modules, where these have other names than the module or the group is not ``scoring``.
# A group of None is for what jaxlift works with, and none of its extras brings.
OF_GROUPS: dict[str, tuple[str | None, str]] = {
    "Bio": ("genomics", "biopython"),
    "matplotlib": ("plot", "matplotlib"),
    "pyBigWig": ("genomics", "pyBigWig"),
    "pyfaidx": ("genomics", "pyfaidx"),
    "pysam": ("genomics", "pysam"),
    "rich": (None, "rich"),
    "shap": (None, "shap"),
    "upath": ("cloud", "universal-pathlib"),
}


def extra(name: str) -> Any:
    """A module of an optional extra, imported when it is first needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = name.partition(".")[0]
        if error.name != missing:
            raise
        group, package = OF_GROUPS.get(missing, ("scoring", missing))
        wanted = package if group is None else f"'jaxlift[{group}]'"
        raise ModuleNotFoundError(
            f"this needs {package}, which is not installed: pip install {wanted}", name=missing
        ) from error
