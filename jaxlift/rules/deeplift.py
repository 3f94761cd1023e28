"""DeepLIFT's rules: Rescale, RevealCancel, and a choice of rule for each layer (Shrikumar et al. 2017, "the paper")."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import difference, is_finite, where
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.rules.families import Maximum, Place
from jaxlift.rules.rule import NAMED, Rule, as_rule, of_all_scopes


@dataclass(frozen=True)
class Rescale(Rule):
    r"""The Rescale rule: one multiplier, the secant (paper, section 3.5.2).

    .. math:: m = \frac{f(x) - f(r)}{x - r}, \qquad \Delta y^+ = m \Delta x^+, \quad \Delta y^- = m \Delta x^-
    """


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

    @of_all_scopes
    def at(self, place: Place) -> Rule:
        return self if place.function is None or place.function.is_activation else Rescale()

    def parts(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> tuple[Array, Array]:
        return self._parts_times(f, x, r, a, 1.0, 1.0)

    def pull_parts(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Array, minus: Array
    ) -> tuple[Array, Array]:
        if type(self).parts is not RevealCancel.parts:
            return super().pull_parts(f, x, r, a, plus, minus)  # a subclass says what the parts' multipliers are
        return self._parts_times(f, x, r, a, plus, minus)

    def _parts_times(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Array | float, minus: Array | float
    ) -> tuple[Array, Array]:
        """The parts' multipliers, each times a factor, which comes before a secant divides."""
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
        return up, down, True if f.is_total else is_finite(f(up)) & is_finite(f(down))


@dataclass(frozen=True, init=False)
class OriginalMaxPooling(Rule):
    """Another rule, but for maxima, whose change goes to the maximum of the input, as in the original implementation.

    Where the reference's maximum is elsewhere, the sum isn't kept.

    >>> import jax.numpy as jnp, jaxlift
    >>> x, reference = jnp.array([3.0, 2.0]), jnp.array([0.0, 1.0])
    >>> _, pullback = jaxlift.vjp(jnp.max, x, reference, rule=jaxlift.OriginalMaxPooling("rescale"))
    >>> pullback(jnp.ones(()))
    Array([1., 0.], dtype=float32)

    Attributes:
        rule: the rule for all else.
    """

    rule: Rule

    def __init__(self, rule: Rule | str = "rescale") -> None:
        object.__setattr__(self, "rule", as_rule(rule))
        object.__setattr__(self, "needs_reference", self.rule.needs_reference)
        object.__setattr__(self, "needs_variation", self.rule.needs_variation)

    @property
    def families(self) -> frozenset[str]:
        return self.rule.families | {"maximum"}

    @property
    def reads_scopes(self) -> bool:
        return self.rule.reads_scopes

    def at(self, place: Place) -> Rule:
        return self if place.family == "maximum" else self.rule.at(place)

    def maximum(self, of: Maximum, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        return where(of.first(x), cotangent, 0)


Chooses = Callable[[Place], bool]


@dataclass(frozen=True, init=False)
class PerLayer(Rule):
    """A rule for each place of the program: by a predicate, by name scope, or by the linear map that feeds it.

    A rule chosen for a place holds for all families there, linear maps included, which count as fed by their own kind.

    >>> import jaxlift
    >>> rule = jaxlift.PerLayer(dense="revealcancel", conv="rescale", scopes={"*/Head_0/*": "rescale"})
    >>> composite = jaxlift.PerLayer(
    ...     conv=jaxlift.GammaLRP(0.25), dense="epsilon_lrp", default="epsilon_lrp",
    ...     where=[(lambda place: place.family == "maximum", "gradient")],
    ... )

    Attributes:
        dense: the rule after matrix products (`dot_general`), and of these.
        conv: the rule after convolutions, and of these.
        default: the rule where neither feeds the place, or both do.
        scopes: patterns of name scopes, as in `fnmatch`, each with its rule. The first that matches holds, for what is
            computed inside of the scope: that of a linear layer has its product alone, and the activation after it is
            in the scope of what calls both. Linen's and Haiku's modules open a scope with their name; for NNX modules
            `jaxlift.scoped` gives a copy that does, and anywhere else `jax.named_scope` does. A pattern that matches
            nothing gets a warning.
        where: predicates, functions of a `jaxlift.Place`, each with its rule. The first that holds comes before all.
    """

    dense: Rule
    conv: Rule
    default: Rule
    scopes: tuple[tuple[str, Rule], ...]
    where: tuple[tuple[Chooses, Rule], ...]

    def __init__(
        self,
        *,
        dense: Rule | str = "rescale",
        conv: Rule | str = "rescale",
        default: Rule | str = "rescale",
        scopes: Mapping[str, Rule | str] | None = None,
        where: Sequence[tuple[Chooses, Rule | str]] = (),
    ) -> None:
        # Rules are immutable, so that they can be static arguments of jax.jit.
        chosen: dict[str, Any] = {"dense": as_rule(dense), "conv": as_rule(conv), "default": as_rule(default)}
        chosen["scopes"] = tuple((pattern, as_rule(rule)) for pattern, rule in (scopes or {}).items())
        chosen["where"] = tuple((predicate, as_rule(rule)) for predicate, rule in where)
        for name, value in chosen.items():
            object.__setattr__(self, name, value)
        for name in ("needs_reference", "needs_variation"):
            object.__setattr__(self, name, any(getattr(rule, name) for rule in self.choices))

    @property
    def choices(self) -> list[Rule]:
        """All rules that may be chosen."""
        return [self.dense, self.conv, self.default, *(rule for _, rule in (*self.scopes, *self.where))]

    @property
    def families(self) -> frozenset[str]:
        """Those of the rules to choose from; and linear maps, which leave their kind for those that they feed."""
        return frozenset({"linear"}).union(*(rule.families for rule in self.choices))

    @property
    def reads_scopes(self) -> bool:
        return bool(self.scopes or self.where) or any(rule.reads_scopes for rule in self.choices)

    def unmatched(self, scopes: Collection[str]) -> list[str]:
        return [
            pattern for pattern, _ in self.scopes if not any(fnmatch.fnmatchcase(scope, pattern) for scope in scopes)
        ]

    def at(self, place: Place) -> Rule:
        chosen = [rule for predicate, rule in self.where if predicate(place)]
        chosen += [rule for pattern, rule in self.scopes if fnmatch.fnmatchcase(place.scope, pattern)]
        by_feed = {frozenset({"dense"}): self.dense, frozenset({"conv"}): self.conv}
        return (*chosen, by_feed.get(place.fed_by, self.default))[0].at(place)


NAMED["rescale"] = Rescale()
NAMED["revealcancel"] = RevealCancel()
NAMED["genomics_default"] = PerLayer(dense="revealcancel", conv="rescale")  # the original implementation's
