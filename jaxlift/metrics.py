"""How good an attribution is. Every metric takes scores, or attribution functions, of any method.

All of them take a batch and return a number (or a curve) for each example, and can be jitted and vmapped. `fun` is a
batched model, `(N, ...) -> (N, K)` or `(N,)`, and `target` says which of its outputs is meant, as for
`jaxlift.attribute`: None if there is one, an int, ints `(N,)`, weights `(K,)` or `(N, K)`, or a function of the
outputs. The input `x` is an array `(N, ...)` or a pytree of such arrays, and scores have its structure.

Scores that are NaN have no order: the metrics of such an example are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxlift._arguments import check_count, check_model, checked_input, checked_reference, number_of_examples
from jaxlift._explainer import Attribution
from jaxlift._targets import Target, aim_of_each, checked_target, weights_of
from jaxlift.wrappers import check_size, draw_like, keys_of_samples, mean_in_turn

Model = Callable[[Any], Any]


def deletion(fun: Model, x: Any, scores: Any, *, reference: Any, steps: int, target: Target = None) -> Array:
    """Outputs while the features are replaced by the reference's, those of the highest scores first.

    >>> import jax.numpy as jnp, jaxlift
    >>> x = jnp.array([[1.0, 4.0, 2.0]])
    >>> jaxlift.metrics.deletion(lambda x: x.sum(1), x, x, reference=jnp.zeros(3), steps=3)
    Array([[7., 3., 1., 0.]], dtype=float32)

    The deletion curve of Petsiuk et al. 2018 (arXiv 1806.07421, section 4.1), the perturbation of the most relevant
    first of Samek et al. 2017 (arXiv 1509.06321). The better the scores, the faster the output falls; `area` makes one
    number of it.

    Args:
        fun, target: the model and its output.
        x: the input, `(N, ...)`. It may hold integers, such as tokens.
        scores: signed scores like `x`, or with length 1 along some axes but the first. Features are then what has one
            score: `(N, H, W, 1)` erases whole pixels of an image `(N, H, W, C)`. Equal scores keep the array's order.
        reference: what takes the features' place: one `(...)` for all, or each example's own `(N, ...)`.
        steps: in how many steps, at most as many as there are features. After step s, `s * features // steps` are
            replaced.

    Returns:
        `(N, steps + 1)`: the outputs for the input, after each step, and (the last) for the reference.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, or there are fewer features than steps.
        TypeError: if the scores or outputs aren't floating-point numbers.
    """
    x, scores, reference = _read(x, scores, reference)
    return _curve(fun, x, reference, scores, steps, target)


def insertion(fun: Model, x: Any, scores: Any, *, reference: Any, steps: int, target: Target = None) -> Array:
    """Outputs while the features are put into the reference, those of the highest scores first.

    >>> import jax.numpy as jnp, jaxlift
    >>> x = jnp.array([[1.0, 4.0, 2.0]])
    >>> jaxlift.metrics.insertion(lambda x: x.sum(1), x, x, reference=jnp.zeros(3), steps=3)
    Array([[0., 4., 6., 7.]], dtype=float32)

    The insertion curve of Petsiuk et al. 2018 (arXiv 1806.07421, section 4.1). The better the scores, the faster the
    output rises. Arguments and errors are those of `deletion`; the first output is the reference's, the last the
    input's.
    """
    x, scores, reference = _read(x, scores, reference)
    return _curve(fun, reference, x, scores, steps, target)


def area(curve: Array) -> Array:
    """The area under a curve `(..., steps + 1)` over the unit interval, by the trapezoidal rule.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.area(jnp.array([[0.0, 4.0, 6.0, 7.0]]))
    Array([4.5], dtype=float32)

    The steps count as equally wide, as they are where `steps` divides the number of features.

    Raises:
        ValueError: if the curve has fewer than two points.
    """
    curve = jnp.asarray(curve)
    if curve.shape[-1:] < (2,):
        raise ValueError(f"a curve must have at least two points on its last axis, but its shape is {curve.shape}.")
    return jnp.trapezoid(curve, axis=-1) / (curve.shape[-1] - 1)


def infidelity(
    fun: Model,
    x: Any,
    multipliers: Any,
    *,
    perturbation: float | Array | Callable[[Array, Any], Any],
    key: Array,
    samples: int = 100,
    target: Target = None,
) -> Array:
    r"""How far multipliers are from saying what perturbations of the input do to the output; 0 is best.

    .. math:: \mathrm{E}_I \big[ \big( I \cdot m - (f(x) - f(x - I)) \big)^2 \big]

    Definition 2.1 of Yeh et al. 2019 (arXiv 1901.09392). The samples run one after the other.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun, x = lambda x: x @ jnp.array([1.0, -2.0]), jnp.ones((3, 2))
    >>> multipliers = jaxlift.attribute(fun, output="multipliers")(x, reference=jnp.zeros(2))
    >>> jaxlift.metrics.infidelity(fun, x, multipliers, perturbation=0.5, key=jax.random.key(0)).round(5).tolist()
    [0.0, 0.0, 0.0]

    Args:
        fun, target: the model and its output.
        x: the input, floating-point arrays `(N, ...)`.
        multipliers: scores like `x` per unit of the input: `attribute(..., output="multipliers")`, or a gradient. Those
            times a difference, contributions, must be divided by it first. (Quantus multiplies the perturbation with
            whatever it is given. Captum does too, but its `infidelity_perturb_func_decorator(True)` divides the
            perturbation by the difference, and so takes contributions.)
        perturbation: the standard deviation of Gaussian `I`, in the input's units: a number, or an array that
            broadcasts to `x`. Or a function `(key, x) -> I`, with `I` like `x`: for the difference from a noisy
            reference, `lambda key, x: x - reference - noise * jax.random.normal(key, x.shape)`.
        key: a PRNG key.
        samples: the number of perturbations.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes or structures don't fit, the batch is empty, or there are no samples.
        TypeError: if something isn't made of floating-point numbers.
    """
    x = checked_input(x)
    n = number_of_examples(x)
    multipliers = _checked_scores(x, multipliers, "the multipliers")
    _check_shapes("the multipliers", x, multipliers)
    keys = keys_of_samples(key, samples)
    if not callable(perturbation):
        check_size("perturbation", perturbation)
    original = _aimed(fun, x, n, target)

    def squared_error(key: Array) -> Array:
        if callable(perturbation):
            change = perturbation(key, x)
            _check_shapes("what perturbation(key, x) returns", x, change)
        else:
            change = draw_like(jax.random.normal, key, x, "perturbation", perturbation)
        said = _summed(jax.tree.map(jnp.multiply, change, multipliers))
        return (said - (original - _aimed(fun, jax.tree.map(jnp.subtract, x, change), n, target))) ** 2

    return mean_in_turn(squared_error, keys)


def sensitivity(
    attr: Callable[..., Any],
    x: Any,
    *,
    radius: float | Array,
    key: Array,
    reference: Any = None,
    samples: int = 50,
    relative: bool = False,
) -> Array:
    r"""How much an attribution changes, at most, if its input changes a little; 0 is best.

    .. math:: \max_{\|y - x\|_\infty \le \rho} \|\phi(y) - \phi(x)\|_2

    Definition 3.1 of Yeh et al. 2019 (arXiv 1901.09392), estimated by inputs `y` drawn uniformly, one after the other.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> attr = jaxlift.attribute(lambda x: x.sum(1))
    >>> change = jaxlift.metrics.sensitivity(
    ...     attr, jnp.ones((1, 4)), reference=jnp.zeros(4), radius=0.1, key=jax.random.key(0)
    ... )
    >>> bool(0.05 < change[0] < 0.2)
    True

    Args:
        attr: an attribution function, `attr(x)` or `attr(x, reference=...)`, that returns scores alone, `(N, ...)` or a
            pytree of such arrays.
        x: the input, floating-point arrays `(N, ...)`.
        radius: the largest change of a number of `x`; or an array of them that broadcasts to `x`.
        key: a PRNG key.
        reference: passed on to `attr`, unless it is None.
        samples: the number of inputs that are tried.
        relative: whether to divide by the norm of the attribution at `x`, as Captum and Quantus do. An attribution of
            zeros then has the sensitivity infinity, or NaN if it remains zeros.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes don't fit, the batch is empty, or there are no samples.
        TypeError: if the input isn't made of floating-point numbers.
    """
    x = checked_input(x)
    n = number_of_examples(x)
    keys = keys_of_samples(key, samples)
    check_size("radius", radius)
    explain = attr if reference is None else partial(attr, reference=reference)
    scores = explain(x)
    if isinstance(scores, Attribution):
        raise ValueError("sensitivity takes an attribution function that returns scores alone: leave out full=True.")
    for leaf in jax.tree.leaves(scores):
        if leaf.shape[:1] != (n,):
            raise ValueError(
                f"the scores must begin with the batch's axis, of length {n}, but have shape {leaf.shape}."
            )
    uniform = partial(jax.random.uniform, minval=-1, maxval=1)

    def norm(tree: Any) -> Array:
        return jnp.sqrt(_summed(jax.tree.map(jnp.square, tree)))

    def further(largest: Array, key: Array) -> tuple[Array, None]:
        moved = jax.tree.map(jnp.add, x, draw_like(uniform, key, x, "radius", radius))
        return jnp.maximum(largest, norm(jax.tree.map(jnp.subtract, explain(moved), scores))), None

    size = norm(scores)
    largest, _ = lax.scan(further, jnp.zeros_like(size), keys)
    return largest / size if relative else largest


def log_odds_change(
    fun: Model,
    x: Any,
    scores: Any,
    *,
    reference: Any,
    original: int | Array | np.ndarray,
    target: int | Array | np.ndarray,
    count: int,
) -> Array:
    """How far erasing the features that speak for one class and against another moves the log-odds to the other.

    The task of DeepLIFT's section 4.1 and Figure 4 (arXiv 1704.02685): to turn an image of the class `original` into
    one of the class `target`, up to `count` features are erased whose score is positive, the highest first. Returned
    is the increase of the log-odds of `target` against `original`, `y[target] - y[original]`, on the erased input over
    the input itself. (So it is the log-odds of `original` against `target` before, less those after.) The higher the
    better.

    >>> import jax, jax.numpy as jnp, jaxlift
    >>> fun = lambda x: x @ jnp.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    >>> x = jnp.ones((1, 3))
    >>> scores = jaxlift.attribute(fun, target=jnp.array([1.0, -1.0]))(x, reference=jnp.zeros(3))
    >>> jaxlift.metrics.log_odds_change(fun, x, scores, reference=jnp.zeros(3), original=0, target=1, count=1)
    Array([2.], dtype=float32)

    Args:
        fun: the model, `(N, ...) -> (N, K)`. It must return logits: their difference is the log-odds.
        x: the input, `(N, ...)`.
        scores: the scores for `original` less those for `target`, like `x` or as `deletion` takes them. One call makes
            them: `attribute(fun, target=one_hot(original, K) - one_hot(target, K))`.
        reference: what takes the features' place (zeros in the paper): one `(...)`, or each example's own `(N, ...)`.
        original, target: the two classes; an int, or ints `(N,)`.
        count: how many features are erased at most; in the paper 157 of 784, 20%.

    Returns:
        `(N,)`.

    Raises:
        ValueError: if shapes, structures or classes don't fit, the batch is empty, or `count` is negative.
        TypeError: if the scores or outputs aren't floating-point numbers.
    """
    x, scores, reference = _read(x, scores, reference)
    n = number_of_examples(x)
    check_count("count", count, least=0)

    def log_odds(x: Any) -> Array:
        y = _outputs(fun, x, n)
        if y.ndim != 2:
            raise ValueError(f"the model must return logits (N, K) of classes, but its output has shape {y.shape}.")
        return _weighted(y, target) - _weighted(y, original)

    erased = jax.tree.map(lambda rank, scores: (rank < count) & (scores > 0), _ranks(scores), scores)
    return _unless_nan(scores, log_odds(jax.tree.map(jnp.where, erased, reference, x)) - log_odds(x))


def rank_agreement(a: Any, b: Any) -> Array:
    """Spearman's rank correlation of two attributions, for each example.

    >>> import jax.numpy as jnp, jaxlift
    >>> jaxlift.metrics.rank_agreement(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[-1.0, 5.0, 6.0]]))
    Array([1.], dtype=float32)

    Equal scores share the mean of their ranks. It takes O(F log F) for F scores.

    Args:
        a, b: scores `(N, ...)`, arrays or pytrees of one structure and with equal shapes.

    Returns:
        `(N,)`, from -1 to 1; NaN where all scores are equal, which have no order.

    Raises:
        ValueError: if shapes or structures don't fit, or the batch is empty.
        TypeError: if the scores aren't floating-point numbers.
    """
    a = _checked_scores(a, a, "the first scores")
    b = _checked_scores(a, b, "the second scores")
    number_of_examples(a)
    _check_shapes("the second scores", a, b)
    dtype = jnp.result_type(*jax.tree.leaves((a, b)))
    p, q = (_centred_ranks(_flat(tree)).astype(jnp.promote_types(dtype, jnp.float32)) for tree in (a, b))
    # At most 1, so that the sums of F squares stay within any range.
    p, q = p / p.shape[1], q / q.shape[1]
    correlation = (p * q).sum(1) / jnp.sqrt((p * p).sum(1) * (q * q).sum(1))
    return _unless_nan((a, b), correlation).astype(dtype)


def _curve(fun: Model, start: Any, end: Any, scores: Any, steps: int, target: Target) -> Array:
    """The outputs on the way from one input to another, by descending scores."""
    n, features = _flat(scores).shape
    if not 1 <= steps <= features:
        raise ValueError(f"steps={steps} must be between 1 and the number of features, {features}.")
    ranks = _ranks(scores)

    def after(count: Array) -> Array:
        return _aimed(fun, jax.tree.map(lambda rank, a, b: jnp.where(rank < count, b, a), ranks, start, end), n, target)

    counts = [step * features // steps for step in range(steps + 1)]
    return _unless_nan(scores, lax.map(after, jnp.array(counts)).T)


def _ranks(scores: Any) -> Any:
    """The place of each score in its example's descending order, from 0, in the scores' structure."""
    leaves, structure = jax.tree.flatten(scores)
    ranks = jnp.argsort(jnp.argsort(_flat(scores), axis=1, descending=True), axis=1)
    pieces = jnp.split(ranks, np.cumsum([leaf[0].size for leaf in leaves])[:-1], axis=1)
    return jax.tree.unflatten(
        structure, [piece.reshape(leaf.shape) for piece, leaf in zip(pieces, leaves, strict=True)]
    )


def _centred_ranks(flat: Array) -> Array:
    """Twice the ranks of `(N, F)`, equal ones at their mean, less the mean of all.

    Where `l` numbers are less than one and `u` aren't greater, those equal to it have the ranks `l` to `u - 1`, counted
    from 0: their mean is `(l + u - 1) / 2`, and that of all is `(F - 1) / 2`. These are whole numbers.
    """
    ordered = jnp.sort(flat, axis=1)
    less, not_greater = (jax.vmap(partial(jnp.searchsorted, side=side))(ordered, flat) for side in ("left", "right"))
    return less + not_greater - flat.shape[1]


def _flat(tree: Any) -> Array:
    """All numbers of each example, `(N, F)`."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)


