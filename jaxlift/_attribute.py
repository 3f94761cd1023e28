"""`attribute`: DeepLIFT of a batched model, over examples, references and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxlift._arguments import check_option
from jaxlift._core.interpreter import Interpreter, MissingRule
from jaxlift._core.values import Varying, both_sides
from jaxlift._explainer import Explainer, Method
from jaxlift._lift import evaluate_values, vjp
from jaxlift._options import Options, takes
from jaxlift.rules import Rule, as_rule


@dataclass(frozen=True, kw_only=True, eq=False)
class AttributeOptions(Options):
    """The options of `attribute`.

    Attributes:
        rule: how a difference passes nonlinearities: a rule or its name (see `jaxlift.rules`).
        missing_rule: as for `lift`.
    """

    rule: Rule | str = "rescale"
    missing_rule: MissingRule = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rule", as_rule(self.rule))
        check_option("missing_rule", self.missing_rule, MissingRule)


@takes(AttributeOptions)
def attribute(fun: Callable[..., Any], options: AttributeOptions) -> Explainer:
    """Make the function that explains a batched model's outputs by DeepLIFT, as `jax.grad` makes that of its gradients.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> weights = jnp.array([[1.0, -1.0], [2.0, 0.5], [-3.0, 1.0]])
    >>> model = lambda x: jax.nn.relu(x @ weights)                       # (N, 3) -> (N, 2)
    >>> attr = jax.jit(jaxlift.attribute(model, target=0))
    >>> x = jnp.array([[1.0, 1.0, 0.0], [2.0, 0.5, 0.25]])
    >>> attr(x, reference=jnp.zeros(3))
    Array([[ 1.  ,  2.  , -0.  ],
           [ 2.  ,  1.  , -0.75]], dtype=float32)

    The sum of an example's contributions is the difference of its output from the reference's (paper, eq. 1). N
    examples and R shared references cost N + R forward passes and N * R backward passes. All of JAX composes with the
    result; wrap it in `jax.jit`. So how the contribution of one feature changes with another, their interaction, is a
    derivative of the scores, a row for each contribution:

    >>> product = jaxlift.attribute(lambda x: x[:, 0] * x[:, 1])
    >>> jax.jacobian(lambda x: product(x[None], reference=jnp.zeros(2))[0])(jnp.array([2.0, 3.0]))
    Array([[1.5, 1. ],
           [1.5, 1. ]], dtype=float32)

    Args:
        fun: the model, `(N, ...) -> (N,)` or `(N, K)` or `(N, ...)`, in evaluation mode. Its examples must be
            independent of each other: it is called on batches of one.

    Returns:
        `attr(*args, reference=...)`. `reference` is read by its rank, beside `x: (N, ...)`: one reference `(...)`,
        references that all examples share `(R, ...)`, or references of each example, `(N, R, ...)`. It has the
        structure of `x`. It may be left out where the rule doesn't use one (`"gradient"`): contributions are then
        compared with zeros, as in gradient times input.

        `target` at the call takes the place of the one given here, so that labels are data: ``jax.jit(lambda x, t:
        attr(x, reference=r, target=t))`` is traced once for all labels of a shape. Labels that only the running program
        knows can't raise: one out of range gives scores of NaN.

        The scores have the structure, dtype and shape `(N, ...)` of `x`. With ``average=False`` an axis of references
        follows the first, with ``target="all"`` the axes of the outputs follow those, and with a target that has names
        (`Held`) that of the names: `(N, [R,] [K, ...] ...)`. With ``full=True`` the result is an `Attribution`: a named
        tuple of scores, delta, cancellation, output, output_reference and standard_error. An example that is not finite
        has scores of NaN, and so does a comparison with a reference that isn't; outside of `jax.jit` a warning names
        the first such example.

        Outside of `jax.jit` each call traces the model anew, which takes many times as long as to run what is compiled:
        compile once, ``attr = jax.jit(attribute(model))``, before any loop.

    Raises:
        ValueError: from `attribute`, if an option has no such value; from `attr`, if shapes, structures or the target
            don't fit, if the model isn't batched, or, outside of `jax.jit`, if its examples aren't independent of each
            other (checked once for each model and shapes, by two calls on two examples).
        TypeError: from `attribute`, if there is no such option; from `attr`, if the input isn't made of floating-point
            numbers, or a reference is needed and missing.
        MemoryError: from `attr`, outside of `jax.jit`, if the device has too little, with what to do.
        MissingRuleError: from `attr`, if the model has an operation that can't be explained.
    """
    rule, missing_rule = as_rule(options.rule), options.missing_rule

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        return vjp(fun, x, reference, rule=rule, missing_rule=missing_rule, precision=options.precision)

    def explain_layer(layer: Callable[[Any], Any], x: Any, reference: Any, fun: Any, value: Any, value_ref: Any) -> Any:
        """The same from a value inside, which keeps its variation and the layers that feed it.

        Its parts `D+` and `D-` are those that lie below it, so its contributions are `m+ D+ + m- D-`: with `ct_D` and
        `ct_a` the cotangents of `D` and `a`, `ct_D D + ct_a a`.
        """
        interpreter = partial(Interpreter, rule, missing_rule, precision=options.precision)
        start = evaluate_values(interpreter(), layer, jax.tree.map(Varying, x, reference))
        start = jax.tree.map(lambda v: v if isinstance(v, Varying) else Varying(v, v), start)
        variations = jax.tree.map(lambda v: v.variation, start) if rule.needs_variation else None

        def joint(values: Any, variations: Any) -> tuple[Array, Array]:
            inputs = jax.tree.map(lambda v, value: Varying(value, v.reference, None, v.fed_by), start, values)
            if variations is not None:
                inputs = jax.tree.map(lambda v, a: replace(v, make_variation=lambda: a), inputs, variations)
            [values], [references] = both_sides([evaluate_values(interpreter(), fun, inputs)])
            return values, references

        y, pullback, y_ref = jax.vjp(joint, value, variations, has_aux=True)

        def pull(weights: Array) -> Any:
            of_values, of_variations = pullback(weights)
            if variations is None:
                return of_values
            parts = jax.tree.map(lambda m, x, r: m * (x - r), of_values, value, value_ref)
            return jax.tree.map(lambda part, m, a: part + m * a, parts, of_variations, variations)

        return (y, y_ref), pull

    in_parts = options.layer is not None and rule.needs_variation
    method = Method(
        "attribute",
        explain,
        gives="contributions" if in_parts else "multipliers",
        needs_reference=rule.needs_reference,
        explain_layer=explain_layer if rule.needs_reference else None,
        makes_multipliers=rule.needs_reference,
    )
    return Explainer(fun, method, options)
