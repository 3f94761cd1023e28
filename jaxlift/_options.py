"""The options of all methods, written once: names, defaults, checks and documentation."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import numpy as np

from jaxlift._arguments import check_count, check_model, check_option
from jaxlift._core.precision import Precision
from jaxlift._layers import Names, check_names
from jaxlift._targets import Target, checked_target

Output = Literal["contributions", "multipliers", "hypothetical"]
Pairing = Literal["shared", "paired"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """What all methods may be asked for. A method that has more options derives from it.

    Attributes:
        target: which of an example's outputs is explained. ``None`` if there is only one. An int, or for outputs of
            several axes a tuple of ints. An integer array `(N,)`: an output for each example. A floating-point array,
            of the shape of an example's outputs, or of the batch's: their weighted sum (a class contrast is one call).
            A function from the model's outputs on a batch to `(N,)`. `Held`: a weighted sum whose weights are made of
            the outputs at the input and held constant, or several sums by name. ``"all"``: every output, from one
            forward pass. A target given with the call takes its place: ``attr(x, reference=r, target=labels)``.
        normalize_target: take the mean over all outputs off the target (paper, eq. 5), so that contributions to the
            logits of a softmax don't count what all classes gain alike.
        layer: the name of a value inside of `fun`, given with `jax.ad_checkpoint.checkpoint_name`, or a tuple of such
            names: what the contributions are of, in place of the input's. What lies below isn't explained, and what
            reaches the output past the named values stays as it is for the input. See also `below` and `above`. Under
            rules that tell parts apart, such as ``"revealcancel"``, parts are those that lie below, and there are no
            multipliers to return.
        argnums: which argument of `fun` is explained, a pytree of arrays `(N, ...)`; or a tuple of such arguments. They
            are floating-point numbers; or integers, such as tokens, where `layer` names what is explained in their
            place, or the method takes no derivatives.
        batch_argnums: which of the others have an example on each row, as masks may. The rest (parameters, PRNG keys)
            are passed on whole.
        pairing: where reference and input have the same shape and N > 1, what that means. ``"shared"``: each example
            is compared with each reference. ``"paired"``: with its own.
        average: whether to return the mean over references, or the scores for each.
        output: ``"contributions"``; ``"multipliers"``, contributions per unit of difference; or ``"hypothetical"``, the
            contributions each channel would have if the input were one-hot there, `m_i - sum_c r_c m_c` along
            `channel_axis`. The input must be one-hot, or 0 or a distribution where a letter isn't known.
        channel_axis: the axis of the channels in one example, without the batch: `(L, 4)` has axes 0 and 1, or -2 and
            -1. The last, if left out.
        full: whether to return an `Attribution`: the scores, how much is missing from their sum, how much they cancel,
            and the outputs that they explain.
        batch_size, reference_batch_size: how many examples, and how many references, are compared at once; None for
            all. Memory grows with their product, the results don't depend on them, and forward passes remain N + R
            unless both are given: then references are evaluated again for each batch of examples.
        precision: what matrix products and convolutions have at least: ``"highest"``, ``"high"`` or ``"default"``, as
            `jax.default_matmul_precision` names it, whose setting it takes the place of. ``"highest"`` is true float32
            on every device, and what the sum needs: GPUs and TPUs round a float32 product's operands to 11 and to 8
            digits by themselves, which can leave a third of the difference out. ``None`` is the model's own. Products
            of bfloat16 numbers stay what they are.
    """

    target: Target = None
    normalize_target: bool = False
    layer: Names | None = None
    argnums: int | tuple[int, ...] = 0
    batch_argnums: tuple[int, ...] = ()
    pairing: Pairing | None = None
    average: bool = True
    output: Output = "contributions"
    channel_axis: int | None = None
    full: bool = False
    batch_size: int | None = None
    reference_batch_size: int | None = None
    precision: Precision | None = "highest"

    def __post_init__(self) -> None:
        check_option("output", self.output, Output)
        check_option("pairing", self.pairing, Pairing, None)
        check_option("precision", self.precision, Precision, None)
        object.__setattr__(self, "target", checked_target(self.target, self.normalize_target))
        for name, size in (("batch_size", self.batch_size), ("reference_batch_size", self.reference_batch_size)):
            if size is not None:
                check_count(name, size)
        if self.layer is not None:
            check_names("layer", self.layer)
        places = _places("argnums", self.argnums)
        object.__setattr__(self, "argnums", places if isinstance(self.argnums, tuple | list) else places[0])
        object.__setattr__(self, "batch_argnums", _places("batch_argnums", self.batch_argnums))

    @property
    def last_channel_axis(self) -> int:
        """The axis of the channels in one example: the last, if left out."""
        return -1 if self.channel_axis is None else self.channel_axis


def _places(name: str, argnums: Any) -> tuple[int, ...]:
    """Places of arguments, of one or of several, or the error that says what they may be."""
    places = argnums if isinstance(argnums, tuple | list) else (argnums,)
    if any(isinstance(place, bool) or not isinstance(place, int | np.integer) for place in places):
        raise TypeError(f"{name}={argnums!r} must be an int or a tuple of ints, places of arguments counted from 0.")
    return tuple(map(int, places))


P = ParamSpec("P")
O = TypeVar("O", bound=Options)  # noqa: E741
R = TypeVar("R")
Model = Callable[..., Any]


def takes(options: Callable[P, O]) -> Callable[[Callable[[Model, O], R]], Callable[Concatenate[Model, P], R]]:
    """Make a function of a model and options, `method(fun, options)`, one of a model and keywords.

    Its signature and documentation are completed by those of the options; type checkers know the keywords.
    """
    of_options = {field.name: field for field in fields(options)}  # pyright: ignore[reportArgumentType] (a dataclass)
    names, needs_layer = [*of_options], of_options["layer"].default is MISSING

    def decorate(method: Callable[[Model, O], R]) -> Callable[Concatenate[Model, P], R]:
        @functools.wraps(method)
        def with_keywords(fun: Model, /, *args: P.args, **keywords: P.kwargs) -> R:
            check_keywords(method.__name__, keywords, names)
            check_model(fun)
            if args:
                raise TypeError(
                    f"{method.__name__} takes the model alone by its place, and {len(args)} more came: write options "
                    "by name, and give the reference with the call, attr(x, reference=...)."
                )
            if needs_layer and "layer" not in keywords:
                raise TypeError(
                    f"{method.__name__} needs layer=, the name of a value inside of the model: name it there, as in "
                    "h = jax.ad_checkpoint.checkpoint_name(h, 'hidden'), and say layer='hidden'."
                )
            return method(fun, options(*args, **keywords))

        [fun, _] = inspect.signature(method).parameters.values()
        parameters = [fun, *inspect.signature(options).parameters.values()]
        result = inspect.signature(method).return_annotation
        vars(with_keywords).update(__signature__=inspect.Signature(parameters, return_annotation=result))
        with_keywords.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": result}
        with_keywords.__doc__ = _documented(method, options)
        return with_keywords

    return decorate


def _documented(method: Callable[..., Any], options: Any) -> str:
    """A method's docstring, with the options among its arguments: its own before those of all methods."""
    kinds = [kind for kind in options.__mro__ if issubclass(kind, Options)]
    described = [inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].rstrip() for kind in kinds]
    head, returns, rest = inspect.cleandoc(method.__doc__ or "").partition("\n\nReturns:")
    return "\n".join([head, *filter(None, described)]) + returns + rest


