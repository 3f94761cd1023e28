"""In which order a platform's compiler has the pairs of examples and references best.

Seen with the compilers of jaxlib 0.10.2 for a TPU v5e and for an H100. (tests/test_traffic.py asks them;
tests/test_compilers.py shows that the programs of other platforms are free of it.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxlift._batching.loops import map_over, shape_of_one
from jaxlift._batching.partial_evaluation import BOTH, Traced, eqns_by_need, staged
from jaxlift._core import versions
from jaxlift._core.compilers import CONVOLUTIONS, is_waiting, on_cpus, when_lowered
from jaxlift._core.interpreter import needed
from jaxlift._core.rewriting import with_each_equation
from jaxlift._core.versions import JaxprEqn

Way = Callable[[Traced, Any, Any], Any]
"""Takes a comparison, all examples and all references."""


def without_waiting(jaxpr: Any) -> Any:
    """The jaxpr of a comparison, for as many of these as there are examples or references.

    For the TPU's compiler: multipliers are no more then than the residuals, so nothing needs to wait for its cotangent.
    With 160 examples and one reference BPNet moves 1.09 times the bytes otherwise, a transformer 1.36 times.
    (tests/test_traffic.py.)
    """
    return with_each_equation(jaxpr, _not_waiting, lambda eqn: eqn.primitive in versions.JIT)


def _not_waiting(eqn: JaxprEqn) -> JaxprEqn:
    return on_cpus(eqn) if is_waiting(eqn) else eqn


Arrangement = Literal["in turn", "as rows", "pulled as rows"]


def arrangements(jaxpr: Any, count: int, n: int, r: int) -> dict[str, Arrangement]:
    """How platforms should have all pairs, given the jaxpr of a comparison; others have them all at once.

    Args:
        count: how many of the jaxpr's inputs are of an example, and not of a reference.
    """
    found: dict[str, Arrangement | None] = {
        "tpu": arrangement_on_tpus(jaxpr, n, r),
        "cuda": arrangement_on_gpus(jaxpr, count),
    }
    return {platform: arrangement for platform, arrangement in found.items() if arrangement}


def arrangement_on_tpus(jaxpr: Any, n: int, r: int) -> Arrangement | None:
    """How a TPU should have all pairs.

    Its compiler lays out the examples of a convolution along the last axis of its tiles. There pairs are badly off: as
    two axes they fill the tiles badly, and as one that is made of two they are copied from one layout to the other at
    each layer. So examples that fill the tiles had better be alone there, with one reference after the other; and
    fewer, where what they make leaves the chip. What stays on the chip is better off as rows that are pairs from
    the beginning: a forward pass for each pair is cheaper there than copies at each layer.
    """
    if not versions.has_any(jaxpr, CONVOLUTIONS):
        return None
    leaves_the_chip = n * r * _waiting_bytes(jaxpr) > ON_CHIP
    return "in turn" if n >= LANES or leaves_the_chip else "as rows"


def arrangement_on_gpus(jaxpr: Any, count: int) -> Arrangement | None:
    """How a GPU should have all pairs.

    Its compiler tries how to cut what is computed with a sum, such as a norm's, into tiles: each length along each axis
    with each of every other. So one axis of pairs is compiled in a fraction of the time that two of examples and of
    references take. What the forward passes keep of an example, or of a reference, is repeated for all of its pairs by
    the kernel that reads it, and so never lies in memory; but what a loop or a window reads would. These programs keep
    both axes.
    """
    if versions.has_any(jaxpr, LOOPS_AND_WINDOWS):
        return None
    jaxpr = versions.opened(jaxpr)[0]
    of_pairs = eqns_by_need(jaxpr.replace(eqns=needed(jaxpr, jaxpr.outvars)), count)[0][BOTH]
    return "pulled as rows" if any(map(_is_sum, versions.nested(of_pairs))) else None


LOOPS_AND_WINDOWS = frozenset(
    versions.primitives("scan", "while", "reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
)
SUMS = frozenset(versions.primitives("reduce_sum"))


def _is_sum(eqn: JaxprEqn) -> bool:
    """Whether an equation sums more than one element. (What adds an axis of length 1 is transposed to a sum of one.)"""
    return eqn.primitive in SUMS and prod(versions.shape(eqn.invars[0])) > prod(versions.shape(eqn.outvars[0]))


# Of a tile of a TPU, and what a v5e keeps on the chip.
LANES, ON_CHIP = 128, 2**27


def as_rows(compare: Traced, first: Any, reference: Any, *, average: bool, spread: tuple[str, ...]) -> Any:
    """Comparisons `(N, R, ...)` of all examples with all references, or their means `(N, ...)` over these, each pair a
    row of one batch from the beginning.
    """
    compare = replace(compare, jaxpr=without_waiting(compare.jaxpr))
    return _over_rows(compare, first, reference, average, spread)


def pulled_as_rows(compare: Traced, first: Any, reference: Any, *, average: bool, spread: tuple[str, ...]) -> Any:
    """The same where only backward passes are of pairs: forward passes are of examples, and of references."""
    stages = staged(compare, shape_of_one(first), shape_of_one(reference))
    kept = map_over(stages.on_first, first, None, spread), jax.vmap(stages.on_second)(reference)
    return _over_rows(stages.joint, *kept, average, spread)


def _over_rows(fun: Callable[[Any, Any], Any], first: Any, second: Any, average: bool, spread: tuple[str, ...]) -> Any:
    """`fun` of each row of two batches with each of the other, or the means over the second, as rows of one batch."""
    n, r = (len(jax.tree.leaves(each)[0]) for each in (first, second))
    pairs = (
        jax.tree.map(lambda leaf: jnp.repeat(leaf, r, 0), first),
        jax.tree.map(lambda leaf: jnp.tile(leaf, (n, *(1,) * (leaf.ndim - 1))), second),
    )
    found = map_over(lambda pair: fun(*pair), pairs, None, spread)
    found = jax.tree.map(lambda leaf: leaf.reshape(n, r, *leaf.shape[1:]), found)
    return jax.tree.map(lambda leaf: leaf.mean(1), found) if average else found


def arranged(
    compare: Traced,
    first: Any,
    reference: Any,
    all_at_once: Way,
    in_turn: Way,
    *,
    average: bool,
    spread: tuple[str, ...],
) -> Any:
    """Comparisons of all examples with all references, arranged as each platform has them best.

    On TPUs, traffic of jax.grad's: BPNet with 128 examples, 0.6 for each further reference in place of 2; 8 examples
    with 20 references, 1.2 in place of 1.9; the paper's MNIST network, 128 examples with two references, 1.5 in place
    of 7.8, and 8 with 20, as rows, 2.0 in place of 4.3. For an H100, a transformer with 8 examples and 20 references is
    compiled in 6 seconds in place of 26, and moves 5% more. (tests/test_traffic.py.)

    Args:
        all_at_once: the way of other platforms; and for several GPUs, over which examples may be spread, and references
            over others: no axis of pairs can be spread like both.
        in_turn: the way that takes one reference after the other.
        average: whether means over references are wanted, `(N, ...)`, in place of `(N, R, ...)`.
        spread: the axes of a mesh over which the model spreads examples.
    """
    n, r = (len(jax.tree.leaves(each)[0]) for each in (first, reference))
    ways = {
        "in turn": in_turn,
        "as rows": partial(as_rows, average=average, spread=spread),
        "pulled as rows": partial(pulled_as_rows, average=average, spread=spread),
    }
    if any(map(versions.is_spread_by_type, jax.tree.leaves((first, reference)))):  # two such axes don't become one
        ways |= {"as rows": in_turn, "pulled as rows": all_at_once}
    found = arrangements(compare.jaxpr, len(jax.tree.leaves(first)), n, r)
    own = {platform: ways[how] for platform, how in found.items() if ways[how] is not all_at_once}
    if not own:
        return all_at_once(compare, first, reference)
    return _by_platform(own, all_at_once, compare, first, reference, (n,) if average else (n, r))


def _by_platform(
    ways: Mapping[str, Way], all_at_once: Way, compare: Traced, first: Any, reference: Any, axes: tuple[int, ...]
) -> Any:
    """Comparisons in the ways of some platforms, and all at once elsewhere; their results have those axes besides."""
    inner, consts = versions.opened(compare.jaxpr)
    bare = replace(compare, jaxpr=compare.jaxpr.replace(consts=[None] * len(consts)))
    leaves, structure = jax.tree.flatten((list(consts), first, reference))
    types = [var.aval.update(shape=(*axes, *versions.shape(var))) for var in inner.outvars]

    def by(way: Way) -> Callable[..., list[Any]]:
        # Traced later, and so given all arrays, tracers among them: it must hold none.
        def made(*leaves: Any) -> list[Any]:
            consts, first, reference = jax.tree.unflatten(structure, leaves)
            return jax.tree.leaves(way(replace(bare, jaxpr=bare.jaxpr.replace(consts=consts)), first, reference))

        return made

    # The types above say nothing of effects, and of shardings only that there are none.
    is_plain = not inner.effects and all(jax.typeof(leaf).sharding.mesh.empty for leaf in leaves)

    def later(platform: str) -> Any:
        made = by(ways[platform])
        on_several = by(all_at_once) if platform == "cuda" else None  # TPUs go their way on slices, too
        found = when_lowered(made, types, *leaves, on_several=on_several) if is_plain else made(*leaves)
        return jax.tree.unflatten(compare.structure, found)

    own = {platform: partial(later, platform) for platform in ways}
    return lax.platform_dependent(**own, default=lambda: all_at_once(compare, first, reference))


def _waiting_bytes(jaxpr: Any) -> int:
    """The size of all cotangents that residuals wait for: about that of a comparison's multipliers."""
    total = 0
    for eqn in versions.opened(jaxpr)[0].eqns:
        if is_waiting(eqn):
            total += prod(versions.shape(eqn.invars[0])) * versions.dtype(eqn.invars[0]).itemsize
        elif eqn.primitive in versions.JIT:
            total += _waiting_bytes(eqn.params["jaxpr"])
    return total
