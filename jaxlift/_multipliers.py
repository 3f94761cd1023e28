"""The one place where a derivative is replaced by a multiplier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

Array = jax.Array
Arrays = tuple[Any, ...]


def with_multipliers(
    forward: Callable[..., Array],
    pull: Callable[..., Arrays],
    explained: Arrays,
    held: Arrays,
    parameters: Arrays = (),
) -> Array:
    """`forward(explained, held, parameters)`, with multipliers for its derivative.

    Args:
        forward: computes the value, an array.
        pull: called with a cotangent, `explained`, `held` and `parameters`; returns the cotangents of `explained`.
        explained: what multipliers lead to.
        held: what they don't: references, midpoints.
        parameters: constants of the program. Their derivative is the plain one, for those who train through lifted values.

    Derivatives of the cotangents themselves are plain in everything, so scores can be differentiated.

    What is saved for the backward pass is the arguments and nothing else: N + R examples of them where multipliers are
    wanted for N * R pairs. The barrier makes the multipliers wait for the cotangent; without it XLA computes those of all
    layers as soon as it can and keeps them, N * R of each.
    """

    @jax.custom_vjp
    def apply(explained: Arrays, held: Arrays, parameters: Arrays) -> Array:
        return forward(explained, held, parameters)

    def save(explained: Any, held: Any, parameters: Any) -> tuple[Array, Any]:
        perturbed = any(leaf.perturbed for leaf in jax.tree.leaves(parameters, is_leaf=_is_primal))
        arguments = jax.tree.map(lambda leaf: leaf.value, (explained, held, parameters), is_leaf=_is_primal)
        # The flag is kept as structure (an empty tuple or None), since only arrays can be saved.
        return forward(*arguments), (arguments, () if perturbed else None)

    def restore(saved: Any, cotangent: Array) -> tuple[Any, Any, Any]:
        arguments, perturbed = saved
        of_parameters = None
        if perturbed is not None:
            explained, held, parameters = arguments
            (of_parameters,) = jax.vjp(lambda p: forward(explained, held, p), parameters)[1](cotangent)
        cotangent, arguments = lax.optimization_barrier((cotangent, arguments))
        cotangents = pull(cotangent, *arguments)
        return jax.tree.map(lambda ct, x: ct.astype(x.dtype), cotangents, arguments[0]), None, of_parameters

    apply.defvjp(save, restore, symbolic_zeros=True)
    return apply(explained, held, parameters)


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")
