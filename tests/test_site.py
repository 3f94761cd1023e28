"""The site's pages leave nothing out: public names, messages, pages. What else is wrong with them, Sphinx finds."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import jaxlift

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ERRORS = (DOCS / "errors.md").read_text()
HEADINGS = re.findall(r"^### `(.+)`$", ERRORS, re.MULTILINE)
# Where the messages are that every user may meet. Each has a heading.
OF_ATTRIBUTION = ("_arguments", "_check", "_explainer", "_independence", "_layers", "_memory", "_options", "_targets")
HOLE = "\0"  # what differs from case to case


def public_names(module):
    """What a module lists; or what is its own, in a package also of its parts."""
    of = module.__name__.split(".")[0] if hasattr(module, "__path__") else module.__name__
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "").startswith(of)]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return [
        name for name in names if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))
    ]


def documented():
    """The objects that the pages of the API document."""
    for page in (DOCS / "api").glob("*.md"):
        module = jaxlift
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            if kind in ("currentmodule", "automodule"):
                module = importlib.import_module(name)
            if kind == "automodule":
                yield from (getattr(module, each) for each in public_names(module))
            elif kind in ("autofunction", "autoclass", "autoexception"):
                yield getattr(module, name)


@pytest.mark.parametrize("name", ["", ".genomics", ".metrics", ".plots", ".references", ".scoring"])
def test_public_names_are_documented_once(name):
    module, found = importlib.import_module(f"jaxlift{name}"), list(documented())
    times = {name: sum(each is getattr(module, name) for each in found) for name in public_names(module)}
    assert times
    assert times == dict.fromkeys(times, 1)


def templates(files, calls=None):
    """The texts in files, with holes in f-strings; of calls of these alone (errors and warnings), if they are given."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            texts = [node]
            if calls is not None:
                is_call = isinstance(node, ast.Call) and node.args
                texts = node.args[:1] if is_call and re.search(calls, ast.unparse(node.func)) else []
            for text in texts:
                if isinstance(text, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in text.values)
                elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield text.value


def is_heading_of(heading, template):
    """Whether the heading's parts stand in a message, in their order."""
    place = 0
    for part in heading.split("…"):
        place = template.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


@pytest.fixture(scope="module")
def sources():
    return list(templates((ROOT / "jaxlift").rglob("*.py")))


def test_headings_are_messages(sources):
    assert len(HEADINGS) == len(set(HEADINGS)) > 50
    assert [heading for heading in HEADINGS if not any(is_heading_of(heading, text) for text in sources)] == []


def test_messages_have_headings():
    files = [ROOT / "jaxlift" / f"{name}.py" for name in OF_ATTRIBUTION]
    messages = list(templates(files, r"Error$|\.warn$|add_note$"))
    assert len(messages) > 50
    assert [text for text in messages if not any(is_heading_of(heading, text) for heading in HEADINGS)] == []


def toctree():
    """The pages in lists of pages, and below these."""
    for page in DOCS.rglob("*.md"):
        for listed in re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for entry in re.findall(r"^[\w/*]+$", listed, re.MULTILINE):
                yield from page.parent.glob(f"{entry}.md")


def test_pages_are_listed_once():
    pages = list(toctree())
    assert len(pages) == len(set(pages))
    assert {page for page in DOCS.rglob("*.md") if "_" not in page.relative_to(DOCS).parts[0][:1]} == {
        DOCS / "index.md",
        *pages,
    }
