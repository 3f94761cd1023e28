"""Values on the way of a pointwise function that more of the program reads: an activation's, which a norm squares first
and divides then.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from jaxlift._core.values import Node, Pending, postorder


def value_on_the_way(pending: Pending) -> Pending | None:
    """The last value before this one that all of its function is a function of, if others read that too."""
    ahead, readers = {id(pending.node)}, Counter[int]()
    for node in reversed(_steps(pending.node)):
        ahead.discard(id(node))
        value = node.value
        if not ahead and node is not pending.node and value is not None and value.readers > readers[id(node)]:
            # `jaxlift.check` explains functions of copies, of which no equation of the program made a value.
            return value if value.of is pending.of else None
        operands = {id(operand) for operand in node.operands if operand is None or isinstance(operand, Node)}
        ahead |= operands
        readers.update(operands)
    return None


def steps_after(inner: Node, last: Node) -> Node:
    """The steps after an inner one, up to the last, as those of a function of the inner one's value."""
    made: dict[int, Node | None] = {id(inner): None}
    outer = last
    for node in _steps(last, inner):
        operands = tuple(made[id(operand)] if isinstance(operand, Node) else operand for operand in node.operands)
        made[id(node)] = outer = Node(node.eqn, operands, node.scope)
    return outer


def _steps(last: Node, argument: Node | None = None) -> list[Node]:
    """The steps up to the last, each after those that it reads; none before the argument, if that is one."""

    def read(item: Any) -> Any:
        return () if item is argument else getattr(item, "operands", ())

    return [item for item in postorder([last], read) if isinstance(item, Node) and item is not argument]
