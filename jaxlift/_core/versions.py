"""Every difference between the supported JAX versions, and the public names that the rest is built on."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.extend.source_info_util
import jax.numpy
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = [
    "JIT",
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "axes_of_map",
    "bind",
    "broadcast_to",
    "call_of",
    "dtype",
    "expansion",
    "for_numbers",
    "has_any",
    "has_derivative_of_jax",
    "implementation",
    "inner_jaxpr",
    "is_any",
    "is_for_one_device",
    "is_of_jax",
    "is_spread_by_type",
    "jaxprs_of",
    "location",
    "name_of_function",
    "name_of_traced",
    "nested",
    "one_output",
    "opened",
    "primitives",
    "row",
    "row_of",
    "scan_lengths",
    "shape",
    "spread_as",
    "variables",
    "varied_over",
    "with_eqns",
]


def primitives(*names: str) -> list[Primitive]:
    """The primitives of these attribute names (without ``_p``), those that this JAX has.

    A primitive lives in `jax.lax`, in `jax.extend.core.primitives`, or in both, and some exist in one JAX version only.
    """
    homes = (jax.lax, jax.extend.core.primitives)
    found = [getattr(home, f"{name}_p", None) for name in names for home in homes]
    return list(dict.fromkeys(p for p in found if p is not None))


JIT = frozenset(primitives("jit"))
PRODUCTS = frozenset(primitives("dot_general", "conv_general_dilated"))


def has_any(jaxpr: Any, of: Collection[Primitive]) -> bool:
    """Whether a jaxpr has one of some primitives, itself or in what it calls."""
    return any(eqn.primitive in of for eqn in nested(opened(jaxpr)[0].eqns))


def is_any(eqn: JaxprEqn, of: Collection[Primitive]) -> bool:
    """Whether an equation is one of some primitives, itself or in what it calls."""
    return any(each.primitive in of for each in nested([eqn]))


def nested(eqns: Iterable[JaxprEqn]) -> Iterator[JaxprEqn]:
    """Equations, each followed by those of what it calls."""
    for eqn in eqns:
        yield eqn
        for jaxpr in jaxprs_of(eqn):
            yield from nested(opened(jaxpr)[0].eqns)


def is_for_one_device(context: Any) -> bool:
    """Whether what is being lowered is a program for one device, in the context that JAX hands to a lowering rule."""
    return getattr(context.module_context.axis_context, "num_devices", None) == 1


def inner_jaxpr(eqn: JaxprEqn) -> tuple[Jaxpr, Sequence[Any]]:
    """The jaxpr that a call-like equation holds, with its constants."""
    return opened(next(eqn.params[key] for key in ("jaxpr", "call_jaxpr", "call") if key in eqn.params))


def jaxprs_of(eqn: JaxprEqn) -> list[Any]:
    """All jaxprs among an equation's parameters."""
    return list(jax.extend.core.jaxprs_in_params(eqn.params))


