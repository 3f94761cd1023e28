"""Models that say over which devices a batch is spread, by `jax.lax.with_sharding_constraint`.

Each example is a batch of one, which can't be spread. What the model says of it is meant of all examples, and so of the
axis that `jax.vmap` adds. Left where it is it would use up the mesh's axis, and each device would compute all examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from jaxlift._core import versions
from jaxlift._core.rewriting import with_each_equation
from jaxlift._core.versions import JaxprEqn

SHARDING_CONSTRAINTS = frozenset(versions.primitives("sharding_constraint"))


def with_examples_spread(jaxpr: Any) -> tuple[Any, tuple[str, ...]]:
    """The jaxpr of one example whose constraints leave axes of size 1 to the compiler, and the axes of the mesh over
    which they spread these; but for those that a constraint names for another axis, which no array can have twice.
    """
    constraints = list(_constraints(jaxpr))
    of_batches = [names for eqn in constraints for i, names in _spread(eqn) if _is_single(eqn, i)]
    if not of_batches:
        return jaxpr, ()
    elsewhere = {name for eqn in constraints for i, names in _spread(eqn) if not _is_single(eqn, i) for name in names}
    common = set(of_batches[0]).intersection(*of_batches) - elsewhere
    return with_each_equation(jaxpr, _undivided), tuple(name for name in of_batches[0] if name in common)


def _constraints(jaxpr: Any) -> Iterator[JaxprEqn]:
    """Those by named axes of a mesh, in a jaxpr and in what it calls."""
    for eqn in versions.nested(versions.opened(jaxpr)[0].eqns):
        if eqn.primitive in SHARDING_CONSTRAINTS and isinstance(eqn.params["sharding"], NamedSharding):
            yield eqn


def _spread(eqn: JaxprEqn) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The axes that a constraint spreads over devices, each with the axes of the mesh."""
    for i, names in enumerate(eqn.params["sharding"].spec):
        if names is not None and names is not PartitionSpec.UNCONSTRAINED:
            yield i, names if isinstance(names, tuple) else (names,)


def _is_single(eqn: JaxprEqn, axis: int) -> bool:
    return versions.shape(eqn.invars[0])[axis] == 1


def _undivided(eqn: JaxprEqn) -> JaxprEqn:
    """An equation that leaves axes of size 1 to the compiler."""
    if eqn.primitive not in SHARDING_CONSTRAINTS or not isinstance(eqn.params["sharding"], NamedSharding):
        return eqn
    sharding = eqn.params["sharding"]
    free = {i for i, _ in _spread(eqn) if _is_single(eqn, i)}
    spec = [PartitionSpec.UNCONSTRAINED if i in free else names for i, names in enumerate(sharding.spec)]
    own = {"sharding": NamedSharding(sharding.mesh, PartitionSpec(*spec))}
    return eqn.replace(params=eqn.params | own | {"unconstrained_dims": eqn.params["unconstrained_dims"] | free})
