"""Functions split at a value inside them, which they name with `jax.ad_checkpoint.checkpoint_name`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax import Array
from jax.extend.core import jaxprs_in_params

from jaxlift._core import versions
from jaxlift._core.inlining import evaluate_inlined
from jaxlift._core.interpreter import needed
from jaxlift._core.table import evaluation_or_none
from jaxlift._core.versions import Jaxpr, JaxprEqn, Var
from jaxlift.primitives.calls import checkpoint, inlined

Names = str | tuple[str, ...]


def check_names(option: str, names: Any) -> None:
    """Raise the error for what isn't the name of a value, or a tuple of names."""
    if not isinstance(names, str) and not (isinstance(names, tuple) and all(isinstance(each, str) for each in names)):
        raise TypeError(
            f"{option} must be a name, or a tuple of names, of values inside of the model: got {type(names).__name__}. "
            "Name the value there, as in h = jax.ad_checkpoint.checkpoint_name(h, 'hidden'), and say "
            f"{option}='hidden'."
        )


def below(fun: Callable[..., Any], name: Names) -> Callable[..., Any]:
    """The function that computes a value inside of `fun`, and nothing that the value doesn't need.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):
    ...     hidden = checkpoint_name(jnp.tanh(x), "hidden")
    ...     return hidden.sum(-1)
    >>> jaxlift.below(model, "hidden")(jnp.zeros((1, 2)))
    Array([[0., 0.]], dtype=float32)

    The value is then an output like others, so that a neuron of it can be explained:
    ``attribute(below(model, "hidden"), target=3)``.

    Args:
        fun: a function of pytrees of arrays, which names the value with `jax.ad_checkpoint.checkpoint_name`.
        name: the name; or a tuple of names.

    Returns:
        `value(*args)`, the named value, an array; or a tuple of them.

    Raises:
        ValueError: from `value`, if no value has the name, or several have, or it is inside of a loop or a branch.
        TypeError: if the name isn't a string or a tuple of strings.
    """
    check_names("name", name)

    def value(*args: Any) -> Any:
        traced = _trace(fun, args, name)
        values = traced.run(traced.inputs, traced.named)
        return values[0] if isinstance(name, str) else tuple(values)

    return value


def above(fun: Callable[..., Any], name: Names) -> Callable[..., Any]:
    """The function that goes on from a value inside of `fun`, and doesn't compute what only leads to it.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def model(x):
    ...     hidden = checkpoint_name(jnp.tanh(x), "hidden")
    ...     return hidden.sum(-1)
    >>> x = jnp.zeros((1, 2))
    >>> jaxlift.above(model, "hidden")(jnp.ones((1, 2)), x)
    Array([2.], dtype=float32)

    Args:
        fun, name: as for `below`.

    Returns:
        `rest(value, *args)`, where `value` is an array of the named value's shape and dtype, or a tuple of them, and
        `args` are those of `fun`: what reaches the output past the named value is computed from them.

    Raises:
        ValueError: from `rest`, as from `below`; and if the value has another shape or dtype.
        TypeError: as from `below`.
    """
    check_names("name", name)

    def rest(value: Any, *args: Any) -> Any:
        traced = _trace(fun, args, name)
        values = [jnp.asarray(value)] if isinstance(name, str) else [jnp.asarray(each) for each in value]
        wanted, given = [_type(var.aval) for var in traced.named], [_type(each) for each in values]
        if wanted != given:
            raise ValueError(f"the value named {name!r} must be {', '.join(wanted)}; got {', '.join(given)}.")
        outputs = traced.run([*traced.inputs, *values], traced.jaxpr.outvars, traced.named)
        return jax.tree.unflatten(traced.structure, outputs)

    return rest


def _type(value: Any) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


@dataclass(frozen=True)
class _Traced:
    """A function's jaxpr, in which the named values are at the top level."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    inputs: Sequence[Array]
    named: Sequence[Var]
    structure: Any

    def run(self, inputs: Sequence[Any], outputs: Sequence[Any], given: Sequence[Var] = ()) -> list[Array]:
        """The values of some variables, from inputs and from given values of others."""
        eqns, invars = needed(self.jaxpr, outputs, given), [*self.jaxpr.invars, *given]
        # JAX's own evaluation keeps the lines of the user's code and the name scopes.
        return jax.core.eval_jaxpr(
            self.jaxpr.replace(eqns=eqns, invars=invars, outvars=list(outputs)), self.consts, *inputs
        )


def _trace(fun: Callable[..., Any], args: tuple[Any, ...], names: Names) -> _Traced:
    wanted = (names,) if isinstance(names, str) else names
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(*args)
    found = [name for eqn in closed.jaxpr.eqns for name in _names_in(eqn)]
    for name in wanted:
        if found.count(name) != 1:
            raise ValueError(
                f"exactly one value must be named {name!r}, with jax.ad_checkpoint.checkpoint_name(value, {name!r}), "
                f"but the function names {found.count(name)}; its names are {sorted(set(found))}."
            )
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(args)]
    is_inlined = partial(_leads_to, set(wanted))
    flat = jax.make_jaxpr(lambda leaves: evaluate_inlined(closed.jaxpr, closed.consts, leaves, is_inlined))(leaves)
    values = {eqn.params["name"]: eqn.outvars[0] for eqn in flat.jaxpr.eqns if eqn.primitive in _NAME}
    return _Traced(flat.jaxpr, flat.consts, leaves, [values[name] for name in wanted], jax.tree.structure(shape))


_NAME = versions.primitives("name")


def _names_in(eqn: JaxprEqn) -> list[str]:
    """The names that an equation gives, and those in the jaxprs that it holds."""
    if eqn.primitive in _NAME:
        return [eqn.params["name"]]
    return [name for jaxpr in jaxprs_in_params(eqn.params) for inner in jaxpr.eqns for name in _names_in(inner)]


def _leads_to(wanted: set[str], eqn: JaxprEqn) -> bool:
    """Whether an equation is a call that holds wanted names."""
    held = wanted.intersection(_names_in(eqn))
    if eqn.primitive in _NAME or not held:
        return False
    if evaluation_or_none(eqn.primitive) in (inlined, checkpoint):
        return True
    raise ValueError(
        f"the value named {min(held)!r} is inside of `{eqn.primitive.name}`, called from {versions.location(eqn)}: "
        "values in loops, in branches and in functions with a derivative of their own can't be reached. Return it "
        "from there, and name it after."
    )
