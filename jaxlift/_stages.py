"""Functions of two arguments in stages, and over many of both: what needs one of them alone is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, Var
from jaxlift._opening import evaluate_opened

NEITHER, FIRST, SECOND, BOTH = range(4)  # bits


@dataclass(frozen=True)
class Stages:
    """A function `f(first, second)`, as `joint(on_first(first), on_second(second))`."""

    on_first: Callable[[Any], Any]
    on_second: Callable[[Any], Any]
    joint: Callable[[Any, Any], Any]


def staged(fun: Callable[[Any, Any], Any], first: Any, second: Any) -> Stages:
    """Split a function by which of its arguments each of its operations needs.

    What needs neither is computed here. Layers that are jitted and called in several places are split each for itself;
    operations that hold a program of their own, such as loops, are not.

    Args:
        fun: a function of two pytrees of arrays.
        first, second: arguments, or their shapes.
    """
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(first, second)
    if any(map(_is_layer, closed.jaxpr.eqns)):
        leaves = jax.tree.leaves((first, second))
        closed = jax.make_jaxpr(lambda leaves: evaluate_opened(closed.jaxpr, closed.consts, leaves, _is_layer))(leaves)
    jaxpr, count = closed.jaxpr, len(jax.tree.leaves(first))
    needs: dict[Var, int] = dict.fromkeys(jaxpr.constvars, NEITHER)
    needs |= {var: FIRST if i < count else SECOND for i, var in enumerate(jaxpr.invars)}
    eqns: dict[int, list[JaxprEqn]] = {stage: [] for stage in range(4)}
    for eqn in jaxpr.eqns:
        stage = BOTH if eqn.effects else NEITHER
        for var in _compat.variables(eqn.invars):
            stage |= needs[var]
        eqns[stage].append(eqn)
        needs |= dict.fromkeys(eqn.outvars, stage)

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
    structure = jax.tree.structure(shape)
    return Stages(
        lambda first: on_first(jax.tree.leaves(first)),
        lambda second: on_second(jax.tree.leaves(second)),
        lambda first, second: jax.tree.unflatten(structure, joint([*first, *second])),
    )


def _is_layer(eqn: JaxprEqn) -> bool:
    return eqn.primitive in _compat.JIT and _compat.has_product(eqn.params["jaxpr"])


def _used(needs: dict[Var, int], stage: int, by: Sequence[Sequence[JaxprEqn]], outputs: Sequence[Any]) -> list[Var]:
    """The variables of a stage that later stages use, or that are outputs."""
    used = [var for eqns in by for eqn in eqns for var in _compat.variables(eqn.invars)] + _compat.variables(outputs)
    return list(dict.fromkeys(var for var in used if needs[var] == stage))


def map_over(fun: Callable[[Any], Any], xs: Any, size: int | None) -> Any:
    """`fun` over the leading axis of `xs`, of which so many are taken at once; all, if None."""
    if size is None:
        return jax.vmap(fun)(xs)
    chunks, rest = _chunks(xs, size)
    parts = []
    if chunks is not None:
        outputs = lax.map(jax.vmap(fun), chunks)
        parts.append(jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:]), outputs))
    if rest is not None:
        parts.append(jax.vmap(fun)(rest))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def mean_over(fun: Callable[[Any], Any], xs: Any, size: int | None) -> Any:
    """The mean of `map_over`, without the results that it is the mean of if they are taken in turn."""
    if size is None:
        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(fun)(xs))

    def summed(chunk: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.sum(0, dtype=_wide(leaf.dtype)), jax.vmap(fun)(chunk))

    one = jax.eval_shape(fun, shape_of_one(xs))
    chunks, rest = _chunks(xs, size)
    totals = [] if chunks is None else [sum_in_turn(summed, chunks, one)]
    totals += [] if rest is None else [summed(rest)]
    count = len(jax.tree.leaves(xs)[0])
    return divided(reduce(partial(jax.tree.map, jnp.add), totals), count, one)


def sum_in_turn(fun: Callable[[Any], Any], xs: Any, like: Any) -> Any:
    """The sum of `fun` over the leading axis of `xs`. One result is held at a time, and low precision summed in more.

    Args:
        like: the shapes of the result, and the dtypes of what is summed.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, _wide(leaf.dtype)), like)
    total, _ = lax.scan(lambda total, x: (jax.tree.map(jnp.add, total, fun(x)), None), zeros, xs)
    return total


def divided(total: Any, count: int, like: Any) -> Any:
    """The mean that belongs to a sum, in the dtypes of what was summed."""
    return jax.tree.map(lambda leaf, one: (leaf / count).astype(one.dtype), total, like)


def _wide(dtype: Any) -> Any:
    """What numbers of this dtype are summed in."""
    return jnp.promote_types(dtype, jnp.float32)


def _chunks(xs: Any, size: int) -> tuple[Any, Any]:
    """Chunks of so many rows, on a new leading axis, and the rows that are left; None where there are none.

    Rows of a chunk are not neighbours: where the rows are spread over devices, so is each chunk.
    """
    count = len(jax.tree.leaves(xs)[0])
    whole = count - count % size
    chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(size, -1, *leaf.shape[1:]).swapaxes(0, 1), xs)
    return chunks if whole else None, jax.tree.map(lambda leaf: leaf[whole:], xs) if whole < count else None


def shape_of_one(xs: Any) -> Any:
    """The shapes and dtypes of one row."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
