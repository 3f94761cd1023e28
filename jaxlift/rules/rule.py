"""`Rule`: how a change passes each family of maps, with DeepLIFT's answers for all that a rule leaves open.

A rule is a value, passed as ``rule=`` by itself or by its name in snake case. To write your own, derive from `Rule` and
define what is different; the families and what they are given are in `jaxlift.rules.families`.

>>> import jax, jax.numpy as jnp, jaxlift
>>> class HalfGradient(jaxlift.Rule):
...     def multiplier(self, f, x, r):
...         return 0.5 * f.derivative(x)
>>> (_, pullback) = jaxlift.vjp(jnp.tanh, 0.0, 1.0, rule=HalfGradient())
>>> float(pullback(1.0))
0.5
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import product
from math import comb
from typing import Any, TypeVar, get_args

import jax.numpy as jnp
from jax import Array

from jaxlift._core.differences import difference, midpoint, slope_between, summed_to, where, winners_share
from jaxlift._core.values import Node, carrier_dtype, is_inexact
from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.rules.families import BilinearMap, Elementwise, Family, LinearMap, Maximum, Place, Softmax

Method = TypeVar("Method", bound=Callable[..., Any])

# The methods by which a rule may own a family.
METHODS: dict[str, tuple[str, ...]] = {name: (name,) for name in get_args(Family)}
METHODS["pointwise"] = ("multiplier", "pull", "parts", "pull_parts")
METHODS["elementwise"] = ("elementwise", "pull_elementwise")


def derivative_at_the_input(method: Method) -> Method:
    """Mark an answer that is JAX's own derivative where input and reference are the same.

    A rule without a reference intercepts the families that it answers in another way, and no others.
    """
    method.is_derivative_at_the_input = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


def of_all_scopes(method: Method) -> Method:
    """Mark a choice of rules that doesn't read the place's name scope."""
    method.is_of_all_scopes = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


class Rule:
    """How a change passes each family of maps. Derive from it and define what is different: DeepLIFT does the rest.

    Most rules define `multiplier` (or `pull`, or `parts`), for pointwise nonlinearities. What a rule says of the other
    families takes the values of the explained input and of the reference, and a cotangent of the map's output, and
    returns the cotangents of its operands. For the sum to hold, cotangents times differences must keep their sum.

    Attributes:
        needs_reference: whether the rule compares the input with a reference at all. Where it doesn't, the program is
            evaluated on the input alone, the families for which it has methods of its own are intercepted, and all else
            has JAX's derivative. Methods are then called with the input for the reference.
        is_relevance: whether multipliers times the input share the output itself, as in LRP, so that a difference from
            a reference means nothing.
        needs_variation: whether the rule tells positive from negative parts of a difference. Then `parts` is asked in
            place of `multiplier`, and the variation is carried through the program, N * R of it.
        adds_squares: whether the terms of a sum make its variation by their squares, `sqrt(sum c^2)`, in place of their
            magnitudes, `sum |c|`.
    """

    needs_reference: bool = True
    is_relevance: bool = False
    needs_variation: bool = False
    adds_squares: bool = False

    @of_all_scopes
    def at(self, place: Place) -> Rule:
        """The rule that holds at a place of the program: this one, unless a subclass chooses."""
        del place
        return self

    def unmatched(self, scopes: Collection[str]) -> list[str]:
        """The patterns of name scopes that the rule chooses by, and that match none of these of a program."""
        del scopes
        return []

    @property
    def reads_scopes(self) -> bool:
        """Whether the rule may differ between name scopes. Equal blocks in different scopes, as Flax's modules open for
        each layer, are lifted once if it may not. What a subclass's own `at` reads isn't known.
        """
        return not getattr(type(self).at, "is_of_all_scopes", False)

    @property
    def families(self) -> frozenset[str]:
        """The families that the rule answers in another way than by JAX's derivative, at one point."""
        return _families_of(type(self))

    # Pointwise functions `y = f(x)`.

    @property
    def takes_secants(self) -> bool:
        """Whether the multiplier of a pointwise function is its secant, so that a function of a function may as well be
        explained as the two.
        """
        answers = {Rule.multiplier, Rule.pull}
        return not self.needs_variation and {type(self).multiplier, type(self).pull} == answers

    @derivative_at_the_input
    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        """What a unit of difference at the input of `f` contributes at its output: the secant.

        Elementwise: shapes of `x` and `r`.
        """
        return f.secant(x, r)

    @derivative_at_the_input
    def pull(self, f: PointwiseFunction, x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangent at the input of `f` for one at its output: the multiplier times it, unless a subclass knows
        better.
        """
        if type(self).multiplier is Rule.multiplier:
            return f.secant(x, r, cotangent)  # multiplies before it divides
        return cotangent * self.multiplier(f, x, r)

    @derivative_at_the_input
    def parts(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> tuple[Array, Array]:
        """The multipliers of the positive and the negative part of the difference.

        The parts are `D+ = (x - r + a) / 2` and `D- = (x - r - a) / 2`.
        """
        del a
        m = self.multiplier(f, x, r)
        return m, m

    @derivative_at_the_input
    def pull_parts(
        self, f: PointwiseFunction, x: Array, r: Array, a: Array, plus: Array, minus: Array
    ) -> tuple[Array, Array]:
        """The cotangents of both parts, for those of the parts of the output: the multipliers times them, unless a
        subclass knows better.
        """
        of_plus, of_minus = self.parts(f, x, r, a)
        return of_plus * plus, of_minus * minus

    def variation(self, f: PointwiseFunction, x: Array, r: Array, a: Array) -> Array:
        """The positive less the negative part of the change of `f`, `m+ D+ - m- D-`."""
        d = difference(x, r)
        plus, minus = self.parts(f, x, r, a)
        return (plus * (d + a) - minus * (d - a)) / 2

    # Elementwise functions of several values.

    @derivative_at_the_input
    def elementwise(self, g: Elementwise, values: Sequence[Any], references: Sequence[Any]) -> list[Array]:
        """The multiplier of each operand that varies: its Shapley value, divided by its own difference; for `"div"`,
        what `quotient` derives.

        The Shapley value is the mean of what the operand's change does over the states of the others; so their sum is
        the difference of `g`. Of quotients, which may explode at the points in between, no such point is visited.
        Products with reciprocals and inverse roots are quotients, too.
        """
        return IN_CLOSED_FORM.get(g.name, shapley_values)(g, values, references)

    @derivative_at_the_input
    def pull_elementwise(
        self, g: Elementwise, values: Sequence[Any], references: Sequence[Any], cotangent: Array
    ) -> list[Array]:
        """The cotangents of the operands that vary, for that of the output: the multipliers times it, unless a subclass
        knows better. What belongs to an operand that was repeated along axes may be summed over these already.
        """
        if type(self).elementwise is Rule.elementwise and g.name == "div":
            return pulled_quotient(g, values, references, cotangent)
        return [multiplier * cotangent for multiplier in self.elementwise(g, values, references)]

    # Linear and bilinear maps.

    @derivative_at_the_input
    def linear(self, linear: LinearMap, x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangent of `x`: differences pass as derivatives do (paper, section 3.5.1)."""
        del r
        return linear.transpose(x, cotangent)

    @derivative_at_the_input
    def bilinear(
        self, bilinear: BilinearMap, values: Sequence[Array], references: Sequence[Array], cotangent: Array
    ) -> tuple[Array, Array]:
        """The cotangents of both operands: the derivative at the midpoints. Exactly,

            B(x, z) - B(r, s) = B(x - r, (z + s) / 2) + B((x + r) / 2, z - s)

        which is the Shapley value of the two operands.
        """
        return bilinear.transpose(list(map(midpoint, values, references)), cotangent)

    @derivative_at_the_input
    def normalisation(
        self, bilinear: BilinearMap, values: Sequence[Array], references: Sequence[Array], cotangent: Array
    ) -> tuple[Array, Array]:
        """The cotangents of a value and of the statistic that it is multiplied with: a product as others are."""
        return self.bilinear(bilinear, values, references, cotangent)

    # Maxima, softmax.

    @derivative_at_the_input
    def maximum(self, of: Maximum, x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangents of the candidates: the change goes to those that made it, and those that tie share it.

        `x` and `r` are the candidates on each side, and `cotangent` is that of the maximum, with axes of length 1 in
        the place of `of.axes`. Let `c = max(y, y_ref)`. The winners of the input bring `c - y_ref`: as far as they lift
        the maximum over the reference's. The winners of the reference take `y - c`: what it cost to lower them. One of
        the two is 0, so the change goes to one side's winners, the input's where `y >= y_ref`, the reference's
        elsewhere. A winner's own difference is at least as large as the change, so its multiplier is between 0 and its
        share.
        """
        shares, shares_ref, rise = of.shares(x), of.shares(r), of.value(x) - of.value(r)
        share = where(rise >= 0, shares, shares_ref)
        # Who wins on both sides differs by the change itself.
        multiplier = where((shares > 0) & (shares_ref > 0), 1, winners_share(rise, difference(x, r)))
        return where(share > 0, cotangent * (share * multiplier), 0)

    @derivative_at_the_input
    def softmax(self, softmax: Softmax, x: Array, r: Array, cotangent: Array) -> Array:
        """The cotangent of the logits: the derivative with logarithmic means in the place of the softmax."""
        return softmax.exact(x, r, cotangent)


@cache
def _families_of(rule: type[Rule]) -> frozenset[str]:
    return frozenset(
        family
        for family, names in METHODS.items()
        if not all(hasattr(getattr(rule, name), "is_derivative_at_the_input") for name in names)
    )


def shapley_values(g: Elementwise, values: Sequence[Any], references: Sequence[Any]) -> list[Array]:
    """The Shapley value of each operand, over its difference.

    For operand `i` of `n`, each set `S` of the others that have already changed weighs `1 / (n C(n - 1, |S|))`.
    """

    def multiplier(i: int) -> Array:
        others = [k for k in g.varying if k != i]
        total = jnp.zeros(())
        for changed in product((False, True), repeat=len(others)):
            operands = dict(enumerate(values)) | {
                k: references[k] for k, c in zip(others, changed, strict=True) if not c
            }
            f = PointwiseFunction.of(Node(g.equation, tuple({**operands, i: None}.values()), ""))
            x, r = values[i], references[i]
            weight = 1 / (len(g.varying) * comb(len(others), sum(changed)))
            if is_inexact(x) and is_inexact(g.equation.outvars[0]):
                total += weight * f.mean_secant([(f.sample(x), f.sample(r))])
            else:
                total += weight * slope_between(f(x), f(r), x, r, carrier_dtype())
        return total

    return [multiplier(i) for i in g.varying]


def choice(g: Elementwise, values: Sequence[Any], references: Sequence[Any]) -> list[Array]:
    """The Shapley values of `select_n`: of which case is chosen, and of the cases together, whose share is linear.

    With `p` and `q` the choices at input and reference, the choice changes `y` by `[(x_p - x_q) + (r_p - r_q)] / 2`,
    and case `c` by `[1{p = c} + 1{q = c}] / 2` of its own difference.
    """
    (p, *x), (q, *r) = values, references

    def multiplier(position: int) -> Array:
        if position > 0:
            chosen = [(side == position - 1).astype(carrier_dtype(x[0])) for side in (p, q)]
            return (chosen[0] + chosen[1]) / 2
        (x_p, r_p), (x_q, r_q) = ([g(side, *cases) for cases in (x, r)] for side in (p, q))
        dtype = jnp.result_type(x_p.dtype, carrier_dtype())
        return (slope_between(x_p, x_q, p, q, dtype) + slope_between(r_p, r_q, p, q, dtype)) / 2

    return [multiplier(position) for position in g.varying]


def quotient(g: Elementwise, values: Sequence[Any], references: Sequence[Any]) -> list[Array]:
    r"""The multipliers of a quotient `q = a / S`, by which the divisor has its mean value while the quotient changes.

    As a product with `1 / S`, a quotient explodes where `S` is small on one side (normalised by a norm, with zeros for
    a reference): the Shapley value visits `a / S_ref`, which is a point that the program never visits, with values that
    nothing bounds. But `a = q S` is a product, too, of values that it does visit. With means over input and reference,

    .. math:: \Delta a = q_{mid} \Delta S + S_{mid} \Delta q
        \qquad \Rightarrow \qquad \Delta q = \frac{\Delta a - q_{mid} \Delta S}{S_{mid}}

    exactly. So the multipliers are `1 / S_mid` and `-q_mid / S_mid`, which at the reference are the derivatives. Where
    `S` has one sign on both sides, `|dS| <= 2 |S_mid|` and `|S_mid| >= |S| / 2`: what the divisor contributes is at
    most `2 |q_mid|`, and what the numerator does `2 |a - r| / |S|`. No difference is divided by.

    Where `S` changes its sign, its mean may be 0, between two values that aren't. There the Shapley value is taken,
    with `1/S - 1/S_ref = -(S - S_ref) / (S S_ref)`,

    .. math:: \Delta q = \frac12 \Big(\frac1S + \frac1{S_{ref}}\Big) \Delta a - \frac{a_{mid}}{S S_{ref}} \Delta S
    """
    if not is_inexact(g.equation.outvars[0]):  # quotients of integers are cut off
        return shapley_values(g, values, references)
    (x, r), (z, s) = (values[0], references[0]), g.divisors
    q = midpoint(*g.outputs)
    if g.lows[1] >= 0:
        scale = 1 / midpoint(z, s)
        return [scale, -q * scale]
    same_sign = jnp.real(jnp.sign(z) * jnp.conj(jnp.sign(s))) > 0
    # In the derivatives of the scores, what is not chosen must be finite, too.
    apart, apart_ref = where(same_sign, 1, z), where(same_sign, 1, s)
    middle = where(same_sign, midpoint(z, s), 1)
    scale = 1 / middle
    return [
        where(same_sign, scale, (1 / apart + 1 / apart_ref) / 2),
        where(same_sign, -q * scale, -midpoint(x, r) / apart / apart_ref),
    ]


def pulled_quotient(g: Elementwise, values: Sequence[Any], references: Sequence[Any], cotangent: Array) -> list[Array]:
    """The cotangents of numerator and divisor, by the multipliers of `quotient`.

    Of a norm they are sums over what it normalises, whose terms are made of the program's own values; what belongs to
    the norm alone is multiplied with the sum. So no kernel writes down the halves of values, or `1 / S_mid` repeated.
    """
    [out] = g.equation.outvars
    # In float16 the sum of two values may be no number.
    if g.lows[1] < 0 or not is_inexact(out) or jnp.finfo(g.outputs[0].dtype).maxexp < 128:
        return [multiplier * cotangent for multiplier in quotient(g, values, references)]
    scale = 1 / midpoint(*g.divisors)
    q, q_ref = g.outputs
    of_divisor = summed_to(scale.shape, q * cotangent + q_ref * cotangent)
    return [scale * cotangent, of_divisor * (scale / -2)]


IN_CLOSED_FORM = {"select_n": choice, "div": quotient}


NAMED: dict[str, Rule] = {}
"""Rules by the names that ``rule=`` takes."""


def as_rule(rule: Rule | str) -> Rule:
    """The rule of a name; a rule is returned as it is."""
    if isinstance(rule, Rule):
        if rule.needs_variation and not rule.needs_reference:
            raise ValueError(f"{rule!r} needs_variation, which is of differences: it must have needs_reference, too.")
        return rule
    if isinstance(rule, str) and rule in NAMED:
        return NAMED[rule]
    names = ", ".join(repr(name) for name in NAMED)
    near = get_close_matches(rule, NAMED, 1) if isinstance(rule, str) else []
    meant = f" Did you mean {near[0]!r}?" if near else ""
    if isinstance(rule, type) and issubclass(rule, Rule):
        meant = f" This is a class: give an object of it, {rule.__name__}()."
    raise ValueError(
        f"rule={rule!r} is not a rule: give one of {names}, or an object of a class derived from jaxlift.Rule.{meant}"
    )
