"""The pages on coming from other packages: each of their calls gives what jaxlift's, beside it in a table, does.

Their column needs their packages (tests/benchmarks/measure.py has the versions); where one isn't installed, jaxlift's
column is traced alone. `pytest tests/test_coming_from.py -n 0 -s` prints the differences.
"""

import importlib.util
import re
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from original import ORACLES

import jaxlift

PAGES = Path(__file__).parent.parent / "docs" / "coming_from"


def names_of(page, kinds):
    """What the page's code defines."""
    names = {}
    for code in re.findall(rf"^```(?:{'|'.join(kinds)})\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(code, names)
    return names


def pairs_of(page):
    """Their calls and ours, of the tables."""
    pairs = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", page, re.MULTILINE)
    assert pairs
    return pairs


def check(ours, theirs, what):
    assert np.shape(ours) == theirs.shape
    difference = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    print(f"{what}: largest difference {difference:.1e} of the largest score")
    assert difference <= 1e-5


@pytest.mark.usefixtures("as_users_write")
@pytest.mark.parametrize("package", ["captum", "shap", "tangermeme"])
def test_pairs(package):
    page = (PAGES / f"{package}.md").read_text()
    pairs = pairs_of(page)
    if importlib.util.find_spec(package) is None:
        names = names_of(page, ["python"])
        for _, ours in pairs:
            jax.eval_shape(lambda ours=ours: eval(ours, names))
        pytest.skip(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        names = names_of(page, ["python", "py"])
        for theirs, ours in pairs:
            expected = eval(theirs, names)
            expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
            check(eval(ours, names), expected, theirs)


@pytest.mark.parametrize("rule", ["rescale", "genomics_default"])
def test_pairs_of_the_original(rule):
    """Their column is what the original computed once. (RevealCancel's multipliers: tests/test_original.py.)"""
    [oracle] = [each for each in ORACLES if each.name == "dna_conv1d_shuffled_refs"]
    names = {"attribute": jaxlift.attribute, "model": oracle.model(), "rule": jaxlift.OriginalMaxPooling(rule)}
    x, reference, single = (oracle.arrays[name] for name in ("x", "ref", "x_single"))
    shuffled = reference.reshape(len(single), -1, *single.shape[1:])
    paired, of_several = {"x": x, "r": reference}, {"x": single, "rs": shuffled}
    calls = [ours for _, ours in pairs_of((PAGES / "deeplift.md").read_text())]
    arguments = [("contribs", paired), ("mults", paired), ("hypothetical", paired), ("multiref_contribs", of_several)]
    for ours, (what, data) in zip(calls, arguments, strict=True):
        if "contribs" in what or rule == "rescale":
            check(jax.jit(lambda ours=ours, data=data: eval(ours, names | data))(), oracle.scores(what, rule)[1], what)
