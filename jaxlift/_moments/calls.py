"""Primitives that hold jaxprs: calls, loops and branches, through which moments are carried."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._core import versions
from jaxlift._core.compilers import AFTER, ONCE, WAITING
from jaxlift._core.versions import JaxprEqn, primitives
from jaxlift._moments.interpreter import Interpreter, family
from jaxlift._moments.values import Moments, Value, certain, is_varying
from jaxlift._pointwise.function import CUSTOM


def handed_on(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`stop_gradient` says how to train, not what the function is."""
    del interpreter, eqn
    return operands


def inlined(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """What is called is evaluated in its place, derivatives of its own or not."""
    return interpreter.inside(eqn).evaluate(*versions.inner_jaxpr(eqn), operands)


def checkpoint(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`jax.checkpoint`, under the same policy."""
    boundary = Boundary(interpreter, eqn, versions.inner_jaxpr(eqn))
    settled = [interpreter.moments(value) for value in operands]
    varies = [isinstance(value, Moments) for value in settled]
    boundary.outputs_vary(varies, settled)
    options = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
    body = jax.checkpoint(lambda arrays: boundary(varies, boundary.varying, arrays), **options)
    return boundary.values(boundary.varying, body(boundary.arrays(varies, settled)), eqn.outvars)


class Boundary:
    """A jaxpr that something else calls, with arrays for operands and for outputs: four for what varies, one for the
    rest.

    Attributes:
        varying: which of its outputs vary, as far as is known.
    """

    def __init__(self, interpreter: Interpreter, eqn: JaxprEqn, jaxpr: Any) -> None:
        self.interpreter = interpreter.inside(eqn)
        self.jaxpr, self.consts = jaxpr if isinstance(jaxpr, tuple) else versions.opened(jaxpr)
        self.varying = [False] * len(self.jaxpr.outvars)

    def arrays(self, varies: Sequence[bool], values: Sequence[Any]) -> list[tuple[Array, ...]]:
        """Values as arrays: those that may vary as moments, though they needn't yet."""
        like = len(self.interpreter.players.signs)
        moments = [
            v if isinstance(v, Moments) else certain(v, like) if may else v
            for v, may in zip(values, varies, strict=True)
        ]
        return [
            (m.mean, m.variance, m.probes, m.rest) if isinstance(m, Moments) else (jnp.asarray(m),) for m in moments
        ]

    @staticmethod
    def values(varies: Sequence[bool], arrays: Sequence[Sequence[Array]], like: Sequence[Any]) -> list[Any]:
        """The values of such arrays."""
        return [
            Moments(*own, dtype=versions.dtype(var)) if may else own[0]
            for own, may, var in zip(arrays, varies, like, strict=True)
        ]

    def __call__(self, varies: Sequence[bool], outputs_vary: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
        return self.arrays(outputs_vary, self._outputs(self.values(varies, arrays, self.jaxpr.invars)))

    def _outputs(self, values: Sequence[Any]) -> list[Any]:
        inside = self.interpreter.afresh()
        outputs = [inside.moments(out) for out in inside.evaluate(self.jaxpr, self.consts, values)]
        self.varying = [old or is_varying(out) for old, out in zip(self.varying, outputs, strict=True)]
        return outputs

    def outputs_vary(self, varies: Sequence[bool], like: Sequence[Any]) -> list[bool]:
        """Which outputs vary if these operands do."""

        def traced(arrays: Any) -> Any:
            outputs = self._outputs(self.values(varies, arrays, self.jaxpr.invars))
            return [out.mean if isinstance(out, Moments) else jnp.asarray(out) for out in outputs]

        jax.eval_shape(traced, self.arrays(varies, like))
        return self.varying


def scan(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`scan`: a scan whose carry has the moments of all that varies, after as many steps as it takes to."""
    n_consts, n_carry = versions.scan_lengths(eqn)
    ends = n_consts + n_carry
    settled = [interpreter.moments(value) for value in operands]
    body = Boundary(interpreter, eqn, eqn.params["jaxpr"])
    varies = [isinstance(value, Moments) for value in settled]
    rows = [
        jax.tree.map(lambda x: x[0], row)
        for row in _rows_first(varies[ends:], body.arrays(varies[ends:], settled[ends:]))
    ]
    one = [*settled[:ends], *body.values(varies[ends:], rows, body.jaxpr.invars[ends:])]
    while True:
        found = body.outputs_vary(varies, one)[:n_carry]
        wider = [old or new for old, new in zip(varies[n_consts:ends], found, strict=True)]
        if wider == varies[n_consts:ends]:
            break
        varies[n_consts:ends] = wider
    outputs_vary = [*varies[n_consts:ends], *body.varying[n_carry:]]
    arrays = body.arrays(varies, settled)

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
        outputs = body(varies, outputs_vary, [*arrays[:n_consts], *carry, *row])
        return outputs[:n_carry], outputs[n_carry:]

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    last, ys = lax.scan(step, arrays[n_consts:ends], _rows_first(varies[ends:], arrays[ends:]), **options)
    return body.values(outputs_vary, [*last, *_rows_second(outputs_vary[n_carry:], ys)], eqn.outvars)


def _rows_first(varies: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
    """With the axis that a loop goes along first, of probes too."""
    return [
        (own[0], own[1], jnp.moveaxis(own[2], 1, 0), own[3]) if may else own
        for own, may in zip(arrays, varies, strict=True)
    ]


def _rows_second(varies: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
    return [
        (own[0], own[1], jnp.moveaxis(own[2], 0, 1), own[3]) if may else own
        for own, may in zip(arrays, varies, strict=True)
    ]


def cond(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> Sequence[Value]:
    """`cond` and `switch`. Where the choice varies, the outputs of all branches by their probabilities."""
    index, *rest = (interpreter.moments(value) for value in operands)
    jaxprs = eqn.params["branches"]
    if (platforms := eqn.params.get("branches_platforms")) is not None:
        named = [jax.default_backend() in (names or ()) for names in platforms]
        chosen = jaxprs[named.index(True) if any(named) else -1]
        return interpreter.inside(eqn).evaluate(*versions.opened(chosen), rest)
    if isinstance(index, Moments):
        inside = interpreter.inside(eqn)
        outputs = [inside.evaluate(*versions.opened(jaxpr), rest) for jaxpr in jaxprs]
        return [
            _chosen(interpreter, eqn.replace(outvars=[out]), index, [interpreter.moments(case) for case in cases])
            for out, *cases in zip(eqn.outvars, *outputs, strict=True)
        ]
    branches = [Boundary(interpreter, eqn, jaxpr) for jaxpr in jaxprs]
    varies = [isinstance(value, Moments) for value in rest]
    each = [branch.outputs_vary(varies, rest) for branch in branches]
    outputs_vary = [any(own) for own in zip(*each, strict=True)]
    called = [partial(branch, varies, outputs_vary) for branch in branches]
    return Boundary.values(outputs_vary, lax.switch(index, called, branches[0].arrays(varies, rest)), eqn.outvars)


def _chosen(interpreter: Interpreter, eqn: JaxprEqn, index: Moments, cases: Sequence[Any]) -> Any:
    def mixed(which: Array, *cases: Array) -> Array:
        last = len(cases) - 1
        weights = [
            (which < 0.5 if k == 0 else which > last - 0.5 if k == last else jnp.abs(which - k) < 0.5)
            for k in range(last + 1)
        ]
        terms = (weight.astype(case.dtype) * case for weight, case in zip(weights, cases, strict=True))
        return reduce(jnp.add, terms)

    [out] = interpreter.evaluated(eqn, mixed, [index, *cases])
    return out


HANDED_ON = frozenset([*primitives("stop_gradient", "optimization_barrier"), WAITING, AFTER, ONCE])
family(handed_on, HANDED_ON)
family(inlined, [*primitives("jit", "closed_call", "call"), "custom_vmap_call", "composite", *CUSTOM])
family(checkpoint, primitives("remat"))
family(scan, primitives("scan"))
family(cond, primitives("cond"))
