"""`check`: which operation breaks the sum or absorbs relevance, and what the dtype can carry."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxlift._arguments import check_model, checked_pair, summed
from jaxlift._core import table, versions
from jaxlift._core.differences import difference, where
from jaxlift._core.interpreter import Interpreter, MissingRule
from jaxlift._core.values import Fraction, Node, Pending, Value, Varying, is_varying, postorder
from jaxlift._core.versions import JaxprEqn
from jaxlift._independence import check_independence
from jaxlift._lift import evaluate_jointly
from jaxlift.primitives.calls import custom_derivative, inlined
from jaxlift.primitives.linear import Weighted
from jaxlift.primitives.normalisation import Moved, statistic_of_sum
from jaxlift.primitives.pointwise import ELEMENTWISE
from jaxlift.primitives.softmax import Total, exponential, logarithm, quotient, summation, total
from jaxlift.rules import Rule, as_rule

CARRIED = 1e-2  # of a sum, what rounding may take before a warning


@dataclass(frozen=True)
class Line:
    """What one operation does to the sum.

    Attributes:
        operation: the primitives, a pointwise function's in their order.
        where: the line of the user's code.
        entered: the contributions that are passed back to it, `sum(ct_y * (y - y_ref))` over its outputs. Under a rule
            without a reference these are relevances, `sum(ct_y * y)`.
        left: those that it passes on, `sum(ct_x * (x - r))`, or `sum(ct_x * x)`, over its inputs.
    """

    operation: str
    where: str
    entered: float
    left: float

    @property
    def residual(self) -> float:
        """What it loses or absorbs of the sum, or adds if it is negative."""
        return self.entered - self.left


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        difference: `fun(x) - fun(reference)`, summed over outputs; under a rule without a reference, `fun(x)`.
        contributions: the sum of the contributions, or relevances.
        magnitude: the sum of their absolute values.
        rounding: the unit of rounding of the dtype that the function computes in, relative to 1.
        lines: the operations, in the order of the program.
        checked: what the sum was compared with: the difference of the outputs (summation-to-delta), or under a rule
            without a reference the outputs themselves (conservation of relevance).
    """

    difference: float
    contributions: float
    magnitude: float
    rounding: float
    lines: tuple[Line, ...]
    checked: Literal["summation-to-delta", "conservation"] = "summation-to-delta"

    @property
    def error(self) -> float:
        """What is missing from the sum, in units of rounding of what was summed."""
        scale = max(self.magnitude, abs(self.difference), *(abs(line.entered) for line in self.lines), 1e-300)
        return abs(self.difference - self.contributions) / (self.rounding * scale)

    @property
    def complete(self) -> bool:
        """Whether the contributions sum to what they should, up to the rounding of so many operations."""
        return bool(self.error <= 30 * (1 + len(self.lines)))

    @property
    def cancellation(self) -> float:
        """The sum of the contributions' absolute values over that of the contributions."""
        return self.magnitude / abs(self.difference) if self.difference else np.inf

    def __str__(self) -> str:
        good, what, expected = {
            "summation-to-delta": ("complete", "contributions sum", "the difference of the outputs is"),
            "conservation": ("conserved", "relevances sum", "the output is"),
        }[self.checked]
        head = (
            f"{'' if self.complete else 'NOT '}{good}: {what} to {self.contributions:.6g}, {expected} "
            f"{self.difference:.6g}, {self.error:.3g} units of rounding apart; cancellation {self.cancellation:.3g}"
        )
        if self.complete:
            return f"{head}\n{len(self.lines)} operations, each passes on what it is given"
        passed = [line for line in self.lines if line.entered or line.left]
        worst = sorted(passed, key=lambda line: -abs(line.residual))[:10]
        rows = [
            f"{line.residual:12.4g} {line.entered:12.4g} {line.left:12.4g}  {line.operation}, {line.where}"
            for line in worst
        ]
        residual = "residual" if self.checked == "summation-to-delta" else "absorbed"
        return "\n".join([head, f"{residual:>12} {'enters':>12} {'leaves':>12}  operation", *rows])


