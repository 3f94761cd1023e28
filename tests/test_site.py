"""The site's pages leave nothing out: public names, messages, pages. What else is wrong with them, Sphinx finds."""

import ast
import importlib
import re
import runpy
from pathlib import Path

import pytest

import jaxlift

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
ERRORS = (DOCS / "errors.md").read_text()
HEADINGS = re.findall(r"^### `(.+)`$", ERRORS, re.MULTILINE)
# Where the messages are that every user may meet. Each has a heading.
OF_ATTRIBUTION = ("_arguments", "_check", "_explainer", "_independence", "_layers", "_memory", "_options", "_targets")
public_names = runpy.run_path(str(DOCS / "_extensions" / "public.py"))["public_names"]
HOLE = "\0"  # what differs from case to case


def documented():
    """The objects that the pages of the API document."""
    for page in (DOCS / "api").glob("*.md"):
        module = jaxlift
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            if kind in ("currentmodule", "public"):
                module = importlib.import_module(name)
            if kind == "public":
                yield from (getattr(module, each) for each in public_names(module))
            elif kind in ("autofunction", "autoclass", "autoexception"):
                yield getattr(module, name)


@pytest.mark.parametrize("name", ["", ".genomics", ".metrics", ".plot", ".references", ".scoring"])
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


def listed():
    """The pages in lists of pages, and in those of the pages in these."""
    for page in DOCS.rglob("*.md"):
        for entries in re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for entry in re.findall(r"^[\w/*]+$", entries, re.MULTILINE):
                yield from page.parent.glob(f"{entry}.md")


def test_every_page_is_listed():
    assert {DOCS / "index.md", *listed()} == set(DOCS.rglob("*.md"))


def test_every_picture_is_in_the_gallery():
    page = (DOCS / "gallery.md").read_text()
    pictures = list((ROOT / "examples").glob("*.png"))
    assert pictures
    assert all(picture.name in page or picture.with_suffix(".py").exists() for picture in pictures)
