"""Links in docstrings: objects by the names that users import them by, and `code` where it names something."""

from functools import cache
from pydoc import locate
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

# Where a name alone is looked for.
MODULES = ("jaxlift", "jaxlift.genomics", "jaxlift.scoring")
found_at = cache(locate)


class Documented(PyXRefRole):
    """Code that is a link if it names something that is documented, and else code."""

    def process_link(
        self, env: BuildEnvironment, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        refnode["reftype"], refnode["may_be_missing"] = "obj", True
        return title, target


def resolved(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Node) -> nodes.Node | None:
    """A name that Sphinx doesn't find as it stands: that under which the same object is documented."""
    if node.get("refdomain") != "py":
        return None
    python, target = env.domains.python_domain, node["reftarget"]
    names = [target] if target.startswith("jaxlift.") else [f"{module}.{target}" for module in MODULES]
    for found in filter(None, map(found_at, names)):
        for name in python.objects:
            if found_at(name) is found:
                return python.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
    if node.get("may_be_missing"):
        return nodes.literal(content.astext(), content.astext())
    return content if is_annotation(node) else None


def is_annotation(node: nodes.Node | None) -> bool:
    """Whether it stands in a signature, which names types and aliases that have no page."""
    return isinstance(node, addnodes.desc_signature) or (node is not None and is_annotation(node.parent))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role_to_domain("py", "documented", Documented())
    app.connect("missing-reference", resolved, priority=900)  # after intersphinx
    return {"parallel_read_safe": True, "parallel_write_safe": True}
