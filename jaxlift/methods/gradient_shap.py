"""GradientSHAP: expected gradients at points drawn on the way from each reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import check_count, check_key
from jaxlift._batching.loops import divided, moments_in_turn
from jaxlift._explainer import Explainer, Method
from jaxlift._lift import vjp
from jaxlift._options import Options, takes
from jaxlift.rules import Gradient
from jaxlift.wrappers import check_size, draw_like


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientSHAPOptions(Options):
    """The options of `gradient_shap`.

    Attributes:
        samples: how many points are drawn between an example and each of its references, 2 at least. They are taken one
            after the other, and need no more memory than one.
        key: the random key of the points; `jax.random.key(0)` if left out. All examples see the same draws, and each
            reference has its own.
        noise: the standard deviation of Gaussian noise that is added to the example for each point, in its units: a
            number, or an array that broadcasts to an example.
    """

    samples: int = 50
    key: Array | None = None
    noise: Any = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("samples", self.samples, least=2)
        check_size("noise", self.noise)
        if self.key is not None:
            check_key(self.key)


@takes(GradientSHAPOptions)
def gradient_shap(fun: Callable[..., Any], options: GradientSHAPOptions) -> Explainer:
    r"""Make the function that explains a batched model's outputs by gradients at random points between two inputs.

    .. math:: \phi = \mathrm{E}_{r, t, e} \left[(x + e - r) \, \nabla f\left(r + t (x + e - r)\right)\right],
        \qquad t \sim U(0, 1), \quad e \sim N(0, \mathrm{noise}^2)

    (Erion et al. 2021, arXiv 1906.10670, eq. 4, without noise; Lundberg and Lee 2017, arXiv 1705.07874, whose package
    has it with noise). It tends to `integrated_gradients`, averaged over references and over the noise: without noise
    contributions sum to the difference of the outputs but for the error of the draws, which falls with the root of
    their number. With ``full=True`` `delta` is what is missing, and `standard_error` the scores' own.

    The mean is over all references that are given, `samples` points for each, which errs less than to draw them too. Of
    very many give some: ``references[jax.random.choice(key, len(references), (50,), replace=False)]``.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.gradient_shap(lambda x: x[:, 0] * x[:, 1], samples=1000, full=True)
    >>> found = attr(jnp.array([[2.0, 3.0]]), reference=jnp.zeros(2))
    >>> bool((abs(found.scores - 3) < 4 * found.standard_error).all()), bool((found.standard_error < 0.1).all())
    (True, True)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`. The standard error is that over the draws, for the references
        that are given.

    Raises:
        ValueError, TypeError: as from `attribute`; and if `samples` isn't an int, 2 at least, `noise` is negative or
            doesn't broadcast, or `key` is none.
        MissingRuleError: from `attr`, as from `attribute`, of whose rule `"gradient"` these are the derivatives.
    """
    samples = options.samples

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any, number: Array) -> Any:
        key = jax.random.fold_in(jax.random.key(0) if options.key is None else options.key, number)

        def pull(weights: Array) -> Any:
            def contributions(key: Array) -> Any:
                of_point, of_noise = jax.random.split(key)
                noise = draw_like(jax.random.normal, of_noise, x, "noise", options.noise)
                change = jax.tree.map(lambda x, e, r: x + e - r, x, noise, reference)
                fraction = jax.random.uniform(of_point)
                point = jax.tree.map(lambda r, d: r + fraction.astype(d.dtype) * d, reference, change)
                gradient = vjp(fun, point, point, rule=Gradient(), precision=options.precision)[1](weights)
                return jax.tree.map(jnp.multiply, gradient, change)

            mean, squares = moments_in_turn(contributions, jax.random.split(key, samples), x)
            variance = jax.tree.map(lambda squares: squares / (samples * (samples - 1)), squares)
            return divided((mean, variance), 1, (x, x))

        return (fun(x), fun(reference)), pull

    return Explainer(fun, Method("gradient_shap", explain, gives="contributions", has_error=True, draws=True), options)
