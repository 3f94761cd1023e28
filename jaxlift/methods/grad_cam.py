"""Grad-CAM and guided Grad-CAM: where in its last maps a convolutional network sees a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._arguments import checked_axis
from jaxlift._attribute import attribute
from jaxlift._explainer import Attribution, Explainer, Method
from jaxlift._lift import vjp
from jaxlift._options import Options, takes
from jaxlift._targets import Target
from jaxlift.rules import Gradient


@dataclass(frozen=True, kw_only=True, eq=False)
class GradCAMOptions(Options):
    """The options of `grad_cam` and `guided_grad_cam`.

    Attributes:
        layer: the name of the activations, `(N, ..., C)`, which `fun` gives with `jax.ad_checkpoint.checkpoint_name`.
            Usually the last before pooling. It must be given; what is said of `layer` and `channel_axis` below holds
            for the activations.
    """

    layer: str = field()  # pyright: ignore[reportGeneralTypeIssues] (required, unlike that of other methods)


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

    def explain(fun: Callable[[Any], Array], activations: Array, reference: Any) -> Any:
        del reference
        outputs, pullback = vjp(fun, activations, activations, rule=Gradient(), precision=options.precision)
        channel_axis = checked_axis("channel_axis", options.last_channel_axis, activations.ndim)
        places = tuple(axis for axis in range(activations.ndim) if axis != channel_axis)

        def pull(weights: Array) -> Array:
            importance = pullback(weights).mean(places, keepdims=True)
            return jax.nn.relu((importance * activations).sum(channel_axis))

        return outputs, pull

    return Explainer(fun, Method("grad_cam", explain, gives="map", needs_reference=False), options)


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
        x = args[options.argnums] if isinstance(options.argnums, int) else None
        if not isinstance(details, Array) or details.ndim != maps.ndim + 1 or x is None:
            raise ValueError(
                f"guided Grad-CAM needs an input that is one array with as many axes as the value named "
                f"{options.layer!r}, but for maps of shape {maps.shape} it has {jax.tree.map(jnp.shape, details)}."
            )
        ndim = jnp.ndim(x) - 1  # of an example: references and outputs have axes before it
        channel = checked_axis("channel_axis", options.last_channel_axis, ndim) + details.ndim - ndim
        resized = jax.image.resize(maps, details.shape[:channel] + details.shape[channel + 1 :], "linear")
        scores = details * jnp.expand_dims(resized, channel)
        return found._replace(scores=scores) if isinstance(found, Attribution) else scores

    return attr
