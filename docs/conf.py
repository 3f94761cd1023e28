"""How the site is made: ``docs/build`` (Sphinx, MyST and myst-nb, with warnings as errors)."""

import os
import sys
import tomllib
import urllib.request
from http.client import HTTPException
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

project = "jaxlift"
release = version = installed("jaxlift")
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "generated",
    "llms",
]
exclude_patterns = ["_*", "Thumbs.db", ".DS_Store"]
nitpicky = True

# Markdown, and the pages that are executed.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "auto"
nb_execution_show_tb = True  # of an exception, which is a warning, and so an error
nb_execution_timeout = 120
nb_output_stderr = "warn"  # and a warning is an error
nb_merge_streams = True
# A machine with an accelerator shows the same numbers, and what runs for a moment is not worth XLA's polish.
os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

# Docstrings. In them, `code` in single backticks is a link where it names something that is documented.
default_role = "py:documented"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # which takes several names on one line
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Other projects' names are links where their inventories can be had, and no errors where they can't.
INVENTORIES = {
    "python": "https://docs.python.org/3",
    "jax": "https://docs.jax.dev/en/latest",
    "flax": "https://flax.readthedocs.io/en/latest",
    "numpy": "https://numpy.org/doc/stable",
    "zarr": "https://zarr.readthedocs.io/en/stable",
    "matplotlib": "https://matplotlib.org/stable",
}


def is_there(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/objects.inv", timeout=3):
            return True
    except (OSError, HTTPException):
        return False


intersphinx_mapping = {name: (url, None) for name, url in INVENTORIES.items() if is_there(url)}
nitpick_ignore_regex = [
    (r"py:.*", r"(jax|jaxlib|flax|numpy|np|zarr|matplotlib|optax|equinox|collections|typing|pathlib)\..*"),
    (r"py:.*", r"(jax|flax|numpy|zarr|Any|Callable|Literal|ArrayLike|Array|Mapping|Sequence|Iterable|Iterator|Path)"),
]

# The theme.
urls = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"].get("urls", {})
html_theme = "sphinx_book_theme"
html_title = "jaxlift"
html_static_path = ["_static"]
html_css_files = ["jaxlift.css"]
html_baseurl = f"{urls['Documentation'].rstrip('/')}/" if "Documentation" in urls else ""
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {
    "home_page_in_toc": False,
    "navbar_persistent": [],
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "path_to_docs": "docs",
}
if "Repository" in urls:
    html_theme_options |= {
        "repository_url": urls["Repository"],
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "use_edit_page_button": True,
    }
