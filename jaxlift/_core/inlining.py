"""Evaluation of a jaxpr with selected calls inlined, and selected primitives replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import jax
import jax.core

from jaxlift._core import versions
from jaxlift._core.versions import Jaxpr, JaxprEqn, Var

Instead = Mapping[versions.Primitive, Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]]


def is_layer(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call of something that multiplies matrices or convolves."""
    return eqn.primitive in versions.JIT and versions.has_any(eqn.params["jaxpr"], versions.PRODUCTS)


def evaluate_inlined(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    is_inlined: Callable[[JaxprEqn], bool],
    instead: Instead = MappingProxyType({}),
) -> list[Any]:
    """The outputs of a jaxpr.

    Traced, it gives a jaxpr in which calls are replaced by the equations of what they call.

    Args:
        is_inlined: which calls.
        instead: what to evaluate in the place of some primitives' equations.
    """
    values: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, versions.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        if is_inlined(eqn) or eqn.primitive in instead:
            scope, operands = str(eqn.source_info.name_stack), [read(atom) for atom in eqn.invars]
            with jax.named_scope(scope) if scope else nullcontext():
                if eqn.primitive in instead:
                    outputs = instead[eqn.primitive](eqn, operands)
                else:
                    outputs = evaluate_inlined(*versions.inner_jaxpr(eqn), operands, is_inlined, instead)
        else:
            # JAX's own evaluation keeps the lines of the user's code and the name scopes.
            operands = versions.variables(eqn.invars)
            alone = jaxpr.replace(constvars=[], invars=operands, eqns=[eqn], outvars=eqn.outvars)
            outputs = jax.core.eval_jaxpr(alone, [], *map(read, operands))
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
