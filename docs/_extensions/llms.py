"""``llms.txt``, a list of the pages for language models, and ``llms-full.txt``, their text, in the site's order."""

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


def write(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    pages, text = [f"# {app.config.project}\n\n> {ABOUT}\n"], []
    for caption, names in parts(app):
        pages.append(f"\n## {caption}\n")
        for name in names:
            url = app.config.html_baseurl + app.builder.get_target_uri(name)
            pages.append(f"- [{app.env.titles[name].astext()}]({url}): {first_paragraph(app, name)}")
            text.append(app.env.doc2path(name).read_text())
    Path(app.outdir, "llms.txt").write_text("\n".join(pages) + "\n")
    Path(app.outdir, "llms-full.txt").write_text("\n\n".join(text))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
