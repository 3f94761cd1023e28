"""What all methods of attribution have in common: batches, references, targets, layers and results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial, reduce
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import check_option, check_structure, checked_input, summed
from jaxlift._batching.loops import map_over, mean_over, shape_of_one
from jaxlift._batching.partial_evaluation import Stages, staged
from jaxlift._check import warn_of_cancellation
from jaxlift._layers import Names, above, below
from jaxlift._targets import Target, aim_of_each, check_target, weights_of

Output = Literal["contributions", "multipliers", "hypothetical"]
References = Literal["shared", "paired"]
Explain = Callable[[Callable[[Any], Array], Any, Any], tuple[tuple[Array, Array], Callable[[Array], Any]]]


class CommonOptions(TypedDict, total=False):
    """The options that all methods have; `jaxlift.attribute` explains them."""

    target: Target
    normalize_target: bool
    argnums: int | tuple[int, ...]
    batch_argnums: tuple[int, ...]
    references: References | None
    average: bool
    output: Output
    channel_axis: int
    convergence_delta: bool
    cancellation: bool
    with_outputs: bool
    batch_size: int | None
    reference_batch_size: int | None


class Options(CommonOptions, total=False):
    """The options of methods that may explain a value inside of the model in place of its input."""

    layer: Names | None


@dataclass(frozen=True)
class Method:
    """How one example is explained.

    Attributes:
        explain: takes a function of an example, the example and its reference; returns the function's values on both,
            arrays of any shape, and a function that takes weights of that shape and returns the scores of what the
            weighted sum of the outputs comes to.
        gives: what the scores are. ``"multipliers"`` are contributions per unit of difference. ``"map"`` is neither,
            and has no sum.
        needs_reference: whether the example is compared with a reference. One that isn't given is zeros.
        has_error: whether scores come with their standard error, as a pair.
        options: what the method was given besides, by name: its rule, its steps.
        explain_layer: the same for the value of a layer, for methods that ask what lies below: takes the function that
            goes on from there, the function of the example that leads there, the example and its reference.
    """

    explain: Explain
    gives: Literal["multipliers", "contributions", "map"] = "multipliers"
    needs_reference: bool = True
    has_error: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    explain_layer: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Explainer:
    """A batched model, a method, and what is asked of them: the function that `jaxlift.attribute` returns."""

    fun: Callable[..., Any]
    method: Method
    target: Target = None
    normalize_target: bool = False
    layer: Names | None = None
    argnums: int | tuple[int, ...] = 0
    batch_argnums: tuple[int, ...] = ()
    references: References | None = None
    average: bool = True
    output: Output = "contributions"
    channel_axis: int = -1
    convergence_delta: bool = False
    cancellation: bool = False
    with_outputs: bool = False
    batch_size: int | None = None
    reference_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_option("output", self.output, Output)
        check_option("references", self.references, References, None)
        check_target(self.target, self.normalize_target)
        for name, size in (("batch_size", self.batch_size), ("reference_batch_size", self.reference_batch_size)):
            if size is not None:
                check_count(name, size)
        if self.method.gives != "multipliers" and self.output != "contributions":
            raise ValueError(f"output={self.output!r} needs a method that gives multipliers, which this one doesn't.")
        if self.method.gives == "map" and (self.convergence_delta or self.cancellation):
            raise ValueError(
                "convergence_delta and cancellation are about sums, which this method's scores don't have."
            )

    @property
    def options(self) -> dict[str, Any]:
        """All that the scores depend on besides the model and the data, by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("fun", "method")}
        return own | self.method.options

    def __call__(self, *args: Any, reference: Any = None) -> Any:
        explained = self.argnums if isinstance(self.argnums, tuple) else (self.argnums,)
        if not all(0 <= i < len(args) for i in (*explained, *self.batch_argnums)):
            raise TypeError(
                f"argnums={self.argnums} and batch_argnums={self.batch_argnums} must be among the positional arguments "
                f"of the call, counted from 0: got {len(args)}."
            )
        x = checked_input(tuple(args[i] for i in explained) if isinstance(self.argnums, tuple) else args[self.argnums])
        n = number_of_examples(x)
        kind = "none"
        if reference is not None:
            reference, kind = _read_reference(x, reference, self.references)
        elif self.method.needs_reference:
            name = self.method.options.get("rule") or self.method.options.get("method")
            raise TypeError(f"{name} compares the input with a reference: call attr(..., reference=...).")

        def on_one(x: Any, rows: dict[int, Any]) -> Array:
            """The outputs of the model on one example."""
            replaced = dict(zip(explained, x if isinstance(self.argnums, tuple) else (x,), strict=True))
            replaced = jax.tree.map(lambda leaf: leaf[None], replaced | rows)
            outputs = self.fun(*(replaced.get(i, arg) for i, arg in enumerate(args)))
            return _checked_output(self.target(outputs) if callable(self.target) else outputs)

        def pair(first: Any, reference: Any) -> _Scores:
            """The scores of one example with its target, compared with one reference."""
            x, aim, rows = first
            return self._pair(lambda x: on_one(x, rows), x, reference, aim)

        rows = {i: args[i] for i in self.batch_argnums}
        aim = aim_of_each(self.target, n, lambda: jax.eval_shape(on_one, *shape_of_one((x, rows))))
        found = self._all_pairs(pair, (x, aim, rows), reference, kind)
        results = [found.scores]
        if self.method.has_error:
            results.append(found.error)
        if self.convergence_delta:
            results.append(found.delta)
        if self.cancellation:
            results.append(found.size / jnp.abs(found.change))
            warn_of_cancellation(results[-1])
        if self.with_outputs:
            results += [found.output, found.output_ref]
        return tuple(results) if len(results) > 1 else found.scores

    def _all_pairs(self, pair: Callable[[Any, Any], _Scores], first: Any, reference: Any, kind: str) -> _Scores:
        """The scores of all examples with their references, as many at once as is asked for.

        In batches, what needs an example alone, or a reference alone, is still computed once: before the loop that goes
        over the others.
        """
        batch, reference_batch = self.batch_size, self.reference_batch_size
        stages = Stages(lambda first: first, lambda second: second, pair)
        if kind not in ("none", "paired") and (batch or reference_batch):
            one = reference if kind == "one" else shape_of_one(shape_of_one(reference) if kind == "each" else reference)
            stages = staged(pair, shape_of_one(first), one)
        if kind == "one":
            reference = stages.on_second(reference)
        before = kind == "shared" and reference_batch is None
        if before:
            reference = jax.vmap(stages.on_second)(reference)

        def example(first: Any, reference: Any) -> _Scores:
            known = stages.on_first(first)
            if kind in ("none", "one", "paired"):
                return stages.joint(known, reference)
            over = mean_over if self.average else map_over
            return over(
                lambda each: stages.joint(known, each if before else stages.on_second(each)), reference, reference_batch
            )

        if kind in ("paired", "each"):
            return map_over(lambda both: example(*both), (first, reference), batch)
        return map_over(lambda first: example(first, reference), first, batch)

    def _pair(self, fun: Callable[[Any], Array], x: Any, reference: Any, aim: Array | None) -> _Scores:
        """The scores of one example, compared with one reference."""
        explain = self.method.explain
        if self.layer is not None:
            layer, rest = _layer(fun, self.layer, x)
            if self.method.explain_layer is not None:
                explain = partial(self.method.explain_layer, layer, x, reference)
            fun, x, reference = rest, layer(x), None if reference is None else layer(reference)
        if reference is None:
            reference = jax.tree.map(jnp.zeros_like, x)
        (y, y_ref), pull = explain(fun, x, reference)
        weights = weights_of(y, self.target if aim is None else aim, self.normalize_target)
        finite = reduce(jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((x, reference))))

        def of_weighted_sum(weights: Array) -> _Scores:
            scores = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), pull(weights))
            scores, error = scores if self.method.has_error else (scores, None)
            explained = (weights * y).sum(), (weights * y_ref).sum()
            if self.method.gives == "map":
                return _Scores(scores, error, *explained)
            contributions = scores
            if self.method.gives == "multipliers":
                contributions = jax.tree.map(lambda m, x, r: m * (x - r), scores, x, reference)
            match self.output:
                case "contributions":
                    scores = contributions
                case "hypothetical":
                    scores = jax.tree.map(self._hypothetical, scores, reference)
            change = (weights * (y - y_ref)).sum()
            size = summed(jax.tree.map(jnp.abs, contributions))
            return _Scores(scores, error, *explained, change - summed(contributions), size, change)

        for _ in range(weights.ndim - y.ndim):
            of_weighted_sum = jax.vmap(of_weighted_sum)
        return of_weighted_sum(weights)

    def _hypothetical(self, multipliers: Array, reference: Array) -> Array:
        return multipliers - (multipliers * reference).sum(self.channel_axis, keepdims=True)


