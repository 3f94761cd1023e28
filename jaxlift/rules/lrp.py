r"""Layer-wise relevance propagation, written as multipliers.

LRP hands the relevance of each output of a layer to its inputs, in proportion to what they contributed. Relevance is a
value times its cotangent, :math:`R = x c`, so a rule of LRP says which cotangents `c` the operands get; in this form it
is a derivative with changed terms (Ancona et al. 2018, arXiv 1711.06104), and the input's multipliers times the input
are its relevances. What a place passes on of what it gets is conserved but for biases and other constants, which absorb
their share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import where
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.rules.families import BilinearMap, LinearMap, Softmax
from jaxlift.rules.gradients import Gradient
from jaxlift.rules.rule import NAMED


class LayerwiseRelevance(Gradient):
    r"""What all rules of LRP share; they differ in linear maps.

    - Activations pass relevance on as it is: :math:`c_x = c_y f(x) / x`, and the derivative where `x` is 0. So does
      what else is 0 at 0, as powers and a value times itself are. Other functions, such as exponentials, logarithms and
      reciprocals, would have no bound there: they have their derivative.
    - A product of two values, elementwise, of matrices, or of attention, passes half of its relevance to each.
    - In a normalisation the statistic that the value is multiplied with or divided by is held constant: all relevance
      goes to the value.
    - Softmax has its derivative: of its Taylor expansion at the input, the linear term. The rest of the expansion is a
      constant like a bias, and absorbs its share.
    - Maxima have their derivative, so the winner takes all; and so have quotients of other kinds, which pass as much to
      the numerator as they take from the denominator.
    """

    is_relevance = True

    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        del r
        passes_on = (x != 0) if f.is_activation else (x != 0) & (f(jnp.zeros_like(x)) == 0)
        return where(passes_on, f(x) / where(passes_on, x, 1), f.derivative(x))

    def bilinear(
        self, bilinear: BilinearMap, values: Sequence[Array], references: Sequence[Array], cotangent: Array
    ) -> tuple[Array, Array]:
        del references
        return bilinear.transpose(values, cotangent / 2)

    def normalisation(
        self, bilinear: BilinearMap, values: Sequence[Array], references: Sequence[Array], cotangent: Array
    ) -> tuple[Array, Array]:
        del references
        of_left, of_right = bilinear.transpose(values, cotangent)
        return (jnp.zeros_like(of_left), of_right) if bilinear.statistic == 0 else (of_left, jnp.zeros_like(of_right))

    def softmax(self, softmax: Softmax, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        return softmax.exact(x, x, cotangent)


@dataclass(frozen=True)
class EpsilonLRP(LayerwiseRelevance):
    r"""LRP's epsilon rule (Bach et al. 2015, eq. 58), for a linear map with pre-activation :math:`z = W x + b`:

    .. math:: R_i = \sum_j \frac{x_i w_{ij}}{z_j + \epsilon \operatorname{sign}(z_j)} R_j

    The stabiliser `epsilon`, and the biases, absorb their share. In the limit of small `epsilon` it is the z-rule; for
    ReLU networks that is the gradient times the input.

    >>> import jax.numpy as jnp, jaxlift
    >>> W, b, x = jnp.array([[2.0], [1.0]]), jnp.array([[1.0]]), jnp.array([[1.0, -1.0]])
    >>> jaxlift.attribute(lambda x: x @ W + b, rule=jaxlift.EpsilonLRP(0.5))(x)  # z is 2, its relevance too
    Array([[ 1.6, -0.8]], dtype=float32)

    Attributes:
        epsilon: the stabiliser, 0 or more.
    """

    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        _check(self.epsilon >= 0, f"{type(self).__name__}(epsilon={self.epsilon!r})", "epsilon must be 0 or more")

    def linear(self, linear: LinearMap, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        z = linear(x) + linear.bias
        return linear.transpose(x, cotangent * _ratio(z, z + where(z >= 0, self.epsilon, -self.epsilon)))


@dataclass(frozen=True)
class AttnLRP(EpsilonLRP):
    r"""LRP for transformers (Achtibat et al. 2024, arXiv 2402.05602).

    Linear maps have the epsilon rule (eq. 8 there), and

    - attention's matrix products, and gates, the uniform rule: half to each operand (eq. 15),
    - softmax its Taylor expansion: :math:`R_i = x_i (R_i - s_i \sum_j R_j)` (eq. 13),
    - LayerNorm and RMSNorm the identity rule: the statistic is held constant (eq. 17),
    - activations the identity rule, :math:`c_x = c_y f(x) / x` (eq. 9).

    All but `epsilon` it has in common with the other rules of LRP here, so that other linear rules can take its place
    in some layers (`jaxlift.PerLayer`), as the gamma rule does in vision transformers.

    >>> import jax.numpy as jnp, jaxlift
    >>> x = jnp.array([[3.0, 2.0]])
    >>> jaxlift.attribute(lambda x: x[:, :1] * x[:, 1:], rule="attn_lrp")(x)
    Array([[3., 3.]], dtype=float32)

    Attributes:
        epsilon: the stabiliser, 0 or more.
    """

    epsilon: float = 1e-6


@dataclass(frozen=True)
class GammaLRP(LayerwiseRelevance):
    r"""LRP's gamma rule, which favours positive contributions (Montavon et al. 2019), in its generalised form.

    With the contributions :math:`z_{ij} = x_i w_{ij}`, their positive and negative parts, and those of the bias,

    .. math::
        R_i = \sum_{j: z_j > 0} \frac{z_{ij} + \gamma z_{ij}^+}{z_j + \gamma \sum_i z_{ij}^+} R_j
            + \sum_{j: z_j < 0} \frac{z_{ij} + \gamma z_{ij}^-}{z_j + \gamma \sum_i z_{ij}^-} R_j

    which for inputs and pre-activations that aren't negative is Montavon's, with weights :math:`w + \gamma w^+`.

    >>> import jax.numpy as jnp, jaxlift
    >>> W, x = jnp.array([[2.0], [1.0]]), jnp.array([[1.0, -1.0]])
    >>> jaxlift.attribute(lambda x: x @ W, rule=jaxlift.GammaLRP(0.5))(x)  # (3 - 1) of 1, where it was (2 - 1)
    Array([[ 1.5, -0.5]], dtype=float32)

    Attributes:
        gamma: how much positive contributions are favoured, 0 or more.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        _check(self.gamma >= 0, f"GammaLRP(gamma={self.gamma!r})", "gamma must be 0 or more")

    def linear(self, linear: LinearMap, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        positive, negative = _contributions(linear, x)
        z = linear(x) + linear.bias
        is_positive = z >= 0
        plain = cotangent * _ratio(z, z + self.gamma * where(is_positive, positive, negative))
        favoured = (1 + self.gamma) * plain
        return _pulled(linear, x, where(is_positive, favoured, plain), where(is_positive, plain, favoured))


@dataclass(frozen=True)
class AlphaBetaLRP(LayerwiseRelevance):
    r"""LRP's alpha-beta rule (Bach et al. 2015, eq. 60), with :math:`\alpha - \beta = 1`:

    .. math:: R_i = \sum_j \left( \alpha \frac{z_{ij}^+}{z_j^+} - \beta \frac{z_{ij}^-}{z_j^-} \right) R_j

    where :math:`z_{ij} = x_i w_{ij}`, and :math:`z_j^+` is the sum of the positive contributions, that of the bias
    included, :math:`z_j^-` of the negative ones. Where a sum is 0 it has nothing to divide: its term is lost.

    >>> import jax.numpy as jnp, jaxlift
    >>> W, x = jnp.array([[2.0], [1.0]]), jnp.array([[1.0, -1.0]])
    >>> jaxlift.attribute(lambda x: x @ W, rule=jaxlift.AlphaBetaLRP(2, 1))(x)
    Array([[ 2., -1.]], dtype=float32)

    Attributes:
        alpha: the weight of positive contributions, 1 or more.
        beta: the weight of negative contributions, 0 or more.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        _check(
            self.alpha >= 1 and self.beta >= 0 and abs(self.alpha - self.beta - 1) <= 1e-6,
            f"{type(self).__name__}(alpha={self.alpha!r}, beta={self.beta!r})",
            "alpha - beta must be 1, and beta 0 or more, for relevance to be conserved",
        )

    def linear(self, linear: LinearMap, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        positive, negative = _contributions(linear, x)
        relevance = cotangent * (linear(x) + linear.bias)
        of_positive = where(positive == 0, 0, self.alpha * relevance / where(positive == 0, 1, positive))
        of_negative = where(negative == 0, 0, -self.beta * relevance / where(negative == 0, 1, negative))
        return _pulled(linear, x, of_positive, of_negative)


@dataclass(frozen=True)
class ZPlusLRP(AlphaBetaLRP):
    r"""LRP's z+ rule (Montavon et al. 2017, arXiv 1512.02479): positive contributions alone, alpha 1 and beta 0.

    .. math:: R_i = \sum_j \frac{(x_i w_{ij})^+}{\sum_i (x_i w_{ij})^+ + b_j^+} R_j

    >>> import jax.numpy as jnp, jaxlift
    >>> W, x = jnp.array([[2.0], [1.0]]), jnp.array([[1.0, 2.0]])
    >>> jaxlift.attribute(lambda x: x @ W, rule="z_plus_lrp")(x)
    Array([[2., 2.]], dtype=float32)
    """

    alpha: float = field(default=1.0, init=False)
    beta: float = field(default=0.0, init=False)


def _check(holds: bool, given: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{given}: {expected}.")


def _ratio(above: Array, below: Array) -> Array:
    """`above / below`, and 1 where there is nothing to divide by."""
    return where(below == 0, 1, above / where(below == 0, 1, below))


def _signed(linear: LinearMap) -> tuple[LinearMap, LinearMap]:
    """The map with its positive weights, and with its negative ones."""
    return linear.with_weights(jnp.maximum(linear.weights, 0)), linear.with_weights(jnp.minimum(linear.weights, 0))


def _contributions(linear: LinearMap, x: Array) -> tuple[Array, Array]:
    """The sums of the positive and of the negative contributions `x_i w_ij`, that of the bias included."""
    plus, minus = _signed(linear)
    above, below, bias = jnp.maximum(x, 0), jnp.minimum(x, 0), jnp.asarray(linear.bias)
    return plus(above) + minus(below) + jnp.maximum(bias, 0), plus(below) + minus(above) + jnp.minimum(bias, 0)


def _pulled(linear: LinearMap, x: Array, of_positive: Array, of_negative: Array) -> Array:
    """The cotangent of `x` for those of the sums of the positive and of the negative contributions."""
    plus, minus = _signed(linear)
    of_above = plus.transpose(x, of_positive) + minus.transpose(x, of_negative)
    of_below = minus.transpose(x, of_positive) + plus.transpose(x, of_negative)
    return where(x >= 0, of_above, of_below)


NAMED["epsilon_lrp"] = EpsilonLRP()
NAMED["gamma_lrp"] = GammaLRP()
NAMED["alpha_beta_lrp"] = AlphaBetaLRP()
NAMED["z_plus_lrp"] = ZPlusLRP()
NAMED["attn_lrp"] = AttnLRP()
