"""What all methods of attribution have in common: batches, references, targets, layers and results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Never

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._arguments import (
    called,
    checked_axis,
    checked_channels,
    checked_input,
    checked_reference,
    described,
    is_eager,
    is_known,
    number_of_examples,
    spread_alike,
    summed,
)
from jaxlift._batching.arrangement import arranged, without_waiting
from jaxlift._batching.loops import map_over, mean_over, shape_of_one
from jaxlift._batching.partial_evaluation import Stages, Traced, staged, traced
from jaxlift._batching.spreading import with_examples_spread
from jaxlift._check import warn_of_cancellation
from jaxlift._core import versions
from jaxlift._core.compilers import batch_of_one
from jaxlift._core.precision import products_at
from jaxlift._independence import check_independence
from jaxlift._layers import Names, above, below
from jaxlift._options import Options, Pairing, check_call, missing_attribute
from jaxlift._targets import Held, Target, aim_of_each, side_by_side, weights_of

Explain = Callable[..., tuple[tuple[Array, Array], Callable[[Array], Any]]]


class Attribution(NamedTuple):
    """Scores, and what says how good they are: the result of an attribution with ``full=True``.

    All but `scores` and `standard_error` have the leading axes only: `(N,)`, with ``average=False`` an axis of
    references after it, and with ``target="all"`` those of the outputs after these: `(N, [R,] [K, ...])`.

    Attributes:
        scores: as they are without ``full=True``.
        delta: what is missing from the sum, `fun(x) - fun(r) - sum(contributions)`; in a mean over references, the
            mean. None for methods whose scores have no sum (`grad_cam`, `mutagenesis`).
        cancellation: how much contributions cancel, `sum(|contributions|) / |fun(x) - fun(r)|`. Where that times the
            dtype's rounding isn't small, the dtype can't carry the sum; outside of `jax.jit` a warning says so. None
            for methods whose scores have no sum.
        output, output_reference: what is explained, the target's value at the input and at the reference.
        standard_error: that of scores from random draws, which have the same shape. In a mean over references it is an
            upper bound where these have the same draws, as in `shapley`. Of `shapley_moments` it is that of the draws
            of signs alone, not of the approximation. None for methods that draw nothing: all but `gradient_shap`, and
            `shapley` and `shapley_moments` with ``samples=``.
    """

    scores: Any
    delta: Any = None
    cancellation: Any = None
    output: Any = None
    output_reference: Any = None
    standard_error: Any = None


@dataclass(frozen=True)
class Method:
    """How one example is explained.

    Attributes:
        name: what the method is called.
        explain: takes a function of an example, the example and its reference; returns the function's values on both,
            arrays of any shape, and a function that takes weights of that shape and returns the scores of what the
            weighted sum of the outputs comes to.
        gives: what the scores are. ``"multipliers"`` are contributions per unit of difference. ``"map"`` is neither,
            and has no sum.
        needs_reference: whether the example is compared with a reference. One that isn't given is zeros.
        is_differentiated: whether derivatives in the input are taken, so that it can't be integers.
        needs_one_hot: whether the input must be one-hot along the channels' axis.
        has_error: whether scores come with their standard error, as a pair.
        explain_layer: the same for the value of a layer, for methods that ask what lies below: takes the function of
            the example that leads there, the example and its reference before what `explain` takes. The function that
            goes on from there may be given another example as its second argument, in place of this one.
        draws: whether each reference has random draws of its own. `explain` then takes the reference's number too, and
            the error that comes with the scores is the variance of their mean.
        makes_multipliers: whether a backward pass makes multipliers of what both forward passes kept.
    """

    name: str
    explain: Explain
    gives: Literal["multipliers", "contributions", "map"] = "multipliers"
    needs_reference: bool = True
    is_differentiated: bool = True
    needs_one_hot: bool = False
    has_error: bool = False
    explain_layer: Callable[..., Any] | None = None
    draws: bool = False
    makes_multipliers: bool = False


def of_input(explain_layer: Callable[..., Any]) -> Explain:
    """What explains the input as a layer of its own, for methods that need ``layer=`` and are told None."""

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        return explain_layer(lambda x: x, x, reference, lambda x, at: fun(x), x, reference)

    return explain


@dataclass(frozen=True, eq=False, repr=False)
class Explainer:
    """A batched model, a method, and what is asked of them: the function that `jaxlift.attribute` returns."""

    fun: Callable[..., Any]
    method: Method
    options: Options
    examined: set[Any] = field(default_factory=set, repr=False)  # shapes for which the model's examples are independent

    def __post_init__(self) -> None:
        if self.method.gives != "multipliers" and self.options.output != "contributions":
            raise ValueError(
                f"output={self.options.output!r} needs a method that gives multipliers, which this one doesn't."
            )

    def __repr__(self) -> str:
        model = getattr(self.fun, "__name__", type(self.fun).__name__)
        options = [(f.name, getattr(self.options, f.name), f.default) for f in fields(self.options)]
        given = [f"{name}={_in_short(value)}" for name, value, default in options if value is not default]
        return f"<{self.method.name} of {', '.join([model, *given])}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise missing_attribute(name)

    @property
    def described_options(self) -> dict[str, Any]:
        """All that the scores depend on besides the model and the data, by name."""
        own = {f.name: getattr(self.options, f.name) for f in fields(self.options)}
        return {"method": self.method.name} | own

    def with_options(self, **options: Any) -> Explainer:
        """The same with other options of those that all methods have."""
        return replace(self, options=replace(self.options, **options))

    def __call__(self, *args: Any, reference: Any = None, target: Target = None, **unknown: Never) -> Any:
        check_call(unknown, self.described_options)
        attr = self if target is None else self.with_options(target=target)
        try:
            with products_at(attr.options.precision):
                return attr._explained(args, reference)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
            raise MemoryError(
                f"the comparisons of all examples with all references don't fit into memory at once "
                f"({str(error).splitlines()[0]}). Take some at a time, with reference_batch_size= or batch_size=; "
                "jaxlift.within_memory chooses them. Under jax.jit it takes less."
            ) from error

    def _explained(self, args: tuple[Any, ...], reference: Any) -> Any:
        options = self.options
        explained = options.argnums if isinstance(options.argnums, tuple) else (options.argnums,)
        if not all(0 <= i < len(args) for i in (*explained, *options.batch_argnums)):
            raise TypeError(
                f"argnums={options.argnums} and batch_argnums={options.batch_argnums} must be among the positional "
                f"arguments of the call, counted from 0: got {len(args)}."
            )
        x = tuple(args[i] for i in explained) if isinstance(options.argnums, tuple) else args[options.argnums]
        x = checked_input(x, self.method.is_differentiated and options.layer is None)
        n = number_of_examples(x)
        kind = "none"
        if reference is not None:
            reference, kind = _read_reference(x, reference, options.pairing, len(args) > len(explained))
        elif self.method.needs_reference:
            name = getattr(options, "rule", self.method.name)
            by_place = " What is given by its place is the model's own argument." if len(args) > len(explained) else ""
            raise TypeError(f"{name} compares the input with a reference: call attr(..., reference=...).{by_place}")

        def on_batch(x: Any, rows: dict[int, Any]) -> Any:
            """The outputs of the model on a batch."""
            replaced = dict(zip(explained, x if isinstance(options.argnums, tuple) else (x,), strict=True)) | rows
            full = tuple(replaced.get(i, arg) for i, arg in enumerate(args))
            return called(self.fun, full, x, not isinstance(options.argnums, tuple), replaced)

        def on_one(x: Any, rows: dict[int, Any], held: Held | None) -> Any:
            """What is explained of the model's outputs on one example: an array, or the values of a held target."""
            outputs = on_batch(*jax.tree.map(batch_of_one, (x, rows)))
            if held is not None:
                return jax.tree.map(_checked_output, held.values_of_one(outputs))
            return _checked_output(_chosen(options.target, outputs) if callable(options.target) else outputs)

        def pair(first: Any, second: Any) -> _Scores:
            """The scores of one example with its target, compared with one reference."""
            x, aim, rows = first
            reference, *number = second if self.method.draws else (second,)
            if not isinstance(aim, Held):
                target = options.target if aim is None else aim
                weigh = partial(weights_of, target=target, normalize=options.normalize_target)
                return self._pair(lambda x: on_one(x, rows, None), x, reference, weigh, *number)
            weigh = partial(aim.weights_of_one, shapes=jax.eval_shape(on_one, x, rows, aim))
            return self._pair(lambda x: side_by_side(on_one(x, rows, aim)), x, reference, weigh, *number)

        rows = {i: args[i] for i in options.batch_argnums}
        for i, leaf in ((i, leaf) for i, row in rows.items() for leaf in jax.tree.leaves(row)):
            if jnp.shape(leaf)[:1] != (n,):
                raise ValueError(
                    f"argument {i} is named in batch_argnums, so it must have a row for each of the {n} examples, but "
                    f"its shape is {jnp.shape(leaf)}."
                )
        one = shape_of_one((x, rows, options.target if isinstance(options.target, Held) else None))
        if kind == "ambiguous":
            jax.eval_shape(on_one, *one)  # where there is no batch axis, that is what is wrong
            kind = "shared"
            _warn_of_pairs(n)
        if self.method.needs_one_hot and jax.tree.structure(x) != jax.tree.structure(0):
            raise ValueError(f"{self.method.name} changes one array, but the input is {jax.tree.map(jnp.shape, x)}.")
        if options.layer is None and (options.output == "hypothetical" or self.method.needs_one_hot):
            of = "output='hypothetical'" if options.output == "hypothetical" else self.method.name
            jax.tree.map(lambda leaf: checked_channels("channel_axis", leaf, options.channel_axis, of), x)
        if is_known((args, reference)) and is_eager():
            _warn_of_not_finite(x, reference)
            if getattr(getattr(options, "rule", None), "is_relevance", False):
                _warn_of_relevances(reference)
            others = [arg for i, arg in enumerate(args) if i not in (*explained, *rows)]
            self._examine(on_batch, x, rows, reference if kind == "one" else None, bool(jax.tree.leaves(others)))
        aim = aim_of_each(options.target, n, lambda: jax.eval_shape(on_one, *one))
        count = _counted(reference, kind)
        if self.method.draws:
            reference = reference, _numbers(n, count, kind)
        found = self._all_pairs(pair, (x, aim, rows), reference, kind)
        if is_known((args, reference, found.scores)) and is_eager():
            _warn_of_scores(x, reference, found.scores)
        if not options.full:
            return found.scores
        cancellation = None
        if found.change is not None:
            cancellation = found.size / jnp.abs(found.change)
            warn_of_cancellation(cancellation, stacklevel=4)
        error = found.error
        if self.method.draws:
            error = jax.tree.map(lambda variance: jnp.sqrt(variance / (count if options.average else 1)), error)
        return Attribution(found.scores, found.delta, cancellation, found.output, found.output_ref, error)

    def _examine(self, on_batch: Callable[..., Any], x: Any, rows: Any, reference: Any, has_others: bool) -> None:
        """Check once, for a model and shapes, that its examples are independent of each other."""
        leaves = jax.tree.leaves((x, rows))
        seen = tuple((jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves)
        if seen in self.examined:
            return
        first, last = (jax.tree.map(lambda leaf, i=i: versions.row(jnp.asarray(leaf), i), (x, rows)) for i in (0, -1))
        if leaves[0].shape[0] == 1:
            like = jax.tree.map(jnp.zeros_like, first[0])
            last = like if reference is None else reference, last[1]
        check_independence(lambda both: on_batch(*both), first, last, has_others)
        self.examined.add(seen)

    def _all_pairs(self, pair: Callable[[Any, Any], _Scores], first: Any, reference: Any, kind: str) -> _Scores:
        """The scores of all examples with their references, arranged as the platform's compiler has them best."""
        compare = traced(pair, shape_of_one(first), _shape_of_one_reference(reference, kind))
        jaxpr, spread = with_examples_spread(compare.jaxpr)
        compare = replace(compare, jaxpr=jaxpr)
        options = self.options
        sizes = {"batch": options.batch_size, "reference_batch": options.reference_batch_size}
        # Functions of no more than they need: what is traced later must hold no tracers, as the model may.
        in_batches = partial(_in_batches, kind, average=options.average, spread=spread)
        all_at_once = partial(in_batches, **sizes)
        if kind == "none" or not self.method.makes_multipliers:
            return all_at_once(compare, first, reference)
        n, r = (jax.tree.leaves(each)[0].shape[0] if kind == "shared" else 1 for each in (first, reference))
        if 1 in (n, r):
            compare = replace(compare, jaxpr=without_waiting(compare.jaxpr))
            return all_at_once(compare, first, reference)
        is_said = any(size is not None for size in sizes.values())
        is_known = isinstance(n, int) and isinstance(r, int)  # not where a program is exported for any number
        if is_said or not is_known:
            return all_at_once(compare, first, reference)
        in_turn = partial(in_batches, reference_batch=1)
        return arranged(compare, first, reference, all_at_once, in_turn, average=options.average, spread=spread)

    def _pair(
        self, fun: Callable[[Any], Array], x: Any, reference: Any, weigh: Callable[[Array], Array], *number: Array
    ) -> _Scores:
        """The scores of one example, compared with one reference; `weigh` makes the weights of its outputs."""
        explain, options = self.method.explain, self.options
        if options.layer is not None:
            layer, rest = _layer(fun, options.layer, x)
            if self.method.explain_layer is not None:
                explain = partial(self.method.explain_layer, layer, x, reference)
            fun, x, reference = rest, layer(x), None if reference is None else layer(reference)
        if reference is None:
            reference = jax.tree.map(jnp.zeros_like, x)
        x, reference = spread_alike(x, reference)
        (y, y_ref), pull = explain(fun, x, reference, *number)
        weights = weigh(y)
        # A sum of zeros, which is NaN if an element isn't finite. It is one operation everywhere, where
        # `isfinite(...).all()` is three kernels for each array on CPUs, a fifth of the time to compile BPNet's.
        zeros = lax.stop_gradient([(leaf * 0).sum() for leaf in jax.tree.leaves((x, reference))])
        finite = reduce(jnp.add, zeros) == 0

        def of_weighted_sum(weights: Array) -> _Scores:
            scores = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.nan), pull(weights))
            scores, error = scores if self.method.has_error else (scores, None)
            contributions = scores
            if self.method.gives == "multipliers":
                contributions = jax.tree.map(lambda m, x, r: m * (x - r), scores, x, reference)
                if error is not None and options.output == "contributions":
                    error = jax.tree.map(lambda e, x, r: e * jnp.abs(x - r), error, x, reference)
            match options.output:
                case "contributions":
                    scores = contributions
                case "hypothetical":
                    scores, error = jax.tree.map(self._hypothetical, scores, reference), None
            if not options.full:
                return _Scores(scores)
            explained = (weights * y).sum(), (weights * y_ref).sum()
            if self.method.gives == "map":
                return _Scores(scores, error, *explained)
            change = (weights * (y - y_ref)).sum()
            size = summed(jax.tree.map(jnp.abs, contributions))
            return _Scores(scores, error, *explained, change - summed(contributions), size, change)

        for _ in range(weights.ndim - y.ndim):
            of_weighted_sum = jax.vmap(of_weighted_sum)
        return of_weighted_sum(weights)

    def _hypothetical(self, multipliers: Array, reference: Array) -> Array:
        axis = checked_axis("channel_axis", self.options.last_channel_axis, multipliers.ndim)
        return multipliers - (multipliers * reference).sum(axis, keepdims=True)


