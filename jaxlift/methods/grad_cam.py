"""Class activation maps: where in its last maps a convolutional network sees a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxlift._arguments import check_count, checked_axis, checked_input
from jaxlift._attribute import attribute
from jaxlift._explainer import Attribution, Explainer, Method, of_input
from jaxlift._lift import vjp
from jaxlift._options import Options, takes
from jaxlift._targets import Target
from jaxlift.rules import Gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class GradCAMOptions(Options):
    """The options of `grad_cam`, `grad_cam_plus_plus` and `guided_grad_cam`.

    Attributes:
        layer: the name of the activations, `(N, ..., C)`, which `fun` gives with `jax.ad_checkpoint.checkpoint_name`.
            Usually the last before pooling. It must be given; what is said of `layer` and `channel_axis` below holds
            for the activations.
    """

    layer: str = field()  # pyright: ignore[reportGeneralTypeIssues] (required, unlike that of other methods)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreCAMOptions(GradCAMOptions):
    """The options of `score_cam`.

    Attributes:
        chunk: how many masked inputs are evaluated at once.
    """

    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("chunk", self.chunk)


@takes(GradCAMOptions)
def grad_cam(fun: Callable[..., Any], options: GradCAMOptions) -> Explainer:
    r"""Make the function that maps where a layer's activations speak for an output.

    .. math:: L = \mathrm{ReLU}\left(\sum_c \alpha_c A_c\right), \qquad
        \alpha_c = \mathrm{mean}_{ij}\, \frac{\partial y}{\partial A_{ijc}}

    (Selvaraju et al. 2017, arXiv 1610.02391, eq. 1 and 2), where `A` are the activations.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):                                                    # (N, 4, 3) -> (N,)
    ...     maps = checkpoint_name(jax.nn.relu(x), "maps")
    ...     return maps.mean(1) @ jnp.array([4.0, -4.0, 0.0])
    >>> attr = jaxlift.grad_cam(model, layer="maps")
    >>> attr(jnp.array([[[1.0, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 5]]]))
    Array([[1., 1., 0., 0.]], dtype=float32)

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args)`, the map, of the activations' shape without their channels. No reference is needed. The map has no
        sum: with ``full=True`` there is no delta and no cancellation.

    Raises:
        ValueError, TypeError: as from `attribute` and `below`.
    """

    def importance(gradient: Array, activations: Array, places: tuple[int, ...]) -> Array:
        del activations
        return gradient.mean(places, keepdims=True)

    return _by_gradients(fun, "grad_cam", importance, options)


@takes(GradCAMOptions)
def grad_cam_plus_plus(fun: Callable[..., Any], options: GradCAMOptions) -> Explainer:
    r"""Make the function that maps where a layer's activations speak for an output, small and repeated things included.

    .. math:: L = \mathrm{ReLU}\left(\sum_c w_c A_c\right), \qquad
        w_c = \sum_{ij} \frac{\mathrm{ReLU}(g_{ijc})}{2 + g_{ijc} \sum_{ab} A_{abc}}, \qquad
        g = \frac{\partial y}{\partial A}

    (Chattopadhay et al. 2018, arXiv 1710.11063, eq. 5 and 19: their second and third derivatives are powers of the
    first one for `exp(y)` and a network that is linear in pieces from `A` on). What the exponential multiplies the
    whole map by is left out, so that no logit makes it overflow.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):                                                    # (N, 4, 3) -> (N,)
    ...     maps = checkpoint_name(jax.nn.relu(x), "maps")
    ...     return maps.max(1) @ jnp.array([4.0, -4.0, 0.0])
    >>> attr = jaxlift.grad_cam_plus_plus(model, layer="maps")
    >>> [scores] = attr(jnp.array([[[1.0, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 5]]])).tolist()
    >>> [round(score, 2) for score in scores]
    [0.29, 0.57, 0.0, 0.0]

    Args:
        fun: the model, as for `attribute`.

    Returns:
        `attr(*args)`, as from `grad_cam`.

    Raises:
        ValueError, TypeError: as from `grad_cam`.
    """

    def importance(gradient: Array, activations: Array, places: tuple[int, ...]) -> Array:
        below = 2 + gradient * activations.sum(places, keepdims=True)
        share = jnp.where(below == 0, 0, 1 / jnp.where(below == 0, 1, below))
        return (share * jax.nn.relu(gradient)).sum(places, keepdims=True)

    return _by_gradients(fun, "grad_cam_plus_plus", importance, options)


def _by_gradients(
    fun: Callable[..., Any], name: str, importance: Callable[..., Array], options: GradCAMOptions
) -> Explainer:
    """The map of channels, each times its importance: what that is of their gradient, values and axes of places."""

    def explain(fun: Callable[[Any], Array], activations: Array, reference: Any) -> Any:
        del reference
        outputs, pullback = vjp(fun, activations, activations, rule=Gradient(), precision=options.precision)
        channel_axis = checked_axis("channel_axis", options.last_channel_axis, activations.ndim)
        places = tuple(axis for axis in range(activations.ndim) if axis != channel_axis)

        def pull(weights: Array) -> Array:
            of_channels = importance(pullback(weights), activations, places)
            return jax.nn.relu((of_channels * activations).sum(channel_axis))

        return outputs, pull

    return Explainer(fun, Method(name, explain, gives="map", needs_reference=False), options)


@takes(ScoreCAMOptions)
def score_cam(fun: Callable[..., Any], options: ScoreCAMOptions) -> Explainer:
    r"""Make the function that maps which of a layer's channels keep an output, when they mask the input. No gradients.

    .. math:: L = \mathrm{ReLU}\left(\sum_c \alpha_c A_c\right), \qquad
        \alpha = \mathrm{softmax}_c\left(y\left(r + H_c (x - r)\right) - y(r)\right)

    (Wang et al. 2020, arXiv 1910.01279, algorithm 1). `H_c` is the channel, linearly resized to the input and scaled
    from 0 to 1; a channel that is the same everywhere masks nothing, and has no part. `r` is the reference, or zeros.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):                                                    # (N, 4, 3) -> (N,)
    ...     maps = checkpoint_name(jax.nn.relu(x), "maps")
    ...     return maps.mean(1) @ jnp.array([4.0, -4.0, 0.0])
    >>> attr = jaxlift.score_cam(model, layer="maps")
    >>> [scores] = attr(jnp.array([[[1.0, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 5]]])).tolist()
    >>> [round(score, 2) for score in scores]
    [0.69, 1.54, 0.15, 0.77]

    Args:
        fun: the model, as for `attribute`. The input is one array `(N, ..., C)` of floating-point numbers, with as many
            axes as the activations. It takes a forward pass for each channel.

    Returns:
        `attr(*args, reference=None)`, as from `grad_cam`.

    Raises:
        ValueError, TypeError: as from `grad_cam`; and if input and activations have different numbers of axes.
    """

    def explain(layer: Any, x: Any, reference: Any, fun: Any, activations: Array, _: Any) -> Any:
        _check_alike("Score-CAM", options.layer, x, activations.ndim, jnp.shape(activations))
        x = checked_input(x)
        reference = jnp.zeros_like(x) if reference is None else reference
        channel_axis = checked_axis("channel_axis", options.last_channel_axis, x.ndim)
        maps = jnp.moveaxis(activations, channel_axis, 0)
        masks = resized(maps, x.shape[:channel_axis] + x.shape[channel_axis + 1 :])
        low, high = (end(masks, tuple(range(1, masks.ndim)), keepdims=True) for end in (jnp.min, jnp.max))
        masks = (masks - low) / jnp.where(high > low, high - low, 1)
        varies = (high > low).ravel()

        def masked(mask: Array) -> Array:
            point = reference + jnp.expand_dims(mask, channel_axis).astype(x.dtype) * (x - reference)
            return fun(layer(point), point)

        outputs = lax.map(masked, masks, batch_size=options.chunk)

        def pull(weights: Array) -> Array:
            gains = jnp.tensordot(outputs, weights, weights.ndim)
            shares = jax.nn.softmax(jnp.where(varies | ~varies.any(), gains, -jnp.inf))
            return jax.nn.relu(jnp.tensordot(jnp.where(varies, shares, 0).astype(maps.dtype), maps, 1))

        return (fun(activations, x), fun(layer(reference), reference)), pull

    method = Method("score_cam", of_input(explain), gives="map", needs_reference=False, explain_layer=explain)
    return Explainer(fun, method, options)


def resized(maps: Any, shape: tuple[int, ...], *, method: str = "linear") -> Array:
    """Resize maps to an image's height and width, or a sequence's length, for pictures and `jaxlift.metrics`.

    >>> import jax.numpy as jnp, jaxlift
    >>> maps = jnp.array([[[0.0, 4.0]]])                                  # of one example, from a layer of 1 x 2 places
    >>> jaxlift.resized(maps, (1, 4))
    Array([[[0., 1., 3., 4.]]], dtype=float32)

    Metrics want an axis of channels as well: ``jaxlift.resized(maps, x.shape[1:3])[..., None]`` beside images `x`.

    Args:
        maps: floating-point scores, whose last axes are resized. Those before them, such as that of examples, stay.
        shape: the lengths of these last axes.
        method: as for `jax.image.resize`, such as ``"nearest"`` or ``"cubic"``.

    Returns:
        The resized maps, of the same dtype: values in between, not sums, so that a total changes with the size.

    Raises:
        ValueError: if the maps have fewer axes than `shape`, or a length isn't positive.
        TypeError: if they aren't floating-point numbers.
    """
    maps = checked_input(maps)
    if not isinstance(maps, Array) or maps.ndim < len(shape) or not all(length > 0 for length in shape):
        raise ValueError(
            f"maps are one array, whose last axes get the lengths {shape}, each 1 at least: got maps of shape "
            f"{jax.tree.map(jnp.shape, maps)}."
        )
    return jax.image.resize(maps, maps.shape[: maps.ndim - len(shape)] + tuple(shape), method)


def _check_alike(name: str, layer: Any, x: Any, ndim: int, shape: tuple[int, ...]) -> None:
    """Raise the error for an input that a layer's maps can't be resized to."""
    if jax.tree.structure(x) != jax.tree.structure(0) or jnp.ndim(x) != ndim:
        raise ValueError(
            f"{name} needs an input that is one array with as many axes as the value named {layer!r}, but for maps of "
            f"shape {shape} it has {jax.tree.map(jnp.shape, x)}."
        )


@takes(GradCAMOptions)
def guided_grad_cam(fun: Callable[..., Any], options: GradCAMOptions) -> Callable[..., Any]:
    """Make the function that shows which details of the input speak for an output, and where.

    It is guided backpropagation times the map of `grad_cam`, linearly resized to the input (Selvaraju et al. 2017,
    arXiv 1610.02391, section 3.2).

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):                                                    # (N, 4, 3) -> (N,)
    ...     maps = checkpoint_name(jax.nn.relu(x), "maps")
    ...     return maps.mean(1) @ jnp.array([4.0, -4.0, 0.0])
    >>> attr = jaxlift.guided_grad_cam(model, layer="maps")
    >>> attr(jnp.array([[[1.0, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 5]]]))[..., 0]
    Array([[1., 1., 0., 0.]], dtype=float32)

    Args:
        fun: as for `grad_cam`. The input is one array `(N, ..., C)`, with as many axes as the activations.

    Returns:
        `attr(*args)`, of the input's shape. No reference is needed.

    Raises:
        ValueError, TypeError: as from `grad_cam`; and if input and activations have different numbers of axes.
    """
    names = [each.name for each in fields(Options) if each.name != "layer"]
    common = {name: getattr(options, name) for name in names}
    where = grad_cam(fun, layer=options.layer, **common)
    what = attribute(fun, rule="guided_backprop", **(common | {"output": "multipliers", "full": False}))

    def attr(*args: Any, reference: Any = None, target: Target = None) -> Any:
        found = where(*args, reference=reference, target=target)
        maps = found.scores if isinstance(found, Attribution) else found
        details = what(*args, reference=reference, target=target)
        _check_alike("guided Grad-CAM", options.layer, details, maps.ndim + 1, maps.shape)
        assert isinstance(options.argnums, int)  # of a tuple the details would be one too
        shape = jnp.shape(args[options.argnums])[1:]
        ndim = len(shape)  # of an example: references and outputs have axes before it
        channel = checked_axis("channel_axis", options.last_channel_axis, ndim)
        of_pixels = resized(maps, shape[:channel] + shape[channel + 1 :])
        scores = details * jnp.expand_dims(of_pixels, channel + details.ndim - ndim)
        return found._replace(scores=scores) if isinstance(found, Attribution) else scores

    return attr