def check(
    fun: Callable[[Any], Any],
    x: Any,
    reference: Any,
    *,
    rule: Rule | str = "rescale",
    missing_rule: MissingRule = "derivative",
    batched: bool = False,
) -> Report:
    """Find out whether the contributions of a function's input are complete, and if not, which operation is to blame.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> print(jaxlift.check(lambda x: jax.nn.softmax(x)[0], jnp.array([1.0, 2.0]), jnp.zeros(2)).complete)
    True

    Under a rule that doesn't compare with a reference there is no difference to sum to. Then it says whether relevance
    is conserved, `sum(multipliers * x) = fun(x)`, as rules of LRP are to conserve it but for biases; and if not, which
    operations absorb how much.

    >>> report = jaxlift.check(lambda x: x @ jnp.ones(2) + 1, jnp.ones(2), jnp.zeros(2), rule="epsilon_lrp")
    >>> report.checked, report.complete, report.lines[-1].operation, round(report.lines[-1].residual, 3)
    ('conservation', False, 'add', 1.0)

    It evaluates the function with a probe at each operation, so one backward pass gives what each is passed and what it
    passes on. Bodies of loops and of checkpoints count as one operation.

    Args:
        fun, x, reference, rule: as for `lift`. If `fun` has several outputs, their sum is explained.
        missing_rule: as for `lift`, but by default the report goes on where an operation has no rule, and shows by its
            residual what that loses.
        batched: whether `fun` is a batched model, as for `attribute`. Then it is also checked that its examples are
            independent of each other, as `attribute` does outside of `jax.jit` alone.

    Returns:
        a `Report`. It prints as a verdict, and where the sum isn't kept, the operations that break it or absorb of it.

    Raises:
        ValueError: if examples of a batched model depend on each other.
        ValueError, TypeError, MissingRuleError: as `lift` does.

    Warns:
        UserWarning: if contributions cancel so much that the dtype can't carry their sum.
    """
    check_model(fun)
    rule = as_rule(rule)
    x, reference = checked_pair(x, reference)
    if batched:
        example = jax.tree.map(lambda leaf: leaf[0], x)
        other = jax.tree.map(lambda leaf, ref: leaf[1] if len(leaf) > 1 else ref[0], x, reference)
        check_independence(fun, example, other)
    flows: list[_Flow] = []
    probes: list[jax.ShapeDtypeStruct] = []

    def observed(x: Any, probe: Callable[[Array], Array]) -> tuple[Array, Any]:
        """The sum of the outputs; and its difference, and those of all that was probed."""
        flows.clear()
        observer = Observer(rule, missing_rule, precision="highest", flows=flows, probe=probe)
        y, y_ref = evaluate_jointly(observer, fun, x, reference)
        change = summed(jax.tree.map(jnp.subtract, y, y_ref) if observer.is_joint else y)
        return summed(y), (change, [flow.difference for flow in flows])

    def note(like: Array) -> Array:
        probes.append(jax.ShapeDtypeStruct(like.shape, like.dtype))
        return jnp.zeros_like(like)

    jax.eval_shape(lambda x: observed(x, note)[0], x)

    @jax.jit
    def measured(x: Any) -> Any:
        def of_probes(x: Any, probes: list[Array]) -> tuple[Array, Any]:
            remaining = iter(probes)
            return observed(x, lambda like: next(remaining))

        zeros = [jnp.zeros(probe.shape, probe.dtype) for probe in probes]
        y, pull, (change, differences) = jax.vjp(of_probes, x, zeros, has_aux=True)
        multipliers, cotangents = pull(jnp.ones_like(y))
        differences_of_x = jax.tree.map(jnp.subtract, x, reference) if rule.needs_reference else x
        contributions = jax.tree.map(jnp.multiply, multipliers, differences_of_x)
        # What is masked, by logits of minus infinity, has a cotangent of 0 and passes nothing.
        passed = [jnp.sum(where(ct == 0, 0, ct * d)).real for ct, d in zip(cotangents, differences, strict=True)]
        return change, summed(contributions), summed(jax.tree.map(jnp.abs, contributions)), passed

    change, contributions, magnitude, passed = jax.device_get(measured(x))
    lines: dict[int, Line] = {}
    for flow, amount in zip(flows, passed, strict=True):
        line = lines.get(id(flow.record), Line(flow.operation, flow.where, 0.0, 0.0))
        entered, left = (amount, 0.0) if flow.is_output else (0.0, amount)
        lines[id(flow.record)] = replace(line, entered=line.entered + float(entered), left=line.left + float(left))
    numbers = {leaf.dtype for leaf in (*jax.tree.leaves(x), *probes)}  # of all that the function computes with
    rounding = max(float(jnp.finfo(dtype).eps) for dtype in numbers)
    checked = "summation-to-delta" if rule.needs_reference else "conservation"
    report = Report(float(change), float(contributions), float(magnitude), rounding, tuple(lines.values()), checked)
    warn_of_cancellation(np.asarray(report.cancellation), rounding)
    return report