def _in_batches(
    kind: str,
    pair: Traced,
    first: Any,
    reference: Any,
    *,
    average: bool,
    spread: tuple[str, ...],
    batch: int | None = None,
    reference_batch: int | None = None,
) -> _Scores:
    """The scores of all examples with their references, as many at once as is asked for.

    In batches, what needs an example alone, or a reference alone, is still computed once: before the loop that goes
    over the others. The model spreads examples over these axes of a mesh.
    """
    stages = Stages(lambda first: first, lambda second: second, pair)
    if kind not in ("none", "paired") and (batch or reference_batch):
        one = shape_of_one(first), _shape_of_one_reference(reference, kind)
        stages = staged(pair, *one)
    if kind == "one":
        reference = stages.on_second(reference)
    before = kind == "shared" and reference_batch is None
    if before:
        reference = jax.vmap(stages.on_second)(reference)

    def example(first: Any, reference: Any) -> _Scores:
        known = stages.on_first(first)
        if kind in ("none", "one", "paired"):
            return stages.joint(known, reference)
        over = mean_over if average else map_over
        return over(
            lambda each: stages.joint(known, each if before else stages.on_second(each)), reference, reference_batch
        )

    if kind in ("paired", "each"):
        return map_over(lambda both: example(*both), (first, reference), batch, spread)
    return map_over(lambda first: example(first, reference), first, batch, spread)


