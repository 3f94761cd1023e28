"""Shapley values by moments: the gradient of a mean, with which random players come in, in their probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift import _moments as _moments  # importing it fills the table
from jaxlift._arguments import check_count, check_key, check_option
from jaxlift._core import versions
from jaxlift._core.differences import where
from jaxlift._core.interpreter import MissingRule
from jaxlift._core.precision import products_at
from jaxlift._core.table import MissingRuleError
from jaxlift._explainer import Explainer, Method
from jaxlift._moments.interpreter import Interpreter
from jaxlift._moments.values import Moments, Owned, Players
from jaxlift._options import Options, takes
from jaxlift.methods.shapley import groups_of, shared_in_groups, with_main_effects

PLAYERS = 16  # whose second derivatives are taken at once


@dataclass(frozen=True, kw_only=True, eq=False)
class ShapleyMomentsOptions(Options):
    """The options of `shapley_moments`.

    Attributes:
        groups: which elements come in together, as for `shapley`: for one-hot sequences `(L, 4)` the positions are
            ``np.arange(L)[:, None]``.
        interactions: whether to return the interactions of pairs of groups, as for `shapley`.
        nodes: at how many probabilities the gradient is taken, one after the other in a batch: 3 for networks of many
            small effects, 5 where few players have large ones.
        probes: how many vectors of random signs estimate at each node how values covary.
        samples: how often these are drawn, 2 at least, for the mean and its standard error. None draws them once.
        key: the random key of the signs; `jax.random.key(0)` if left out. All examples see the same.
        missing_rule: what happens where an operation has no formula for moments. ``"derivative"``: a warning that names
            it; it is taken to be linear around the mean, and truth values and integers, such as places, to be what they
            are there. ``"raise"``: an error.
    """

    groups: Any = None
    interactions: bool = False
    nodes: int = 3
    probes: int = 1
    samples: int | None = None
    key: Array | None = None
    missing_rule: MissingRule = "derivative"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("nodes", self.nodes)
        check_count("probes", self.probes)
        check_option("missing_rule", self.missing_rule, MissingRule)
        if self.samples is not None:
            check_count("samples", self.samples, least=2)
        if self.key is not None:
            check_key(self.key)


@takes(ShapleyMomentsOptions)
def shapley_moments(fun: Callable[..., Any], options: ShapleyMomentsOptions) -> Explainer:
    r"""Make the function that approximates Shapley values by a few gradients, not thousands of forward passes.

    Let each player be in at random, `z_i` with probability `p_i`, and `F(p) = E f(r + \sum_i z_i d_i)`: the multilinear
    extension of the game. Along its diagonal are the Shapley values (Owen 1972, doi 10.1287/mnsc.18.5.64),

    .. math:: \phi_i = \int_0^1 \frac{\partial F}{\partial p_i}(t, \dots, t)\, dt

    Drawing the players is one way to have `F`; here the mean and the variance of each value of the program are computed
    as functions of `p`, and differentiated: one backward pass is for all players. Values that depend on one player are
    exact. Where players meet, a value is taken to be normal with its mean and variance, and they pass

    - linear maps with the weights, and with their squares: exact in the mean;
    - pointwise functions by their expectations, ReLU and its like in closed form, the rest by 7 Gauss-Hermite nodes;
    - maxima in pairs (Clark 1961), products by the first two moments, softmax by a logistic-normal approximation, and
      loops and branches as the operations that they hold.

    What a variance for each value misses is how values covary, as those of overlapping windows do. So vectors of random
    signs `e_i` are carried along, `s = \sqrt{t (1 - t)} e_i d_i` through linear maps and times the mean derivative
    through others, with what nonlinearities add beside it. Each `s^2` is an unbiased but noisy estimate of a variance;
    over a layer the noise averages out. Each variance is multiplied by a factor of its own, shrunk to the layer's by as
    much as 16 probes are worth. Factors have no gradient.

    `\phi_i = \sum_k w_k G_{ki}` at Gauss-Legendre nodes `t_k`. What is missing to the difference is added in proportion
    to `A_i = \sum_k w_k |G_{ki}|`: the least change where the error of each contribution has a variance proportional to
    its size. Where all of these are 0, as of a step that no node is near, there is nothing to share the difference by:
    contributions are 0, and with ``full=True`` `delta` is what is missing.

    >>> import jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.shapley_moments(lambda x: jnp.maximum(x @ jnp.array([1.0, 1.0, -1.0]), 0.0))
    >>> attr(jnp.array([[2.0, 1.0, 1.0]]), reference=jnp.zeros(3)).sum().round(5)
    Array(2., dtype=float32)

    With `interactions` the matrix is that of `shapley`: the interaction index of two players is the integral of the
    second derivative, `I_{ij} = \int_0^1 \partial^2 F / \partial p_i \partial p_j (t, \dots, t)\, dt`, here at the same
    nodes, whose weights it takes as they are. It costs as much as a gradient for each player. Second derivatives err
    more than first ones: in small networks of ReLUs by a third of the length of all pairs. More nodes don't mend that,
    for those near 0 and 1, where little varies, are the worst.

    It is an approximation, and its limits are these. It is biased: the distance to Shapley values is .1 to .2 of their
    length in convolutional and dense networks, and more probes hardly make it less. It can be .4 behind gates and
    normalisations, and .7 of attention, where Rescale is nearer. Where few players make a value it is not
    normal. With one probe, layers of few units, and products of two values, are noisy: draws differ, and `samples`
    says by how much, but the standard error knows nothing of the bias. Derivatives of the scores themselves take the
    calibration for a constant. Each node costs about 3 to 5 times a gradient.

    Args:
        fun: the model, as for `attribute`. Other than there, the input may be integers, such as tokens.

    Returns:
        `attr(*args, reference=...)`, as from `attribute`. The elements of a group share its contribution equally; with
        `interactions` scores are `(N, n, n)`, for n groups. With `samples` and ``full=True`` the result has the scores'
        standard error over draws of the signs.

    Raises:
        ValueError, TypeError: as from `attribute`; from `attr`, if the groups don't fit the input.
        MissingRuleError: from `attr`, if the model has an operation that has neither a formula nor a derivative; with
            ``missing_rule="raise"``, no formula.
    """

    def explain(fun: Callable[[Any], Array], x: Any, reference: Any) -> Any:
        group_of, n = groups_of(options.groups, x)
        y, y_ref = fun(x), fun(reference)
        dtype = jnp.result_type(float)
        at, weight = np.polynomial.legendre.leggauss(options.nodes)
        at, weight = jnp.asarray((at + 1) / 2, dtype), jnp.asarray(weight / 2, dtype)
        # Inside of `jax.shard_map` each device has its own probabilities: of what all have, derivatives are summed.
        at = versions.varied_over(versions.axes_of_map(y), at)
        closed = jax.make_jaxpr(fun)(x)
        linearised: dict[str, None] = {}

        def mean(p: Array, signs: Array) -> Array:
            """The mean of the output where each player is in with a probability of its own."""
            interpreter = Interpreter(Players(p, signs), options.missing_rule, options.precision, (), linearised)
            inputs = jax.tree.map(lambda x, r, g: Owned(x, r, g.astype(np.int32)), x, reference, group_of)
            with products_at(options.precision):
                [out] = interpreter.evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(inputs))
                out = interpreter.moments(out)
            if isinstance(out, Moments):
                return out.mean
            if linearised:
                raise MissingRuleError(
                    "the output depends on the input by choices alone, which have no moments: "
                    f"{', '.join(linearised)}. Explain a score that goes up and down, such as a logit, or use "
                    "jaxlift.shapley with samples=, which calls the model as it is."
                )
            return jnp.asarray(out)

        def gradient(p: Array, signs: Array, weights: Array) -> Array:
            _, pull = jax.vjp(lambda p: mean(p, signs), p)
            return pull(weights.astype(y.dtype))[0]

        def slopes(t: Array, signs: Array, weights: Array) -> Array:
            """The second derivatives, a player's after the other's."""
            _, along = jax.linearize(lambda p: gradient(p, signs, weights), jnp.full(n, t))
            each = versions.varied_over(versions.axes_of_map(t), jnp.eye(n, dtype=dtype))
            return lax.map(along, each, batch_size=PLAYERS)

        def of_players(key: Array, weights: Array) -> Array:
            signs = jax.random.rademacher(key, (options.nodes, options.probes, n), dtype)
            gradients = jax.vmap(lambda t, signs: gradient(jnp.full(n, t), signs, weights))(at, signs)
            weighted = weight[:, None] * gradients
            found, sizes = weighted.sum(0), jnp.abs(weighted).sum(0)
            largest = sizes.max()
            shares = sizes / where(largest > 0, largest, 1)  # whose sum stays within the range
            missing = (weights * (y - y_ref)).sum() - found.sum()
            found += missing * (shares / where(largest > 0, shares.sum(), 1))
            if not options.interactions:
                return found
            pairs = jax.vmap(slopes, (0, 0, None))(at, signs, weights)
            return with_main_effects(jnp.tensordot(weight, pairs, 1), found)

        def shared(found: Array) -> Any:
            return found.astype(y.dtype) if options.interactions else shared_in_groups(found, group_of, y.dtype)

        def pull(weights: Array) -> Any:
            key = jax.random.key(0) if options.key is None else options.key
            if options.samples is None:
                found = shared(of_players(key, weights))
            else:
                keys = jax.random.split(key, options.samples)
                each = lax.map(lambda key: of_players(key, weights), keys)
                error = each.std(0, ddof=1) / len(keys) ** 0.5
                found = shared(each.mean(0)), shared(error)
            if linearised:
                warnings.warn(
                    f"shapley_moments has no formula for the moments of {', '.join(linearised)}. The contributions sum "
                    "to the difference all the same, but for an output that nothing else moves. To have an error "
                    "instead, say missing_rule='raise'.",
                    stacklevel=2,
                )
            return found

        return (y, y_ref), pull

    has_error = options.samples is not None
    method = Method("shapley_moments", explain, gives="contributions", is_differentiated=False, has_error=has_error)
    return Explainer(fun, method, options)