class _Scores(NamedTuple):
    """Scores, their standard error, what is explained at the input and at the reference, what is missing from the sum,
    and what the cancellation is the quotient of.
    """

    scores: Any
    error: Any = None
    output: Any = None
    output_ref: Any = None
    delta: Any = None
    size: Any = None
    change: Any = None


def _layer(fun: Callable[[Any], Array], names: Names, x: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Array]]:
    """The function that leads to named values, of one example and without the batch; and that which goes on from there.

    What reaches the output past them stays as it is for the input.
    """
    value, rest = below(fun, names), above(fun, names)

    def layer(x: Any) -> Any:
        values = value(x)
        for name, leaf in zip((names,) if isinstance(names, str) else names, jax.tree.leaves(values), strict=True):
            if leaf.shape[:1] != (1,):
                raise ValueError(
                    f"the value named {name!r} must have the batch axis first, but for a batch of one example its "
                    f"shape is {leaf.shape}."
                )
        return checked_input(jax.tree.map(lambda leaf: leaf[0], values))

    def from_there(values: Any) -> Array:
        return rest(jax.tree.map(lambda leaf: leaf[None], values), x)

    return layer, from_there


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise the error that says what numbers an option may be."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an int, {least} at least.")


def number_of_examples(x: Any) -> int:
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
    check_structure(x, reference)
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
