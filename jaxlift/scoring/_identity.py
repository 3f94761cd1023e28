"""What a run is known by: names, checksums and versions, as they stand in the metadata of a store."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import platform
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import eval_jaxpr
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxlift._targets import Held
from jaxlift._version import __version__
from jaxlift.rules import Rule


def name_of(fun: Any) -> str:
    """`package.module:function`, or that of the class of an object that is called."""
    if isinstance(fun, functools.partial):
        return name_of(fun.func)
    fun = inspect.unwrap(fun)
    named = fun if hasattr(fun, "__qualname__") else type(fun)
    return f"{named.__module__}:{named.__qualname__}"


def checksum(array: Any) -> str:
    """Of dtype, shape and numbers."""
    digest = hashlib.sha256()
    _add(digest, array)
    return digest.hexdigest()


class Model:
    """The model as the program that JAX traces of it, once: what is scored, and what the checksums are of.

    Attributes:
        description: the model's name, a checksum of its parameters (all arrays in it), and one of what it does with
            them and with a target. The latter is of the program, without what changes from one process to the next.
        outputs: shapes and dtypes of what it returns for one example.
    """

    def __init__(self, fun: Callable[..., Any], target: Any, example: jax.ShapeDtypeStruct) -> None:
        def explained(x: Any) -> Any:
            # JAX keeps traces by the identity of the function, with the arrays that it found in it. This function is
            # new, so its trace has the weights of now: those of a module or a global may have changed since another.
            outputs = target(fun(x)) if callable(target) else fun(x)
            return _checked(outputs, "target" if callable(target) else "model")

        self.program, outputs = jax.make_jaxpr(explained, return_shape=True)(example)
        self.structure, self.outputs = jax.tree.structure(outputs), outputs
        programs = [self.program]
        if isinstance(target, Held):
            rows = [jax.ShapeDtypeStruct((1, *np.shape(row)[1:]), jnp.asarray(row[:1]).dtype) for row in target.rows]
            programs.append(jax.make_jaxpr(functools.partial(_held, target))(outputs, *rows))
        parameters = hashlib.sha256()
        for array in itertools.chain.from_iterable(map(_arrays, programs)):
            _add(parameters, array)
        self.description = {
            "name": name_of(fun),
            "parameters": parameters.hexdigest(),
            "program": program_checksum(*programs),
        }

    def __call__(self, x: Any) -> Any:
        """The outputs of the model, or what its target makes of them, on a batch of one example."""
        leaves = eval_jaxpr(self.program.jaxpr, self.program.consts, x)
        return jax.tree.unflatten(self.structure, leaves)


def program_checksum(*programs: ClosedJaxpr) -> str:
    """Of what programs do, without what changes from one process to the next, and without their arrays."""
    known: dict[int, str] = {}
    return hashlib.sha256("".join(_written(program, known) for program in programs).encode()).hexdigest()


def _written(value: Any, known: dict[int, str]) -> str:
    """A parameter of an operation as text, and of a program a checksum; what is called twice is written once.

    What JAX prints says which inner programs are the same object, and what they have of a mesh. Both depend on what was
    traced before, and not on what is computed.
    """
    if isinstance(value, ClosedJaxpr) and not isinstance(value, Jaxpr):  # since JAX 0.11 there is one class of both
        return _written(value.jaxpr, known)
    if isinstance(value, tuple | list):
        return f"({', '.join(_written(each, known) for each in value)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(each, known)}' for key, each in value.items())}}}"
    if not isinstance(value, Jaxpr):
        return _without_addresses(str(value))
    if id(value) in known:
        return known[id(value)]
    numbers: dict[Any, int] = {}

    def named(v: Any) -> str:
        if isinstance(v, Literal):
            return f"{v.aval}" if np.ndim(v.val) else f"{v.val}:{v.aval}"
        return f"{numbers.setdefault(v, len(numbers))}:{v.aval}"

    lines = [" ".join(map(named, (*value.constvars, *value.invars)))]
    for eqn in value.eqns:
        params = [(name, eqn.params[name]) for name in sorted(eqn.params) if "shard" not in name and "mesh" not in name]
        of = ", ".join(f"{name}={_written(param, known)}" for name, param in params)
        lines.append(
            f"{' '.join(map(named, eqn.outvars))} = {eqn.primitive.name}[{of}] {' '.join(map(named, eqn.invars))}"
        )
    text = "\n".join([*lines, " ".join(map(named, value.outvars))])
    known[id(value)] = hashlib.sha256(text.encode()).hexdigest()
    return known[id(value)]


def uncompiled(fun: Any) -> Any:
    """What `jax.jit` or its like was given, of what it returned. What else wraps a function may change its results."""
    while hasattr(type(fun), "lower") and hasattr(fun, "__wrapped__"):
        fun = fun.__wrapped__
    return fun


def _checked(outputs: Any, what: str) -> Any:
    """Outputs that are arrays, or the error for those that aren't."""
    leaves = jax.tree.leaves(outputs)
    odd = [leaf for leaf in leaves if not isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex)]
    if odd or not leaves:
        returned = f"a {type(odd[0]).__name__}" if odd else f"{outputs!r}, without any"
        raise ValueError(f"the {what} must return arrays, (N, ...) -> (N, ...), but it returned {returned}.")
    return outputs


def _held(target: Held, outputs: Any, *rows: Any) -> tuple[Any, Any]:
    """What a held target makes of a model's outputs."""
    values = target.values(outputs, *rows)
    return values, target.weights(values, *rows)


def of_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `attribute` that the scores depend on, as JSON has them."""
    return {name: _described(options[name]) for name in sorted(options.keys() - _OWN)}


LISTED = 64  # numbers at most of a target that stand in the metadata as they are

# Scoring sets these itself, or refuses them.
_OWN = {"full", "argnums", "batch_argnums", "pairing"}


def environment(device: Any) -> dict[str, Any]:
    """What the last bits of the scores depend on."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return {**versions, "jaxlift": __version__, "device": device.device_kind, "float": jnp.zeros(()).dtype.name}


def machine() -> dict[str, str]:
    """What they don't depend on, but a reader may ask for."""
    names = ("numpy", "zarr")
    return {"python": platform.python_version(), "host": platform.node()} | {n: metadata.version(n) for n in names}


def _add(digest: Any, array: Any) -> None:
    if _is_key(array):
        array = jax.random.key_data(array)
    array = np.ascontiguousarray(array)
    digest.update(repr((array.dtype.name, array.shape)).encode())
    digest.update(array.view(np.uint8).data if array.size and array.ndim else array.tobytes())


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _arrays(jaxpr: Any) -> Iterator[Any]:
    """All arrays in a program: constants and array literals, of inner programs too."""
    yield from getattr(jaxpr, "consts", ())
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield from (v.val for v in eqn.invars if isinstance(v, Literal) and np.ndim(v.val))
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _arrays(inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _described(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Rule):
        return _without_addresses(repr(value))
    if isinstance(value, Held):
        rows = [checksum(row) for row in value.rows]
        return {
            "weights": name_of(value.weights),
            "values": name_of(value.values),
            "names": [*value.names],
            "rows": rows,
        }
    if callable(value):
        return name_of(value)
    if _is_key(value):
        return {"key": str(jax.random.key_impl(value)), "data": jax.random.key_data(value).tolist()}
    if np.size(value) > LISTED:
        return {"shape": list(np.shape(value)), "checksum": checksum(value)}
    return np.asarray(value).tolist()
