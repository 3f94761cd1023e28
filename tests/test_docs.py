"""What the documentation says is true: its code runs, and its commands are those that CI runs."""

import doctest
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
RULES = (DOCS / "rules.md").read_text()
# What pages are about, and the tests need not have.
OTHERS = {"torch", "torchax"}
DOCTEST = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
def test_code_of_the_readme_runs(code):
    exec(code, {})


def fences(page):
    """What a page has to run, from top to bottom: code, and sessions with what they print. Sphinx runs notebooks."""
    text = page.read_text()
    if text.startswith("---\nfile_format: mystnb\n"):
        return []
    return list(re.finditer(r"^```(python|pycon)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", sorted(filter(fences, DOCS.rglob("*.md"))), ids=lambda page: page.stem)
def test_code_of_the_pages_runs(page, tmp_path, monkeypatch):
    """Each page is one program, in an empty folder, with JAX's own settings."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(jax.config.jax_enable_x64):
        for fence in fences(page):
            language, code = fence.groups()
            lines = fence.string.count("\n", 0, fence.start(2))
            if language == "pycon":
                session = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), lines)
                session.globs = names  # and not a copy of them
                doctest.DebugRunner(optionflags=DOCTEST).run(session, clear_globs=False)
                continue
            try:
                exec(compile("\n" * lines + code, str(page), "exec"), names)
            except ModuleNotFoundError as error:
                if error.name not in OTHERS:
                    raise
                pytest.skip(f"{error.name} isn't installed")


def test_rule_of_the_page_on_rules():
    """RevealCancel for exact GELUs, and Rescale for all else."""
    [code] = blocks("python", RULES)
    exec(code, names := {})
    x, reference = jnp.array([[1.0, -2.0]]), jnp.array([-0.5, 0.5])

    def scores(activation, rule):
        return jaxlift.attribute(lambda x: activation(x.sum(1)), rule=rule)(x, reference=reference)

    for activation, expected in ((partial(jax.nn.gelu, approximate=False), "revealcancel"), (jax.nn.gelu, "rescale")):
        found, *both = (scores(activation, rule) for rule in (names["rule"], "rescale", "revealcancel"))
        assert np.abs(both[0] - both[1]).max() > 0.01
        np.testing.assert_array_equal(found, both[expected == "revealcancel"])


def test_ci_runs_the_readmes_test_command():
    _, tests = blocks("bash")
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_pictures_of_the_readme_are_there():
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)
