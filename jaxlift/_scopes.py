"""Name scopes for modules that open none of their own."""

from __future__ import annotations

from typing import Any

import jax


def scoped(module: Any) -> Any:
    """A copy of a Flax NNX module whose submodules open a name scope around their call, each by its path.

    By these scopes `jaxlift.PerLayer` chooses a rule for a layer. NNX modules open none; Linen's and Haiku's do. The
    module itself stays as it is, and the copy has its parameters and state.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 2, rngs=nnx.Rngs(1)))
    >>> rule = jaxlift.PerLayer(
    ...     dense="epsilon_lrp", conv="epsilon_lrp", default="epsilon_lrp", scopes={"layers/0": "z_plus_lrp"}
    ... )
    >>> jax.jit(jaxlift.attribute(jaxlift.scoped(model), rule=rule, target=0))(jnp.ones((1, 4))).shape
    (1, 4)

    A module's scope is its path from the module that calls it: ``blocks/0`` and, within, ``blocks/0/dense``.
    """
    from flax import nnx  # not needed for anything else

    copy = nnx.clone(module)
    modules = {path: own for path, own in nnx.iter_modules(copy) if callable(own)}  # lists of modules are not called
    for path, own in modules.items():
        callers = [other for other in modules if len(other) < len(path) and path[: len(other)] == other]
        if path:
            relative = path[max(map(len, callers), default=0) :]
            own.__class__ = _in_scope(type(own), "/".join(map(str, relative)))
    return copy


def _in_scope(kind: Any, scope: str) -> Any:
    class Scoped(kind):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with jax.named_scope(scope):
                return super().__call__(*args, **kwargs)

    return Scoped
