"""Control flow: loops, branches and maps over devices, whose bodies are evaluated jointly.

Inputs and references pass through as separate arrays, so that what a loop computes for N inputs and R references it
doesn't compute for N * R pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import family, family_by_name
from jaxlift._core.values import Settled, Value, Varying, both_sides, carrier_dtype, is_varying, pack, with_carrier
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift.primitives.definitions import evaluated

# Of a value that leaves a body: None if it doesn't vary, or else the linear maps that feed it.
Kind = frozenset[str] | None


def kind_of(value: Settled) -> Kind:
    return value.fed_by if isinstance(value, Varying) else None


def widened(kinds: Sequence[Kind], others: Sequence[Kind]) -> list[Kind]:
    """The kinds of what is of one kind or of the other."""
    return [a if b is None else b if a is None else a | b for a, b in zip(kinds, others, strict=True)]


def taken_apart(kinds: Sequence[Kind], values: Sequence[Settled], with_variations: bool) -> list[list[Array]]:
    """Values as arrays, as many for each as its kind has: all that varies comes with its reference."""
    return [
        [jnp.asarray(value)] if kind is None else _as_varying(value).arrays(with_variations)
        for kind, value in zip(kinds, values, strict=True)
    ]


def _as_varying(value: Settled) -> Varying:
    """A value as one that may vary, though it doesn't yet."""
    if isinstance(value, Varying):
        return value
    value = jnp.asarray(value)
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
    """The rule of `scan`: a scan whose carry has value, reference and variation of all that varies.

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
            taken_apart(widened(kinds, step.kinds[:n_carry]), outputs[:n_carry], with_variations),
            taken_apart(step.kinds[n_carry:], outputs[n_carry:], with_variations),
        )

    kinds = [kind_of(value) for value in initial]
    slices = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_arrays]
    while True:
        start = taken_apart(kinds, initial, with_variations)
        jax.eval_shape(partial(body, kinds), start, slices)
        if (wider := widened(kinds, step.kinds[:n_carry])) == kinds:
            break
        kinds = wider
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
        kinds = widened(kinds, branch.kinds)
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
    counts = [len(_as_varying(jnp.zeros((), versions.dtype(var))).arrays(with_variations)) for var in eqn.outvars]

    def joint(arrays: Any) -> Any:
        return taken_apart(every, body(put_together(kinds, arrays)), with_variations)

    mapped = jax.shard_map(
        joint,
        mesh=eqn.params["mesh"],
        in_specs=([[spec] * len(own) for spec, own in zip(eqn.params["in_specs"], arrays, strict=True)],),
        out_specs=[[spec] * count for spec, count in zip(eqn.params["out_specs"], counts, strict=True)],
        check_vma=eqn.params["check_vma"],
    )
    outputs = mapped(arrays)
    return list(put_together(body.kinds, outputs))


def on_the_input(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """The rule of what only has effects, such as printing: done once, for the input."""
    values, _ = both_sides([interpreter.settle(operand) for operand in operands])
    return versions.bind(eqn, values)


family(scan, primitives("scan"))
family(cond, primitives("cond"))
family_by_name(shard_map, "shard_map")
family_by_name(on_the_input, "debug_print", "debug_callback")
