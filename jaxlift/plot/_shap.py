"""Attributions for SHAP's own plots."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxlift._explainer import Attribution
from jaxlift.plot._shared import finite
from jaxlift.scoring._extra import extra


def to_shap(
    scores: Attribution | ArrayLike,
    output_reference: ArrayLike | None = None,
    *,
    data: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """A `shap.Explanation` of contributions, for `shap.plots.waterfall`, `bar`, `beeswarm` and the like.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun, x = lambda x: x @ jnp.array([1.0, -2.0]), jnp.ones((3, 2))
    >>> found = jaxlift.attribute(fun, full=True)(x, reference=jnp.zeros(2))
    >>> explanation = to_shap(found, data=x, names=["age", "weight"])  # doctest: +SKIP
    >>> shap.plots.waterfall(explanation[0])  # doctest: +SKIP

    Args:
        scores: what an attribution with `full=True` returned, for one input array. Or contributions alone, `(N, F)` or
            `(N, ...)`, with an axis of K outputs after the first if there are several: `(N, K, ...)`.
        output_reference: if contributions come alone, the references' outputs: `(N,)`, or `(N, K)` of several outputs,
            or one number for all.
        data: the input, `(N, ...)` as the contributions of one output.
        names: of the features, those of the last axis of `data`.
        output_names: of the K outputs.

    Returns:
        The explanation: `values` `(N, ...)`, or `(N, ..., K)` as SHAP has several outputs; `base_values`, `data`,
        `feature_names` and `output_names`. To choose an output, `explanation[..., k]`, or `explanation[:, :, name]`.

    Raises:
        ValueError: if the scores aren't contributions (as those of `grad_cam` and `mutagenesis` aren't) or not finite,
            or shapes and numbers of names don't fit.
        ModuleNotFoundError: if shap is not installed.
    """
    found = None
    if isinstance(scores, Attribution):
        if output_reference is not None:
            raise ValueError("output_reference is in the attribution: leave it out, or give contributions alone.")
        if scores.delta is None or scores.output_reference is None:
            raise ValueError("these scores have no sum, so that SHAP's plots would mislead: use contributions.")
        found, scores, output_reference = scores, scores.scores, scores.output_reference
    if isinstance(scores, (dict, tuple)):
        raise ValueError("the scores are those of several inputs: give the contributions to one, and output_reference.")
    if output_reference is None:
        raise ValueError("contributions alone need output_reference: explain with full=True and give all of it.")
    values, base = finite("scores", scores), finite("output_reference", output_reference)
    base = np.broadcast_to(base, values.shape[:1]) if base.ndim == 0 and values.ndim else base
    several = base.ndim == 2
    if values.ndim < 2 + several or base.ndim > 2 or values.shape[: base.ndim] != base.shape or not values.size:
        raise ValueError(
            f"expected contributions (N, ...) with output_reference (N,), or (N, K, ...) with (N, K): got "
            f"{values.shape} with {base.shape}."
        )
    if found is not None:
        _check_contributions(found, values, base)
    values = np.moveaxis(values, 1, -1) if several else values
    shape = values.shape[: values.ndim - several]
    if data is not None and np.shape(data) != shape:
        raise ValueError(f"expected data of shape {shape}, as the contributions of one output, got {np.shape(data)}.")
    for given, name, count in ((names, "names", shape[-1]), (output_names, "output_names", several and base.shape[1])):
        if given is not None and len(given) != count:
            raise ValueError(
                f"expected {int(count)} {name} for contributions of shape {values.shape}, got {len(given)}."
            )
    return extra("shap").Explanation(
        values=values,
        base_values=base,
        data=None if data is None else np.asarray(data),
        feature_names=None if names is None else [*names],
        output_names=None if output_names is None else [*output_names],
    )


def _check_contributions(found: Attribution, values: np.ndarray, base: np.ndarray) -> None:
    """Raise the error for scores of an attribution that don't sum to what it says they do."""
    features = tuple(range(base.ndim, values.ndim))
    change = np.asarray(found.output, np.float64) - base
    off = np.abs(change - np.asarray(found.delta, np.float64) - values.sum(features))
    if (off > 0.01 * (np.abs(values).sum(features) + np.abs(change))).any():
        raise ValueError(
            "these scores are no contributions, whose sum and delta make the difference of the outputs: leave out "
            "output='multipliers' or 'hypothetical', and absolute=True."
        )
    missing = np.abs(np.asarray(found.delta, np.float64)) > 0.01 * (np.abs(values).sum(features) + np.abs(change))
    if missing.any():
        warnings.warn(
            f"{missing.sum()} of these scores don't sum to the difference of the outputs, of which their delta is "
            "missing: SHAP's plots end beside the output.",
            stacklevel=3,
        )
