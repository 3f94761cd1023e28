"""What a step of a pointwise function does to degrees: whether the function is a line, a parabola, or two lines that
meet at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlift._core import versions
from jaxlift._core.versions import Jaxpr, JaxprEqn


def degree(eqn: JaxprEqn, degrees: Sequence[int]) -> int:
    """The degree of a step in the argument, from those of its operands: 0, 1 (affine), 2, or 3 for anything else."""
    match eqn.primitive.name, degrees:
        case (("add" | "sub" | "add_any" | "neg" | "copy"), _):
            return max(degrees)
        case (("convert_element_type" | "reduce_precision"), [of]) if _is_between_floats(eqn) and not rounds_away(eqn):
            return of
        case "mul", _:
            return min(sum(degrees), 3)
        case "div", [of, 0]:
            return of
        case ("square", [of]) | ("integer_pow", [of]) if eqn.params.get("y", 2) == 2:
            return min(2 * of, 3)
        case "select_n", [0, *cases]:
            return max(cases)
    return 3


Homogeneity = frozenset[int]
"""The `n` of 0 and 1 with `f(c x) = c^n f(x)` for all `c > 0`, both for `f = 0`."""
CONSTANT, ARGUMENT, ZERO = Homogeneity({0}), Homogeneity({1}), Homogeneity({0, 1})
RELU = versions.name_of_function(jax.nn.relu)


def homogeneity(eqn: JaxprEqn, operands: Sequence[Homogeneity]) -> Homogeneity:
    """That of a step, from those of its operands."""
    common = frozenset.intersection(*operands) if operands else CONSTANT
    match eqn.primitive.name, operands:
        case (("abs" | "neg" | "add" | "add_any" | "sub" | "max" | "min" | "copy" | "broadcast_in_dim"), _):
            return common
        case "convert_element_type", _ if common == ZERO or (_is_between_floats(eqn) and not rounds_away(eqn)):
            return common
        case (("sign" | "eq" | "ne" | "lt" | "le" | "gt" | "ge"), _) if common:
            return CONSTANT
        case "mul", [left, right]:
            return Homogeneity(i + j for i in left for j in right if i + j <= 1)
        case "div", [of, by] if 0 in by:
            return of
        case "select_n", [which, *cases] if 0 in which:
            return frozenset.intersection(*cases)
        case "jit", _ if len(eqn.outvars) == 1:
            return _homogeneity_of(versions.inner_jaxpr(eqn)[0], operands)
        case "custom_jvp_call", _ if versions.name_of_traced(versions.inner_jaxpr(eqn)[0]) == RELU:
            return operands[0]  # other functions' own derivatives may be anything
    return CONSTANT & common


def _homogeneity_of(jaxpr: Jaxpr, operands: Sequence[Homogeneity]) -> Homogeneity:
    """That of a function of one result."""
    known = dict(zip(jaxpr.invars, operands, strict=True)) | dict.fromkeys(jaxpr.constvars, CONSTANT)

    def read(atom: Any) -> Homogeneity:
        return known[atom] if not isinstance(atom, versions.Literal) else CONSTANT if atom.val else ZERO

    for eqn in jaxpr.eqns:
        known |= dict.fromkeys(eqn.outvars, homogeneity(eqn, list(map(read, eqn.invars))))
    return read(jaxpr.outvars[0])


def _is_between_floats(eqn: JaxprEqn) -> bool:
    return all(jnp.issubdtype(versions.dtype(atom), jnp.inexact) for atom in (*eqn.invars, *eqn.outvars))


def rounds_away(eqn: JaxprEqn) -> bool:
    """Whether an equation takes numbers to fewer digits: a function of them, with steps, and no error of another's."""
    match eqn.primitive.name:
        case "convert_element_type" if _is_between_floats(eqn):
            before, after = (jnp.finfo(versions.dtype(atom)) for atom in (eqn.invars[0], eqn.outvars[0]))
            return after.nmant < before.nmant or after.nexp < before.nexp
        case "reduce_precision":
            digits = jnp.finfo(versions.dtype(eqn.invars[0]))
            return eqn.params["mantissa_bits"] < digits.nmant or eqn.params["exponent_bits"] < digits.nexp
    return False