# What others call what jaxlift calls otherwise, and how it is written here.
_HERE = {
    "reference": "the reference goes with the call: attr(x, reference=...)",
    "references": "references go with the call, attr(x, reference=...); what equal shapes mean is pairing='shared' or "
    "'paired'",
    "baseline": "the reference goes with the call: attr(x, reference=...)",
    "baselines": "the reference goes with the call: attr(x, reference=...)",
    "background": "references go with the call: attr(x, reference=...)",
    "background_data": "references go with the call: attr(x, reference=...)",
    "data": "references go with the call: attr(x, reference=...)",
    "inputs": "the input is the first argument of the call: attr(x, reference=...)",
    "forward_func": "the model is the first argument: attribute(model)",
    "model": "the model is the first argument: attribute(model)",
    "additional_forward_args": "other arguments of the model are passed in their places, attr(x, mask, reference=...); "
    "batch_argnums= names those with a row for each example",
    "return_convergence_delta": "full=True returns scores, delta and more",
    "return_convergence_deltas": "full=True returns scores, delta and more",
    "convergence_delta": "full=True returns scores, delta and more",
    "check_additivity": "full=True returns scores and delta, what is missing from their sum",
    "warning_threshold": "full=True returns scores and delta, what is missing from their sum",
    "cancellation": "full=True returns scores, cancellation and more",
    "with_outputs": "full=True returns scores, output, output_reference and more",
    "raw_outputs": "output='multipliers'",
    "standard_error": "full=True returns scores, standard_error and more",
    "multiply_by_inputs": "output='multipliers' doesn't multiply, output='contributions' does",
    "hypothetical": "output='hypothetical'",
    "n_steps": "steps=",
    "method": "steps=, by the midpoint rule",
    "internal_batch_size": "batch_size= and reference_batch_size=",
    "perturbations_per_eval": "chunk=",
    "sliding_window_shapes": "window=",
    "feature_mask": "groups=",
    "n_samples": "samples=",
    "nsamples": "samples=",
    "nt_samples": "samples=",
    "stdevs": "noise=",
    "n_shuffles": "the references' own count: references.dinucleotide_shuffle(x, key, count)",
    "neuron_selector": "unit=",
    "rng": "key=",
    "random_state": "key=",
    "ranked_outputs": "target='all'",
    "targets": "target=",
    "axis": "channel_axis=",
}
# What others do by methods of an object that jaxlift does by a call.
_CALLS = {
    "attribute": "attr(x, reference=...)",
    "attribute_future": "attr(x, reference=...)",
    "shap_values": "attr(x, reference=...)",
    "explain": "attr(x, reference=...)",
    "apply": "attr(x, reference=...)",
    "compute_convergence_delta": "full=True, whose result has a delta",
    "has_convergence_delta": "full=True, whose result has a delta",
}


