"""Rules: how a change of the input passes a pointwise nonlinearity, and which rule holds where.

A rule is a value, passed as ``rule=`` by itself or by its name in snake case. To write your own, derive from `Rule` and
give its multiplier:

>>> import jax, jax.numpy as jnp, jaxlift
>>> class HalfGradient(jaxlift.Rule):
...     def multiplier(self, f, x, r):
...         return 0.5 * f.derivative(x)
>>> (_, pullback) = jaxlift.vjp(jnp.tanh, 0.0, 1.0, rule=HalfGradient())
>>> float(pullback(1.0))
0.5
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import difference, where
from jaxlift._pointwise.function import PointwiseFunction

__all__ = [
    "Deconvnet",
    "EpsilonLRP",
    "Gradient",
    "GuidedBackprop",
    "PerLayer",
    "Place",
    "Rescale",
    "RevealCancel",
    "Rule",
    "as_rule",
]

Factor = Array | float


@dataclass(frozen=True)
class Place:
    """Where in the program a nonlinearity stands, for the choice of a rule.

    Attributes:
        function: the nonlinearity.
        fed_by: the linear maps that feed it, the nearest on each path: a subset of ``{"dense", "conv"}``.
        scope: the name scopes around it (`jax.named_scope`, Flax module names), joined by ``/``.
    """

    function: PointwiseFunction
    fed_by: frozenset[str]
    scope: str


class Rule:
    """How a change passes a pointwise nonlinearity `f`. Derive from it and define `multiplier`, or `pull`, or `parts`.

    Attributes:
        needs_reference: whether the rule compares the input with a reference at all.
        needs_variation: whether the rule tells positive from negative parts of a difference. Then `parts` is asked in
            place of `multiplier`, and the variation is carried through the program, N * R of it.
    """

    needs_reference: bool = True
    needs_variation: bool = False

    def at(self, place: Place) -> Rule:
        """The rule that holds at a place of the program: this one, unless a subclass chooses."""
        del place
        return self

    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        """What a unit of difference at the input of `f` contributes at its output.

        Elementwise: shapes of `x` and `r`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define multiplier(f, x, r), pull or parts")

    def pull(self, f: PointwiseFunction, x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangent at the input of `f` for one at its output: the multiplier times it, unless a subclass knows
        better.
        """
        return cotangent * self.multiplier(f, x, r)

    def parts(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Factor = 1.0, minus: Factor = 1.0
    ) -> tuple[Array, Array]:
        """The multipliers of the positive and the negative part of the difference, each times a factor.

        The parts are `D+ = (x - r + a) / 2` and `D- = (x - r - a) / 2`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has needs_variation: it must define parts(f, x, r, a, plus, minus)"
        )

    def variation(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> Array:
        """The positive less the negative part of the change of `f`, `m+ D+ - m- D-`."""
        d = difference(x, r)
        plus, minus = self.parts(f, x, r, a)
        return (plus * (d + a) - minus * (d - a)) / 2


@dataclass(frozen=True)
class Rescale(Rule):
    r"""The Rescale rule: one multiplier, the secant (paper, section 3.5.2).

    .. math:: m = \frac{f(x) - f(r)}{x - r}, \qquad \Delta y^+ = m \Delta x^+, \quad \Delta y^- = m \Delta x^-
    """

    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        return f.secant(x, r)

    def pull(self, f: PointwiseFunction, x: Array, r: Array, cotangent: Array) -> Array:
        return f.secant(x, r, cotangent)


@dataclass(frozen=True)
class RevealCancel(Rule):
    r"""The RevealCancel rule: positive and negative parts apart (paper, section 3.5.3).

    Each part's effect is the mean of its effects before and after the other part: the Shapley value of the two,

    .. math::
        \Delta y^+ &= \tfrac12 [f(r + \Delta x^+) - f(r)] + \tfrac12 [f(r + \Delta x^- + \Delta x^+) - f(r + \Delta
        x^-)] \\ \Delta y^- &= \tfrac12 [f(r + \Delta x^-) - f(r)] + \tfrac12 [f(r + \Delta x^+ + \Delta x^-) - f(r +
        \Delta x^+)]

    so each multiplier is the mean of two secants, and where a part is 0 the mean of two derivatives.

    It is a rule for activations, which it evaluates at points that the network never visits. `exp`, `log`, powers,
    roots and reciprocals, the stuff of normalisations, may be undefined or vast there: they take Rescale.
    """

    needs_variation = True

    def at(self, place: Place) -> Rule:
        return self if place.function.is_activation else Rescale()

    def parts(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Factor = 1.0, minus: Factor = 1.0
    ) -> tuple[Array, Array]:
        up, down, visited = self._ends(f, x, r, a)
        at_x, at_r = f.ends(x, r, with_rounding=True)
        at_up = f.sample(where(visited, up, x), with_rounding=False)
        at_down = f.sample(where(visited, down, r), with_rounding=False)
        # A part before the other and after it; Rescale where these can't be had.
        return (
            f.mean_secant([(at_up, at_r), (at_x, at_down)], plus),
            f.mean_secant([(at_down.if_(visited, at_x), at_r), (at_x, at_up.if_(visited, at_r))], minus),
        )

    def variation(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> Array:
        up, down, visited = self._ends(f, x, r, a)
        parts = f(up) - f(down)  # the difference of the two formulas above
        return parts if f.is_total else where(visited, parts, f.secant(x, r) * a)

    @staticmethod
    def _ends(f: PointwiseFunction, x: Array, r: Array, a: Array) -> tuple[Array, Array, Array | bool]:
        """The reference moved by one part, by the other, and whether `f` is defined at both.

        If `f` may have a step there, it is the input to the last bit where it is moved by all of the difference but for
        rounding, and the reference to the last bit (the sign of a 0 included) where it is moved by no more than that.
        """
        d = difference(x, r)
        plus, minus = (d + a) / 2, (d - a) / 2
        up, down = r + plus, r + minus
        if not f.is_continuous:
            rounding = 8 * float(jnp.finfo(d.dtype).eps) * jnp.abs(d)
            all_up, all_down = jnp.abs(minus) <= rounding, jnp.abs(plus) <= rounding
            up = where(all_up, x, where(all_down, r, up))
            down = where(all_down, x, where(all_up, r, down))
        return up, down, True if f.is_total else jnp.isfinite(f(up)) & jnp.isfinite(f(down))


@dataclass(frozen=True)
class Gradient(Rule):
    """The derivative at the input: gradients, and times the difference from the reference, gradient times input."""

    needs_reference = False

    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        del r
        return f.derivative(x)


@dataclass(frozen=True)
class GuidedBackprop(Gradient):
    """Derivatives, but of activations only positive cotangents (Springenberg et al. 2015, arXiv 1412.6806).

    At a ReLU that is `max(ct, 0) 1{x > 0}`. Other activations pass `max(ct, 0) f'(x)`; what is no activation, such as
    the square root of a normalisation, its derivative.
    """

    def pull(self, f: PointwiseFunction, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        return (jnp.maximum(cotangent, 0) if f.is_activation else cotangent) * f.derivative(x)


@dataclass(frozen=True)
class Deconvnet(GuidedBackprop):
    """Positive cotangents at ReLUs, on or off (Zeiler and Fergus 2014, arXiv 1311.2901, section 2.1).

    The method is for ReLUs. Elsewhere it is guided backpropagation.
    """

    def pull(self, f: PointwiseFunction, x: Array, r: Array, cotangent: Array) -> Array:
        return jnp.maximum(cotangent, 0) if f.is_relu else super().pull(f, x, r, cotangent)


@dataclass(frozen=True)
class EpsilonLRP(Rule):
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


@dataclass(frozen=True, init=False)
class PerLayer(Rule):
    """A rule for each place: by name scope, or else by the linear map that feeds the nonlinearity.

    >>> import jaxlift
    >>> rule = jaxlift.PerLayer(dense="revealcancel", conv="rescale", scopes={"*/Head_0/*": "rescale"})

    Attributes:
        dense: the rule after matrix products (`dot_general`).
        conv: the rule after convolutions.
        default: the rule where neither feeds the nonlinearity, or both do.
        scopes: patterns of name scopes, as in `fnmatch`, each with its rule. The first that matches holds.
    """

    dense: Rule
    conv: Rule
    default: Rule
    scopes: tuple[tuple[str, Rule], ...]

    def __init__(
        self,
        *,
        dense: Rule | str = "rescale",
        conv: Rule | str = "rescale",
        default: Rule | str = "rescale",
        scopes: Mapping[str, Rule | str] | None = None,
    ) -> None:
        by_scope = tuple((pattern, as_rule(rule)) for pattern, rule in (scopes or {}).items())
        choices = [as_rule(dense), as_rule(conv), as_rule(default), *(rule for _, rule in by_scope)]
        # Rules are immutable, so that they can be static arguments of jax.jit.
        for name, value in {
            **dict(zip(("dense", "conv", "default"), choices, strict=False)),
            "scopes": by_scope,
            "needs_reference": any(rule.needs_reference for rule in choices),
            "needs_variation": any(rule.needs_variation for rule in choices),
        }.items():
            object.__setattr__(self, name, value)

    def at(self, place: Place) -> Rule:
        by_scope = [rule for pattern, rule in self.scopes if fnmatch.fnmatchcase(place.scope, pattern)]
        by_feed = {frozenset({"dense"}): self.dense, frozenset({"conv"}): self.conv}
        return (*by_scope, by_feed.get(place.fed_by, self.default))[0].at(place)


def as_rule(rule: Rule | str) -> Rule:
    """The rule of a name; a rule is returned as it is."""
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule]
    names = ", ".join(repr(name) for name in RULES)
    raise ValueError(
        f"rule={rule!r} is not a rule: give one of {names}, or an object of a class derived from jaxlift.Rule."
    )


RULES: dict[str, Rule] = {"rescale": Rescale(), "revealcancel": RevealCancel()}
RULES["genomics_default"] = PerLayer(dense="revealcancel", conv="rescale")  # the original implementation's
RULES |= {
    "gradient": Gradient(),
    "guided_backprop": GuidedBackprop(),
    "deconvnet": Deconvnet(),
    "epsilon_lrp": EpsilonLRP(),
}
