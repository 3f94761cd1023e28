"""Control flow: loops, branches and maps over devices, whose bodies are evaluated jointly.

Inputs and references pass through as separate arrays, so that what a loop computes for N inputs and R references it
doesn't compute for N * R pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import family
from jaxlift._core.values import (
    Settled,
    Value,
    Varying,
    both_sides,
    carrier_dtype,
    on_each_side,
    pack,
    with_carrier,
)
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.definitions import evaluated
from jaxlift.primitives.linear import step

# Of a value that leaves a body: None if it doesn't vary, or else the linear maps that feed it.
Kind = frozenset[str] | None


def kind_of(value: Settled) -> Kind:
    return value.fed_by if isinstance(value, Varying) else None


def widened(kinds: Sequence[Kind], others: Sequence[Kind]) -> list[Kind]:
    """The kinds of what is of one kind or of the other."""
    return [a if b is None else b if a is None else a | b for a, b in zip(kinds, others, strict=True)]


def taken_apart(interpreter: Interpreter, kinds: Sequence[Kind], values: Sequence[Settled]) -> list[list[Array]]:
    """Values as arrays, as many for each as its kind has: all that varies comes with its reference, if there is one."""
    return [
        [jnp.asarray(value)] if kind is None else _arrays_of(interpreter, value)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _arrays_of(interpreter: Interpreter, value: Settled) -> list[Array]:
    """The arrays of a value that may vary, though it needn't yet."""
    return _as_varying(interpreter, value).arrays(interpreter.rule.needs_variation)


def _as_varying(interpreter: Interpreter, value: Settled) -> Varying:
    if isinstance(value, Varying):
        return value
    value = jnp.asarray(value)
    if not interpreter.is_joint:
        return Varying.alone(value)
    return with_carrier(
        lambda: value,
        value,
        lambda: value.astype(carrier_dtype(value)),
        frozenset(),
        lambda: jnp.zeros_like(value),
    )


def put_together(kinds: Sequence[Kind], arrays: Sequence[Sequence[Array]]) -> list[Settled]:
    """The values of such arrays."""
    return [own[0] if kind is None else Varying.of_arrays(own, kind) for kind, own in zip(kinds, arrays, strict=True)]


class Body:
    """A jaxpr that something else calls, with arrays for operands and for outputs.

    Attributes:
        kinds: of the outputs, when it was traced last.
    """

    def __init__(self, interpreter: Interpreter, eqn: JaxprEqn, jaxpr: Any) -> None:
        self.interpreter, self.eqn = interpreter, eqn
        self.jaxpr, self.consts = versions.opened(jaxpr)
        self.kinds: list[Kind] = []

    def __call__(self, operands: Sequence[Value]) -> list[Settled]:
        inside = self.interpreter.inside(self.eqn).afresh()  # what is known of values outside is of no use here
        outputs = [inside.settle(out) for out in inside.evaluate(self.jaxpr, self.consts, operands)]
        self.kinds = [kind_of(out) for out in outputs]
        return outputs

    def values(self, operands: Sequence[Value]) -> list[Array]:
        """The plain outputs."""
        return [jnp.asarray(value) for value in both_sides(self(operands))[0]]


