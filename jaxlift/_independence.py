"""Whether a model's examples are independent of each other, as all that explains them one by one takes for granted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# Of the largest output. Numbers that must be equal come from one program, and from the same kernels; what training mode
# changes is of the order of the outputs.
TOLERANCE = 1e-3


def check_independence(fun: Callable[[Any], Any], example: Any, other: Any, has_others: bool = False) -> None:
    """Raise the error for a model whose outputs on an example depend on the other examples in its batch.

    One program takes batches of two: the example beside another, and the example beside itself. Its outputs must be
    equal in all three places: batch statistics differ between the batches, and dropout between the rows of one.

    Args:
        fun: the model, of a batch `(N, ...)`. One that can't take two examples is let through, unexamined.
        example, other: two examples without the batch, pytrees of arrays of equal shapes.
        has_others: whether the model has arguments besides, which may have rows for examples unsaid.

    Raises:
        ValueError: if the outputs differ, with what to do about it.
    """
    both = jax.jit(lambda a, b: fun(jax.tree.map(lambda a, b: jnp.stack([a, b]), a, b)))
    try:
        outputs = jax.tree.leaves((both(example, other), both(example, example)))
    except Exception:  # what it is says the call on one example, if that fails too
        return
    if any(isinstance(leaf, Tracer) or leaf.shape[:1] != (2,) for leaf in outputs):
        return
    advice = _ADVICE
    if has_others:
        advice += " Or if another argument has a row for each example, as masks may, name it in batch_argnums."
    beside_other, beside_itself = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    for mixed, twice in zip(beside_other, beside_itself, strict=True):
        change, random = _apart(mixed[0], twice[0]), _apart(twice[0], twice[1])
        if random:
            raise ValueError(
                "the model gives equal examples of one batch different outputs, as dropout does: it draws random "
                f"numbers. What it is called with one example at a time is another function. {advice}"
            )
        if change:
            raise ValueError(
                "the model's outputs on an example depend on the other examples in its batch, as with batch statistics "
                "in training mode, or with means or a softmax over axis 0. Each example is explained alone, in a batch "
                f"of one, where that is another function. {advice}"
            )


_ADVICE = (
    "Put the model into evaluation mode: model.eval() in Flax NNX; train=False, use_running_average=True or "
    "deterministic=True in Linen; equinox.nn.inference_mode(model); training=False in Keras and Haiku."
)


def _apart(a: Any, b: Any) -> bool:
    """Whether outputs differ by more than rounding. Where one is NaN nothing can be said."""
    wide = complex if np.iscomplexobj(a) else float
    a, b = np.asarray(a).astype(wide), np.asarray(b).astype(wide)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    return bool((np.abs(a - b) > TOLERANCE * max(np.abs(a).max(initial=0), np.abs(b).max(initial=0))).any())
