"""Primitives that no rule is known for that keeps the sum, each with the reason that the error gives.

Those that only make values (`iota`, random numbers) are here as well: they have nothing to explain unless what they are
made of depends on the explained input, as a random key might.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from jaxlift._core.interpreter import Interpreter
from jaxlift._core.table import Evaluation, family
from jaxlift._core.values import Value
from jaxlift._core.versions import JaxprEqn, primitives


def refused(reason: str, *, has_derivative: bool = True) -> Evaluation:
    """The evaluation that says why there is no rule."""

    def evaluate(interpreter: Interpreter, eqn: JaxprEqn, operands: Sequence[Value]) -> NoReturn:
        del operands
        raise interpreter.missing_rule(eqn, f"has no rule: {reason}", has_derivative=has_derivative)

    return evaluate


FACTORS = refused("its factors have no exact equation between differences")
RANDOM = refused("it makes random numbers of a key or of parameters that depend on the explained input")
CALLED = refused("what it calls can't be seen from JAX")
TRANSPOSED = refused("it is half of the derivative of a pooling, which chooses by other values")

family(FACTORS, primitives("schur", "hessenberg", "householder_product", "tridiagonal"))
family(
    RANDOM,
    primitives(
        *("random_seed", "random_bits", "random_split", "random_fold_in", "random_gamma", "random_wrap"),
        *("random_unwrap", "random_clone", "threefry2x32", "rng_bit_generator", "rng_uniform"),
    ),
)
family(TRANSPOSED, primitives("select_and_scatter", "select_and_scatter_add", "select_and_gather_add"))
family(
    refused(
        "JAX has no reverse-mode derivative of a loop whose length is not known; use lax.scan, or static bounds (in "
        'Equinox kind="bounded", in diffrax its default adjoint)',
        has_derivative=False,
    ),
    primitives("while"),
)
family(refused("the largest values are found only approximately; use lax.top_k"), primitives("approx_top_k"))
family(refused("it moves values in pieces whose sizes vary"), primitives("ragged_all_to_all"))
family(refused("values in mutable references can't be followed"), primitives("get", "swap", "addupdate"))
family(refused("it makes values of no others"), primitives("iota", "empty2", "axis_index", "create_token", "after_all"))
family(refused("it belongs to JAX's own derivatives"), primitives("custom_lin"))
family(CALLED, ["pure_callback", "io_callback", "ffi_call", "pallas_call", "custom_call"])
