"""What is written for a compiler's sake, each with the compiler, what it did without, and the test that shows it.

None of this changes a value. Seen with XLA of jaxlib 0.10.2 and 0.12. What is for one compiler is in no other's
program: `lax.platform_dependent` chooses when the program is lowered (tests/test_compilers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxlift._core import versions
from jaxlift._core.inlining import evaluate_inlined, is_layer
from jaxlift._core.versions import JaxprEqn, primitives

T = TypeVar("T")

CONVOLUTIONS = primitives("conv_general_dilated")


def waiting_for(cotangent: T, residuals: Any) -> tuple[T, Any]:
    """Residuals that can't be used before the cotangent is there.

    For XLA's CPU and TPU compilers: multipliers need residuals alone, so without it those of all layers are computed as
    soon as the forward pass is, N * R of each, and kept until their cotangents come. (tests/test_cost.py, which bounds
    the memory.) On CPUs ten of a hundred references at a time take 17 to 23% more memory without it. On a TPU, 8
    examples and 20 references move 1.6 times the bytes in convolutional networks.

    The GPU's compiler makes kernels of each side of it, where one would do. On an H200 with it an LSTM takes 1.7 times
    as long, a network of all activations 1.1 to 1.4, a transformer 1.2; BPNet, of whose temporary memory it takes a
    quarter away, 0.94 to 1.02.
    """
    leaves, structure = jax.tree.flatten((cotangent, residuals))
    return jax.tree.unflatten(structure, WAITING.bind(*leaves, platforms=("cpu", "tpu")))


# The operands, all there where one is, in programs for these platforms. A primitive, since there is one of it for each
# multiplier: batching choices by `lax.platform_dependent` was a quarter of the time that tracing an attribution took.
WAITING = Primitive("wait_for_cotangent")
WAITING.multiple_results = True
WAITING.def_impl(lambda *operands, platforms: operands)
WAITING.def_abstract_eval(lambda *avals, platforms: avals)
ad.primitive_jvps[WAITING] = lambda primals, tangents, **params: (WAITING.bind(*primals, **params), tangents)
batching.primitive_batchers[WAITING] = lambda operands, axes, **params: (WAITING.bind(*operands, **params), axes)
mlir.register_lowering(WAITING, lambda context, *operands, platforms: operands)


def _waits_on(platform: str) -> None:
    def lowered(*operands: Array, platforms: Sequence[str]) -> Sequence[Array]:
        return lax.optimization_barrier(operands) if platform in platforms else operands

    mlir.register_lowering(WAITING, mlir.lower_fun(lowered, multiple_results=True), platform)


_waits_on("cpu")
_waits_on("tpu")


def on_cpus(eqn: JaxprEqn) -> JaxprEqn:
    """An equation that waits, in programs for CPUs alone."""
    return eqn.replace(params={"platforms": ("cpu",)})


def is_waiting(eqn: JaxprEqn) -> bool:
    """Whether an equation makes residuals wait for their cotangent."""
    return eqn.primitive is WAITING


def when_lowered(
    fun: Callable[..., Sequence[Array]],
    like: Sequence[Any],
    *args: Any,
    on_several: Callable[..., Sequence[Array]] | None = None,
) -> list[Array]:
    """The arrays that `fun` makes of arrays, traced when a program is lowered that has it, and not before.

    `lax.platform_dependent` traces what is for one platform in the programs of all. Where that is a whole attribution,
    it is two thirds of the time that tracing it takes. (tests/test_compilers.py shows that it isn't traced.)

    Args:
        fun: has no effects, and closes over no array of the program: all that it needs are arguments.
        like: the types of its outputs.
        on_several: what is traced in its place in programs for more than one device, and where it isn't known for how
            many: where derivatives are taken, or `jax.vmap`.
    """
    return LATER.bind(*args, fun=fun, like=tuple(like), on_several=on_several or fun)


def _later(*operands: Any, on_several: Callable[..., Sequence[Array]], **params: Any) -> Sequence[Array]:
    """What is taken where it isn't known for how many devices the program is."""
    del params
    return on_several(*operands)


def _jvp_of_later(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    return jax.jvp(partial(_later, **params), list(primals), [ad.instantiate_zeros(tangent) for tangent in tangents])


def _batched_later(operands: Sequence[Any], axes: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    return jax.vmap(partial(_later, **params), tuple(axes))(*operands), [0] * len(params["like"])


LATER = Primitive("traced_when_lowered")
LATER.multiple_results = True
LATER.def_impl(_later)
LATER.def_abstract_eval(lambda *avals, like, **params: like)
ad.primitive_jvps[LATER] = _jvp_of_later
batching.primitive_batchers[LATER] = _batched_later


def _lowered_later(
    context: Any,
    *operands: Any,
    fun: Callable[..., Sequence[Array]],
    on_several: Callable[..., Sequence[Array]],
    like: Sequence[Any],
) -> Any:
    chosen = fun if versions.is_for_one_device(context) else on_several
    return mlir.lower_fun(chosen, multiple_results=True)(context, *operands)


mlir.register_lowering(LATER, _lowered_later)


def after(cotangent: Array, x: Array) -> Array:
    """`x`, depending on the cotangent, so that it can't be scheduled earlier.

    For XLA's CPU compiler, which has dropped barriers by the time it orders operations, and computes the points that
    RevealCancel visits for all layers at once, N * R of each. (tests/test_cost.py, which bounds the memory.) Without it
    a network of all activations takes 1.9 times the temporary memory.
    """
    return AFTER.bind(cotangent, x)[1]


def _batched_after(operands: Sequence[Any], axes: Sequence[Any]) -> tuple[Any, Any]:
    [size] = {operand.shape[axis] for operand, axis in zip(operands, axes, strict=True) if axis is not None}
    moved = [
        jnp.broadcast_to(operand, (size, *operand.shape)) if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    ]
    return AFTER.bind(*moved), [0] * len(moved)


# A primitive, as that which waits is: there is one of these, too, for each multiplier.
AFTER = Primitive("computed_after")
AFTER.multiple_results = True
AFTER.def_impl(lambda cotangent, x: [cotangent, x])
AFTER.def_abstract_eval(lambda *avals: avals)
ad.primitive_jvps[AFTER] = lambda primals, tangents: (AFTER.bind(*primals), tangents)
batching.primitive_batchers[AFTER] = _batched_after
mlir.register_lowering(AFTER, lambda context, *operands: operands)
mlir.register_lowering(AFTER, mlir.lower_fun(lambda ct, x: [ct, _over_one(x, ct)], multiple_results=True), "cpu")


def once(x: Array) -> Array:
    """`x`, computed once.

    For XLA's CPU compiler, which computes again, in each fusion that uses it, what it takes to be cheap: sums, and the
    polynomials of erfc and the like, 40 to 80 operations of which each is cheap. A division is not.
    (tests/test_cost.py, which counts the operations.) Without it, GELUs under RevealCancel move 1.24 times the bytes;
    max-pooling moves 7% more and takes 9% more memory with jaxlib 0.10.2, and as much as with it in 0.12. And what is
    computed twice may be rounded in two ways: derivatives of scores have lost a term where one choice came out in both.
    (tests/test_near_reference.py.)
    """
    return ONCE.bind(x)


ONCE = Primitive("computed_once")
ONCE.def_impl(lambda x: x)
ONCE.def_abstract_eval(lambda aval: aval)
ad.primitive_jvps[ONCE] = lambda primals, tangents: (ONCE.bind(*primals), *tangents)
batching.primitive_batchers[ONCE] = lambda operands, axes: (ONCE.bind(*operands), *axes)
mlir.register_lowering(ONCE, lambda context, x: [x])
mlir.register_lowering(ONCE, mlir.lower_fun(lambda x: _over_one(x, x), multiple_results=False), "cpu")


def stream(x: Array) -> Array:
    """A sum to which more is added later, computed once, as is its cotangent.

    For XLA's CPU compiler, which takes a sum to be so cheap that each block of a transformer computes anew what its
    norm reads, and its own cotangent, from the terms that all blocks after it have added: 32 blocks move 1.7 times the
    bytes, and take 1.25 times as long. And as it doesn't do so in every block, kernels differ between blocks, and are
    compiled for each: eight blocks take 1.2 times as long to compile. (tests/test_cost.py.)
    """
    return once(with_cotangent_once(x))


@jax.custom_vjp
def with_cotangent_once(x: Array) -> Array:
    """`x`, whose cotangent is computed once, and not again for each sum that it is a term of."""
    return x


def _save_nothing(x: Any) -> tuple[Array, None]:
    return x.value, None


def _pull_once(_: None, cotangent: Any) -> tuple[Any]:
    is_zero = isinstance(cotangent, SymbolicZero)  # known to be, so that nothing before it is computed
    return (None if is_zero else once(cotangent),)


with_cotangent_once.defvjp(_save_nothing, _pull_once, symbolic_zeros=True)


def batch_of_one(x: Array) -> Array:
    """An example as a batch of one, computed once; integers and truth values, which aren't divided, as they are.

    For XLA's CPU compiler, which makes the added axis part of each kernel that reads the example, so that kernels of a
    network's first block are like no other block's. Without it eight blocks take 1.08 times as long to compile.
    (tests/test_cost.py.)
    """
    return once(x[None]) if jnp.issubdtype(x.dtype, jnp.inexact) else x[None]


def summed_first(products: Array) -> Array:
    """The sum of products over their first axis.

    For XLA's CPU compiler (jaxlib 0.10.2), which hands products that are summed over one of many axes, some of them of
    length 1, to a library that ends the process. There it is a product with ones. (tests/test_moments.py, which runs a
    program that crashed.)
    """
    return lax.platform_dependent(products, cpu=_by_ones, default=partial(jnp.sum, axis=0))


def _by_ones(products: Array) -> Array:
    return jnp.tensordot(jnp.ones(len(products), products.dtype), products, 1, precision="highest")


def _over_one(x: Array, other: Array) -> Array:
    """`x`, divided by a 1 that XLA can't constant-fold; NaN where `other` is."""
    ones = jnp.ones_like(other)
    # Held between 1 and 1. Eight blocks of a transformer compile in 0.8 of the time that they take with a choice, which
    # complex numbers need, having no order.
    one = lax.select(jnp.isnan(other), other, ones) if jnp.iscomplexobj(other) else lax.clamp(ones, other, ones)
    return lax.div(x, one.astype(x.dtype))


def with_channels_last(fun: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function as the body of a loop should have it: with convolutions whose channels come last.

    For XLA's CPU compiler, which arranges convolutions for its fast kernels only outside of loops. Inside, those of
    backward passes, with their kernels' channels the other way round, take longer: BPNet and a small CNN with
    `reference_batch_size=1`, 2.2 to 4 times as long. (tests/test_loops.py.)
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue] (what is seen step by step stays)
        return fun

    def arranged(x: Any) -> Any:
        closed, shape = jax.make_jaxpr(fun, return_shape=True)(x)
        leaves = evaluate_inlined(
            closed.jaxpr, closed.consts, jax.tree.leaves(x), is_layer, dict.fromkeys(CONVOLUTIONS, channels_last)
        )
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return arranged


def channels_last(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    """A convolution, in programs for CPUs by way of one with the axes batch, places, channels; of its kernel, places,
    inputs, outputs.
    """
    as_it_is = partial(versions.bind, eqn)
    return lax.platform_dependent(operands, cpu=partial(_with_channels_last, eqn), default=as_it_is)


def _with_channels_last(eqn: JaxprEqn, operands: Sequence[Array]) -> list[Array]:
    numbers = eqn.params["dimension_numbers"]
    places, last = tuple(range(1, operands[0].ndim - 1)), operands[0].ndim - 1
    (lhs, rhs), out = (numbers.lhs_spec, numbers.rhs_spec), numbers.out_spec
    x = lax.transpose(operands[0], (lhs[0], *lhs[2:], lhs[1]))
    kernel = lax.transpose(operands[1], (*rhs[2:], rhs[1], rhs[0]))
    axes = (0, last, *places)
    arranged = lax.ConvDimensionNumbers(axes, (last, last - 1, *range(last - 1)), axes)
    [y] = versions.bind(eqn.replace(params=eqn.params | {"dimension_numbers": arranged}), [x, kernel])
    return [lax.transpose(y, [axis for _, axis in sorted(zip(out, axes, strict=True))])]
