"""Rules that ask what an infinitesimal change would do: the gradient, guided backpropagation, deconvnet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxlift._pointwise.function import PointwiseFunction
from jaxlift.rules.families import BilinearMap, Elementwise, Maximum, Softmax
from jaxlift.rules.rule import NAMED, Rule, derivative_at_the_input


@dataclass(frozen=True)
class Gradient(Rule):
    """The derivative at the input: gradients, and times the difference from the reference, gradient times input.

    By itself it is `jax.vjp`, bit for bit. Its methods are for places that `PerLayer` chooses it for, beside rules that
    compare with a reference; and a rule without a reference derives from it, and overrides what it is about.
    """

    needs_reference = False

    @derivative_at_the_input
    def multiplier(self, f: PointwiseFunction, x: Array, r: Array) -> Array:
        del r
        return f.derivative(x)

    @derivative_at_the_input
    def elementwise(self, g: Elementwise, values: Sequence[Any], references: Sequence[Any]) -> list[Array]:
        del references
        return g.derivatives(values)

    @derivative_at_the_input
    def bilinear(
        self, bilinear: BilinearMap, values: Sequence[Array], references: Sequence[Array], cotangent: Array
    ) -> tuple[Array, Array]:
        del references
        return bilinear.transpose(values, cotangent)

    @derivative_at_the_input
    def maximum(self, of: Maximum, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        return of.shares(x) * cotangent

    @derivative_at_the_input
    def softmax(self, softmax: Softmax, x: Array, r: Array, cotangent: Array) -> Array:
        del r
        return softmax.exact(x, x, cotangent)


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


NAMED["gradient"] = Gradient()
NAMED["guided_backprop"] = GuidedBackprop()
NAMED["deconvnet"] = Deconvnet()
