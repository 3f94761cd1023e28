"""The rules of the primitives, one family a file. Importing this package fills the table."""

from jaxlift.primitives import (
    bilinear,
    calls,
    control,
    definitions,
    indexing,
    linear,
    masks,
    matrices,
    operands,
    pointwise,
    reductions,
    refused,
    softmax,
)

# fmt: off
__all__ = [
    "bilinear", "calls", "control", "definitions", "indexing", "linear", "masks", "matrices", "operands",
    "pointwise", "reductions", "refused", "softmax",
]
# fmt: on
