"""What joint evaluation carries for a value of the program.

A value that doesn't depend on the explained input is a plain array. One that does is a `Varying`: its value, its
reference and its variation. Until something that isn't elementwise asks for it, it may also be `Pending`: an
elementwise function, of any number of primitives, of one `Varying`. And until something that isn't linear asks for it
it may be `Masked`: with infinite numbers where the data says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxlift._core import versions
from jaxlift._core.differences import magnitude
from jaxlift._core.versions import JaxprEqn, dtype


class Fraction(NamedTuple):
    """A value as `c / S`: a constant, None if it is 1, over a value that varies."""

    scale: Any
    divisor: Varying


@dataclass(eq=False)
class Varying:
    """A value `x`, its reference `r`, and the variation `a = D+ - D-` of the difference `D = x - r = D+ + D-`.

    Attributes:
        value: the value at the explained input. If it is a number, its derivative in the explained input is the
            multiplier.
        reference: the value at the reference input, of the same shape and dtype.
        make_variation: computes the variation when a rule first asks for it: under Rescale, never. None where the
            variation starts anew, as `|D|`.
        fed_by: the kinds of linear map (``"dense"``, ``"conv"``) that feed this value, the nearest on each path.
        make_carrier: for integers and truth values, which have no derivative, computes the number that carries the
            multipliers in their place, when a rule first asks for it.
        origin: what larger maps are recognised by, such as that this is a sum of exponentials, or a shifted value.
        is_alone: whether there is no reference, because the rule doesn't compare with one.
        is_masked: whether large numbers stand in it for infinite ones, which the data puts there. Beside differences as
            large, parts would be rounding.
        make_fraction: finds out, when a product first asks, whether this is the reciprocal of another value: then the
            product is a quotient.
        find_low: finds out, when a quotient first asks, what the value is known not to lie below.
    """

    value: Array
    reference: Array
    make_variation: Callable[[], Array] | None = field(default=None, repr=False)
    fed_by: frozenset[str] = frozenset()
    make_carrier: Callable[[], Array] | None = field(default=None, repr=False)
    origin: Any = None
    is_alone: bool = False
    is_masked: bool = False
    make_fraction: Callable[[], Fraction | None] | None = field(default=None, repr=False)
    find_low: Callable[[], float] | None = field(default=None, repr=False)

    @classmethod
    def alone(cls, value: Array, fed_by: frozenset[str] = frozenset(), origin: Any = None) -> Varying:
        """A value under a rule that compares with nothing. The reference is the value itself."""
        return cls(value, value, None, fed_by, None, origin, is_alone=True)

    @cached_property
    def variation(self) -> Array:
        """`a`, of the dtype of the difference: multipliers, of which it may be made, have the wider dtype of both ends
        of a conversion.
        """
        d = self.carrier.dtype
        # Complex numbers have no sign: whatever they are made of, their differences have no parts.
        if self.make_variation is None or jnp.iscomplexobj(self.value):
            return magnitude(self.carrier, self.reference.astype(d))
        return self.make_variation().astype(d)

    @cached_property
    def carrier(self) -> Array:
        """The array whose derivative in the explained input is the multiplier: the value, or what stands in for it."""
        return self.value if self.make_carrier is None else self.make_carrier()

    @cached_property
    def fraction(self) -> Fraction | None:
        """This value as `c / S`, if it was computed as a reciprocal."""
        return None if self.make_fraction is None else self.make_fraction()

    @cached_property
    def low(self) -> float:
        """What the value is known not to lie below on either side; minus infinity if nothing is known."""
        return -inf if self.find_low is None else self.find_low()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def is_discrete(self) -> bool:
        """Whether it is made of integers or truth values."""
        return self.make_carrier is not None

    def arrays(self, with_variation: bool) -> list[Array]:
        """What crosses a boundary that only arrays pass: both sides, and what multipliers go through besides."""
        if self.is_alone:
            return [self.value]
        if self.is_discrete:
            return [self.value, self.reference, self.carrier]
        return [self.value, self.reference, *([self.variation] if with_variation else [])]

    @classmethod
    def of_arrays(cls, arrays: Sequence[Array], fed_by: frozenset[str]) -> Varying:
        """The value of such arrays."""
        if len(arrays) == 1:
            return cls.alone(arrays[0], fed_by)
        value, reference, *more = arrays
        third = (lambda: more[0]) if more else None
        if jnp.issubdtype(value.dtype, jnp.inexact):
            return cls(value, reference, third, fed_by)
        return cls(value, reference, None, fed_by, third)


@dataclass(eq=False)
class Node:
    """One elementwise primitive, applied to constants, to other nodes, and to the one `Varying` (None).

    Attributes:
        value: the value of which it is the last step, if an equation of the program made it.
    """

    eqn: JaxprEqn
    operands: tuple[Node | Array | None, ...]
    scope: str
    value: Pending | None = field(default=None, repr=False)


@dataclass(eq=False)
class Pending:
    """The value `f(of)` of an elementwise `f`, to which no rule has been applied yet.

    Attributes:
        node: the last step of `f`.
        of: what `f` is a function of.
        settled: the same value under a rule, once something has asked for it.
        readers: how many equations of the program read it; those that do the same count once.
    """

    node: Node
    of: Varying
    settled: Varying | Array | None = None
    readers: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape


@dataclass(eq=False)
class Masked:
    """A value in which the data puts infinite numbers, as a mask before a softmax does. What that changes may be
    finite, though the difference-from-reference isn't.

    Attributes:
        finite: the value that would be here if the program put a large number in the place of each infinite one: its
            multipliers are the limit of what they are for larger and larger numbers.
        infinite: the value of the program.
    """

    finite: Varying | Pending
    infinite: Varying | Pending

    @property
    def shape(self) -> tuple[int, ...]:
        return self.infinite.shape


def count_readers(values: Iterable[Any], equations: Iterable[int]) -> None:
    """Note how many equations more read each value that waits."""
    for value, count in zip(values, equations, strict=False):
        if isinstance(value, Pending):
            value.node.value, value.readers = value, value.readers + count


Settled = Array | Varying
Value = Settled | Pending | Masked


def is_varying(value: Any) -> TypeGuard[Varying | Pending | Masked]:
    """Whether a value of the program depends on the explained input."""
    return isinstance(value, Varying | Pending | Masked)


def is_pending_step(value: Any) -> bool:
    """Whether a value is a pending function from numbers to integers or truth values."""
    return isinstance(value, Pending) and not is_inexact(value.node.eqn.outvars[0])


def key_of(value: Any) -> Any:
    """The key of a value for common-subexpression elimination: literals by value (dtype, shape and number, which tells
    0.0 from -0.0), everything else by identity.
    """
    if (number := number_of(value)) is not None:
        return str(value.dtype), value.shape, repr(number)
    return id(value)


def number_of(value: Any) -> Any:
    """The number that a literal is, or a literal of any shape is full of; None of other values."""
    if isinstance(value, np.ndarray) and (value.size == 1 or (value.size and not any(value.strides))):
        return value.flat[0].item()
    return None


# What NumPy does to numbers as XLA does, to the last bit.
OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "neg": np.negative, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


def signature_of(eqn: JaxprEqn) -> Any:
    """A key, equal for equations that do the same to operands of the same types. One with effects has no equal."""
    types = tuple(map(_type, (*eqn.invars, *eqn.outvars)))
    return (id(eqn) if eqn.effects else eqn.primitive), key_of_params(eqn), types


def key_of_params(eqn: JaxprEqn) -> Any:
    """The parameters of an equation, equal where they mean the same.

    JAX traces functions with a derivative of their own at each call. Of JAX's own the derivatives depend on nothing
    else than the function and what was traced.
    """
    if versions.has_derivative_of_jax(eqn):
        inner, _ = versions.inner_jaxpr(eqn)
        return versions.name_of_traced(inner), tuple(map(signature_of, inner.eqns))
    return tuple(eqn.params.items())


def _type(atom: Any) -> Any:
    """The type of a variable; of a literal the number, too."""
    if isinstance(atom, versions.Literal):
        return str(versions.dtype(atom)), repr(np.asarray(atom.val).tolist())
    return atom.aval


def is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


def postorder(roots: Iterable[Any], children: Callable[[Any], Iterable[Any]]) -> list[Any]:
    """Every distinct object of a graph once, children first. No recursion: these graphs may be deep."""
    order: dict[int, Any] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        item, entered = stack.pop()
        if id(item) in order:
            continue
        if entered:
            order[id(item)] = item
        else:
            stack.append((item, True))
            stack.extend((child, False) for child in reversed(list(children(item))))
    return list(order.values())


def both_sides(operands: Sequence[Value]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Settled operands at the input, and at the reference."""
    return (
        tuple(o.value if isinstance(o, Varying) else o for o in operands),
        tuple(o.reference if isinstance(o, Varying) else o for o in operands),
    )


