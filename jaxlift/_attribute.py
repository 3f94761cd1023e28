"""`attribute`: DeepLIFT of a batched model, over examples, references and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxlift._arguments import check_option
from jaxlift._core.interpreter import Interpreter, MissingRule
from jaxlift._core.values import Varying, both_sides
from jaxlift._explainer import Explainer, Method, Output, References
from jaxlift._layers import Names
from jaxlift._lift import evaluate_values, vjp
from jaxlift._targets import Target
from jaxlift.rules import Rule, as_rule


def attribute(
    fun: Callable[..., Any],
    *,
    target: Target = None,
    normalize_target: bool = False,
    rule: Rule | str = "rescale",
    layer: Names | None = None,
    argnums: int | tuple[int, ...] = 0,
    batch_argnums: tuple[int, ...] = (),
    references: References | None = None,
    average: bool = True,
    output: Output = "contributions",
    channel_axis: int = -1,
    convergence_delta: bool = False,
    cancellation: bool = False,
    with_outputs: bool = False,
    batch_size: int | None = None,
    reference_batch_size: int | None = None,
    missing_rule: MissingRule = "raise",
) -> Explainer:
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
    result; wrap it in `jax.jit`.

    Args:
        fun: the model, `(N, ...) -> (N,)` or `(N, K)` or `(N, ...)`. Its examples must be independent of each other: it
            is called on batches of one.
        target: which of an example's outputs is explained. ``None`` if there is only one. An int, or for outputs of
            several axes a tuple of ints. An integer array `(N,)`: an output for each example. A floating-point array,
            of the shape of an example's outputs, or of the batch's: their weighted sum (a class contrast is one call).
            A function from the model's outputs on a batch to `(N,)`. ``"all"``: every output, from one forward pass.
        normalize_target: take the mean over all outputs off the target (paper, eq. 5), so that contributions to the
            logits of a softmax don't count what all classes gain alike.
        rule: how a difference passes nonlinearities: a rule or its name (see `jaxlift.rules`).
        layer: the name of a value inside of `fun`, given with `jax.ad_checkpoint.checkpoint_name`, or a tuple of such
            names: what the contributions are of, in place of the input's. What lies below isn't explained, and what
            reaches the output past the named values stays as it is for the input. See also `below` and `above`. Under
            rules that tell parts apart, such as ``"revealcancel"``, parts are those that lie below, and there are no
            multipliers to return.
        argnums: which argument of `fun` is explained, a pytree of floating-point arrays `(N, ...)`; or a tuple of such
            arguments.
        batch_argnums: which of the others have an example on each row, as masks may. The rest (parameters, PRNG keys)
            are passed on whole.
        references: where reference and input have the same shape and N > 1, what that means. ``"shared"``: each example
            is compared with each reference. ``"paired"``: with its own.
        average: whether to return the mean over references, or the scores for each.
        output: ``"contributions"``; ``"multipliers"``, contributions per unit of difference; or ``"hypothetical"``, the
            contributions each channel would have if the input were one-hot there, `m_i - sum_c r_c m_c` along
            `channel_axis`.
        channel_axis: the axis of the one-hot encoding in each example, for hypothetical contributions.
        convergence_delta: whether to return also what is missing from the sum: `fun(x) - fun(r) - sum(contributions)`.
        cancellation: whether to return also how much contributions cancel, `sum(|contributions|) / |fun(x) - fun(r)|`.
            Where that times the dtype's rounding isn't small, the dtype can't carry the sum; outside of `jax.jit` a
            warning says so.
        with_outputs: whether to return also what is explained, the target's value at the input and at the reference.
        batch_size, reference_batch_size: how many examples, and how many references, are compared at once; None for
            all. Memory grows with their product, the results don't depend on them, and forward passes remain N + R
            unless both are given: then references are evaluated again for each batch of examples.
        missing_rule: as for `lift`.

    Returns:
        `attr(*args, reference=...)`. `reference` is read by its rank, beside `x: (N, ...)`: one reference `(...)`,
        references that all examples share `(R, ...)`, or references of each example, `(N, R, ...)`. It has the
        structure of `x`. It may be left out where the rule doesn't use one (`"gradient"`): contributions are then
        compared with zeros, as in gradient times input.

        The scores have the structure, dtype and shape `(N, ...)` of `x`. With ``average=False`` an axis of references
        follows the first, with ``target="all"`` the axes of the outputs follow those. With ``convergence_delta=True``
        the result is `(scores, delta)`, with ``cancellation=True`` `(scores, cancellation)`, with both `(scores, delta,
        cancellation)`; `with_outputs` adds two more. These have the leading axes only. An example that is not finite
        has scores of NaN, and so does a comparison with a reference that isn't.

    Raises:
        ValueError: from `attribute`, if an option has no such value; from `attr`, if shapes, structures or the target
            don't fit.
        TypeError: from `attr`, if the input isn't made of floating-point numbers, or a reference is needed and missing.
        MissingRuleError: from `attr`, if the model has an operation that can't be explained.
    """
    rule = as_rule(rule)
    check_option("missing_rule", missing_rule, MissingRule)

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        return vjp(fun, x, reference, rule=rule, missing_rule=missing_rule)

    def explain_layer(layer: Callable[[Any], Any], x: Any, reference: Any, fun: Any, value: Any, value_ref: Any) -> Any:
        """The same from a value inside, which keeps its variation and the layers that feed it.

        Its parts `D+` and `D-` are those that lie below it, so its contributions are `m+ D+ + m- D-`: with `ct_D` and
        `ct_a` the cotangents of `D` and `a`, `ct_D D + ct_a a`.
        """
        interpreter = partial(Interpreter, rule, missing_rule)
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

    in_parts = layer is not None and rule.needs_variation
    method = Method(
        explain,
        gives="contributions" if in_parts else "multipliers",
        needs_reference=rule.needs_reference,
        options={"rule": rule, "missing_rule": missing_rule},
        explain_layer=explain_layer if rule.needs_reference else None,
    )
    return Explainer(
        fun,
        method,
        target=target,
        normalize_target=normalize_target,
        layer=layer,
        argnums=argnums,
        batch_argnums=batch_argnums,
        references=references,
        average=average,
        output=output,
        channel_axis=channel_axis,
        convergence_delta=convergence_delta,
        cancellation=cancellation,
        with_outputs=with_outputs,
        batch_size=batch_size,
        reference_batch_size=reference_batch_size,
    )
