"""Integrated gradients, and with many references expected gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import check_count
from jaxlift._batching.loops import divided, sum_in_turn
from jaxlift._explainer import Explainer, Method
from jaxlift._lift import vjp
from jaxlift._options import Options, takes
from jaxlift.rules import Gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class IntegratedGradientsOptions(Options):
    """The options of `integrated_gradients`.

    Attributes:
        steps: how many gradients are averaged. They are taken one after the other, and need no more memory than one.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)


@takes(IntegratedGradientsOptions)
def integrated_gradients(fun: Callable[..., Any], options: IntegratedGradientsOptions) -> Explainer:
    r"""Make the function that explains a batched model's outputs by gradients along the way from the reference.

    .. math:: m = \frac1n \sum_{k=1}^{n} \nabla f\left(r + \tfrac{k - 1/2}{n} (x - r)\right)

    is the midpoint rule for the integral of Sundararajan, Taly and Yan 2017 (arXiv 1703.01365, eq. 1); contributions
    are `m (x - r)`. Their sum is the difference of the outputs but for the error of the rule, which falls with the
    square of `steps` where `f` is smooth. The mean over many references is expected gradients (Erion et al. 2021, arXiv
    1906.10670), here with the same steps for each.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.integrated_gradients(lambda x: x[:, 0] * x[:, 1], steps=10)
    >>> attr(jnp.array([[2.0, 3.0]]), reference=jnp.zeros(2))
    Array([[3., 3.]], dtype=float32)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`.

    Raises:
        ValueError, TypeError: as from `attribute`; and if `steps` isn't a positive int.
        MissingRuleError: from `attr`, as from `attribute`, of whose rule `"gradient"` these are the derivatives.
    """
    steps = options.steps

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        def pull(weights: Array) -> Any:
            def gradient(fraction: Array) -> Any:
                point = jax.tree.map(lambda x, r: r + fraction.astype(x.dtype) * (x - r), x, reference)
                return vjp(fun, point, point, rule=Gradient(), precision=options.precision)[1](weights)

            return divided(sum_in_turn(gradient, (jnp.arange(steps) + 0.5) / steps, x), steps, x)

        return (fun(x), fun(reference)), pull

    return Explainer(fun, Method("integrated_gradients", explain), options)
