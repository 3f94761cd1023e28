"""The Shapley values of a unit's inputs, by their first two moments: nearer than Rescale at RevealCancel's cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core.differences import difference, where
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift._pointwise.normal import nodes, standardised
from jaxlift.rules.deeplift import Rescale
from jaxlift.rules.families import Place
from jaxlift.rules.rule import NAMED, Rule, of_all_scopes


@dataclass(frozen=True)
class LocalShapley(Rule):
    r"""What a unit's inputs add to it, averaged over the orders in which they come in, by a normal approximation.

    A unit `y = f(r + \sum_i c_i)`, with `D = \sum_i c_i` and `Q = \sum_i c_i^2`. When a part `t` of its inputs is in,
    at random, their sum has the mean `t D` and the variance `t (1 - t) Q`. An input's Shapley value is the mean over
    `t` of what it adds then (Owen 1972, doi 10.1287/mnsc.18.5.64), to second order in `c_i`

    .. math::
        \phi_i = m_1 c_i + m_2 c_i^2, \qquad m_1 = \int_0^1 E f'\big(r + t D + \sqrt{t (1 - t) Q}\, z\big) dt, \quad z
        \sim N(0, 1)

    whose second term stands for what is left, so that the sum is kept: `m_2 = (f(x) - f(r) - m_1 D) / Q`. Where one
    input makes all of the difference it takes all of it, as under Rescale.

    `Q` is carried as RevealCancel's variation is, and starts anew at each linear map: `Q = L^2 D^2` with the squares of
    the weights. It is a rule for activations after sums. What isn't one takes Rescale (`exp`, `log`, powers, roots,
    reciprocals), and products, maxima and softmax take what they do under Rescale.
    """

    needs_variation = True
    adds_squares = True

    @of_all_scopes
    def at(self, place: Place) -> Rule:
        return self if place.function is None or place.function.is_activation else Rescale()

    def parts(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> tuple[Array, Array]:
        r"""With `a = \sqrt{Q}` the parts are `(D ± a) / 2`, and with multipliers `m_1 ± m_2 a` they are `m_1 D + m_2 Q`
        together.
        """
        d = difference(x, r)
        mean = self._mean_derivative(f, r, d, a)
        # (f(x) - f(r) - m_1 D) / a, from the secant, which has its digits where the difference is small.
        of_squares = (f.secant(x, r) - mean) * where(a > 0, d / where(a > 0, a, 1), 0)
        return mean + of_squares, mean - of_squares

    def pull_parts(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Array, minus: Array
    ) -> tuple[Array, Array]:
        of_plus, of_minus = self.parts(f, x, r, a)
        cotangent = (plus + minus + jnp.sign(f(x) - f(r)) * (plus - minus)) / 2
        return of_plus * cotangent, of_minus * cotangent

    def variation(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> Array:
        """It starts anew: the terms of what comes next are differences of this value."""
        del a
        return jnp.abs(difference(f(x), f(r)))

    def _mean_derivative(self, f: PointwiseFunction, r: Array, d: Array, a: Array) -> Array:
        """`m_1`, by Gauss-Legendre nodes in `t`, and Gauss-Hermite ones in `z`."""
        at, weights = np.polynomial.legendre.leggauss(TIMES)
        at, weights = (at + 1) / 2, weights / 2
        if f.is_two_rays:
            up, down = (f(jnp.full_like(r, side)) for side in (1, -1))
            share = sum(w * standardised(r + t * d, t * (1 - t) * a * a)[1] for t, w in zip(at, weights, strict=True))
            return up * share - down * (1 - share)
        z, of_z = nodes(NORMAL)
        points = (np.repeat(at, NORMAL), np.outer(np.sqrt(at * (1 - at)), z), np.outer(weights, of_z))

        # As secants are: in the argument's dtype, float32 at least, whatever that of `f(x)` is.
        total = jnp.zeros_like(d + a, jnp.promote_types(r.dtype, jnp.float32))

        def add(total: Array, point: Any) -> tuple[Array, None]:
            t, z, weight = point
            slope = f.derivative((r + t * d + z * a).astype(r.dtype))
            # Infinite where a root of a ReLU begins: what is left is the second term's.
            return total + weight * where(jnp.isfinite(slope), slope, 0).astype(total.dtype), None

        return jax.lax.scan(add, total, [jnp.asarray(each.ravel(), total.dtype) for each in points])[0]


TIMES, NORMAL = 5, 7
NAMED["local_shapley"] = LocalShapley()