def _in_short(value: Any) -> str:
    """A value of an option, by its type where it is long."""
    shown = repr(value)
    return shown if len(shown) < 60 and not isinstance(value, Array) else described(value)


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


def _counted(reference: Any, kind: str) -> int:
    """How many references an example is compared with."""
    axis = {"shared": 0, "each": 1}.get(kind)
    return 1 if axis is None else jax.tree.leaves(reference)[0].shape[axis]


def _numbers(n: int, count: int, kind: str) -> Array:
    """The number of each reference among those of its example, as so many are read beside n examples."""
    shape = {"shared": (count,), "paired": (n,), "each": (n, count)}.get(kind, ())
    return jnp.broadcast_to(jnp.arange(count) if kind in ("shared", "each") else 0, shape)


def _shape_of_one_reference(reference: Any, kind: str) -> Any:
    """The shapes of one reference, of what has so many of them."""
    if kind == "one":
        return reference
    return shape_of_one(shape_of_one(reference) if kind == "each" else reference)


def _layer(fun: Callable[[Any], Array], names: Names, x: Any) -> tuple[Callable[[Any], Any], Callable[..., Array]]:
    """The function that leads to named values, of one example and without the batch; and that which goes on from there.

    What reaches the output past them stays as it is for the input, unless that function is given another.
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

    def from_there(values: Any, at: Any = x) -> Array:
        return rest(jax.tree.map(batch_of_one, values), at)

    return layer, from_there


def _warn_of_not_finite(x: Any, reference: Any) -> None:
    """Warn of examples that aren't finite, which have scores of NaN and spoil no others, and of such references."""
    finite = reduce(
        jnp.logical_and, (jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(x))
    )
    if count := int((~finite).sum()):
        warnings.warn(
            f"{count} of {len(finite)} examples have a NaN or an infinity, the first of them example "
            f"{int(finite.argmin())}: their scores are NaN.",
            stacklevel=4,
        )
    if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(reference)):
        warnings.warn(
            "the reference has a NaN or an infinity: scores against it are NaN, and so are means over it.",
            stacklevel=4,
        )


