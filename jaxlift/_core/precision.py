"""The precision of matrix products and convolutions, on which the sum depends.

Contributions sum to the difference of the outputs as far as the products that make both are exact: a difference is of
two outputs that may be nearly equal. By default GPUs round the operands of a float32 product to the 11 digits of TF32,
and TPUs to the 8 of bfloat16, which leaves up to a third of the difference out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import jax
from jax import lax

from jaxlift._core.versions import JaxprEqn

Precision = Literal["highest", "high", "default"]


def products_at(precision: Precision | None) -> AbstractContextManager[None]:
    """Where programs are traced whose products don't say at which precision they are; the model's own if None."""
    return nullcontext() if precision is None else jax.default_matmul_precision(precision)


def at_least(eqn: JaxprEqn, precision: Precision | None) -> JaxprEqn:
    """A product at no less than a precision, whatever the model says; other equations as they are."""
    if precision is None or "precision" not in eqn.params:
        return eqn
    least, own = lax.Precision[precision.upper()], eqn.params["precision"]
    each = own if isinstance(own, tuple) else (own, own)
    # None is the least of all. Dot algorithms are in no order with the others, so they are replaced.
    is_enough = least is lax.Precision.DEFAULT or all(
        isinstance(p, lax.Precision) and p.value >= least.value for p in each
    )
    return eqn if is_enough else eqn.replace(params=eqn.params | {"precision": (least, least)})
