"""Control flow: loops, branches and maps over devices, whose bodies are evaluated jointly.

Inputs and references pass through as separate arrays, so that what a loop computes for N inputs and R references it
doesn't compute for N * R pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift import _compat
from jaxlift._compat import JaxprEqn, primitives
from jaxlift._registry import family, family_by_name
from jaxlift._values import Settled, Value, Varying, is_varying, pack
from jaxlift.primitives.definitions import evaluated
from jaxlift.primitives.linear import both_sides, carrier_dtype, is_inexact

if TYPE_CHECKING:
    from jaxlift._lift import Interpreter

# Of a value that leaves a body: None if it doesn't vary, or else the linear maps that feed it.
Kind = frozenset[str] | None


def kind_of(value: Settled) -> Kind:
    return value.fed_by if isinstance(value, Varying) else None


def wider(one: Kind, other: Kind) -> Kind:
    """The kind of what is of one kind or of the other."""
    return one if other is None else other if one is None else one | other


def taken_apart(kinds: Sequence[Kind], values: Sequence[Settled], with_variations: bool) -> list[tuple[Array, ...]]:
    """Values as arrays, as many for each as its kind has: all that varies comes with its reference."""
    return [
        (jnp.asarray(value),) if kind is None else _arrays(value, with_variations)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _arrays(value: Settled, with_variations: bool) -> tuple[Array, ...]:
    if isinstance(value, Varying):
        sides = value.value, value.reference
        if value.is_discrete:
            return *sides, value.carrier
        return (*sides, value.variation) if with_variations else sides
    value = jnp.asarray(value)
    if not is_inexact(value):
        return value, value, value.astype(carrier_dtype())
    return (value, value, jnp.zeros_like(value)) if with_variations else (value, value)


def put_together(kinds: Sequence[Kind], arrays: Sequence[tuple[Array, ...]]) -> list[Settled]:
    """The values of such arrays."""

    def one(kind: Kind, value: Array, reference: Array | None = None, third: Array | None = None) -> Settled:
        if kind is None or reference is None:
            return value
        more = None if third is None else lambda: third
        if is_inexact(value):
            return Varying(value, reference, more, kind)
        return Varying(value, reference, None, kind, more)

    return [one(kind, *own) for kind, own in zip(kinds, arrays, strict=True)]


class Body:
    """A jaxpr that something else calls, with arrays for operands and for outputs.

    Attributes:
        kinds: of the outputs, when it was traced last.
    """

    def __init__(self, interpreter: Interpreter, eqn: JaxprEqn, jaxpr: Any) -> None:
        self.interpreter, self.eqn = interpreter, eqn
        self.jaxpr, self.consts = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
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
    """The rule of `scan`: a scan whose carry has value, reference and variation of all that varies.

    A carry may come to vary after a step only, or be fed by a dense layer then: its kind is made wider until a step
    leaves it as it is.
    """
    n_consts, n_carry = _compat.scan_lengths(eqn)
    with_variations = interpreter.rule.needs_variation
    settled = [interpreter.settle(operand) for operand in operands]
    initial = settled[n_consts : n_consts + n_carry]
    const_arrays, unpack_consts = pack(settled[:n_consts], with_variations)
    x_arrays, unpack_xs = pack(settled[n_consts + n_carry :], with_variations)
    step = Body(interpreter, eqn, eqn.params["jaxpr"])

    def body(kinds: Sequence[Kind], carry: Any, xs: Any) -> tuple[Any, Any]:
        outputs = step([*unpack_consts(const_arrays), *put_together(kinds, carry), *unpack_xs(xs)])
        widened = [wider(kind, out) for kind, out in zip(kinds, step.kinds[:n_carry], strict=True)]
        return (
            taken_apart(widened, outputs[:n_carry], with_variations),
            taken_apart(step.kinds[n_carry:], outputs[n_carry:], with_variations),
        )

    kinds = [kind_of(value) for value in initial]
    slices = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_arrays]
    while True:
        start = taken_apart(kinds, initial, with_variations)
        jax.eval_shape(partial(body, kinds), start, slices)
        widened = [wider(kind, out) for kind, out in zip(kinds, step.kinds[:n_carry], strict=True)]
        if widened == kinds:
            break
        kinds = widened
    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    last, ys = lax.scan(partial(body, kinds), start, x_arrays, **options)
    return [*put_together(kinds, last), *put_together(step.kinds[n_carry:], ys)]


def cond(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of `cond` and `switch`.

    Where the choice depends on the explained input, all branches are evaluated, and their outputs chosen from.
    """
    index, *operands = (interpreter.settle(operand) for operand in operands)
    branches = [Body(interpreter, eqn, branch) for branch in eqn.params["branches"]]
    if "branches_platforms" in eqn.params and eqn.params["branches_platforms"] is not None:
        named = [jax.default_backend() in (names or ()) for names in eqn.params["branches_platforms"]]
        return list(branches[named.index(True) if any(named) else len(named) - 1](operands))
    if is_varying(index):
        outputs = [branch(operands) for branch in branches]
        return [evaluated(interpreter, eqn, lax.select_n, [index, *cases])[0] for cases in zip(*outputs, strict=True)]
    with_variations = interpreter.rule.needs_variation
    arrays, unpack = pack(operands, with_variations)
    for branch in branches:
        jax.eval_shape(lambda arrays, branch=branch: branch.values(unpack(arrays)), arrays)
    kinds = branches[0].kinds
    for branch in branches[1:]:
        kinds = [wider(*pair) for pair in zip(kinds, branch.kinds, strict=True)]
    joint = [lambda arrays, b=branch: taken_apart(kinds, b(unpack(arrays)), with_variations) for branch in branches]
    return list(put_together(kinds, lax.switch(index, joint, arrays)))


def shard_map(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of `shard_map`: the same map, with the specs of each operand for all its arrays."""
    with_variations = interpreter.rule.needs_variation
    settled = [interpreter.settle(operand) for operand in operands]
    kinds = [kind_of(value) for value in settled]
    arrays = taken_apart(kinds, settled, with_variations)
    body = Body(interpreter, eqn, eqn.params["jaxpr"])
    every: list[Kind] = [frozenset()] * len(eqn.outvars)
    counts = [len(_arrays(jnp.zeros((), _compat.dtype(var)), with_variations)) for var in eqn.outvars]

    def joint(arrays: Any) -> Any:
        return taken_apart(every, body(put_together(kinds, arrays)), with_variations)

    mapped = jax.shard_map(
        joint,
        mesh=eqn.params["mesh"],
        in_specs=([(spec,) * len(own) for spec, own in zip(eqn.params["in_specs"], arrays, strict=True)],),
        out_specs=[(spec,) * count for spec, count in zip(eqn.params["out_specs"], counts, strict=True)],
        check_vma=eqn.params["check_vma"],
    )
    outputs = mapped(arrays)
    return list(put_together(body.kinds, outputs))


def on_the_input(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of what only has effects, such as printing: done once, for the input."""
    values, _ = both_sides([interpreter.settle(operand) for operand in operands])
    return _compat.bind(eqn, values)


family(scan, primitives("scan"))
family(cond, primitives("cond"))
family_by_name(shard_map, "shard_map")
family_by_name(on_the_input, "debug_print", "debug_callback")