def _summed(tree: Any) -> Array:
    """The sum over all numbers of each example, `(N,)`."""
    return reduce(jnp.add, (leaf.sum(range(1, leaf.ndim)) for leaf in jax.tree.leaves(tree)))


def _unless_nan(scores: Any, result: Array) -> Array:
    """The result `(N, ...)`, NaN for examples with a score that is."""
    bad = reduce(
        jnp.logical_or, (jnp.isnan(leaf).reshape(leaf.shape[0], -1).any(1) for leaf in jax.tree.leaves(scores))
    )
    return jnp.where(jnp.expand_dims(bad, range(1, result.ndim)), jnp.nan, result)


def _outputs(fun: Model, x: Any, n: int) -> Array:
    """What the model returns for a batch of n, if that is one floating-point array with their outputs."""
    check_model(fun)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(fun(x))]
    shapes = [leaf.shape for leaf in leaves]
    if len(leaves) != 1 or shapes[0][:1] != (n,):
        raise ValueError(
            f"the model must return one array of {n} rows for a batch of {n}, but it returns the shapes {shapes}. "
            "Choose among several in a function of your own, such as `lambda x: model(x)['logits']`."
        )
    if not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        raise TypeError(f"the model's output has dtype {leaves[0].dtype}: it must return scores or logits.")
    return leaves[0]


