"""In which order a platform's compiler has the pairs of examples and references best.

Seen with the compilers of jaxlib 0.10.2 for a TPU v5e. (tests/test_traffic.py asks them; tests/test_compilers.py shows
that the programs of other platforms are free of it.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxlift._batching.loops import map_over
from jaxlift._batching.partial_evaluation import Traced
from jaxlift._core import versions
from jaxlift._core.compilers import CONVOLUTIONS, is_waiting, on_cpus, when_lowered
from jaxlift._core.rewriting import with_each_equation
from jaxlift._core.versions import JaxprEqn

T = TypeVar("T")


def without_waiting(jaxpr: Any) -> Any:
    """The jaxpr of a comparison, for as many of these as there are examples or references.

    For the TPU's compiler: multipliers are no more then than the residuals, so nothing needs to wait for its cotangent.
    With 160 examples and one reference BPNet moves 1.09 times the bytes otherwise, a transformer 1.36 times.
    (tests/test_traffic.py.)
    """
    return with_each_equation(jaxpr, _not_waiting, lambda eqn: eqn.primitive in versions.JIT)


def _not_waiting(eqn: JaxprEqn) -> JaxprEqn:
    return on_cpus(eqn) if is_waiting(eqn) else eqn


def arrangement_on_tpus(jaxpr: Any, n: int, r: int) -> Literal["in turn", "as rows"] | None:
    """How a TPU should have all pairs, given the jaxpr of a comparison; None if as other platforms do.

    Its compiler lays out the examples of a convolution along the last axis of its tiles. There pairs are badly off: as
    two axes they fill the tiles badly, and as one that is made of two they are copied from one layout to the other at
    each layer. So examples that fill the tiles had better be alone there, with one reference after the other; and
    fewer, where what they make leaves the chip. What stays on the chip is better off as rows that are pairs from
    the beginning: a forward pass for each pair is cheaper there than copies at each layer.
    """
    if not versions.has_product(jaxpr, CONVOLUTIONS):
        return None
    leaves_the_chip = n * r * _waiting_bytes(jaxpr) > ON_CHIP
    return "in turn" if n >= LANES or leaves_the_chip else "as rows"


# Of a tile of a TPU, and what a v5e keeps on the chip.
LANES, ON_CHIP = 128, 2**27


def as_rows(compare: Traced, first: Any, reference: Any, *, average: bool, spread: tuple[str, ...]) -> Any:
    """Comparisons `(N, R, ...)` of all examples with all references, or their means `(N, ...)` over these, each pair a
    row of one batch.
    """
    n, r = (len(jax.tree.leaves(each)[0]) for each in (first, reference))
    compare = replace(compare, jaxpr=without_waiting(compare.jaxpr))
    pairs = (
        jax.tree.map(lambda leaf: jnp.repeat(leaf, r, 0), first),
        jax.tree.map(lambda leaf: jnp.tile(leaf, (n, *(1,) * (leaf.ndim - 1))), reference),
    )
    found = map_over(lambda pair: compare(*pair), pairs, None, spread)
    found = jax.tree.map(lambda leaf: leaf.reshape(n, r, *leaf.shape[1:]), found)
    return jax.tree.map(lambda leaf: leaf.mean(1), found) if average else found


def arranged_on_tpus(
    on_tpus: Callable[[Traced, Any, Any], T],
    all_at_once: Callable[[Traced, Any, Any], T],
    compare: Traced,
    first: Any,
    reference: Any,
    axes: tuple[int, ...],
) -> T:
    """Pairs on TPUs as `arrangement_on_tpus` says, and elsewhere all at once.

    Traffic of jax.grad's: BPNet with 128 examples, 0.6 for each further reference in place of 2; 8 examples with 20
    references, 1.2 in place of 1.9; the paper's MNIST network, 128 examples with two references, 1.5 in place of 7.8,
    and 8 with 20, as rows, 2.0 in place of 4.3. (tests/test_traffic.py.)

    Args:
        on_tpus, all_at_once: what arranges a comparison of all examples with all references.
        axes: the lengths of those axes of its results that a result of one comparison doesn't have.
    """
    inner, consts = versions.opened(compare.jaxpr)
    bare = replace(compare, jaxpr=compare.jaxpr.replace(consts=[None] * len(consts)))
    leaves, structure = jax.tree.flatten((list(consts), first, reference))
    types = [var.aval.update(shape=(*axes, *versions.shape(var))) for var in inner.outvars]

    # Traced later, and so given all arrays, tracers among them: it must hold none.
    def made(*leaves: Any) -> list[Any]:
        consts, first, reference = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves(on_tpus(replace(bare, jaxpr=bare.jaxpr.replace(consts=consts)), first, reference))

    def for_tpus() -> T:
        # The types above say nothing of effects, and of shardings only that there are none.
        is_plain = not inner.effects and all(jax.typeof(leaf).sharding.mesh.empty for leaf in leaves)
        found = when_lowered(made, types, *leaves) if is_plain else made(*leaves)
        return jax.tree.unflatten(compare.structure, found)

    return lax.platform_dependent(tpu=for_tpus, default=lambda: all_at_once(compare, first, reference))


def _waiting_bytes(jaxpr: Any) -> int:
    """The size of all cotangents that residuals wait for: about that of a comparison's multipliers."""
    total = 0
    for eqn in versions.opened(jaxpr)[0].eqns:
        if is_waiting(eqn):
            total += prod(versions.shape(eqn.invars[0])) * versions.dtype(eqn.invars[0]).itemsize
        elif eqn.primitive in versions.JIT:
            total += _waiting_bytes(eqn.params["jaxpr"])
    return total
