"""Layers that repeat, found again: what a Python loop over equal blocks wrote out is made calls of one function.

JAX traces each block of such a loop anew. As calls of one function they are lifted once (primitives/calls.py), and
JAX differentiates, batches and lowers them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import jax.core

from jaxlift._core import versions
from jaxlift._core.values import is_hashable, signature_of
from jaxlift._core.versions import Jaxpr, JaxprEqn, Var

# What the first block is given is often unlike what the others are, and then it is lifted for itself.
FEWEST = 3

# How many products of a block may be of one kind, as the projections of attention are.
MOST_ALIKE = 8

# How many lengths of blocks are tried, the commonest distances first: each is one pass over the equations.
MOST_LENGTHS = 64


def with_calls(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], varying: Collection[Var], *, by_scope: bool) -> list[JaxprEqn]:
    """A jaxpr's equations, in which equal blocks that follow each other, and multiply matrices or convolve, are calls.

    Args:
        eqns: those of the jaxpr's equations that are needed.
        varying: which of the jaxpr's inputs vary.
        by_scope: whether blocks in different name scopes differ.
    """
    own, held = _apart(jaxpr, eqns, varying)
    products = [i for i, eqn in enumerate(own) if versions.is_any(eqn, versions.PRODUCTS)]
    if len(products) < FEWEST:
        return list(eqns)
    kinds = _kinds(own, by_scope)
    last_use = {var: i for i, eqn in enumerate(own) for var in versions.variables(eqn.invars)}
    last_use |= dict.fromkeys(versions.variables(jaxpr.outvars), len(own))
    found: list[JaxprEqn] = []
    done = 0
    for run in _runs(kinds, products):
        if run.period == 1:  # calls already, or products alone
            continue
        if blocks := _alike(own, run, last_use):
            found += [*own[done : blocks[0].first], *_calls(jaxpr, blocks)]
            done = blocks[-1].first + run.period
    return _with_held([*found, *own[done:]], held) if found else list(eqns)


def _apart(jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], varying: Collection[Var]) -> tuple[list[JaxprEqn], list[JaxprEqn]]:
    """Equations, and apart from them those of arrays that are given and don't vary: a layer's row of stacked parameters
    is another row in each block. What is made of numbers alone stays, for a number is known as one within its block.
    """
    given = {*jaxpr.invars, *jaxpr.constvars}.difference(varying)
    own, held = list[JaxprEqn](), list[JaxprEqn]()
    for eqn in eqns:
        read = versions.variables(eqn.invars)
        if read and given.issuperset(read) and not eqn.effects:
            given.update(eqn.outvars)
            held.append(eqn)
        else:
            own.append(eqn)
    return own, held


def _with_held(eqns: Sequence[JaxprEqn], held: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """Equations, with each of those that are held before the first that needs it."""
    first_use = {var: i for i, eqn in reversed(list(enumerate(eqns))) for var in versions.variables(eqn.invars)}
    before: list[list[JaxprEqn]] = [[] for _ in (*eqns, None)]
    for eqn in reversed(held):
        at = min(first_use.get(var, len(eqns)) for var in eqn.outvars)
        before[at].append(eqn)
        first_use |= {var: min(at, first_use.get(var, at)) for var in versions.variables(eqn.invars)}
    return [each for at, eqn in zip(before, (*eqns, None), strict=True) for each in (*reversed(at), eqn) if each]


class _Run(NamedTuple):
    """Equations `first, ..., last - 1`, each of the kind of that which stands `period` before it; but for the first
    `period`.
    """

    first: int
    last: int
    period: int


def _kinds(eqns: Sequence[JaxprEqn], by_scope: bool) -> list[int]:
    """A number for each equation, equal for those that do the same to operands of the same types."""
    known: dict[Any, int] = {}
    keys = ((signature_of(eqn), str(eqn.source_info.name_stack) if by_scope else "") for eqn in eqns)
    return [known.setdefault(key if is_hashable(key) else object(), len(known)) for key in keys]


def _runs(kinds: Sequence[int], products: Sequence[int]) -> list[_Run]:
    """The longest runs of equal blocks that don't overlap, in order. A block has a product, so its length is the
    distance between two of a kind.
    """
    places: dict[int, list[int]] = {}
    for i in products:
        places.setdefault(kinds[i], []).append(i)
    distances = Counter(
        later - place
        for of_kind in places.values()
        for step in range(1, MOST_ALIKE + 1)
        for place, later in zip(of_kind, of_kind[step:], strict=False)
    )
    runs = []
    for period in (distance for distance, count in distances.most_common(MOST_LENGTHS) if count >= FEWEST - 1):
        differs = [i for i in range(period, len(kinds)) if kinds[i] != kinds[i - period]]
        for before, after in pairwise([period - 1, *differs, len(kinds)]):
            if after - before > (FEWEST - 1) * period:
                runs.append(_Run(before + 1 - period, after, period))
    chosen: list[_Run] = []
    for run in sorted(runs, key=lambda run: (run.first - run.last, run.period)):
        first, last = run.first, run.last
        for other in chosen:  # runs may reach into each other, as all end in a product and an activation
            first = other.last if other.first <= first < other.last else first
            last = other.first if other.first < last <= other.last else last
        is_free = all(last <= other.first or other.last <= first for other in chosen)
        if is_free and last - first >= FEWEST * run.period:
            chosen.append(_Run(first, last, run.period))
    return sorted(chosen)


class _Block(NamedTuple):
    """A block of equations.

    Attributes:
        first: where it begins.
        operands: the variables that it takes from elsewhere, in the order of their first use.
        reads: where each operand of each equation comes from: a literal (None), the block's own operands by number, or
            the values made in the block by (equation, output).
        made: the values made in it, each with its (equation, output).
        results: which of them are used after it, by (equation, output).
    """

    eqns: Sequence[JaxprEqn]
    first: int
    operands: Sequence[Var]
    reads: Sequence[Any]
    made: Mapping[Var, tuple[int, int]]
    results: frozenset[tuple[int, int]]


def _block(eqns: Sequence[JaxprEqn], first: int, last: int, last_use: Mapping[Var, int]) -> _Block:
    """The block of the equations `first, ..., last - 1`."""
    own = eqns[first:last]
    made = {var: (i, k) for i, eqn in enumerate(own) for k, var in enumerate(eqn.outvars)}
    operands: dict[Var, int] = {}

    def source(atom: Any) -> Any:
        if isinstance(atom, versions.Literal):
            return None
        return made[atom] if atom in made else operands.setdefault(atom, len(operands))

    reads = [source(atom) for eqn in own for atom in eqn.invars]
    results = frozenset(place for var, place in made.items() if last_use.get(var, 0) >= last)
    return _Block(own, first, list(operands), reads, made, results)


def _alike(eqns: Sequence[JaxprEqn], run: _Run, last_use: Mapping[Var, int]) -> list[_Block]:
    """The longest chain of blocks in a run whose operands come from the same places; none if it is short."""
    begin, period = _beginning(eqns, run, last_use), run.period
    blocks = [_block(eqns, i, i + period, last_use) for i in range(begin, run.last - period + 1, period)]
    longest = max((list(group) for _, group in groupby(blocks, key=lambda block: block.reads)), key=len)
    # Each takes something from the one before it, as layers do, and projections side by side don't.
    is_chain = all(not block.made.keys().isdisjoint(after.operands) for block, after in pairwise(longest))
    return longest if is_chain and len(longest) >= FEWEST else []


def _beginning(eqns: Sequence[JaxprEqn], run: _Run, last_use: Mapping[Var, int]) -> int:
    """Where a run's first block begins: blocks are cut where the fewest values go on, and so that most are whole."""
    first, last, period = run
    change = [0] * (last + 1 - first)
    for i in range(first, last):
        for var in eqns[i].outvars:
            if (use := last_use.get(var, 0)) > i:
                change[i + 1 - first] += 1
                change[min(use + 1, last) - first] -= 1
    going_on = list(accumulate(change))  # of the run's values, from before each of its equations
    whole = (last - first) // period
    return first + min(range(period), key=lambda at: (going_on[at + period], (last - first - at) // period < whole))


def _calls(jaxpr: Jaxpr, blocks: Sequence[_Block]) -> list[JaxprEqn]:
    """Blocks that read alike as calls of the first."""
    first = blocks[0]
    results = sorted(frozenset().union(*(block.results for block in blocks)))

    def results_of(block: _Block) -> list[Var]:
        return [block.eqns[i].outvars[k] for i, k in results]

    body = jaxpr.replace(eqns=list(first.eqns), constvars=[], invars=first.operands, outvars=results_of(first))

    def block(*operands: Any) -> list[Any]:
        return jax.core.eval_jaxpr(body, (), *operands)  # keeps the lines of the user's code

    call = versions.call_of(block, first.operands)
    return [call.replace(invars=list(each.operands), outvars=results_of(each)) for each in blocks]
