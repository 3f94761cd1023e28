"""`attribute`: DeepLIFT of a batched model, over examples, references and outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxlift._check import warn_of_cancellation
from jaxlift._lift import MaxPooling, MissingRule, check_option, checked_input, summed, vjp
from jaxlift.rules import Rule, as_rule

Output = Literal["contributions", "multipliers", "hypothetical"]
References = Literal["shared", "paired"]
Target = int | Sequence[int] | Array | np.ndarray | Callable[[Any], Any] | Literal["all"] | None


def attribute(
    fun: Callable[..., Any],
    *,
    target: Target = None,
    normalize_target: bool = False,
    rule: Rule | str = "rescale",
    argnums: int | tuple[int, ...] = 0,
    batch_argnums: tuple[int, ...] = (),
    references: References | None = None,
    average: bool = True,
    output: Output = "contributions",
    channel_axis: int = -1,
    convergence_delta: bool = False,
    cancellation: bool = False,
    max_pooling: MaxPooling = "complete",
    missing_rule: MissingRule = "raise",
) -> Callable[..., Any]:
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
        max_pooling, missing_rule: as for `lift`.

    Returns:
        `attr(*args, reference=...)`. `reference` is read by its rank, beside `x: (N, ...)`: one reference `(...)`,
        references that all examples share `(R, ...)`, or references of each example, `(N, R, ...)`. It has the
        structure of `x`. It may be left out where the rule doesn't use one (`"gradient"`): contributions are then
        compared with zeros, as in gradient times input.

        The scores have the structure, dtype and shape `(N, ...)` of `x`. With ``average=False`` an axis of references
        follows the first, with ``target="all"`` the axes of the outputs follow those. With ``convergence_delta=True``
        the result is `(scores, delta)`, with ``cancellation=True`` `(scores, cancellation)`, with both `(scores, delta,
        cancellation)`; these have the leading axes only. An example that is not finite has scores of NaN, and so does a
        comparison with a reference that isn't.

    Raises:
        ValueError: from `attribute`, if an option has no such value; from `attr`, if shapes, structures or the target
            don't fit.
        TypeError: from `attr`, if the input isn't made of floating-point numbers, or a reference is needed and missing.
        MissingRuleError: from `attr`, if the model has an operation that can't be explained.
    """
    rule = as_rule(rule)
    check_option("output", output, Output)
    check_option("references", references, References, None)
    _check_target(target, normalize_target)

    def attr(*args: Any, reference: Any = None) -> Any:
        x = checked_input(tuple(args[i] for i in argnums) if isinstance(argnums, tuple) else args[argnums])
        n = _batch_size(x)
        if reference is None:
            if rule.needs_reference:
                raise TypeError(f"{rule} compares the input with a reference: call attr(..., reference=...).")
            reference, kind = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), x), "one"
        else:
            reference, kind = _read_reference(x, reference, references)

        def on_one(x: Any, rows: dict[int, Any]) -> Array:
            """The outputs of the model on one example."""
            replaced = dict(zip(argnums, x, strict=True)) if isinstance(argnums, tuple) else {argnums: x}
            replaced = jax.tree.map(lambda leaf: leaf[None], replaced | rows)
            outputs = fun(*(replaced.get(i, arg) for i, arg in enumerate(args)))
            return _checked_output(target(outputs) if callable(target) else outputs)

        def pair(x: Any, reference: Any, aim: Array | None, rows: dict[int, Any]) -> tuple[Any, Array, Array, Array]:
            """The scores of one example, compared with one reference; the convergence delta; and what the cancellation
            is the quotient of.
            """
            options = {"rule": rule, "max_pooling": max_pooling, "missing_rule": missing_rule}
            compared = reference if rule.needs_reference else x
            (y, y_ref), pull = vjp(lambda x: on_one(x, rows), x, compared, **options)
            if not rule.needs_reference:
                y_ref = on_one(reference, rows)
            weights = _weights(y, target if aim is None else aim, normalize_target)
            finite = reduce(jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((x, reference))))

            def of_weighted_sum(weights: Array) -> tuple[Any, Array, Array, Array]:
                multipliers = jax.tree.map(lambda m: jnp.where(finite, m, jnp.nan), pull(weights))
                contributions = jax.tree.map(lambda m, x, r: m * (x - r), multipliers, x, reference)
                change = (weights * (y - y_ref)).sum()
                size = summed(jax.tree.map(jnp.abs, contributions))
                sums = change - summed(contributions), size, change
                match output:
                    case "contributions":
                        return contributions, *sums
                    case "multipliers":
                        return multipliers, *sums
                return jax.tree.map(
                    lambda m, r: m - (m * r).sum(channel_axis, keepdims=True), multipliers, reference
                ), *sums

            for _ in range(weights.ndim - y.ndim):
                of_weighted_sum = jax.vmap(of_weighted_sum)
            return of_weighted_sum(weights)

        def example(x: Any, reference: Any, aim: Array | None, rows: dict[int, Any]) -> tuple[Any, Array, Array, Array]:
            """The same for one example and all references that it is compared with."""
            if kind in ("one", "paired"):
                return pair(x, reference, aim, rows)
            each = jax.vmap(pair, (None, 0, None, None))(x, reference, aim, rows)
            return jax.tree.map(lambda leaf: leaf.mean(0), each) if average else each

        rows = {i: args[i] for i in batch_argnums}
        aim = _aim_of_each(target, n, lambda: jax.eval_shape(on_one, *jax.tree.map(lambda leaf: leaf[0], (x, rows))))
        in_axes = (0, 0 if kind in ("paired", "each") else None, 0, 0)
        scores, delta, size, change = jax.vmap(example, in_axes)(x, reference, aim, rows)
        more = [delta] if convergence_delta else []
        if cancellation:
            more.append(size / jnp.abs(change))
            warn_of_cancellation(more[-1])
        return (scores, *more) if more else scores

    return attr


