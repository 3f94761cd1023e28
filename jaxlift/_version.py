"""The version, and the only place where it stands: the package's metadata is made of it (pyproject.toml).

`importlib.metadata` would know it too, but not of a source tree that isn't installed; of one that is installed to be
worked on it knows the version of that day; and it takes a search of `sys.path` at each import.
"""

__version__ = "0.1.0"
