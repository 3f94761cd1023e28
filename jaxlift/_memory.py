"""Memory budgets, and the batch sizes that keep to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxlift._arguments import described
from jaxlift._explainer import Explainer


def within_memory(attr: Explainer, *args: Any, reference: Any = None, memory: float | str) -> Explainer:
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
        args, reference: what it will be called with, or shapes and dtypes, each a `jax.ShapeDtypeStruct`.
        memory: the budget in bytes, or text such as ``"4GB"``, for temporary memory: arguments and results come on top
            of it.

    Returns:
        `attr` with such batch sizes, as large as fit.

    Raises:
        ValueError: if one example and one reference at a time need more, or the budget is no number of bytes.
        TypeError: if `attr` isn't what `attribute` or a method with its signature returned.
    """
    budget = as_bytes(memory)
    if not isinstance(attr, Explainer):
        raise TypeError(
            f"within_memory sets batch sizes of what jaxlift.attribute or another method returns, got "
            f"{described(attr)}: pass that, and jit or wrap the result."
        )

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
        if one > budget:
            return None
        slope = max(needed(sized(2)) - one, 1)
        size = max(1, min(most, int((budget - one) // slope) + 1))
        while needed(sized(size)) > budget:
            size = size * 3 // 4
        return sized(size)

    if needed(attr) <= budget:
        return attr
    argnums = attr.options.argnums
    leaf = jax.tree.leaves(args[argnums] if isinstance(argnums, int) else args[argnums[0]])[0]
    found = None
    if reference is not None and jax.tree.leaves(reference)[0].ndim >= leaf.ndim:
        count = jax.tree.leaves(reference)[0].shape[-leaf.ndim]
        found = largest(lambda size: attr.with_options(reference_batch_size=size), count)
        attr = attr.with_options(reference_batch_size=1)
    found = found or largest(lambda size: attr.with_options(batch_size=size), leaf.shape[0])
    if found is None:
        least = needed(attr.with_options(batch_size=1))
        raise ValueError(f"memory={memory} bytes is too little: one example and one reference need {least:.3g}.")
    return found


def as_bytes(memory: float | str) -> int:
    """A number of bytes, also from text such as ``500MB``, ``4GB`` or ``2GiB``."""
    if not isinstance(memory, str):
        number, unit = float(memory) if isinstance(memory, int | float) else math.nan, ""
    else:
        text = memory.strip()
        unit = text.lstrip("0123456789.").strip()
        try:
            number = float(text[: len(text) - len(unit)] if unit else text)
        except ValueError:
            number = math.nan
    units = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    if not number > 0 or unit.upper() not in units:
        raise ValueError(f"memory={memory!r} must be a number of bytes, such as 4000000000 or '4GB'.")
    return int(number * units[unit.upper()])