def _check_target(target: Target, normalize: bool) -> None:
    if isinstance(target, str) and target != "all":
        raise ValueError(f"target={target!r} must be None, an int, an array, a function of the outputs, or 'all'.")
    if normalize and callable(target):
        raise ValueError(
            "normalize_target=True takes the mean over all outputs off a weighted sum of them, but the target is a "
            "function. Give it as an int or as weights."
        )


def _batch_size(x: Any) -> int:
    """The number of examples, which all leaves of the input have in common."""
    sizes = {jax.tree_util.keystr(path): leaf.shape[:1] for path, leaf in jax.tree.leaves_with_path(x)}
    if not sizes:
        raise ValueError("the input has no arrays to explain.")
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(
            f"the input's arrays must have one batch axis first, of one length, but they begin with {sizes}."
        )
    [(n,)] = set(sizes.values())
    if n == 0:
        raise ValueError("the batch is empty: expected at least one example, got an input of length 0.")
    return n


def _read_reference(x: Any, reference: Any, references: References | None) -> tuple[Any, str]:
    """The reference as arrays, and what it is: "one", "shared", "paired" (one for each example), or "each" (R for
    each).
    """
    structure, other = jax.tree.structure(x), jax.tree.structure(reference)
    if structure != other:
        raise ValueError(f"the reference must have the structure of the input: expected {structure}, got {other}.")
    reference = jax.tree.map(lambda leaf, ref: jnp.asarray(ref, leaf.dtype), x, reference)
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(reference), strict=True))
    kinds = {_kind_of(leaf.shape, ref.shape) for leaf, ref in pairs}
    lengths = {ref.shape[ref.ndim - leaf.ndim] for leaf, ref in pairs if ref.ndim >= leaf.ndim}
    if len(kinds) > 1 or len(lengths) > 1:
        shapes = jax.tree.map(lambda ref: ref.shape, reference)
        raise ValueError(f"all arrays of the reference must be read alike, but their shapes are {shapes}.")
    [kind] = kinds
    if 0 in lengths:
        raise ValueError("there are no references: expected at least one, got an array of length 0.")
    n = pairs[0][0].shape[0]
    if kind == "shared" and lengths == {n}:
        if references is None and n > 1:
            warnings.warn(
                f"input and reference have the same shape, with {n} examples. Each example is compared with each "
                f"reference (references='shared', {n} x {n} pairs). To compare each example with its own reference "
                f"({n} pairs), say "
                f"references='paired'; to keep this reading without the warning, references='shared'.",
                stacklevel=3,
            )
        return reference, references or kind
    if references is not None and (references == "paired") != (kind == "each"):
        raise ValueError(
            f"references={references!r} doesn't fit a reference of shape {pairs[0][1].shape} beside an input of shape "
            f"{pairs[0][0].shape}: " + _READINGS
        )
    return reference, kind


_READINGS = (
    "beside an input (N, ...), a reference is one for all (...), or shared by all (R, ...), or one for each example "
    "(N, ...) with references='paired', or several for each example (N, R, ...)."
)


def _kind_of(x: tuple[int, ...], reference: tuple[int, ...]) -> str:
    """How a reference of one shape is read beside an input of another."""
    if reference == x[1:]:
        return "one"
    if reference[1:] == x[1:]:
        return "shared"
    if reference[:1] == x[:1] and reference[2:] == x[1:]:
        return "each"
    raise ValueError(f"a reference of shape {reference} doesn't fit an input of shape {x}: {_READINGS}")