def opened(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr among an equation's parameters, with its constants.

    JAX 0.10 keeps a `ClosedJaxpr` or (``checkpoint``) an open `Jaxpr`; since 0.11 there is one class of jaxpr.
    """
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def with_eqns(jaxpr: Any, eqns: Sequence[JaxprEqn]) -> Any:
    """A jaxpr among an equation's parameters, with other equations."""
    if hasattr(jaxpr, "jaxpr"):
        return jaxpr.replace(jaxpr=jaxpr.jaxpr.replace(eqns=list(eqns)))
    return jaxpr.replace(eqns=list(eqns))


def bind(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The outputs of one equation for other operands, as a list. Literals vary over the devices that the others do."""
    axes = frozenset().union(*map(axes_of_map, operands)) if any(isinstance(o, np.ndarray) for o in operands) else ()
    if axes:
        operands = [varied_over(axes, each) if isinstance(each, np.ndarray) else each for each in operands]
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def one_output(eqn: JaxprEqn, output: int) -> JaxprEqn:
    """An equation with one output, which is one of several of another's."""
    call = call_of(lambda *operands: bind(eqn, operands)[output], eqn.invars)
    return call.replace(source_info=eqn.source_info)


def call_of(fun: Callable[..., Any], like: Sequence[Any]) -> JaxprEqn:
    """An equation that calls a function, jitted, on operands of the types of these variables and literals."""
    [call] = jax.make_jaxpr(jax.jit(fun))(*(atom.aval for atom in like)).eqns
    return call


def for_numbers(eqn: JaxprEqn, number: Any) -> JaxprEqn:
    """An equation on integers or truth values, for operands of another dtype."""
    params = dict(eqn.params)
    if "preferred_element_type" in params:
        params["preferred_element_type"] = None
    combine = params.get("update_jaxpr")  # of scatters, which say what to do with numbers
    if combine is not None:
        one = jax.ShapeDtypeStruct((), number)
        traced = jax.make_jaxpr(partial(jax.core.eval_jaxpr, combine, params["update_consts"]))(one, one)
        params["update_jaxpr"] = opened(traced)[0]
    return eqn.replace(params=params)


def expansion(eqn: JaxprEqn) -> Callable[..., Any]:
    """What one of JAX 0.12's primitives of a higher level (``call_hi_primitive``) does, in others."""
    primitive = eqn.params["_prim"]
    return lambda *operands: jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, operands)))


def implementation(eqn: JaxprEqn) -> Callable[..., Any] | None:
    """What another library's primitive does, if it says so in operations of JAX. JAX's own are dispatched to XLA."""
    impl = eqn.primitive.impl
    is_of_jax = isinstance(impl, partial) or (getattr(impl, "__module__", None) or "jax").split(".")[0] == "jax"
    return None if is_of_jax else partial(impl, **eqn.params)


def broadcast_to(array: Any, like: Any) -> jax.Array:
    """An array at the shape of a variable, and spread over devices as that is, where this is part of its type."""
    return jax.numpy.broadcast_to(array, like.aval.shape, out_sharding=like.aval.sharding)


def is_spread_by_type(array: Any) -> bool:
    """Whether an array's type may say how it is spread over devices (`jax.sharding.AxisType.Explicit`)."""
    return AxisType.Explicit in jax.typeof(array).sharding.mesh.axis_types


def row_of(array: Any) -> jax.ShapeDtypeStruct:
    """The type of one row of an array. Where shardings are part of types (`jax.sharding.AxisType.Explicit`) it has that
    of the other axes.
    """
    aval = jax.typeof(array)
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec(*aval.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype, sharding=sharding, manual_axis_type=aval.manual_axis_type)