def scan(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `scan`: a scan whose carry has value, reference and variation of all that varies.

    A carry may come to vary after a step only, or be fed by a dense layer then: its kind is made wider until a step
    leaves it as it is.
    """
    n_consts, n_carry = versions.scan_lengths(eqn)
    with_variations = interpreter.rule.needs_variation
    settled = [interpreter.settle(operand) for operand in operands]
    initial = settled[n_consts : n_consts + n_carry]
    const_arrays, unpack_consts = pack(settled[:n_consts], with_variations)
    x_arrays, unpack_xs = pack(settled[n_consts + n_carry :], with_variations)
    step = Body(interpreter, eqn, eqn.params["jaxpr"])

    def body(kinds: Sequence[Kind], carry: Any, xs: Any) -> tuple[Any, Any]:
        outputs = step([*unpack_consts(const_arrays), *put_together(kinds, carry), *unpack_xs(xs)])
        return (
            taken_apart(interpreter, widened(kinds, step.kinds[:n_carry]), outputs[:n_carry]),
            taken_apart(interpreter, step.kinds[n_carry:], outputs[n_carry:]),
        )

    kinds = [kind_of(value) for value in initial]
    slices = list(map(versions.row_of, x_arrays))
    while True:
        start = taken_apart(interpreter, kinds, initial)
        jax.eval_shape(partial(body, kinds), start, slices)
        if (wider := widened(kinds, step.kinds[:n_carry])) == kinds:
            break
        kinds = wider
    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    last, ys = lax.scan(partial(body, kinds), start, x_arrays, **options)
    return [*put_together(kinds, last), *put_together(step.kinds[n_carry:], ys)]


def cond(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `cond` and `switch`.

    Where the choice depends on the explained input, two branches count: `p`, which the input takes, and `q`, which the
    reference takes. Both are evaluated jointly, and their outputs chosen from: no other branch is run. Effects, such as
    printing, are those of `p` for the input and of `q` for the reference.
    """
    index, *operands = (interpreter.settle(operand) for operand in operands)
    jaxprs = eqn.params["branches"]
    branches = [Body(interpreter, eqn, branch) for branch in jaxprs]
    if "branches_platforms" in eqn.params and eqn.params["branches_platforms"] is not None:
        named = [jax.default_backend() in (names or ()) for names in eqn.params["branches_platforms"]]
        return list(branches[named.index(True) if any(named) else len(named) - 1](operands))
    if not isinstance(index, Varying):
        return list(switched(interpreter, index, branches, operands))
    if any(versions.opened(jaxpr)[0].effects for jaxpr in jaxprs):
        for choice, side in zip((index.value, index.reference), both_sides(operands), strict=True):
            lax.switch(choice, [partial(only_effects, jaxpr) for jaxpr in jaxprs], side)
        branches = [Body(replace(interpreter, with_effects=False), eqn, branch) for branch in jaxprs]
    of_input, of_reference = (
        switched(interpreter, choice, branches, operands) for choice in (index.value, index.reference)
    )
    differ = (index.value != index.reference).astype(index.value.dtype)
    other = step(differ, jnp.zeros_like(differ), index)  # 1 at the input where the branches differ, 0 at the reference
    if not operands and not of_input:
        return []
    return [
        evaluated(interpreter, eqn, lax.select_n, [other, *cases])[0]
        for cases in zip(of_reference, of_input, strict=True)
    ]


def switched(interpreter: Interpreter, index: Any, branches: Sequence[Body], operands: Sequence[Settled]) -> list[Any]:
    """The outputs of the branch of a number that doesn't vary."""
    arrays, unpack = pack(operands, interpreter.rule.needs_variation)
    for branch in branches:
        jax.eval_shape(lambda arrays, branch=branch: branch.values(unpack(arrays)), arrays)
    kinds = branches[0].kinds
    for branch in branches[1:]:
        kinds = widened(kinds, branch.kinds)
    joint = [lambda arrays, b=branch: taken_apart(interpreter, kinds, b(unpack(arrays))) for branch in branches]
    return put_together(kinds, lax.switch(index, joint, arrays))


def only_effects(jaxpr: Any, operands: Sequence[Any]) -> None:
    """Evaluate a branch for what it does besides its outputs."""
    inner, consts = versions.opened(jaxpr)
    jax.core.eval_jaxpr(inner, consts, *jax.lax.stop_gradient(operands))


def shard_map(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of `shard_map`: the same map, with the specs of each operand for all its arrays."""
    settled = [interpreter.settle(operand) for operand in operands]
    kinds = [kind_of(value) for value in settled]
    arrays = taken_apart(interpreter, kinds, settled)
    body = Body(interpreter, eqn, eqn.params["jaxpr"])
    every: list[Kind] = [frozenset()] * len(eqn.outvars)
    counts = [len(_arrays_of(interpreter, jnp.zeros((), versions.dtype(var)))) for var in eqn.outvars]

    def joint(arrays: Any) -> Any:
        return taken_apart(interpreter, every, body(put_together(kinds, arrays)))

    mapped = jax.shard_map(
        joint,
        mesh=eqn.params["mesh"],
        in_specs=([[spec] * len(own) for spec, own in zip(eqn.params["in_specs"], arrays, strict=True)],),
        out_specs=[[spec] * count for spec, count in zip(eqn.params["out_specs"], counts, strict=True)],
        check_vma=eqn.params["check_vma"],
    )
    outputs = mapped(arrays)
    return list(put_together(body.kinds, outputs))


def for_each_side(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The evaluation of what only has effects, such as printing: done for the input, and for the reference."""
    return [value for value, _ in on_each_side(eqn, [interpreter.settle(operand) for operand in operands])]


family(scan, primitives("scan"), opens=True)
family(cond, primitives("cond"), opens=True)
family(shard_map, ["shard_map"], opens=True)
family(for_each_side, ["debug_print", "debug_callback"])