def on_each_side(eqn: JaxprEqn, operands: Sequence[Value]) -> list[tuple[Array, Array]]:
    """The outputs of an equation on the values and on the references of its operands."""
    if any(isinstance(operand, Varying) and operand.is_alone for operand in operands):
        return [(output, output) for output in versions.bind(eqn, both_sides(operands)[0])]
    return list(zip(*(versions.bind(eqn, side) for side in both_sides(operands)), strict=True))


def is_inexact(value: Any) -> bool:
    """Whether a value, variable or literal is made of numbers that can carry multipliers."""
    return jnp.issubdtype(_dtype(value), jnp.inexact)


def is_complex(value: Any) -> bool:
    """Whether a value, variable or literal is made of complex numbers."""
    return jnp.issubdtype(_dtype(value), jnp.complexfloating)


def carrier_dtype(value: Any = None) -> Any:
    """The dtype of what carries a value's multipliers: its own, or for integers and truth values the default one."""
    return _dtype(value) if value is not None and is_inexact(value) else jnp.result_type(float)


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else versions.dtype(value)


def with_carrier(
    value: Callable[[], Array],
    reference: Array,
    carrier: Callable[[], Array],
    fed_by: frozenset[str],
    variation: Callable[[], Array] | None = None,
) -> Varying:
    """A value whose multipliers the carrier has. Numbers are their own carrier; integers have theirs beside them."""
    if is_inexact(reference):
        return Varying(carrier(), reference, variation, fed_by)
    return Varying(value(), reference, None, fed_by, carrier)


