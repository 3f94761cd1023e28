"""Layer-wise relevance propagation."""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from jaxlift._core.differences import where
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.rules.gradients import Gradient
from jaxlift.rules.rule import NAMED


@dataclass(frozen=True)
class EpsilonLRP(Gradient):
    """Layer-wise relevance propagation, epsilon rule, as multipliers (Ancona et al. 2018, arXiv 1711.06104).

    At a nonlinearity it is `f(x) / (x + epsilon sign(x))`, where `x` is the pre-activation, its bias included. The
    limit of small `epsilon` is the z-rule; for ReLU networks it is the gradient. Times the input it gives relevances.
    """

    epsilon: float = 1e-4
    needs_reference = False

    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        del r
        below = x + where(x >= 0, self.epsilon, -self.epsilon).astype(x.dtype)
        return where(below == 0, f.derivative(x), f(x) / where(below == 0, 1, below))


NAMED["epsilon_lrp"] = EpsilonLRP()