def _warn_of_relevances(reference: Any) -> None:
    """Warn of a reference other than zeros under a rule whose scores are shares of the output itself."""
    if any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(reference)):
        warnings.warn(
            "rules of LRP share the output itself, and compare nothing: with a reference their scores are multiplied "
            "by (x - r) / x, and sum to nothing. Leave the reference out.",
            stacklevel=4,
        )


def _warn_of_scores(x: Any, reference: Any, scores: Any) -> None:
    """Warn of scores that aren't finite though all that they are made of is."""
    wrong = sum(int((~jnp.isfinite(leaf)).sum()) for leaf in jax.tree.leaves(scores))
    if wrong and all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((x, reference))):
        warnings.warn(
            f"{wrong} scores are NaN or infinite, though input and reference are finite: the model's values are, "
            "or a derivative on the way. jaxlift.check says in which line.",
            stacklevel=4,
        )


def _warn_of_pairs(n: int) -> None:
    warnings.warn(
        f"input and reference have the same shape, with {n} examples. Each example is compared with each reference "
        f"(pairing='shared', {n} x {n} pairs). To compare each example with its own reference ({n} pairs), say "
        "pairing='paired'; to keep this reading without the warning, pairing='shared'.",
        stacklevel=4,
    )


def _read_reference(x: Any, reference: Any, pairing: Pairing | None, is_one_of_several: bool) -> tuple[Any, str]:
    """The reference as arrays, and what it is: "one", "shared", "paired" (one for each example), "each" (R for each),
    or "ambiguous": shared or paired, of the input's shape.
    """
    reference = checked_reference(x, reference)
    pairs = list(zip(jax.tree.leaves(x), jax.tree.leaves(reference), strict=True))
    hint = " Of the model's arguments, argnums= says which is explained." if is_one_of_several else ""
    kinds = {_kind_of(leaf.shape, ref.shape, hint) for leaf, ref in pairs}
    lengths = {ref.shape[ref.ndim - leaf.ndim] for leaf, ref in pairs if ref.ndim >= leaf.ndim}
    if len(kinds) > 1 or len(lengths) > 1:
        shapes = jax.tree.map(lambda ref: ref.shape, reference)
        raise ValueError(f"all arrays of the reference must be read alike, but their shapes are {shapes}.")
    [kind] = kinds
    if 0 in lengths:
        raise ValueError("there are no references: expected at least one, got an array of length 0.")
    n = pairs[0][0].shape[0]
    if kind == "shared" and lengths == {n}:
        return reference, pairing or ("ambiguous" if n > 1 else kind)
    if pairing is not None and (pairing == "paired") != (kind == "each"):
        raise ValueError(
            f"pairing={pairing!r} doesn't fit a reference of shape {pairs[0][1].shape} beside an input of shape "
            f"{pairs[0][0].shape}: " + _READINGS
        )
    return reference, kind