def as_number(operand: Varying, dtype: Any = None) -> Varying:
    """Integers or truth values as the numbers that carry their multipliers, of this dtype."""
    if not operand.is_discrete:
        return operand
    carrier = operand.carrier.astype(dtype or operand.carrier.dtype)
    return Varying(carrier, operand.reference.astype(carrier.dtype), None, operand.fed_by)


def broadcast(operand: Varying, output: versions.Var) -> Varying:
    """An operand at the shape of an elementwise primitive's output; primitives take scalars and axes of size 1 as they
    are.
    """

    def at_shape(array: Array) -> Array:
        return versions.broadcast_to(array, output)

    return Varying(
        at_shape(operand.value),
        at_shape(operand.reference),
        lambda: at_shape(operand.variation),
        operand.fed_by,
        (lambda: at_shape(operand.carrier)) if operand.is_discrete else None,
    )


def feeds(operands: Sequence[Value]) -> frozenset[str]:
    """The linear maps that feed any of the operands."""
    return frozenset().union(*(o.fed_by for o in operands if isinstance(o, Varying)))


class Packing:
    """Values, taken apart into arrays to cross a boundary that only arrays pass: `jax.checkpoint`, loops, `jax.jit`.

    What two values share on this side they share on the other, so a function that spans the boundary remains one
    function.

    Attributes:
        items: all that the values are made of.
        arrays: what crosses the boundary.
        key: equal for values that are made in the same way, so that what one packing makes of arrays another does too.
    """

    def __init__(self, values: Sequence[Value], with_variations: bool, shared: Sequence[Any] = ()) -> None:
        """`shared`: items that the other side has already, and gives when the values are made again."""
        given = {id(item) for item in shared}
        found = postorder(values, lambda item: () if id(item) in given else _children(item))
        own = [item for item in found if id(item) not in given]
        self.items: list[Any] = [*shared, *own]
        index = {id(item): i for i, item in enumerate(self.items)}
        arrays = [_arrays(item, with_variations) for item in own]
        wanted = [index[id(value)] for value in values]
        self.arrays = [array for each in arrays for array in each]
        self.key = (len(shared), tuple(wanted), *(_key_of_item(item, index) for item in own))
        # These outlive the values of a trace, and must not hold them.
        counts, makers = [len(each) for each in arrays], [_maker(item, index) for item in own]

        def made(arrays: Sequence[Array], shared: Sequence[Any] = ()) -> list[Any]:
            remaining, items = iter(arrays), list(shared)
            for make, count in zip(makers, counts, strict=True):
                items.append(make([next(remaining) for _ in range(count)], items))
            return items

        self.made = made
        self.chosen: Callable[[Sequence[Any]], list[Value]] = lambda items: [items[i] for i in wanted]