def _aimed(fun: Model, x: Any, n: int, target: Target) -> Array:
    """The output of each example, `(N,)`, that the target says."""
    if callable(target):
        return _weighted(_outputs(lambda x: target(fun(x)), x, n), None)
    return _weighted(_outputs(fun, x, n), target)


def _weighted(y: Array, target: Any) -> Array:
    """The target's sum of outputs, for each example."""
    if isinstance(target, str):
        raise ValueError(f"target={target!r} must be None, an int, an array, or a function of the outputs.")
    target = checked_target(target)
    one = jax.ShapeDtypeStruct(y.shape[1:], y.dtype)
    aim = aim_of_each(target, y.shape[0], lambda: one)

    def of_example(y: Array, aim: Array | None) -> Array:
        weights = weights_of(y, target if aim is None else aim, normalize=False)
        # An output that isn't asked for may be infinite.
        return jnp.where(weights == 0, 0, weights * y).sum()

    return jax.vmap(of_example)(y, aim)


def _read(x: Any, scores: Any, reference: Any) -> tuple[Any, Any, Any]:
    """Input, scores and the reference of each example as arrays that broadcast, or the error that says why not."""
    x = checked_input(x, is_differentiated=False)
    number_of_examples(x)
    scores = _checked_scores(x, scores, "the scores")
    for leaf, of_leaf in zip(jax.tree.leaves(x), jax.tree.leaves(scores), strict=True):
        fits = of_leaf.ndim == leaf.ndim and of_leaf.shape[0] == leaf.shape[0]
        if not fits or any(a not in (1, b) for a, b in zip(of_leaf.shape, leaf.shape, strict=True)):
            raise ValueError(
                f"scores of shape {of_leaf.shape} don't fit an input of shape {leaf.shape}: expected the same shape, "
                "or length 1 along axes whose features go together, as in scores.sum(-1, keepdims=True)."
            )
    reference = checked_reference(x, reference)

    def of_each(leaf: Array, reference: Array) -> Array:
        if reference.shape not in (leaf.shape, leaf.shape[1:]):
            raise ValueError(
                f"a reference of shape {reference.shape} doesn't fit an input of shape {leaf.shape}: expected one for "
                "all (...), or each example's own (N, ...)."
            )
        return jnp.broadcast_to(reference, leaf.shape)

    return x, scores, jax.tree.map(of_each, x, reference)


def _checked_scores(x: Any, scores: Any, name: str) -> Any:
    """Scores as floating-point arrays in the structure of `x`, or the error that says what they are."""
    if isinstance(scores, Attribution):
        scores = scores.scores
    scores = jax.tree.map(jnp.asarray, scores)
    structure, other = jax.tree.structure(x), jax.tree.structure(scores)
    if structure != other:
        raise ValueError(f"{name} must have the structure {structure}, but have {other}.")
    for leaf in jax.tree.leaves(scores):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point numbers, but have dtype {leaf.dtype}.")
    return scores


def _check_shapes(name: str, x: Any, other: Any) -> None:
    """Raise the error for arrays that aren't of the shapes of `x`."""
    expected, shapes = (jax.tree.map(jnp.shape, tree) for tree in (x, other))
    if expected != shapes:
        raise ValueError(f"{name} must have the shapes {expected}, but have {shapes}.")