def type_of(array: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, and the axes of a mesh over which it varies."""
    aval = jax.typeof(array)
    sharding = NamedSharding(aval.sharding.mesh, PartitionSpec()) if axes_of_map(array) else None
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding, manual_axis_type=aval.manual_axis_type)


def axes_of_map(array: Any) -> frozenset[str]:
    """The axes of a mesh over which an array varies, inside of `jax.shard_map`."""
    return jax.typeof(array).manual_axis_type.varying


def varies_over_devices(atom: Any) -> bool:
    """Whether a variable varies over any axis of a mesh, inside of `jax.shard_map`."""
    return bool(atom.aval.manual_axis_type.varying)


def row(array: jax.Array, i: int) -> jax.Array:
    """One row of an array. Where rows are spread over devices, and this is part of their type, JAX must be told where
    one of them goes: to all devices.
    """
    if jax.typeof(array).sharding.spec[0] is None:
        return array[i]
    return array.at[i].get(out_sharding=row_of(array).sharding)


def spread_as(like: Any, array: Any, axes: slice = slice(None)) -> Any:
    """An array, spread over devices as another is, where shardings are part of types: in some of the axes, if not all.

    Elementwise operations need equal shardings, and what is a choice of JAX's elsewhere is an error then.
    """
    own, other = jax.typeof(array).sharding, jax.typeof(like).sharding
    spec = list(own.spec)
    spec[axes] = other.spec[axes]
    if spec == list(own.spec):
        return array
    mesh = own.mesh if other.mesh.empty else other.mesh
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*spec)))


def varied_over(axes: frozenset[str], array: Any) -> Any:
    """An array that varies, inside of `jax.shard_map`, over these axes of the mesh and its own."""
    missing = axes - axes_of_map(array)
    return jax.lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array


def scan_lengths(eqn: JaxprEqn) -> tuple[int, int]:
    """How many constants and carries a `scan` has, which come first and second among its operands."""
    if "ft_in" in eqn.params:  # since JAX 0.12
        consts, carry, _ = eqn.params["ft_in"].unpack()
        return len(consts), len(carry)
    return eqn.params["num_consts"], eqn.params["num_carry"]


def variables(atoms: Iterable[Any]) -> list[Var]:
    """The variables among a jaxpr's atoms, the others of which are literals."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def shape(atom: Any) -> tuple[int, ...]:
    """The shape of a variable or literal."""
    return atom.aval.shape


def dtype(atom: Any) -> Any:
    """The dtype of a variable or literal."""
    return atom.aval.dtype


def name_of_function(fun: Any) -> str:
    """How JAX names a Python function in the jaxpr of it: by name, file and line."""
    while hasattr(fun, "__wrapped__"):
        fun = fun.__wrapped__
    return f"{fun.__name__} at {fun.__code__.co_filename}:{fun.__code__.co_firstlineno}"


def name_of_traced(jaxpr: Jaxpr) -> str:
    """The same name, of the function that a jaxpr was traced from; "" where JAX kept none."""
    return getattr(jaxpr.debug_info, "func_src_info", None) or ""


def is_of_jax(jaxpr: Jaxpr) -> bool:
    """Whether the function that a jaxpr was traced from stands in JAX itself."""
    return f" at {JAX}" in name_of_traced(jaxpr)


def has_derivative_of_jax(eqn: JaxprEqn) -> bool:
    """Whether an equation calls a function of JAX's own that comes with its derivative."""
    return "call_jaxpr" in eqn.params and is_of_jax(inner_jaxpr(eqn)[0])


def location(eqn: JaxprEqn, within: Sequence[JaxprEqn] = ()) -> str:
    """File, line and function of the code that an equation comes from; "" where JAX kept none.

    Where that is another library's, the line of the user's code comes first that called it.

    Args:
        within: the equations that hold it, outermost first. JAX may have kept the line of one of these alone.
    """
    outwards = [eqn, *reversed(within)]
    lines = [line for each in outwards if (line := _line(each))]
    if not lines or not _is_installed(lines[0]):
        return lines[0] if lines else ""
    called = next((line for each in outwards if (line := _users_line(each))), "")
    return f"{called}, in {lines[0]}" if called else lines[0]


def _line(eqn: JaxprEqn) -> str:
    """The innermost line outside of JAX."""
    line = jax.extend.source_info_util.summarize(eqn.source_info)
    return "" if line == "unknown" else line


def _users_line(eqn: JaxprEqn) -> str:
    """The innermost line that is of no package."""
    if not _is_installed(line := _line(eqn)):
        return line
    traceback = eqn.source_info.traceback
    own = [frame for frame in (traceback.frames if traceback else ()) if not _is_installed(frame.file_name)]
    return f"{own[0].file_name}:{own[0].line_num} ({own[0].function_name})" if own else ""


def _is_installed(path: str) -> bool:
    """Whether a file belongs to a package, this one included, and not to what the user writes."""
    return path.startswith(HERE) or not PACKAGES.isdisjoint(Path(path).parts)


JAX, HERE = str(Path(jax.__file__).parent), str(Path(__file__).parents[1])
PACKAGES = frozenset(("site-packages", "dist-packages"))
