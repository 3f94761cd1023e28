"""In which order a platform's compiler has the pairs of examples and references best.

Seen with the compilers of jaxlib 0.10.2 for a TPU v5e. (tests/test_traffic.py asks them; tests/test_compilers.py shows
that the programs of other platforms are free of it.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import jax
from jax import lax

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


def is_better_in_turn(jaxpr: Any, n: int, r: int) -> bool:
    """Whether a TPU should take one reference after the other, given the jaxpr of a comparison.

    Its compiler lays out the examples of a convolution along the last axis of its tiles. There pairs are badly off: as
    two axes they fill the tiles badly, and as one they are copied from one layout to the other at each layer. So
    examples that fill the tiles had better be alone there; and fewer, where what they make leaves the chip.
    """
    return versions.has_product(jaxpr, CONVOLUTIONS) and (n >= LANES or n * r * _waiting_bytes(jaxpr) > ON_CHIP)


# Of a tile of a TPU, and what a v5e keeps on the chip.
LANES, ON_CHIP = 128, 2**27


def references_in_turn(
    in_turn: Callable[[Traced, Any, Any], T],
    all_at_once: Callable[[Traced, Any, Any], T],
    compare: Traced,
    first: Any,
    reference: Any,
    axes: tuple[int, ...],
) -> T:
    """One reference after the other on TPUs, as `is_better_in_turn` says.

    Traffic of jax.grad's: BPNet with 128 examples, 0.6 for each further reference in place of 2; 8 examples with 20
    references, 1.3 in place of 1.9; the paper's MNIST network, 128 examples with two references, 1.5 in place of 7.8.
    (tests/test_traffic.py.)

    Args:
        in_turn, all_at_once: what arranges a comparison of all examples with all references.
        axes: the lengths of those axes of its results that a result of one comparison doesn't have.
    """
    inner, consts = versions.opened(compare.jaxpr)
    leaves, structure = jax.tree.flatten((list(consts), first, reference))
    types = [var.aval.update(shape=(*axes, *versions.shape(var))) for var in inner.outvars]

    def made(*leaves: Any) -> list[Any]:
        consts, first, reference = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves(in_turn(replace(compare, jaxpr=compare.jaxpr.replace(consts=consts)), first, reference))

    def on_tpus() -> T:
        # The types above say nothing of effects, and of shardings only that there are none.
        is_plain = not inner.effects and all(jax.typeof(leaf).sharding.mesh.empty for leaf in leaves)
        found = when_lowered(made, types, *leaves) if is_plain else made(*leaves)
        return jax.tree.unflatten(compare.structure, found)

    return lax.platform_dependent(tpu=on_tpus, default=lambda: all_at_once(compare, first, reference))


def _waiting_bytes(jaxpr: Any) -> int:
    """The size of all cotangents that residuals wait for: about that of a comparison's multipliers."""
    total = 0
    for eqn in versions.opened(jaxpr)[0].eqns:
        if is_waiting(eqn):
            total += prod(versions.shape(eqn.invars[0])) * versions.dtype(eqn.invars[0]).itemsize
        elif eqn.primitive in versions.JIT:
            total += _waiting_bytes(eqn.params["jaxpr"])
    return total
