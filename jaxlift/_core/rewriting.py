"""Jaxprs with some of their equations changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxlift._core import versions
from jaxlift._core.versions import ClosedJaxpr, Jaxpr, JaxprEqn


def with_each_equation(
    jaxpr: Any, change: Callable[[JaxprEqn], JaxprEqn], enters: Callable[[JaxprEqn], bool] = lambda eqn: True
) -> Any:
    """The same jaxpr with its equations changed, and those of what it calls; a jaxpr that is called twice stays one.

    Args:
        jaxpr: open or closed.
        change: what becomes of an equation that calls nothing, or that isn't entered.
        enters: which equations that call something are entered.
    """
    known: dict[int, tuple[Any, Any]] = {}  # by identity, with what has it, which so stays alive

    def changed(value: Any) -> Any:
        """Of a jaxpr, or of another parameter of an equation."""
        if isinstance(value, tuple | list) and any(isinstance(each, Jaxpr | ClosedJaxpr) for each in value):
            return type(value)(map(changed, value))
        if not isinstance(value, Jaxpr | ClosedJaxpr):
            return value
        if id(value) not in known:
            known[id(value)] = value, versions.with_eqns(value, list(map(changed_eqn, versions.opened(value)[0].eqns)))
        return known[id(value)][1]

    def changed_eqn(eqn: JaxprEqn) -> JaxprEqn:
        if enters(eqn) and versions.jaxprs_of(eqn):
            return eqn.replace(params={name: changed(value) for name, value in eqn.params.items()})
        return change(eqn)

    return changed(jaxpr)