def pack(
    values: Sequence[Value], with_variations: bool
) -> tuple[list[Array], Callable[[Sequence[Array]], list[Value]]]:
    """Take values apart into arrays.

    Returns:
        the arrays, and a function that makes such values of other such arrays.
    """
    packing = Packing(values, with_variations)
    made, chosen = packing.made, packing.chosen
    return packing.arrays, lambda arrays: chosen(made(arrays))


def _children(item: Any) -> Sequence[Any]:
    match item:
        case Pending():
            return item.of, item.node
        case Masked():
            return item.finite, item.infinite
        case Node():
            return [operand for operand in item.operands if operand is not None]
    return ()


def _arrays(item: Any, with_variations: bool) -> list[Array]:
    match item:
        case Varying():
            return item.arrays(with_variations)
        case jax.Array():
            return [item]
    return []


def _maker(item: Any, index: dict[int, int]) -> Callable[[list[Array], list[Any]], Any]:
    """How to make an item again, of its own arrays and of what was made before. Keeps nothing traced of the old one."""
    match item:
        case Varying(fed_by=fed_by):
            return lambda own, made: Varying.of_arrays(own, fed_by)
        case Node(eqn=eqn, scope=scope):
            operands = [None if operand is None else index[id(operand)] for operand in item.operands]
            return lambda own, made: Node(eqn, tuple(None if i is None else made[i] for i in operands), scope)
        case Pending():
            node, of = index[id(item.node)], index[id(item.of)]
            return lambda own, made: Pending(made[node], made[of])
        case Masked():
            finite, infinite = index[id(item.finite)], index[id(item.infinite)]
            return lambda own, made: Masked(made[finite], made[infinite])
        case jax.Array():
            return lambda own, made: own[0]
    return lambda own, made: item  # a literal


def _key_of_item(item: Any, index: dict[int, int]) -> Any:
    """What equal items have in common. `_maker` knows no more of an item than this and its arrays."""
    match item:
        case Varying():
            return item.is_discrete, item.is_alone, item.fed_by
        case Node(eqn=eqn, scope=scope):
            dtypes = tuple(str(dtype(atom)) for atom in (*eqn.invars, *eqn.outvars))
            operands = tuple(None if operand is None else index[id(operand)] for operand in item.operands)
            return eqn.primitive, tuple(eqn.params.items()), dtypes, operands, scope
        case Pending() | Masked():
            return type(item), *(index[id(child)] for child in _children(item))
        case jax.Array():
            return None
    return key_of(item)
