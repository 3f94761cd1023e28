"""Primitives that hold a jaxpr of their own and call it: looked into, whatever they were for.

`jit` changes nothing, but layers that are called in several places are lifted once for all of them. The derivative that
a `custom_jvp` or `custom_vjp` function has of its own is kept where the function is pointwise, so that its limit at the
reference is the user's; otherwise differences replace derivatives, and it isn't needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxlift._core import versions
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import evaluation_or_none, family, function_entry
from jaxlift._core.values import Masked, Packing, Pending, Value, Varying, is_hashable, is_varying, pack
from jaxlift._core.versions import Jaxpr, JaxprEqn, primitives
from jaxlift._pointwise.function import CUSTOM
from jaxlift.primitives.linear import Weighted
from jaxlift.primitives.own_derivatives import by_steps_or_own_derivative
from jaxlift.primitives.pointwise import ELEMENTWISE, becomes_complex, pointwise
from jaxlift.primitives.softmax import Total


def inlined(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of a call: what is called is evaluated in its place."""
    # JAX's own small functions are jitted too: between those, boundaries cost more than they spare.
    if interpreter.is_repeated(eqn) and versions.has_any(eqn.params["jaxpr"], versions.PRODUCTS):
        outputs = _called(interpreter, eqn, operands)
        if outputs is not None:
            return outputs
    jaxpr, consts = versions.inner_jaxpr(eqn)
    return interpreter.inside(eqn).evaluate(jaxpr, consts, operands)


def _called(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value] | None:
    """The outputs of what is called in several places: lifted and jitted once for all calls that are alike.

    None where a call is not like any other, and where sums of exponentials cross its boundary, which softmax is
    recognised by.
    """
    with_variations = interpreter.rule.needs_variation
    packing = Packing(_with_biases(interpreter, operands), with_variations)
    avals = tuple(jax.typeof(array) for array in packing.arrays)
    key = (eqn.params["jaxpr"], interpreter.scope_of(eqn), packing.key, avals)
    if not is_hashable(key) or any(map(_is_total, packing.items)):
        return None
    if key not in interpreter.lifted:
        interpreter.lifted[key] = _lifted(interpreter.afresh().inside(eqn), eqn, packing.made, packing.chosen)
    lifted, results = interpreter.lifted[key]
    arrays = lifted(packing.arrays)
    if results[-1] is None:
        return None
    made, chosen = results[-1]
    return chosen(made(arrays, packing.items))


def _lifted(inside: Interpreter, eqn: JaxprEqn, made: Any, chosen: Any) -> tuple[Callable[..., Any], list[Any]]:
    """What an equation calls as a jitted function of its operands' arrays, and what makes its outputs of the results:
    known once it was traced.
    """
    results: list[Any] = []

    def lifted(arrays: Sequence[jax.Array]) -> list[jax.Array]:
        items = made(arrays)
        outputs = _with_biases(inside, inside.afresh().evaluate(*versions.inner_jaxpr(eqn), chosen(items)))
        packing = Packing(outputs, inside.rule.needs_variation, items)
        results.append(None if any(map(_is_total, packing.items)) else (packing.made, packing.chosen))
        return packing.arrays

    lifted.__name__ = eqn.params["name"]
    return jax.jit(lifted), results


def _with_biases(interpreter: Interpreter, values: Sequence[Value]) -> list[Value]:
    """Values that are about to cross a boundary. Beyond it nothing remembers which linear map a bias is added to."""
    return [
        interpreter.settle(value) if isinstance(value, Pending) and isinstance(value.of.origin, Weighted) else value
        for value in values
    ]


def _is_total(item: Any) -> bool:
    return isinstance(item, Varying) and isinstance(item.origin, Total)


def custom_derivative(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """The evaluation of `custom_jvp` and `custom_vjp` functions: their own, if one was registered; or else they are one
    primitive if they are pointwise, and a plain call if not, or if that can't be explained, what their derivative says.
    """
    jaxpr, _ = versions.inner_jaxpr(eqn)
    if (entry := function_entry(versions.name_of_traced(jaxpr))) is not None:
        return entry.evaluate(interpreter, eqn, operands)
    varying = [is_varying(operand) for operand in operands]
    becomes = any(varies and becomes_complex(eqn, i) for i, varies in enumerate(varying))
    masked = any(isinstance(operand, Masked) for operand in operands)
    hands_on = not jaxpr.eqns  # with a derivative that may be an error, as of Equinox's `nondifferentiable`
    if _is_pointwise(jaxpr, varying) and not (becomes or masked or hands_on):
        each = [eqn] if len(eqn.outvars) == 1 else [versions.one_output(eqn, k) for k in range(len(eqn.outvars))]
        return [pointwise(interpreter, one, operands)[0] for one in each]
    return _by_steps(interpreter, eqn, operands) if interpreter.is_joint else interpreter.differentiated(eqn, operands)


_by_steps = by_steps_or_own_derivative(inlined)


def _is_pointwise(jaxpr: Jaxpr, varying: Sequence[bool]) -> bool:
    """Whether all that a jaxpr does to its varying inputs is elementwise, at the shape of its outputs."""
    shape = versions.shape(jaxpr.outvars[0])
    depends = {var for var, varies in zip(jaxpr.invars, varying, strict=True) if varies}
    for eqn in jaxpr.eqns:
        inputs = [not isinstance(atom, versions.Literal) and atom in depends for atom in eqn.invars]
        if not any(inputs):
            continue
        evaluate = evaluation_or_none(eqn.primitive)
        if evaluate in (inlined, custom_derivative):
            elementwise = _is_pointwise(versions.inner_jaxpr(eqn)[0], inputs)
        else:
            elementwise = eqn.primitive in ELEMENTWISE
        if not elementwise:
            return False
        depends.update(eqn.outvars)
    return all(versions.shape(var) == shape for var in (*jaxpr.outvars, *depends))


def checkpoint(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `jax.checkpoint`: the joint evaluation is itself a checkpoint, under the same policy."""
    with_variations = interpreter.rule.needs_variation
    leaves, unpack = pack(_with_biases(interpreter, operands), with_variations)
    unpack_outputs = None

    def body(leaves: Sequence[jax.Array]) -> list[jax.Array]:
        nonlocal unpack_outputs
        outputs = _with_biases(interpreter, inlined(interpreter.afresh(), eqn, unpack(leaves)))
        outputs, unpack_outputs = pack(outputs, with_variations)
        return outputs

    outputs = jax.checkpoint(body, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])(leaves)
    assert unpack_outputs is not None  # jax.checkpoint has traced the body
    return unpack_outputs(outputs)


family(inlined, [*primitives("jit", "closed_call", "call"), "custom_vmap_call", "composite"], opens=True)
family(custom_derivative, CUSTOM, ("pointwise",))
family(checkpoint, primitives("remat"), opens=True)
