"""Batch sizes from a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from jaxlift._explainer import Explainer


def within_memory(attr: Explainer, *args: Any, reference: Any = None, memory: float) -> Explainer:
    """Choose batch sizes so that an attribution's compiled program needs no more temporary memory than allowed.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> model = lambda x: jnp.tanh(x @ jnp.ones((64, 256))).sum(1)
    >>> x, references = jnp.ones((100, 64)), jnp.zeros((50, 64))
    >>> attr = jaxlift.within_memory(jaxlift.attribute(model), x, reference=references, memory=1e6)
    >>> program = jax.jit(attr).lower(x, reference=references).compile()
    >>> program.memory_analysis().temp_size_in_bytes <= 1e6
    True

    Nothing is run: programs are compiled, and the compiler says what they need. References are taken in batches first,
    which costs no forward pass more, and examples only where one reference at a time is still too many.

    Args:
        attr: what `jaxlift.attribute`, or a method with its signature, returned.
        args, reference: what it will be called with, or `jax.ShapeDtypeStruct`s of such shapes.
        memory: the budget in bytes, for temporary memory: arguments and results come on top of it.

    Returns:
        `attr` with such batch sizes, as large as fit.

    Raises:
        ValueError: if one example and one reference at a time need more.
    """

    def needed(candidate: Explainer) -> int:
        analysis = jax.jit(candidate).lower(*args, reference=reference).compile().memory_analysis()
        if analysis is None:
            raise NotImplementedError(
                f"JAX's {jax.default_backend()} backend doesn't say how much memory programs need."
            )
        return analysis.temp_size_in_bytes

    def largest(sized: Callable[[int], Explainer], most: int) -> Explainer | None:
        """The candidate with the largest size that fits, by the line through sizes 1 and 2; None if 1 doesn't."""
        one = needed(sized(1))
        if one > memory:
            return None
        slope = max(needed(sized(2)) - one, 1)
        size = max(1, min(most, int((memory - one) // slope) + 1))
        while needed(sized(size)) > memory:
            size = size * 3 // 4
        return sized(size)

    if needed(attr) <= memory:
        return attr
    leaf = jax.tree.leaves(args[attr.argnums] if isinstance(attr.argnums, int) else args[attr.argnums[0]])[0]
    found = None
    if reference is not None and jax.tree.leaves(reference)[0].ndim >= leaf.ndim:
        count = jax.tree.leaves(reference)[0].shape[-leaf.ndim]
        found = largest(lambda size: replace(attr, reference_batch_size=size), count)
        attr = replace(attr, reference_batch_size=1)
    found = found or largest(lambda size: replace(attr, batch_size=size), leaf.shape[0])
    if found is None:
        least = needed(replace(attr, batch_size=1))
        raise ValueError(f"memory={memory:.3g} bytes is too little: one example and one reference need {least:.3g}.")
    return found
