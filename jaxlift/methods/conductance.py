"""Conductance: what flows through the units of a layer on the way from the reference to the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._arguments import checked_input
from jaxlift._batching.loops import divided, sum_in_turn
from jaxlift._explainer import Explainer, Method, of_input
from jaxlift._layers import Names
from jaxlift._lift import vjp
from jaxlift._options import takes
from jaxlift.methods.integrated_gradients import IntegratedGradientsOptions
from jaxlift.rules import Gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class ConductanceOptions(IntegratedGradientsOptions):
    """The options of `conductance`.

    Attributes:
        layer: the name of the layer's value, or a tuple of names, given with `jax.ad_checkpoint.checkpoint_name`. It
            must be given. Other than with `attribute`, all of the model follows the way from the reference.
        unit: one unit of the layer, an int, or for values of several axes a tuple of ints. Scores are then of the
            input, and say what each of its features sends through that unit.
    """

    layer: Names = field()  # pyright: ignore[reportGeneralTypeIssues] (required, unlike that of other methods)
    unit: int | tuple[int, ...] | None = None


@takes(ConductanceOptions)
def conductance(fun: Callable[..., Any], options: ConductanceOptions) -> Explainer:
    r"""Make the function that says how much of a difference passes each unit of a layer.

    On the straight way from the reference to the input, `x(t) = r + t (x - r)`, the units of the layer go their own
    ways `h_j(t)`, and

    .. math:: \mathrm{Cond}_j = \int_0^1 \frac{\partial f}{\partial h_j} \frac{d h_j}{dt}\, dt
        \approx \sum_k \frac{\partial f}{\partial h_j}\left(x(t_{k + 1/2})\right) \left(h_j(t_{k+1}) - h_j(t_k)\right)

    (Dhamdhere, Sundararajan and Yan 2018, arXiv 1805.12233, eq. 2 and 3, with gradients in the middle of each step).
    Integrated gradients of the layer, ``integrated_gradients(f, layer=...)``, go straight from `h(0)` to `h(1)`, which
    the network itself doesn't: they are another answer, the more so the more is nonlinear below.

    Conductances sum to the difference of the outputs, but for the error of the steps, where all that reaches the output
    passes the layer. What doesn't, as in a residual stream beside it, is missing from the sum: with ``full=True``, it
    is `delta`.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):
    ...     hidden = checkpoint_name(x**2, "hidden")
    ...     return hidden[:, 0] * hidden[:, 1]
    >>> x, reference = jnp.array([[1.0, 2.0]]), jnp.array([1.0, 0.0])
    >>> jaxlift.conductance(model, layer="hidden")(x, reference=reference)
    Array([[0., 4.]], dtype=float32)
    >>> jaxlift.conductance(model, layer="hidden", unit=1)(x, reference=reference)
    Array([[0., 4.]], dtype=float32)

    Args:
        fun: the model, as for `attribute`. It takes `steps` gradients, and `3 steps` passes up to the layer.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`. Scores have the shape of the layer's value; with `unit`, that
        of the input, and `delta` is what passes other units.

    Raises:
        ValueError, TypeError: as from `integrated_gradients` and `below`; from `attr`, if the layer has no such unit,
            or the input is integers, between which there is no way.
        MissingRuleError: from `attr`, as from `integrated_gradients`.
    """
    steps, unit = options.steps, options.unit

    def explain(layer: Any, x: Any, reference: Any, fun: Any, value: Any, value_ref: Any) -> Any:
        for leaf in jax.tree.leaves(x):
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                raise TypeError(
                    "conductance follows the way from the reference to the input, and between tokens or other integers "
                    f"(dtype {leaf.dtype}) there is none: make the embeddings first, and pass the function that goes "
                    "on from there. integrated_gradients(layer=...) starts at the layer itself."
                )
        checked_input(x)
        if unit is not None:
            _check_unit(unit, value)
        d = jax.tree.map(jnp.subtract, x, reference)
        like = value if unit is None else x

        def at(t: Array) -> Any:
            return jax.tree.map(lambda r, d: r + t.astype(d.dtype) * d, reference, d)

        def gradient(of: Callable[[Any], Any], point: Any, weights: Any) -> Any:
            return vjp(of, point, point, rule=Gradient(), precision=options.precision)[1](weights)

        def pull(weights: Array) -> Any:
            def step(k: Array) -> Any:
                middle = at((k + 0.5) / steps)
                slopes = gradient(lambda h: fun(h, middle), layer(middle), weights)
                if unit is None:
                    change = jax.tree.map(jnp.subtract, layer(at((k + 1) / steps)), layer(at(k / steps)))
                    return jax.tree.map(jnp.multiply, slopes, change)
                picked = jnp.zeros_like(slopes).at[unit].set(slopes[unit])
                return jax.tree.map(lambda m, d: m * d / steps, gradient(layer, middle, picked), d)

            return divided(sum_in_turn(step, jnp.arange(steps), like), 1, like)

        return (fun(value, x), fun(value_ref, reference)), pull

    return Explainer(
        fun, Method("conductance", of_input(explain), gives="contributions", explain_layer=explain), options
    )


def _check_unit(unit: int | tuple[int, ...], value: Any) -> None:
    """Raise the error for what is no unit of a layer's value."""
    shape = value.shape if isinstance(value, Array) else None
    indices = unit if isinstance(unit, tuple) else (unit,)
    are_ints = all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in indices)
    if (
        shape is None or not are_ints or len(indices) != len(shape)
        or not all(-n <= i < n for i, n in zip(indices, shape, strict=True))
    ):  # fmt: skip
        raise ValueError(
            f"unit={unit!r} must be one int for each axis of the value of one layer, without the batch's: here its "
            f"shape is {jax.tree.map(jnp.shape, value)}."
        )