def _checked_output(outputs: Any) -> Array:
    """The outputs of a model on a batch of one, without the batch."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1:
        raise ValueError(
            f"the model must return one array, but it returns {len(leaves)}. Choose with target=, a function such as "
            f"`lambda outputs: outputs['logits'][:, 0]`."
        )
    y = jnp.asarray(leaves[0])
    if y.shape[:1] != (1,):
        raise ValueError(
            "the model must be batched, (N, ...) -> (N, ...), but on a batch of one example its output has shape "
            f"{y.shape}. If another argument has a row for each example, name it in batch_argnums. If the model takes "
            "one example and no batch, pass jax.vmap(model), or use jaxlift.vjp."
        )
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(
            f"the model's output has dtype {y.dtype}, which has no differences to explain: return scores or logits."
        )
    return y[0]


def _aim_of_each(target: Target, n: int, output: Callable[[], Any]) -> Array | None:
    """What is vmapped over examples: a target for each of them, if that is how the target is given."""
    if target is None or callable(target) or isinstance(target, int | str | tuple):
        return None
    aim = jnp.asarray(target)
    if jnp.issubdtype(aim.dtype, jnp.integer):
        if aim.ndim == 0:
            return None
        (count,) = _single_axis(output().shape, target)
        if not isinstance(aim, Tracer) and not bool(((-count <= aim) & (aim < count)).all()):
            raise ValueError(
                f"targets must be between 0 and {count - 1}, but they are between {aim.min()} and {aim.max()}."
            )
        per_example = True
    elif jnp.issubdtype(aim.dtype, jnp.floating):
        per_example = aim.ndim > 1 and aim.ndim == len(output().shape) + 1
    else:
        raise TypeError(f"a target array must hold indices or weights, but its dtype is {aim.dtype}.")
    if per_example and aim.shape[0] != n:
        raise ValueError(
            f"a target for each example must have length {n}, as the batch has, but its shape is {aim.shape}."
        )
    return aim if per_example else None


def _weights(y: Array, target: Any, normalize: bool) -> Array:
    """The weights of one example's outputs `y` in what is explained; with leading axes where that is several sums."""
    if target is None or callable(target):
        if y.size != 1:
            raise ValueError(
                f"the model has outputs of shape {y.shape} for each example: say which is explained, with target= an "
                "int, weights, a function of the outputs, or 'all'."
            )
        weights = jnp.ones_like(y)
    elif isinstance(target, str):
        weights = jnp.eye(y.size, dtype=y.dtype).reshape(*y.shape, *y.shape)
    elif isinstance(target, int | tuple) or jnp.issubdtype(target.dtype, jnp.integer):
        weights = _one_hot(y, target)
    else:
        weights = jnp.asarray(target, y.dtype)
        if weights.shape != y.shape:
            raise ValueError(
                f"weights of shape {weights.shape} don't fit the outputs of an example, of shape {y.shape}."
            )
    if normalize:
        axes = tuple(range(weights.ndim - y.ndim, weights.ndim))
        weights = weights - weights.mean(axes, keepdims=True)
    return weights


def _one_hot(y: Array, target: Any) -> Array:
    """The weights that pick one output, by an int, a tuple of ints, or a traced int."""
    if not isinstance(target, tuple):
        _single_axis(y.shape, target)
        target = (target,)
    if len(target) != y.ndim:
        raise ValueError(f"target={target} has {len(target)} indices, but an example's outputs have shape {y.shape}.")
    weights = jnp.ones((), y.dtype)
    for index, size in zip(target, y.shape, strict=True):
        if isinstance(index, int) and not -size <= index < size:
            raise ValueError(
                f"target {index} is out of range: expected 0 to {size - 1}, for outputs of shape {y.shape}."
            )
        picked = jax.nn.one_hot(jnp.where(index < 0, index + size, index), size, dtype=y.dtype)
        # An index that only shows when the program runs can't raise; it must not pass for a score of 0.
        weights = weights[..., None] * jnp.where(picked.sum() == 1, picked, jnp.nan)
    return weights


def _single_axis(shape: tuple[int, ...], target: Any) -> tuple[int]:
    """The number of outputs of an example, which must have one axis for an int to pick among them."""
    if len(shape) != 1:
        hint = "leave the target out" if not shape else f"give a tuple of {len(shape)} ints"
        raise ValueError(
            f"target={target} picks one of several outputs, but an example's outputs have shape {shape}: {hint}."
        )
    return shape
