"""``llms.txt``, a list of the pages for language models, and ``llms-full.txt``, their text, in the site's order."""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ABOUT = "DeepLIFT as a JAX function transformation: contributions of inputs to a model's output, which keep their sum."


def parts(app: Sphinx) -> Iterator[tuple[str, list[str]]]:
    """The captions of the front page's lists, and the pages of each, with those below them."""

    def below(page: str) -> Iterator[str]:
        yield page
        for child in app.env.toctree_includes.get(page, []):
            yield from below(child)

    for tree in app.env.get_doctree(app.config.root_doc).findall(addnodes.toctree):
        yield tree["caption"], [page for _, entry in tree["entries"] for page in below(entry)]


def first_paragraph(app: Sphinx, page: str) -> str:
    found = next(iter(app.env.get_doctree(page).findall(nodes.paragraph)), None)
    return "" if found is None else " ".join(found.astext().split())


def written(app: Sphinx, page: str) -> str:
    """A page's text: as its author wrote it, or what was made, where that is mostly made of something else."""
    source = app.env.doc2path(page).read_text()
    is_made = re.search(r"```{(eval-rst|include|examples|commands)}", source)
    return app.env.get_doctree(page).astext() if is_made else source


def write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    pages, text = [f"# {app.config.project}\n\n> {ABOUT}\n"], []
    for caption, names in parts(app):
        pages.append(f"\n## {caption}\n")
        for name in names:
            url = app.config.html_baseurl + app.builder.get_target_uri(name)
            pages.append(f"- [{app.env.titles[name].astext()}]({url}): {first_paragraph(app, name)}")
            text.append(written(app, name))
    Path(app.outdir, "llms.txt").write_text("\n".join(pages) + "\n")
    Path(app.outdir, "llms-full.txt").write_text("\n\n".join(text))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
