"""The rules of the primitives, one family a file. Importing this package fills the table."""

from jaxlift.primitives import bilinear, calls, linear, operands, pointwise, reductions
from jaxlift.primitives.linear import magnitude
from jaxlift.primitives.pointwise import settle

__all__ = ["bilinear", "calls", "linear", "magnitude", "operands", "pointwise", "reductions", "settle"]