def check_call(given: Iterable[str], options: Iterable[str]) -> None:
    """Raise the error for a keyword that the call of an attribution function doesn't take.

    Args:
        given: the keywords.
        options: those that it was made with.
    """
    for keyword in given:
        if keyword in options:
            said = f"options are said where attr is made: attribute(model, {keyword}=...)."
        elif keyword in _HERE:
            said = f"instead, {_HERE[keyword]}; options are said where attr is made: attribute(model, ...)."
        elif near := difflib.get_close_matches(keyword, ("reference", "target"), n=1):
            said = f"did you mean {near[0]}=?"
        else:
            said = (
                "it takes reference= and target=, and the model's arguments by their places. Of a model with keywords "
                f"make a function without: attribute(lambda x: model(x, {keyword}=...))."
            )
        raise TypeError(f"attr has no option {keyword}=: {said}")


def check_keywords(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise the error for a keyword that isn't known: what it is called here, or which one is meant."""
    for keyword in given:
        if keyword in known:
            continue
        near = difflib.get_close_matches(keyword, list(known), n=1, cutoff=0.6)
        if keyword in _HERE:
            advice = f"instead, {_HERE[keyword]}."
        elif near:
            advice = f"did you mean {near[0]}=?"
        else:
            advice = f"expected one of {', '.join(known)}."
        raise TypeError(f"{name} has no option {keyword}=: {advice}")


def missing_attribute(name: str) -> AttributeError:
    """The error for an attribute that an attribution function doesn't have."""
    if name in _CALLS:
        return AttributeError(
            f"an attribution function has no .{name}: it is itself what is called. Write {_CALLS[name]}."
        )
    return AttributeError(f"an attribution function has no attribute {name!r}.")
