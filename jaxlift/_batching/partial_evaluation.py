"""Functions of two arguments in stages: what needs one of them alone is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.core

from jaxlift._core import versions
from jaxlift._core.inlining import evaluate_inlined, is_layer
from jaxlift._core.interpreter import needed
from jaxlift._core.versions import Jaxpr, JaxprEqn, Var

NEITHER, FIRST, SECOND, BOTH = range(4)  # bits


@dataclass(frozen=True)
class Stages:
    """A function `f(first, second)`, as `joint(on_first(first), on_second(second))`."""

    on_first: Callable[[Any], Any]
    on_second: Callable[[Any], Any]
    joint: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Traced:
    """A function of two pytrees that was traced once, and can be called on others of such shapes."""

    jaxpr: Any
    structure: Any

    def __call__(self, first: Any, second: Any) -> Any:
        jaxpr, consts = versions.opened(self.jaxpr)
        given = jax.tree.leaves((first, second))
        # Arrays of float64 may come where JAX computes in float32, and so it was traced.
        leaves = [
            leaf if leaf.dtype == versions.dtype(var) else leaf.astype(versions.dtype(var))
            for leaf, var in zip(given, jaxpr.invars, strict=True)
        ]
        return jax.tree.unflatten(self.structure, jax.core.eval_jaxpr(jaxpr, consts, *leaves))


def traced(fun: Callable[[Any, Any], Any], first: Any, second: Any) -> Traced:
    """Trace a function for arguments of such shapes."""
    jaxpr, shape = jax.make_jaxpr(fun, return_shape=True)(first, second)
    return Traced(jaxpr, jax.tree.structure(shape))


def staged(fun: Traced, first: Any, second: Any) -> Stages:
    """Split a function by which of its arguments each of its operations needs.

    What needs neither is computed here. What is jitted and called in several places, such as layers and activations, is
    split each for itself; other operations that hold a program of their own, such as loops, are not.

    Args:
        first, second: arguments of the function, or their shapes.
    """
    closed = fun.jaxpr
    if any(map(_is_opened, closed.jaxpr.eqns)):
        leaves = jax.tree.leaves((first, second))
        closed = jax.make_jaxpr(lambda leaves: evaluate_inlined(closed.jaxpr, closed.consts, leaves, _is_opened))(
            leaves
        )
    jaxpr = closed.jaxpr
    eqns, needs = eqns_by_need(jaxpr, len(jax.tree.leaves(first)))

    def run(stage: int, inputs: Sequence[Var], outputs: Sequence[Any], consts: Sequence[Any]) -> Callable[..., Any]:
        part = jaxpr.replace(eqns=eqns[stage], constvars=constants, invars=list(inputs), outvars=list(outputs))
        return lambda values: jax.core.eval_jaxpr(part, consts, *values)

    constants = list(jaxpr.constvars)
    made = _used(needs, NEITHER, [eqns[FIRST], eqns[SECOND], eqns[BOTH]], jaxpr.outvars)
    made = [var for var in made if var not in set(constants)]
    consts = [*closed.consts, *run(NEITHER, [], made, closed.consts)([])]
    constants += made
    passed = {stage: _used(needs, stage, [eqns[BOTH]], jaxpr.outvars) for stage in (FIRST, SECOND)}
    on_first, on_second = (
        run(stage, [var for var in jaxpr.invars if needs[var] == stage], passed[stage], consts)
        for stage in (FIRST, SECOND)
    )
    joint = run(BOTH, [*passed[FIRST], *passed[SECOND]], jaxpr.outvars, consts)
    return Stages(
        lambda first: on_first(jax.tree.leaves(first)),
        lambda second: on_second(jax.tree.leaves(second)),
        lambda first, second: jax.tree.unflatten(fun.structure, joint([*first, *second])),
    )


def eqns_by_need(jaxpr: Jaxpr, count: int) -> tuple[dict[int, list[JaxprEqn]], dict[Var, int]]:
    """A jaxpr's equations by which arguments they need, and for each variable which it needs.

    Args:
        count: how many of the jaxpr's inputs are of the first argument.
    """
    needs: dict[Var, int] = dict.fromkeys(jaxpr.constvars, NEITHER)
    needs |= {var: FIRST if i < count else SECOND for i, var in enumerate(jaxpr.invars)}
    eqns: dict[int, list[JaxprEqn]] = {stage: [] for stage in range(4)}
    for eqn in jaxpr.eqns:
        stage = BOTH if eqn.effects else NEITHER
        for var in versions.variables(eqn.invars):
            stage |= needs[var]
        eqns[stage].append(eqn)
        needs |= dict.fromkeys(eqn.outvars, stage)
    return eqns, needs


def _is_opened(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call of a layer, or of something with an output that doesn't need all inputs:
    an activation takes input and reference, and its value at the input needs the input alone.
    """
    return is_layer(eqn) or (eqn.primitive in versions.JIT and _takes_too_much(eqn.params["jaxpr"].jaxpr))


def _takes_too_much(jaxpr: Jaxpr) -> bool:
    """Whether a jaxpr has an output that doesn't need all inputs."""
    for output in versions.variables(jaxpr.outvars):
        read = [var for eqn in needed(jaxpr, [output]) for var in versions.variables(eqn.invars)]
        if not {output, *read}.issuperset(jaxpr.invars):
            return True
    return False


def _used(needs: dict[Var, int], stage: int, by: Sequence[Sequence[JaxprEqn]], outputs: Sequence[Any]) -> list[Var]:
    """The variables of a stage that later stages use, or that are outputs."""
    used = [var for eqns in by for eqn in eqns for var in versions.variables(eqn.invars)] + versions.variables(outputs)
    return list(dict.fromkeys(var for var in used if needs[var] == stage))