def warn_of_cancellation(cancellation: Any, rounding: float | None = None, stacklevel: int = 3) -> None:
    """Warn if rounding may take much of a sum; under `jax.jit`, where the numbers aren't known yet, do nothing."""
    if isinstance(cancellation, Tracer):
        return
    rounding = float(jnp.finfo(cancellation.dtype).eps) if rounding is None else rounding
    largest = float(np.nanmax(np.asarray(cancellation, np.float64), initial=0))
    if np.isfinite(largest) and largest * rounding > CARRIED:
        is_half = jnp.finfo(cancellation.dtype).bits < 32
        wider = "float32" if is_half else "float64 (jax.config.update('jax_enable_x64', True))"
        warnings.warn(
            f"contributions cancel: their absolute values sum to {largest:.2g} times the difference of the outputs. "
            f"Rounding may take {largest * rounding:.1%} of that difference. Compute in {wider}, or take a reference "
            "that is nearer, or another rule.",
            stacklevel=stacklevel + 1,
        )


@dataclass(frozen=True)
class _Flow:
    """What passes one probe: its cotangent times this difference."""

    record: _Probes  # that of one operation, kept, so that no other has its id
    operation: str
    where: str
    is_output: bool
    difference: Array


@dataclass(frozen=True)
class Observer(Interpreter):
    """An interpreter that puts probes, zeros whose cotangents tell what passes, around each operation.

    Each operation has copies of its inputs for itself, so that the cotangent of a copy's probe is what this operation
    passes on, whatever else its input is used for.

    Attributes:
        flows: what passes the probes, in the order of the probes.
        probe: gives the probe for an array.
    """

    flows: list[_Flow] = field(default_factory=list, compare=False)
    probe: Callable[[Array], Array] = jnp.zeros_like
    originals: dict[int, tuple[Varying, Varying]] = field(default_factory=dict, compare=False)

    @property
    def leaves_all_to_jax(self) -> bool:
        return False  # operations that JAX differentiates have probes too

    @property
    def plain(self) -> Interpreter:
        """The interpreter that evaluates one operation, and all of a loop's body."""
        return Interpreter(self.rule, self.missing, self.scope, self.within, self.with_effects, self.precision)

    def afresh(self) -> Interpreter:
        return self.plain

    def is_repeated(self, eqn: JaxprEqn) -> bool:
        del eqn
        return False  # each call has probes of its own

    def outputs_unmasked(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        rule = table.evaluation_or_none(eqn.primitive)
        if not any(map(is_varying, inputs)) or rule in (inlined, custom_derivative):
            return super().outputs_unmasked(eqn, inputs)
        if eqn.primitive in ELEMENTWISE:
            unsettled = [replace(value, settled=None) if isinstance(value, Pending) else value for value in inputs]
            outputs = self.plain.outputs_unmasked(eqn, unsettled)  # they may be settled there, where nobody sees it
            if all(isinstance(out, Pending) for out in outputs):
                return outputs
        sees_what_they_are_made_of = rule in (logarithm, quotient, summation)
        if not (sees_what_they_are_made_of and any(map(self._is_part_of_a_larger_map, inputs))):
            inputs = [self.settle(value) for value in inputs]
        return self._probed(eqn, inputs, self.plain.outputs_unmasked)

    def _is_part_of_a_larger_map(self, value: Value) -> bool:
        """Whether an operation would not be recognised if it were shown this value settled."""
        if exponential(value) or total(value):
            return True
        return "normalisation" in self.rule.families and statistic_of_sum(value) is not None

    def differentiated(self, eqn: JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        return self._probed(eqn, [self.settle(value) for value in inputs], self.plain.differentiated)

    def _probed(
        self, eqn: JaxprEqn, inputs: Sequence[Value], evaluate: Callable[[JaxprEqn, Sequence[Value]], Sequence[Value]]
    ) -> list[Value]:
        """The outputs of an equation, with probes around it."""
        record = _Probes(self, eqn.primitive.name, versions.location(eqn, self.within))
        copies = [record.copied(value) if isinstance(value, Varying | Pending) else value for value in inputs]
        outputs = evaluate(eqn, copies)
        return [record.passed(self.plain.settle(out)) if is_varying(out) else out for out in outputs]

    def settle(self, value: Any) -> Any:
        if not isinstance(value, Pending):
            return value
        if value.settled is None:
            eqns = [node.eqn for node in postorder([value.node], _operands) if isinstance(node, Node)]
            operation = " ".join(dict.fromkeys(eqn.primitive.name for eqn in eqns))
            record = _Probes(self, operation, versions.location(eqns[-1], self.within))
            value.settled = record.passed(self.plain.settle(record.copied(value)))
        return value.settled


def _operands(item: Any) -> Sequence[Any]:
    return item.operands if isinstance(item, Node) else ()


class _Probes:
    """The probes around one operation."""

    def __init__(self, observer: Observer, operation: str, where: str) -> None:
        self.observer, self.operation, self.where = observer, operation, where
        self.copies: dict[int, Varying] = {}

    def copied(self, value: Varying | Pending) -> Varying | Pending:
        """An input of the operation; where it is a function of another value, of a copy of that."""
        if isinstance(value, Pending):
            return Pending(value.node, self.copy(value.of))
        return self.copy(value)

    def copy(self, value: Varying) -> Varying:
        original = self.observer.originals.get(id(value), (value, value))[0]
        if id(original) not in self.copies:
            copy = self.probed(original, is_output=False)
            match original.origin:
                case Total(exponential=exponential) as origin:
                    exponential = replace(exponential, of=self.copy(exponential.of))
                    copy.origin = replace(origin, exponential=exponential)
                case Weighted(of=of) as origin:
                    copy.origin = replace(origin, of=self.copy(of), arranges=original)
                case _:
                    copy.origin = Moved(original)
            self.copies[id(original)] = copy
            self.observer.originals[id(copy)] = original, copy  # both stay alive, and so do their ids
        return self.copies[id(original)]

    def passed(self, output: Varying) -> Varying:
        """An output of the operation."""
        return self.probed(output, is_output=True)

    def probed(self, value: Varying, is_output: bool) -> Varying:
        def through(array: Array, change: Array) -> Array:
            flow = _Flow(self, self.operation, self.where, is_output, change)
            probe = self.observer.probe(array)
            self.observer.flows.append(flow)
            return array + probe

        def carrier() -> Array:
            number = value.carrier
            if not self.observer.is_joint:
                return through(number, number)
            return through(number, difference(number, value.reference.astype(number.dtype)))

        def variation() -> Array:
            return through(value.variation, value.variation)

        def fraction() -> Fraction | None:
            of = value.fraction  # a product may ask for the divisor in the place of the value
            return None if of is None else Fraction(of.scale, self.probed(of.divisor, is_output))

        if value.is_discrete:
            return replace(value, make_carrier=carrier)
        own_variation = variation if value.make_variation is not None else None
        own_fraction = fraction if value.make_fraction is not None else None
        return replace(value, value=carrier(), make_variation=own_variation, make_fraction=own_fraction)
