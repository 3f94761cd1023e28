"""Print the page of figures, docs/models.md: `python -m tests.models > docs/models.md`."""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib.metadata import version

import jax
import numpy as np

from .catalogue import CATALOGUE, DTYPES, NAMES, RULES, make, measure

PAGE = """\
# Models that other people wrote

Small versions of them (few channels, one or two blocks, parameters drawn at random) are explained unchanged, under both
rules and in both precisions; `python -m pytest -m models` compares the sums. `python -m tests.models > docs/models.md`
writes this page.

- Error: what the sum of the contributions lacks of the difference of the plain model's outputs, as a share of the sum
  of their magnitudes. Rounding is {eps32:.0e} in float32 and {eps64:.0e} in float64. A star marks models that compute
  in float32 somewhere, whatever they are given.
- Cancellation: the sum of the magnitudes of the contributions, as a multiple of the difference (float64). At 1 all have
  one sign; the larger it is, the more they oppose each other, and the more of their digits the difference loses.

Each figure is the worse of two examples, which are drawn at random as their reference is.

| package | model | Rescale: error, float32 | float64 | cancellation \
| RevealCancel: error, float32 | float64 | cancellation |
|---|---|---|---|---|---|---|---|"""


def row(framework: str, name: str) -> str:
    """The figures of one model, a row of the table."""
    figures = {}
    for dtype in DTYPES:
        with jax.enable_x64(dtype is np.float64):
            model = make(framework, name, dtype)
            figures |= {(rule, dtype): measure(model, rule, dtype) for rule in RULES}
    cells = [framework, name + "*" * model.single]
    for rule in RULES:
        cells += [f"{figures[rule, dtype].relative_error:.0e}" for dtype in DTYPES]
        cells.append(f"{figures[rule, np.float64].cancellation:.3g}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("--frameworks", nargs="+", choices=CATALOGUE, default=list(CATALOGUE), metavar="NAME")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of their packages

    print(PAGE.format(eps32=np.finfo(np.float32).eps, eps64=np.finfo(np.float64).eps))
    installed = set()
    for framework, name in NAMES:
        if framework not in options.frameworks:
            continue
        try:
            print(row(framework, name), flush=True)
            installed.add(CATALOGUE[framework].distribution)
        except ImportError as error:
            print(f"{framework}, {name}: skipped: {error}", file=sys.stderr)
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", *sorted(installed)))
    print(f"\nMeasured with {versions}.")


main()
