"""Draw Figures 1, 2 and 3 of the DeepLIFT paper, for every method of jaxlift that has a meaning there.

Three networks of one ReLU, and where methods fail on them: a sum that saturates, a threshold, and a minimum of two
inputs. The reference is 0. Methods that agree share a curve.

Left out: Grad-CAM and guided Grad-CAM, which need maps with places and channels; in-silico mutagenesis, which needs
one-hot sequences; and "genomics_default", which chooses among the rules that are here by the layer before a ReLU.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlift

try:
    import matplotlib.pyplot as plt
    from compared import COLOURS, RULES, save
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise SystemExit(f"This example needs {error.name}: pip install -e '.[examples]'") from error

METHODS: dict[str, Callable[..., Any]] = {
    name: functools.partial(jaxlift.attribute, rule=rule) for name, rule in RULES.items() if rule != "genomics_default"
} | {
    "integrated gradients": jaxlift.integrated_gradients,
    "occlusion": jaxlift.occlusion,
    "Shapley values": jaxlift.shapley,
}


def saturating(i: jax.Array) -> jax.Array:
    """`i1 + i2`, but never more than 1: `1 - relu(1 - i1 - i2)`."""
    return 1 - jax.nn.relu(1 - i.sum(1))


def threshold(i: jax.Array) -> jax.Array:
    """A ReLU with a bias of -10."""
    return jax.nn.relu(i[:, 0] - 10)


def minimum(i: jax.Array) -> jax.Array:
    """`min(i1, i2)`, as `i1 - relu(i1 - i2)`."""
    return i[:, 0] - jax.nn.relu(i[:, 0] - i[:, 1])


class Case(NamedTuple):
    """A figure of the paper: a network, an input that shows the failure, and a line of inputs that leads there."""

    title: str
    network: Callable[[jax.Array], jax.Array]
    input: tuple[float, ...]
    line: Callable[[np.ndarray], np.ndarray]
    end: float
    label: str


CASES = [
    Case("y = min(1, $i_1 + i_2$)", saturating, (1, 1), lambda t: np.stack([t, t], 1), 1.5, "$i_1$, and $i_2 = i_1$"),
    Case("y = relu($x - 10$)", threshold, (10.01,), lambda t: t[:, None], 20, "x"),
    Case(
        "y = min($i_1, i_2$)",
        minimum,
        (10, 6),
        lambda t: np.stack([t, np.full_like(t, 6)], 1),
        12,
        "$i_1$, and $i_2 = 6$",
    ),
]


def contributions(network: Callable[[jax.Array], jax.Array], inputs: Any) -> dict[str, np.ndarray]:
    """Of each input, by each method, against a reference of zeros."""
    x = jnp.asarray(inputs, float)
    explained = {name: jax.jit(method(network)) for name, method in METHODS.items()}
    return {name: np.asarray(attr(x, reference=jnp.zeros(x.shape[1:]))) for name, attr in explained.items()}


def agreeing(curves: dict[str, np.ndarray], tolerance: float) -> list[list[str]]:
    """The methods, in groups of those whose curves are the same to the eye."""
    groups: list[list[str]] = []
    for name, curve in curves.items():
        like = next((group for group in groups if np.abs(curves[group[0]] - curve).mean() < tolerance), None)
        groups.append([name]) if like is None else like.append(name)
    return groups


def draw(axis: Axes, case: Case, feature: int, points: int) -> None:
    """The contributions of one input along the line. Where curves meet, the later ones are narrower and on top."""
    t = np.linspace(0, case.end, points)
    inputs = case.line(t)
    outputs = np.asarray(case.network(jnp.asarray(inputs, float)))
    top = float(outputs.max())
    curves = {name: values[:, feature] for name, values in contributions(case.network, inputs).items()}
    groups = agreeing(curves, 0.01 * top)
    for group, width in zip(groups, np.linspace(6.5, 1.8, len(groups)), strict=True):
        # A curve that jumps is drawn in pieces, or else the jump would look like a steep slope.
        curve = curves[group[0]]
        jumps = np.flatnonzero(np.abs(np.diff(curve)) > 0.2 * top) + 1
        colour = COLOURS[next((name for name in group if name.startswith("DeepLIFT")), group[0])]
        label: str | None = "\n".join(group)
        for x, y in zip(np.split(t, jumps), np.split(curve, jumps), strict=True):
            axis.plot(x, y, color=colour, linewidth=width, label=label, solid_capstyle="butt")
            label = None
        for jump in jumps:
            axis.plot(t[jump - 1 : jump + 1], curve[jump - 1 : jump + 1], color=colour, linewidth=1, linestyle=":")
    axis.plot(t, outputs, color="black", linewidth=0.8, dashes=(4, 3), label="the output y")
    axis.set_xlabel(case.label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), labelspacing=0.8)


def picture(points: int) -> Figure:
    edges = {"top": 0.89, "bottom": 0.46, "left": 0.035, "right": 0.99, "wspace": 0.2}
    figure, axes = plt.subplots(1, 4, figsize=(11.5, 5), gridspec_kw=edges)
    axes[3].sharey(axes[2])
    saturation, jump, least = CASES
    panels = [
        ("Figure 1", saturation, 0, "$i_1$"),
        ("Figure 2", jump, 0, "x"),
        ("Figure 3", least, 0, "$i_1$"),
        ("Figure 3", least, 1, "$i_2$"),
    ]
    for axis, (figure_name, case, feature, name) in zip(axes, panels, strict=True):
        draw(axis, case, feature, points)
        axis.set_title(f"{figure_name}: {case.title}\ncontribution of {name}", fontsize=9.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/figures.png"), help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="curves of fewer points")
    options = parser.parse_args()

    tables, whole = {}, True
    for number, case in enumerate(CASES, start=1):
        output, at_zero = case.network(jnp.array([case.input, [0.0] * len(case.input)])).tolist()
        change = output - at_zero
        print(f"\nFigure {number}, at {case.input}: the output changes by {change:.4g}")
        tables[f"figure {number}"] = table = {"input": case.input, "change": change, "contributions": {}}
        for name, [values] in contributions(case.network, [case.input]).items():
            values = values + 0  # no negative zeros
            table["contributions"][name] = values.tolist()
            print(f"  {name:26}" + "".join(f"{value:10.4f}" for value in values) + f"   sum {values.sum():8.4f}")
            if name in ("DeepLIFT Rescale", "DeepLIFT RevealCancel", "Shapley values"):
                whole &= bool(abs(values.sum() - change) <= 1e-5)

    save(picture(100 if options.quick else 1001), tables, options.output)
    if not whole:
        raise SystemExit("contributions don't sum to the difference of the outputs")


if __name__ == "__main__":
    main()
