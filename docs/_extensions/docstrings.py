"""Links in docstrings: objects by the names that users import them by, and `code` where it names something."""

from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment

# Modules whose names are public, in the order in which a name alone is looked for.
MODULES = ("jaxlift", "jaxlift.genomics", "jaxlift.metrics", "jaxlift.references", "jaxlift.plots", "jaxlift.scoring")


class Documented(PyXRefRole):
    """Code that is a link if it names something that is documented, and else code."""

    def process_link(
        self, env: BuildEnvironment, refnode: Any, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        title, target = super().process_link(env, refnode, has_explicit_title, title, target)
        refnode["reftype"], refnode["may_be_missing"] = "obj", True
        return title, target


def resolved(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Node) -> nodes.Node | None:
    """A name that Sphinx doesn't find as it stands: by the modules that users import it from."""
    if node.get("refdomain") != "py" or app.builder is None:
        return None
    target = node["reftarget"]
    private = target.startswith("jaxlift.")  # an annotation says where an object is defined
    last = target.rpartition(".")[2]
    candidates = [f"{module}.{last if private else target}" for module in MODULES]
    for name in candidates:
        found = env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
        if found is not None:
            return found
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
