"""Grad-CAM and guided Grad-CAM: where in its last maps a convolutional network sees a class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import Array

from jaxlift._attribute import attribute
from jaxlift._explainer import CommonOptions, Explainer, Method
from jaxlift._lift import vjp
from jaxlift.rules import Gradient


def grad_cam(fun: Callable[..., Any], *, layer: str, **options: Unpack[CommonOptions]) -> Explainer:
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
        layer: the name of the activations, `(N, ..., C)`, which `fun` gives with `jax.ad_checkpoint.checkpoint_name`.
            Usually the last before pooling.
        options: as for `attribute`; `channel_axis` is that of the activations. The map has no sum, so
            `convergence_delta` and `cancellation` are not for it.

    Returns:
        `attr(*args)`, the map, of the activations' shape without their channels. No reference is needed.

    Raises:
        ValueError, TypeError: as from `attribute` and `below`.
    """
    channel_axis = options.get("channel_axis", Explainer.channel_axis)

    def explain(fun: Callable[[Any], Array], activations: Array, reference: Any) -> Any:
        del reference
        outputs, pullback = vjp(fun, activations, activations, rule=Gradient())
        places = tuple(axis for axis in range(activations.ndim) if axis != channel_axis % activations.ndim)

        def pull(weights: Array) -> Array:
            importance = pullback(weights).mean(places, keepdims=True)
            return jax.nn.relu((importance * activations).sum(channel_axis))

        return outputs, pull

    return Explainer(
        fun, Method(explain, gives="map", needs_reference=False, options={"method": "grad_cam"}), layer=layer, **options
    )


def guided_grad_cam(fun: Callable[..., Any], *, layer: str, **options: Unpack[CommonOptions]) -> Callable[..., Any]:
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
        fun, layer: as for `grad_cam`.
        options: as for `grad_cam`. The input is one array `(N, ..., C)`, with as many axes as the activations.

    Returns:
        `attr(*args)`, of the input's shape. No reference is needed.

    Raises:
        ValueError, TypeError: as from `grad_cam`; and if input and activations have different numbers of axes.
    """
    where = grad_cam(fun, layer=layer, **options)
    what = attribute(fun, rule="guided_backprop", **(options | {"output": "multipliers"}))

    def attr(*args: Any, reference: Any = None) -> Array:
        maps, details = where(*args, reference=reference), what(*args, reference=reference)
        x = args[where.argnums] if isinstance(where.argnums, int) else None
        if not isinstance(details, Array) or details.ndim != maps.ndim + 1 or x is None:
            raise ValueError(
                f"guided Grad-CAM needs an input that is one array with as many axes as the value named {layer!r}, but "
                f"for maps of shape {maps.shape} it has {jax.tree.map(jnp.shape, details)}."
            )
        channel = where.channel_axis % (jnp.ndim(x) - 1) + details.ndim - jnp.ndim(x) + 1
        resized = jax.image.resize(maps, details.shape[:channel] + details.shape[channel + 1 :], "linear")
        return details * jnp.expand_dims(resized, channel)

    return attr
