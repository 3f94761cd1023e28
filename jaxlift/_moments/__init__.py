"""Moments of all values of a program, as functions of the probabilities with which players are in.

Another evaluation of the same jaxprs beside the joint one of `jaxlift._core`: a loop over equations, and a table that
says for each family of primitives how moments pass. Read it in this order: values.py (what is carried),
interpreter.py (the loop), owned.py (values of one player each, which need no approximation), linear.py, pointwise.py,
softmax.py, reductions.py, calls.py (one family, one file), linearised.py (what has no formula). The expectations of
functions of normal variables are in `jaxlift._pointwise.normal`; the method is `jaxlift.shapley_moments`.
"""

from jaxlift._moments import calls, linear, linearised, owned, pointwise, reductions, softmax

__all__ = ["calls", "linear", "linearised", "owned", "pointwise", "reductions", "softmax"]