_READINGS = (
    "beside an input (N, ...), a reference is one for all (...), or shared by all (R, ...), or one for each example "
    "(N, ...) with pairing='paired', or several for each example (N, R, ...)."
)


def _kind_of(x: tuple[int, ...], reference: tuple[int, ...], hint: str) -> str:
    """How a reference of one shape is read beside an input of another."""
    if reference == x[1:]:
        return "one"
    if reference[1:] == x[1:]:
        return "shared"
    if reference[:1] == x[:1] and reference[2:] == x[1:]:
        return "each"
    raise ValueError(
        f"a reference of shape {reference} doesn't fit an input of shape {x}: expected {x[1:]}, such as "
        f"jnp.zeros({x[1:]}), for all examples; {_READINGS}{hint}"
    )


def _chosen(target: Callable[[Any], Any], outputs: Any) -> Any:
    """What a target that is a function makes of the outputs on a batch of one."""
    chosen = target(outputs)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(chosen)]
    if len(shapes) == 1 and shapes[0][:1] != (1,) and all(jnp.shape(y)[:1] == (1,) for y in jax.tree.leaves(outputs)):
        raise ValueError(
            "a target that is a function of the outputs must return (N, ...) as they have, but of a batch of one "
            f"example it returns shape {shapes[0]}. For a label of each example write target=labels, an array of "
            "integers (N,)."
        )
    return chosen


def _checked_output(outputs: Any) -> Array:
    """The outputs of a model on a batch of one, without the batch."""
    leaves = jax.tree.leaves(outputs)
    if len(leaves) != 1:
        place = "['logits']" if isinstance(outputs, dict) else "[0]"
        raise ValueError(
            f"the model must return one array, but it returns a {type(outputs).__name__} of {len(leaves)} arrays. "
            f"Choose with target=, a function such as `lambda outputs: outputs{place}[:, 0]`."
        )
    y = jnp.asarray(leaves[0])
    if y.shape[:1] != (1,):
        raise ValueError(
            "the model must be batched, (N, ...) -> (N, ...), but on a batch of one example its output has shape "
            f"{y.shape}. If the input is one example without a batch, write x[None]. If another argument has a row for "
            "each example, name it in batch_argnums. If the model takes one example and no batch, pass "
            "jax.vmap(model), or use jaxlift.vjp."
        )
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(
            f"the model's output has dtype {y.dtype}, which has no differences to explain: return scores or logits."
        )
    return y[0]
