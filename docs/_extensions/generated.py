"""Parts of pages that are made of the code itself: names of modules, the commands' ``--help``, and the examples."""

import argparse
import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from docutils import nodes
from public import KINDS, public_names
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

EXAMPLES = Path(__file__).parents[2] / "examples"


class Example(NamedTuple):
    name: str
    summary: str
    text: str
    pictures: list[str]


def examples() -> Iterator[Example]:
    """The scripts of examples/ that can be run, those with pictures first."""
    found = []
    for file in sorted(EXAMPLES.glob("*.py")):
        if "__main__" not in (code := file.read_text()):
            continue
        summary, _, text = (ast.get_docstring(ast.parse(code)) or "").partition("\n")
        found.append(Example(file.stem, summary, text.strip(), [p.name for p in EXAMPLES.glob(f"{file.stem}*.png")]))
    yield from sorted(found, key=lambda example: not example.pictures)


def helps() -> Iterator[tuple[str, str]]:
    """Each command and what its ``--help`` prints."""
    os.environ.update(COLUMNS="92", NO_COLOR="1")
    from jaxlift.commands._main import _parser

    parser = _parser()
    yield parser.prog, parser.format_help()
    [commands] = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, each in commands.choices.items():
        yield f"{parser.prog} {name}", each.format_help()


class Public(SphinxDirective):
    """The docstrings of a module's public names: ``.. public:: jaxlift.metrics``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        lines = [f".. currentmodule:: {module.__name__}", ""]
        for name in public_names(module):
            kind = next(kind for is_kind, kind in KINDS.items() if is_kind(getattr(module, name)))
            lines += [f".. {kind}:: {name}", "   :members:" * (kind == "autoclass"), ""]
        return self.parse_text_to_nodes("\n".join(lines))


class Commands(SphinxDirective):
    """A section for each command, with its help."""

    def run(self) -> list[nodes.Node]:
        parts = [f"## {name}\n\n```text\n$ {name} --help\n{text.rstrip()}\n```\n" for name, text in helps()]
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)


class Gallery(SphinxDirective):
    """A section for each example: its docstring, its pictures, and the command that draws them."""

    def run(self) -> list[nodes.Node]:
        parts = []
        for example in examples():
            self.env.note_dependency(str(EXAMPLES / f"{example.name}.py"))
            pictures = "".join(f"![{example.summary}](../examples/{picture})\n\n" for picture in example.pictures)
            command = f"```bash\npython examples/{example.name}.py\n```\n"
            source = f"[examples/{example.name}.py](../examples/{example.name}.py)"
            parts.append(f"## {example.name}\n\n{example.summary}\n\n{pictures}{example.text}\n\n{source}\n\n{command}")
        return self.parse_text_to_nodes("\n".join(parts), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public", Public)
    app.add_directive("commands", Commands)
    app.add_directive("examples", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
