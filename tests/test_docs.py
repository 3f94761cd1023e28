"""What the documentation says is true: its code runs, and its commands are those that CI runs."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlift

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
RULES = (ROOT / "docs" / "rules.md").read_text()


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:40])
def test_code_of_the_readme_runs(code):
    exec(code, {})


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
